#!/usr/bin/env python3
"""Cost of the reports of steps in a round, as CPU time and as wall time of the training task.

    python benchmarks/reports.py                              # both workloads, a table
    python benchmarks/reports.py --steps 500 --pairs 5 --json # a JSON object a workload

A director and two envoys are real processes: the envoy "on" reports steps and losses, once a second as somebody
watches, and the envoy "off" has `reports: nothing` and a task that never calls `report`. They train by turns, the same
model on the same batches, for `--pairs` rounds each after one that is not counted; medians are reported. "head" trains
the head of keyword spotting (781,964 parameters), "keywords" a small Wav2Vec2 on a second of sound.

Another process on the machine changes both times by more than reports do. So the task also measures what they consist
of: the CPU time of the thread that sends them, and the time of the calls, timed by themselves. `share` is the sum of
these as a share of the round's CPU time.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package

import benchmarks.rounds_peers
from benchmarks.arguments import add_save, save, whole_number
from benchmarks.rounds_peers import shard, workloads
from openfl_audio import Federation, FLExperiment, ModelInterface, TaskInterface
from openfl_audio.experiments.local_federation import LocalFederation

USER = "scientist"
READY_SECONDS = 120.0
BATCH = 8
KINDS = ("off", "on")
TIMED_CALLS = 1000


def small_wav2vec2() -> torch.nn.Module:
    """1.0 M parameters: a Wav2Vec2 with two layers of 128 units, and a classifier of 12 keywords."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
        conv_dim=(64,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    config.num_labels = 12
    return Wav2Vec2ForSequenceClassification(config)


# Recipe of the model, and the shape of an input.
WORKLOADS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "head": (partial(workloads.create_model, "head"), (1500, 384)),
    "keywords": (small_wav2vec2, (16_000,)),
}


def make_task(steps: int, shape: tuple[int, ...], reports: bool) -> Any:
    """Return a training task of so many steps that measures itself."""

    def train(model, items, device, optimizer, steps=steps, shape=shape, reports=reports):
        import threading
        import time

        import psutil

        from openfl_audio import report

        def cpu_of_sender() -> float:
            [native] = [each.native_id for each in threading.enumerate() if each.name == "progress"]
            [cpu] = [each for each in psutil.Process().threads() if each.id == native]
            return cpu.user_time + cpu.system_time

        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(BATCH, *shape, generator=generator)
        labels = torch.randint(0, 12, (BATCH,), generator=generator)
        model.train()
        sent = cpu_of_sender() if reports else 0.0
        cpu, wall = time.process_time(), time.perf_counter()
        for step in range(1, steps + 1):
            outputs = model(inputs)
            loss = F.cross_entropy(getattr(outputs, "logits", outputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if reports:
                report(step, steps, clips=step * BATCH, loss=loss)
        measured = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
        if reports:
            measured["sender_s"] = cpu_of_sender() - sent
            began = time.perf_counter()
            for _ in range(TIMED_CALLS):
                report(steps, steps, clips=steps * BATCH, loss=loss)
            measured["calls_s"] = (time.perf_counter() - began) / TIMED_CALLS * steps
        return {"loss": loss.item()} | measured

    return train


def benchmark(workload: str, steps: int, pairs: int) -> dict[str, Any]:
    """Run a workload, and return what was measured."""
    with tempfile.TemporaryDirectory(prefix="reports-") as folder, LocalFederation(Path(folder), None, USER) as local:
        local.start_director()
        for kind, reports in zip(KINDS, ("nothing", "losses"), strict=True):
            local.start_envoy(kind, {"template": shard.TEMPLATE, "params": {}}, reports=reports)
        local.wait_until_ready(KINDS, READY_SECONDS)
        federation = Federation(USER, "127.0.0.1", local.port, tls=False)
        records: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for pair in range(pairs + 1):
            for kind in KINDS:
                record = run_round(federation, workload, kind, f"{workload}-{kind}-{pair}", steps)
                if pair:  # what a first round loads and compiles is not counted
                    records[kind].append(record)
    return summarise(workload, steps, pairs, records)


def run_round(federation: Federation, workload: str, kind: str, name: str, steps: int) -> dict[str, float]:
    """Run an experiment of one round on the envoy `kind`, and return what its task measured."""
    create, shape = WORKLOADS[workload]
    tasks = TaskInterface()
    register = tasks.register_fl_task(model="model", data_loader="items", device="device", optimizer="optimizer")
    register(make_task(steps, shape, kind == "on"))
    experiment = FLExperiment(federation, name, workspace=benchmarks.rounds_peers)
    experiment.start(
        model_provider=ModelInterface(create, partial(torch.optim.SGD, lr=1e-3)),
        task_keeper=tasks,
        data_loader=workloads.FewItemsData(),
        rounds_to_train=1,
        envoys=[kind],
    )
    experiment.watch()
    [row] = experiment.history.to_dict("records")
    return {key.removeprefix("train "): value for key, value in row.items() if key.startswith("train ")}


def summarise(workload: str, steps: int, pairs: int, records: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return medians as one JSON object."""

    def median(kind: str, name: str) -> float:
        return statistics.median(record[name] for record in records[kind])

    on, off = median("on", "cpu_s"), median("off", "cpu_s")
    sender, calls = median("on", "sender_s"), median("on", "calls_s")
    return {
        "workload": workload,
        "steps": steps,
        "pairs": pairs,
        "cpu_s": {"off": round(off, 2), "on": round(on, 2)},
        "wall_s": {kind: round(median(kind, "wall_s"), 2) for kind in KINDS},
        "sender_cpu_s": round(sender, 3),
        "calls_s": round(calls, 4),
        "share": round((sender + calls) / on, 5),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), nargs="+", default=sorted(WORKLOADS))
    parser.add_argument("--steps", type=whole_number, default=300, metavar="N", help="in a round; %(default)s")
    parser.add_argument("--pairs", type=whole_number, default=3, metavar="N", help="rounds of each; %(default)s")
    parser.add_argument("--json", action="store_true", help="print a JSON object a workload")
    add_save(parser)
    options = parser.parse_args(arguments)
    # A terminated benchmark must stop what it started, as one that is interrupted does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("benchmarks/reports.py: terminated"))
    # The nodes import the workload's package from here, and share the machine.
    repository = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (repository, os.environ.get("PYTHONPATH"))))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    results = []
    for workload in options.workload:
        with contextlib.redirect_stdout(sys.stderr):
            result = benchmark(workload, options.steps, options.pairs)
        results.append(result)
        if options.json:
            print(json.dumps(result))
        else:
            print("\n".join(f"{name:<14}{value}" for name, value in result.items()), end="\n\n")
    save(options, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
