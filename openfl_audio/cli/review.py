"""`openfl-audio review`, `approve`, `reject`: a site's decisions, beside the envoy that runs."""

from typing import ClassVar

from openfl_audio.cli.at_site import AtSite
from openfl_audio.cli.connected import moment, print_tables, table_of
from openfl_audio.cli.options import argument, option

EXPERIMENT = "name of the experiment, or the first digits of the hash"


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
