"""`openfl-audio certificates make`: the certificates of a federation."""

from pathlib import Path
from typing import ClassVar

from openfl_audio.cli.options import Command, option
from openfl_audio.protocol.certificates import (
    AUTHORITY,
    DIRECTOR,
    LEAF_DAYS,
    LOCAL_HOSTS,
    names_of,
    write_certificates,
)


class Make(Command):
    """Make the certificates of director, envoys and people, offline.

    An authority is made once, and signs the others. Each machine gets ca.crt and its own NAME.crt and NAME.key. ca.key
    signs new members: it stays where it was made. The same folder takes further members later.
    """

    example: ClassVar[str] = (
        "openfl-audio certificates make --out certificates --director fl.example.org \\\n"
        "      --envoy site-a site-b --user ada"
    )

    out: Path = option("folder of the certificates")
    director: list[str] | None = option(
        "sign the director for these host names and IP addresses; localhost is always among them",
        None,
        metavar="HOST",
        nargs="*",
    )
    envoy: list[str] = option("sign these envoys", [], metavar="NAME")
    user: list[str] = option("sign these users of notebooks", [], metavar="NAME")
    operator: list[str] = option(
        "sign these operators, who see, stop and delete all experiments and submit none", [], metavar="NAME"
    )
    monitor: list[str] = option("sign these monitors, who see all experiments and no model", [], metavar="NAME")
    days: int = option("validity in days", LEAF_DAYS, ge=1)
    force: bool = option("replace certificates that exist, but never the authority", False)

    def run(self) -> None:
        written = write_certificates(
            self.out,
            director_hosts=self.director,
            envoys=self.envoy,
            users=self.user,
            operators=self.operator,
            monitors=self.monitor,
            days=self.days,
            force=self.force,
        )
        for path in written:
            print(f"wrote {path}")
        if self.director is not None:
            names = names_of((self.out / f"{DIRECTOR}.crt").read_bytes())
            print(f"{DIRECTOR}.crt is for {', '.join(names)}: envoys and notebooks reach the director by one of these.")
            if set(names) <= set(LOCAL_HOSTS):
                print("For a director on another machine give its names: --director fl.example.org 192.0.2.7 --force")
        print(f"Copy {AUTHORITY}.crt and its own .crt and .key to each machine; {AUTHORITY}.key stays here.")
