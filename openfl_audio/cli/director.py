"""`openfl-audio director`: the director of a federation."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from openfl_audio.cli.options import Command, changes_option, option
from openfl_audio.config import load_settings, parse_change


class Director(Command):
    """Start the director of a federation.

    Envoys and notebooks connect to it, and it serves a page in the browser. The settings are those of
    director/director_config.yaml: the address to listen on, the folders of certificates and of experiments. Paths in
    them are relative to their file. Interrupted or terminated, the director leaves its experiments for the next start.
    """

    example: ClassVar[str] = "openfl-audio director -c director/director_config.yaml --set settings.listen_port=50052"

    reads_settings: ClassVar[bool] = True

    config: Path = option("YAML file of the settings", short="-c", metavar="FILE")
    set_: list[str] = changes_option("settings.listen_port=50052")
    disable_tls: bool = option("no encryption, and anybody may connect", False)
    no_page: bool = option("serve no page in the browser", False)

    @classmethod
    def settings_class(cls, given: Mapping[str, Any]) -> type[BaseModel]:
        from openfl_audio.director.server import DirectorFile

        return DirectorFile

    def run(self) -> None:
        from openfl_audio.director.server import DirectorFile, run

        settings = load_settings(self.config, DirectorFile, dict(map(parse_change, self.set_))).settings
        run(settings, tls=not self.disable_tls, with_page=not self.no_page)


class CheckDirector(Command):
    """Check a director's settings, and say what lies on its disk.

    Nothing is changed: a director may work there. The certificate is checked, experiments are listed with the bytes
    that they take, and those that the setting `retention` would remove are named.
    """

    example: ClassVar[str] = "openfl-audio check director -c director/director_config.yaml"

    config: Path = option("YAML file of the settings", short="-c", metavar="FILE")
    set_: list[str] = changes_option("settings.retention.days=30")
    disable_tls: bool = option("the director runs without certificates", False)

    def run(self) -> None:
        from openfl_audio.cli.connected import moment, print_tables, table_of
        from openfl_audio.director.check import free_bytes, stored_experiments
        from openfl_audio.director.server import DirectorFile
        from openfl_audio.protocol.certificates import load_credentials, names_of, owner_of

        settings = load_settings(self.config, DirectorFile, dict(map(parse_change, self.set_))).settings
        if not self.disable_tls:
            certificate = load_credentials(settings.certificates, "director").certificate
            names = ", ".join(names_of(certificate))
            print(f"the certificate is for {names}, until {moment(owner_of(certificate).expires)}")
        if not settings.runs.exists():
            print(f"{settings.runs} does not exist yet: the first start makes it")
            return
        stored = list(stored_experiments(settings.runs))
        ended = {each.name: each.ended for each in stored if each.has_ended}
        outdated = settings.retention.outdated(ended, time.time())
        rows = [
            [
                each.name,
                each.owner,
                each.status,
                moment(each.ended),
                f"{each.n_bytes / 1e6:.1f} MB",
                "removed" if each.name in outdated else "kept",
            ]
            for each in stored
        ]
        columns = ("name", "owner", "status", "ended or submitted", "on disk", "by retention")
        total = sum(each.n_bytes for each in stored)
        print_tables(
            table_of("Experiments", columns, rows),
            f"{len(stored)} experiments take {total / 1e6:.1f} MB in {settings.runs}; "
            f"{free_bytes(settings.runs) / 1e9:.1f} GB are free there",
            *(each.fault for each in stored if each.fault),
        )
