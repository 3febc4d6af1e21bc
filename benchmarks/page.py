#!/usr/bin/env python3
"""Cost of the page in the browser: how fast it opens, and what open pages cost the director's rounds.

    python benchmarks/page.py --opens              # an experiment of 100 envoys and 2,000 rounds, opened in Chromium
    python benchmarks/page.py --pages 5            # rounds of 100 envoys, by turns with no page and with five open

The experiment that is opened is written to the director's disk; its page is open when the last round is drawn and told.
Rounds are those of `benchmarks/load.py`: a real director, and envoys that do all but train. Pages are streams of events
that are read as a browser reads them; what a browser takes for drawing is left out, as it runs elsewhere. Blocks of
rounds with and without pages take turns in one run: without, with, with, without, so that what grows with the rounds
grows for both.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package

from benchmarks.arguments import add_save, save, whole_number
from benchmarks.load import EXPERIMENT, USER, Line, plan_of, submission_of
from openfl_audio.director.run_folder import RunFolder, Status
from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.protocol.plan import TRAIN, VALIDATE

BLOCK_ROUNDS = 10
TURNS = ("without", "with", "with", "without")


def write_experiment(runs: Path, envoys: int, rounds: int) -> None:
    """Write an experiment that has finished to the disk of a director."""
    runs.mkdir(parents=True)
    submission = runs / "submission"
    submission.write_bytes(submission_of(plan_of(rounds), 10, runs))
    names, draw = [f"envoy-{number}" for number in range(envoys)], random.Random(0)
    folder = RunFolder.create(runs, submission, USER)
    submission.unlink()
    folder.accept(names, {})
    for number in range(rounds):
        values = {
            VALIDATE: {"accuracy": draw.random(), "loss": draw.random()},
            TRAIN: {"loss": draw.random(), "grad_norm": draw.random()},
        }
        folder.history.append(
            {
                "round": number,
                "best": False,
                "metrics": values,
                "envoys": {
                    name: {task: {"size": 100} | {key: draw.random() for key in each} for task, each in values.items()}
                    for name in names
                },
                "refused": {},
                "missing": [],
                "notes": {},
                "seconds": draw.random(),
                "bytes_up": 10**8,
                "bytes_down": 10**8,
                "timings": {name: {"download": 0.1, "tasks": 1.0, "upload": 0.1} for name in names},
            },
            durable=False,
        )
    folder.state.status, folder.state.ended_at = Status.FINISHED, time.time()
    folder.state.progress = folder.state.progress.model_copy(update={"round_number": rounds})
    folder.save_state()


def measure_opening(envoys: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Return how long the page of an experiment takes to open: at first, and when its rounds have been read before."""
    from tests.integration.jupyter import browser
    from tests.integration.page import Tab

    write_experiment(folder / "director", envoys, rounds)
    n_bytes = (folder / "director" / EXPERIMENT / "history.jsonl").stat().st_size
    with LocalFederation(folder, None, USER, page=True) as local, browser() as context, Tab(context, local) as tab:
        local.start_director()
        local.wait_until_ready([USER][:0], 60)
        while "the page is at" not in local.log("director").read_text():
            time.sleep(0.1)
        tab.log_in(USER)
        seconds = []
        for _ in range(4):
            began = time.monotonic()
            tab.page.goto(f"{tab.address}/experiments/{EXPERIMENT}")
            tab.see(f"round {rounds - 1}:", "figure:first-child .readout", seconds=60)
            seconds.append(round(time.monotonic() - began, 2))
    return {
        "envoys": envoys,
        "rounds": rounds,
        "history_mb": round(n_bytes / 1e6, 1),
        "first_opening_s": seconds[0],
        "later_opening_s": statistics.median(seconds[1:]),
    }


class Pages:
    """Streams of events of one experiment, as so many browsers have them open."""

    def __init__(self, address: str, cookie: str, count: int) -> None:
        self._host, self._cookie, self._count = address.removeprefix("http://"), cookie, count
        self._reading: list[asyncio.Task] = []
        self.events = 0

    async def open(self) -> None:
        """Open all of them."""
        self._reading = [asyncio.create_task(self._read()) for _ in range(self._count)]

    async def close(self) -> None:
        """Close all of them."""
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)

    async def _read(self) -> None:
        host, _, port = self._host.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 26)
        with contextlib.closing(writer):
            request = (
                f"GET /api/experiments/{EXPERIMENT}/events HTTP/1.1\r\nHost: {self._host}\r\nCookie: {self._cookie}\r\n"
            )
            writer.write(f"{request}\r\n".encode())
            while line := await reader.readline():
                self.events += line.startswith(b"event:")


def log_in(local: LocalFederation) -> tuple[str, str]:
    """Return the page's address and the cookie of a session."""
    import urllib.request

    from tests.integration.page import invitation

    invited = invitation(local, USER)
    headers = {"Content-Type": "application/json", "Origin": invited.address}
    content = json.dumps({"token": invited.token}).encode()
    request = urllib.request.Request(f"{invited.address}/api/login", content, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return invited.address, answer.headers["Set-Cookie"].partition(";")[0]


async def measure_rounds(envoys: int, blocks: int, floats: int, count: int, folder: Path) -> dict[str, Any]:
    """Return seconds and CPU seconds of rounds, with no page and with `count` pages open: medians of blocks."""
    with LocalFederation(folder, None, USER, page=True) as local:
        local.start_director()
        director = psutil.Process(local.pid("director"))
        names = [f"envoy-{each}" for each in range(envoys)]
        lines = [Line(local.port, None, name, corpus="none", instance=name) for name in names]
        user = Line(local.port, None, USER, client_id=USER)
        await user.connect()
        attending = [await line.register() for line in lines]
        pages = Pages(*await asyncio.to_thread(log_in, local), count)
        await user.submit(submission_of(plan_of(2 * blocks * BLOCK_ROUNDS + 1), floats, folder))
        serving = asyncio.gather(*(line.serve() for line in lines))
        found: dict[str, list[Sequence[float]]] = {"without": [], "with": []}
        server = next(each for each in director.children() if "openfl_audio.page" in each.cmdline())
        kinds, number = cycle(TURNS), 0
        kind, began = next(kinds), _now(director, server)
        async for record in user.history():
            if "round" not in record or record["round"] == 0:
                began = _now(director, server)
                continue
            number += 1
            if number % BLOCK_ROUNDS == 0:
                spent = zip(began, _now(director, server), strict=True)
                found[kind].append([(now - before) / BLOCK_ROUNDS for before, now in spent])
                last, kind = kind, next(kinds)
                if kind != last:
                    await (pages.open() if kind == "with" else pages.close())
                began = _now(director, server)
        serving.cancel()
        for call in attending:
            call.cancel()
    medians = {kind: [statistics.median(values) for values in zip(*each, strict=True)] for kind, each in found.items()}
    (seconds, cpu_s, page_s), (seconds_with, cpu_with, page_with) = medians["without"], medians["with"]
    return {
        "envoys": envoys,
        "floats": floats,
        "pages": count,
        "rounds_each": blocks * BLOCK_ROUNDS,
        "events": pages.events,
        "round_s": {
            "without": round(seconds, 4),
            "with": round(seconds_with, 4),
            "ratio": round(seconds_with / seconds, 3),
        },
        "director_cpu_s": {"without": round(cpu_s, 4), "with": round(cpu_with, 4), "ratio": round(cpu_with / cpu_s, 3)},
        "page_cpu_s": {"without": round(page_s, 4), "with": round(page_with, 4)},
    }


def _now(*processes: psutil.Process) -> list[float]:
    """Return the time, and the CPU seconds of each process so far."""
    times = [process.cpu_times() for process in processes]
    return [time.monotonic(), *(each.user + each.system for each in times)]


def main() -> None:
    """Run the command; it ends the process, as closing many connections of gRPC may wait for ever."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--opens", action="store_true", help="measure how fast the page of an experiment opens")
    parser.add_argument("--pages", type=whole_number, default=5, metavar="N", help="open pages; %(default)s")
    parser.add_argument("--envoys", type=whole_number, default=100, metavar="N", help="%(default)s by default")
    parser.add_argument("--rounds", type=whole_number, default=2000, metavar="R", help="with --opens; %(default)s")
    parser.add_argument("--blocks", type=whole_number, default=5, metavar="B", help="of ten rounds each; %(default)s")
    parser.add_argument("--floats", type=whole_number, default=100_000, metavar="F", help="of the model; %(default)s")
    add_save(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="page-") as temporary:
        folder = Path(temporary)
        if options.opens:
            found = measure_opening(options.envoys, options.rounds, folder)
        else:
            found = asyncio.run(measure_rounds(options.envoys, options.blocks, options.floats, options.pages, folder))
    print(json.dumps(found), flush=True)
    save(options, [found])
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
