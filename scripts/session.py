#!/usr/bin/env python3
"""Take the session of the command line that docs/steering.md shows, from a director and two envoys over TLS.

    python scripts/session.py

An owner and an operator run each command that is shown. It is shown without the options of the connection and the rules
of tables; of what is long, the beginning. The block below the marker in the page is replaced.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
TESTS = REPOSITORY / "tests/integration"  # the toy experiment, which envoys import as `toy`
sys.path[:0] = [str(REPOSITORY), str(TESTS)]

from openfl_audio import Federation, FLExperiment  # noqa: E402
from openfl_audio.experiments.local_federation import LocalFederation  # noqa: E402
from openfl_audio.protocol.authority import write_certificates  # noqa: E402

PAGE = REPOSITORY / "docs/steering.md"
MARKER = "<!-- taken by scripts/session.py -->\n"
OWNER, OPERATOR = "ada", "olga"
SITES = {"site-a": 10, "site-b": 15}
SECONDS = 120
RULE = re.compile(r"[\s─━]*")


def train(model, points, device, optimizer):
    """Report steps, as a task does that takes its time."""
    import time

    from openfl_audio import report

    for step in range(len(points)):
        time.sleep(0.5)
        report(step + 1, len(points), clips=step + 1, loss=1 / (step + 1))
    for parameter in model[0].parameters():
        parameter.data.add_(0.5)
    print(f"trained on {len(points)} points")
    return {"loss": 1 / model[0].weight.item()}


class Session:
    """The commands that were run, and what they printed."""

    def __init__(self, director: str, certificates: Path) -> None:
        self._where = ["--director", director, "--certificates", str(certificates)]
        self.shown: list[str] = []

    def run(self, command: str, lines: int | None = None, until: str = "") -> None:
        """Run a command and keep what it printed, of that `lines` at most; interrupt it once it prints `until`."""
        words = command.split()
        user = [] if "--user" in words else ["--user", OWNER]
        process = subprocess.Popen(
            [sys.executable, "-m", "openfl_audio.cli", *words, *self._where, *user],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        printed = []
        for line in process.stdout or ():
            printed.append(line.rstrip())
            if until and re.search(until, line):
                process.send_signal(signal.SIGINT)
                break
        process.communicate(timeout=SECONDS)
        kept = [line for line in printed if not RULE.fullmatch(line)]
        more = ["..."] if lines is not None and len(kept) > lines else []
        self.shown.append("\n".join([f"$ openfl-audio {command}", *kept[:lines], *more]))


def wait_for(condition: Callable[[], bool]) -> None:
    """Raise TimeoutError if a condition does not hold in time."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {SECONDS} s in vain")
        time.sleep(0.2)


def take(folder: Path) -> str:
    """Run the session, and return it as it is shown."""
    certificates = folder / "certificates"
    write_certificates(
        certificates, director_hosts=["127.0.0.1"], envoys=[*SITES], users=[OWNER], operators=[OPERATOR], monitors=[]
    )
    with LocalFederation(folder, certificates, OWNER) as local:
        local.start_director()
        for name, number in SITES.items():
            shard = {"template": "toy.shard.PointsShardDescriptor", "params": {"n_points": number}}
            local.start_envoy(name, shard, reports="logs")
        local.wait_until_ready(SITES, SECONDS)
        words = start(local.port, certificates, "words")
        start(local.port, certificates, "more-words")
        session = Session(f"127.0.0.1:{local.port}", certificates)
        wait_for(lambda: len(words.history) > 0)
        session.run("experiments")
        session.run("watch words", until=r"^ +1 ")
        session.run("logs words site-a", lines=3)
        session.run(f"drop words site-b --user {OPERATOR}")
        session.run("stop words")
        session.run("resume words")
        session.run("show words")
        session.run("delete words")
    return "\n\n".join(session.shown)


def start(port: int, certificates: Path, name: str) -> FLExperiment:
    """Start an experiment of the owner."""
    toy = import_module("toy")
    parts = import_module("toy.experiment")
    files = (certificates / file for file in ("ca.crt", f"{OWNER}.crt", f"{OWNER}.key"))
    experiment = FLExperiment(Federation(OWNER, "127.0.0.1", port, True, *files), name, workspace=toy)
    experiment.start(
        model_provider=parts.model_interface(),
        task_keeper=parts.task_interface(train, parts.distance),
        data_loader=parts.PointsData(),
        rounds_to_train=8,
    )
    return experiment


def main() -> None:
    """Replace the session in the page."""
    os.environ["PYTHONPATH"] = str(TESTS)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="session-") as temporary:
        shown = take(Path(temporary))
    before, _, after = PAGE.read_text().partition(MARKER)
    _, _, rest = after.split("```\n", 2)
    PAGE.write_text(f"{before}{MARKER}\n```\n{shown}\n```\n{rest}")
    print(shown)


if __name__ == "__main__":
    main()
