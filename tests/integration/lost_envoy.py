"""An envoy that is lost in the way that an experiment has as its name.

"lost-b-update-g-keys" loses envoy b before its masked update of the first round's first attempt has left, and envoy g
before its keys: their processes are killed. In "late-b-update" envoy b waits there instead, until a file LATE is in the
folder that it was started in.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openfl_audio.cli.main import main
from openfl_audio.privacy.participant import Participant
from openfl_audio.privacy.transcript import Stage

LOST, LATE = "lost", "late"
DEADLINE_SECONDS = 120
# The methods whose results are the messages of the stages; masks come before a masked update.
STEPS = {
    Stage.KEYS: "keys",
    Stage.SHARES: "share",
    Stage.UPDATE: "masks",
    Stage.AGREEMENT: "agree",
    Stage.UNMASKING: "unmask",
}


def name_of(way: str, stages: dict[str, Stage]) -> str:
    """Return the name of an experiment in which these envoys are lost at these stages."""
    return "-".join([way, *(word for envoy, stage in stages.items() for word in (envoy, stage.name.lower()))])


def losses_in(name: str) -> tuple[str, dict[str, str]]:
    """Return the way in which an experiment loses envoys, and the stage by the name of the envoy."""
    way, *words = name.split("-")
    return way, dict(zip(words[::2], words[1::2], strict=True)) if way in (LOST, LATE) else {}


def lose(participant: Participant, stage: Stage) -> None:
    """End this process, or wait, if its envoy is lost at this stage."""
    context = participant.context
    way, stages = losses_in(context.experiment)
    if (context.round, context.attempt) != (0, 1) or stages.get(participant.envoy) != stage.name.lower():
        return
    if way == LOST:
        os.kill(os.getpid(), signal.SIGKILL)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not Path(LATE).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no file '{LATE}'")
        time.sleep(0.05)


def lose_at_stages() -> None:
    """Let the envoy of this process be lost before it sends the messages of the stages."""

    def losing(step: Callable[..., Any], stage: Stage) -> Callable[..., Any]:
        def run(self: Participant, *arguments: Any) -> Any:
            lose(self, stage)
            return step(self, *arguments)

        return run

    for stage, name in STEPS.items():
        setattr(Participant, name, losing(getattr(Participant, name), stage))


if __name__ == "__main__":
    lose_at_stages()
    sys.exit(main())
