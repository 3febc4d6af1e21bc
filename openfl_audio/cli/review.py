"""`openfl-audio review`, `approve`, `reject`, `personal`: a site's decisions and models, beside the envoy that runs."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from openfl_audio.cli.connected import moment, print_tables, table_of
from openfl_audio.cli.options import Command, argument, changes_option, option
from openfl_audio.config import load_settings, parse_change

if TYPE_CHECKING:  # the settings import gRPC, which the help does not need
    from openfl_audio.envoy.approval import Approvals, Decision
    from openfl_audio.envoy.settings import EnvoySettings

EXPERIMENT = "name of the experiment, or the first digits of the hash"


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


class Review(AtSite):
    """Show what waits for approval here.

    Without a name the experiments that wait are listed, and the decisions. With one, its sources, objects and plan are
    shown, what would leave the site, what differs from the last version that was approved, and the advice of bandit and
    picklescan where they are installed.
    """

    example: ClassVar[str] = "openfl-audio review my-experiment -n site_b -c envoys/superb.yaml"

    experiment: list[str] = argument(EXPERIMENT, metavar="NAME|HASH", nargs="*")

    def run(self) -> None:
        from openfl_audio.envoy.review import review

        approvals, settings = self.open()
        for each in self.experiment:
            for line in review(approvals, settings, approvals.find(each)):
                print(line)
        if self.experiment:
            return
        waiting = [
            [each.name, each.user, "yes" if each.signed else "no", str(each.rounds), *short(each.sha256, each.since)]
            for each in approvals.waiting()
        ]
        decided = [
            [each.name, each.user, each.decision, str(each.rounds), *short(each.sha256, each.at), each.by, each.reason]
            for each in approvals.decisions()
        ]
        shared = ("experiment", "user")
        print_tables(
            table_of("Waiting for approval", (*shared, "signed", "rounds", "hash", "since"), waiting),
            table_of("Decisions", (*shared, "decision", "rounds", "hash", "at", "by", "reason"), decided),
        )


def short(sha256: str, at: float) -> tuple[str, str]:
    """Return a hash and a moment as a table shows them."""
    from openfl_audio.envoy.approval import SHOWN_DIGITS

    return sha256[:SHOWN_DIGITS], moment(at)


class Approve(AtSite):
    """Approve an experiment.

    It runs here within seconds, as it was shown. Its sources, objects, plan and initial model may not differ; its name
    and seed may, and it may have fewer rounds.
    """

    example: ClassVar[str] = "openfl-audio approve my-experiment -n site_b -c envoys/superb.yaml"

    experiment: str = argument(EXPERIMENT, metavar="NAME|HASH")

    def run(self) -> None:
        approvals, settings = self.open()
        decided = approvals.approve(self.experiment)
        self.note(settings, decided)
        print(f"approved '{decided.name}', {decided.rounds} rounds at most, SHA-256 {decided.sha256}")


class Reject(AtSite):
    """Reject an experiment.

    It will not begin here, also if it was approved before.
    """

    example: ClassVar[str] = "openfl-audio reject my-experiment --reason 'no consent' -n site_b -c envoys/superb.yaml"

    experiment: str = argument(EXPERIMENT, metavar="NAME|HASH")
    reason: str = option("why, in a sentence that the notebook is told", metavar="TEXT")

    def run(self) -> None:
        approvals, settings = self.open()
        decided = approvals.reject(self.experiment, self.reason)
        self.note(settings, decided)
        print(f"rejected '{decided.name}', SHA-256 {decided.sha256}")


class Personal(AtSite):
    """Write this site's own model of an experiment.

    Where parts of a model stay at each site, it is a copy of the exported model with the tensors that stayed here. The
    last model of the experiment goes with them: they are those of the last round that this envoy trained in.
    """

    example: ClassVar[str] = "openfl-audio personal my-experiment -n site_b -c site.yaml --model model --out ours"

    experiment: str = argument("name of the experiment")
    model: Path = option("folder of the exported model", metavar="DIR")
    out: Path = option("folder that is written", metavar="DIR")

    def run(self) -> None:
        from openfl_audio.envoy.personal import write_personal
        from openfl_audio.envoy.settings import folder_of

        folder = folder_of(self.read_settings(), self.name)
        names = write_personal(self.model, folder, self.experiment, self.out)
        print(f"{self.out} has the model with {len(names)} tensors of this site: {', '.join(names)}")
