"""One experiment on the director: its run, and the three parts that work on it."""

from collections.abc import Callable

from openfl_audio.director.intake import Intake
from openfl_audio.director.run import Run
from openfl_audio.director.run_folder import RunFolder
from openfl_audio.director.scheduler import Scheduler
from openfl_audio.director.secure_rounds import SecureRounds
from openfl_audio.director.totals import Totals
from openfl_audio.director.view import View
from openfl_audio.protocol.record import Record


class Experiment(Run):
    """One experiment: a run with the parts that work on it.

    Attributes:
        intake: takes in what envoys send.
        secure: the secure rounds, None where each update is seen.
        scheduler: opens and closes rounds, and says who does what in them.
        view: what notebooks and the director's status show.
    """

    def __init__(
        self,
        folder: RunFolder,
        record: Record,
        is_online: Callable[[str], bool],
        since: Callable[[str], float] = lambda _: 0.0,
        totals: Totals | None = None,
    ) -> None:
        """Make an experiment of its folder, whose events go into the director's record.

        `is_online` tells whether an envoy is there, and `since` when it came or went, in seconds of the clock.
        Rounds are added to `totals`.
        """
        super().__init__(folder, record, totals)
        self.intake = Intake(self)
        # One whose site has not approved the experiment takes part as little as one that is away.
        self.scheduler = Scheduler(
            self, self.intake, lambda envoy: is_online(envoy) and envoy not in self.awaiting_approval
        )
        self.secure = SecureRounds(self, self.intake) if self.plan.secure_aggregation else None
        self.intake.secure = self.scheduler.secure = self.secure
        self.view = View(self, lambda: self.scheduler.seconds_open, is_online, since)
