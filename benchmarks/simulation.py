"""Cost of a simulated round beside its training, against a plain PyTorch loop in the same run.

    python benchmarks/simulation.py [--rounds 60] [--json]

The model is the head of whisper-tiny (781,964 parameters). 16 of 64 clients take part in a round; in `no_training` they
do nothing, in `one_step` each takes an SGD step on 8 clips. Rounds of both alternate, so that the machine treats them
alike. The loop restores the weights in place, trains, and adds the result to a running sum.
`registered` is the same with nothing to train and 100 clients a round, of 100 and of 10,000.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

# `python benchmarks/...` has benchmarks/ in its path and not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
import torch
import torch.nn.functional as F
from openfl.interface.interactive_api.shard_descriptor import ShardDataset, ShardDescriptor

from benchmarks.arguments import add_save, save, whole_number
from openfl_audio.notebook.interactive_api import DataInterface, ModelInterface, Participation, TaskInterface
from openfl_audio.simulation.simulation import Simulation

CLIENTS, CLIENTS_PER_ROUND, BATCH_SIZE, LEARNING_RATE = 64, 16, 8, 1e-3
WARM_UP_ROUNDS = 3


class Clips(ShardDescriptor, ShardDataset):
    """Encoder outputs and labels of one batch: the same for every client, as only time counts."""

    inputs = torch.randn(BATCH_SIZE, 1500, 384)
    labels = torch.arange(BATCH_SIZE) % 12

    def __len__(self) -> int:
        return BATCH_SIZE


class ClipsInterface(DataInterface):
    """The same clips for every client."""

    shard_descriptor = Clips()

    def get_train_loader(self, **kwargs: object) -> Clips:
        """Return the clips."""
        return self.shard_descriptor

    def get_train_data_size(self) -> int:
        """Return the number of clips."""
        return len(self.shard_descriptor)


def create_head() -> torch.nn.Module:
    """Return the classification head on whisper-tiny's frozen encoder, of 781,964 parameters."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv1d(1500, 128, 1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(128 * 384, 12)
    )


def no_training(model, clips, device, optimizer):
    """Leave the model as it is: what is left is the simulation itself."""
    return {"loss": 0.0}


def one_step(model, clips, device, optimizer):
    """Take a step of SGD on all clips at once."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(clips.inputs), clips.labels)
    loss.backward()
    optimizer.step()
    return {"loss": loss.item()}


def simulated_rounds(train: Callable, registered: int, per_round: int, rounds: int) -> Iterator[float]:
    """Seconds of each round, everything included that a simulation does."""
    tasks = TaskInterface()
    tasks.register_fl_task(model="model", data_loader="clips", device="device", optimizer="optimizer")(train)
    with tempfile.TemporaryDirectory() as folder:
        simulation = Simulation([f"client-{i:05}" for i in range(registered)], lambda client: Clips(), folder)
        simulation.start(
            "benchmark",
            model_provider=ModelInterface(create_head, partial(torch.optim.SGD, lr=LEARNING_RATE)),
            task_keeper=tasks,
            data_loader=ClipsInterface(),
            rounds_to_train=rounds,
            participation=Participation(count=per_round),
        )
        records = simulation.run()
        while True:
            began = time.perf_counter()
            if next(records, None) is None:
                return
            yield time.perf_counter() - began


def plain_rounds(train: Callable, per_round: int, rounds: int) -> Iterator[float]:
    """The same in a loop that does no more than it must."""
    model = create_head()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    clips = Clips()
    parameters = [parameter.detach() for parameter in model.parameters()]
    weights = [parameter.clone() for parameter in parameters]
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for _ in range(rounds):
        began = time.perf_counter()
        for total in sums:
            total.zero_()
        for _ in range(per_round):
            for parameter, weight in zip(parameters, weights, strict=True):
                parameter.copy_(weight)
            train(model, clips, "cpu", optimizer)
            for total, parameter in zip(sums, parameters, strict=True):
                total.add_(parameter, alpha=BATCH_SIZE)
        for weight, total in zip(weights, sums, strict=True):
            torch.div(total, BATCH_SIZE * per_round, out=weight)
        yield time.perf_counter() - began


def compare(train: Callable, rounds: int) -> dict[str, object]:
    """Return the seconds of a round of the simulation and of the plain loop, and the ratios of neighbouring rounds."""
    rounds += WARM_UP_ROUNDS
    ours, plain = [], []
    pairs = zip(
        simulated_rounds(train, CLIENTS, CLIENTS_PER_ROUND, rounds),
        plain_rounds(train, CLIENTS_PER_ROUND, rounds),
        strict=True,
    )
    for simulated, looped in pairs:
        ours.append(simulated)
        plain.append(looped)
    # Neighbours in time, so that a machine that is busy for a while weighs on both.
    ratios = [a / b for a, b in zip(ours, plain, strict=True)]
    return {"ours": spread(ours), "plain": spread(plain), "ratio": spread(ratios)}


def registered_clients(registered: int, rounds: int) -> dict[str, object]:
    """Return the seconds of a round with 100 of `registered` clients, and by how much memory grew."""
    before = psutil.Process().memory_info().rss
    seconds = list(simulated_rounds(no_training, registered, 100, rounds + WARM_UP_ROUNDS))
    grown_mb = (psutil.Process().memory_info().rss - before) / 1e6
    return {"seconds_per_round": spread(seconds), "rss_grown_mb": round(grown_mb, 1)}


def spread(values: list[float]) -> dict[str, float]:
    """Return median, least and most of the seconds after the rounds of warming up."""
    values = values[WARM_UP_ROUNDS:]
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 5) for name, value in found.items()}


def main() -> None:
    """Run the command: measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=whole_number, default=60, help="of each kind (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of lines")
    add_save(parser)
    arguments = parser.parse_args()
    steps = max(5, arguments.rounds // 6)
    result = {
        "clients": CLIENTS,
        "clients_per_round": CLIENTS_PER_ROUND,
        "parameters": sum(parameter.numel() for parameter in create_head().parameters()),
        "threads": torch.get_num_threads(),
        "no_training": compare(no_training, arguments.rounds),
        "one_step": compare(one_step, steps),
        "registered": {str(n): registered_clients(n, steps) for n in (100, 10_000)},
    }
    save(arguments, result)
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name}: {json.dumps(value)}")


if __name__ == "__main__":
    main()
