"""Base of the commands for the people of a site."""

from pathlib import Path
from typing import TYPE_CHECKING

from openfl_audio.cli.options import Command, changes_option, option
from openfl_audio.config import load_settings, parse_change

if TYPE_CHECKING:  # the settings import gRPC, which the help does not need
    from openfl_audio.envoy.approval import Approvals, Decision
    from openfl_audio.envoy.settings import EnvoySettings


class AtSite(Command):
    """Base of the commands that work on the folder of an envoy, whether it runs or not."""

    name: str = option("name of the envoy", short="-n")
    config: Path = option("YAML file of the envoy's settings", short="-c", metavar="FILE")
    set_: list[str] = changes_option("params.work_dir=/srv/envoys")

    def read_settings(self) -> "EnvoySettings":
        """Return the envoy's settings. Raises SettingsError."""
        from openfl_audio.envoy.settings import EnvoyFile

        return load_settings(self.config.resolve(), EnvoyFile, dict(map(parse_change, self.set_))).params

    def open(self) -> tuple["Approvals", "EnvoySettings"]:
        """Return what waits and was decided at the envoy, and the envoy's settings. Raises SettingsError."""
        from openfl_audio.envoy.approval import Approvals
        from openfl_audio.envoy.settings import folder_of

        settings = self.read_settings()
        return Approvals(folder_of(settings, self.name)), settings

    def note(self, settings: "EnvoySettings", decided: "Decision") -> None:
        """Add a decision to the site's record."""
        from openfl_audio.envoy.settings import open_record

        fields = decided.model_dump(include={"sha256", "rounds", "user", "reason", "by"})
        open_record(settings, self.name).append(decided.decision, experiment=decided.name, **fields)
