"""`openfl-audio certificates`: made all at once, or requested where the key stays and signed where the authority is."""

from pathlib import Path
from typing import ClassVar, Literal

from openfl_audio.cli.options import Command, argument, option
from openfl_audio.protocol.authority import LEAF_DAYS, LOCAL_HOSTS, write_certificates
from openfl_audio.protocol.certificate_requests import read_request, sign_request, write_request
from openfl_audio.protocol.certificates import AUTHORITY, DIRECTOR, names_of
from openfl_audio.protocol.revocation import KEEP, REVOKED, revoke

Role = Literal["director", "envoy", "user", "operator", "monitor"]


class Make(Command):
    """Make the certificates of director, envoys and people, offline.

    An authority is made once, without further options alone, and signs the others. Each machine gets ca.crt and its own
    NAME.crt and NAME.key. ca.key signs new members: it stays where it was made. The same folder takes further members
    later.
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


class Request(Command):
    """Request a certificate: make a private key, which stays here, and a file for the authority.

    Send NAME.csr to whoever has the authority, and put the answer, NAME.crt, beside the key. It has the authority's
    certificate, too.
    """

    example: ClassVar[str] = "openfl-audio certificates request site-a --role envoy --out certificates"

    name: str = argument("name of the envoy or person; director for the director")
    role: Role = option("what the certificate is for")
    out: Path = option("folder of the key and of the request")
    host: list[str] = option("names and addresses by which the director is reached", [])
    renew: bool = option("for the key that is there, before its certificate ends", False)

    def run(self) -> None:
        path = write_request(self.out, self.name, self.role, self.host, self.renew)
        print(f"wrote {path}, for the key with the fingerprint {read_request(path).fingerprint}")
        print(f"Send it to the authority, and put the answer into {self.out} as {self.name}.crt.")


class Sign(Command):
    """Sign a request with the authority in a folder.

    Compare the fingerprint with the site's on another line, such as the telephone.
    """

    example: ClassVar[str] = "openfl-audio certificates sign site-a.csr --role envoy --authority certificates"

    request: Path = argument("file of the request")
    role: Role = option("what you expect the request to be for")
    authority: Path = option(f"folder with {AUTHORITY}.crt and {AUTHORITY}.key")
    days: int = option("validity in days", LEAF_DAYS, ge=1)
    force: bool = option("sign another certificate of this name", False)

    def run(self) -> None:
        answer = sign_request(self.authority, self.request, self.role, self.days, self.force)
        request = read_request(self.request)
        hosts = f" for {', '.join(request.hosts)}" if request.hosts else ""
        print(f"signed {request.role} {request.name!r}{hosts}, key {request.fingerprint}")
        print(f"Send {answer} back: it is no secret.")


class Revoke(Command):
    """Revoke all certificates of a name.

    Director and envoys read the list again when it changes: within five seconds every call of these certificates ends.
    """

    example: ClassVar[str] = "openfl-audio certificates revoke ada --experiments stop --authority certificates"

    names: list[str] = argument("whose certificates end", metavar="NAME", nargs="*")
    authority: Path = option("folder of the authority that signed them")
    experiments: Literal["keep", "stop"] = option("what becomes of a user's experiments", KEEP)

    def run(self) -> None:
        path = revoke(self.authority, self.names, self.experiments)
        print(f"wrote {path}: copy it to the certificates of the director and of the envoys, as {REVOKED}.")
