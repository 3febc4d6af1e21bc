"""`openfl-audio director`: the director of a federation."""

from pathlib import Path
from typing import ClassVar

from openfl_audio.cli.options import Command, changes_option, option
from openfl_audio.config import load_settings, parse_change


class Director(Command):
    """Start the director of a federation, which envoys and notebooks connect to.

    The settings are those of director/director_config.yaml: the address to listen on, the folders of certificates and
    of experiments. Paths in them are relative to their file. Interrupted or terminated, the director leaves its
    experiments for the next start.
    """

    example: ClassVar[str] = "openfl-audio director -c director/director_config.yaml --set settings.listen_port=50052"

    config: Path = option("YAML file of the settings", short="-c", metavar="FILE")
    set_: list[str] = changes_option("settings.listen_port=50052")
    disable_tls: bool = option("no encryption, and anybody may connect", False)

    def run(self) -> None:
        from openfl_audio.director.server import DirectorFile, run

        settings = load_settings(self.config, DirectorFile, dict(map(parse_change, self.set_))).settings
        run(settings, tls=not self.disable_tls)
