"""Training of a round by several processes of one node, each on a GPU of its own where there are as many.

Each process has the whole model and a share of every batch; Accelerate (DistributedDataParallel of PyTorch) takes the
mean of their gradients. The processes live as long as the round.
"""

import os
import pickle
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.spawn import spawn

from openfl_audio.errors import SettingsError
from openfl_audio.node.adapter import remember_weights
from openfl_audio.node.model_interface import ModelInterface, built_by
from openfl_audio.node.progress import Progress, current, report

# How often the progress of the first process is looked at.
LOOK_SECONDS = 0.2
GIVEN, MADE = "given.pkl", "made.pt"


class Share(NamedTuple):
    """The part of one of several processes that train together.

    Attributes:
        accelerator: of Accelerate; None where one process trains alone.
        number: of this process, from 0.
        processes: how many there are.
    """

    accelerator: Any = None
    number: int = 0
    processes: int = 1

    def of(self, batch: list[int]) -> tuple[list[int], float]:
        """Return this process's clips of a batch, and what their mean loss has to be multiplied by.

        The gradients' mean over processes then is that of the mean over the batch. Where there are fewer clips than
        processes, some take the first one with a weight of 0, as all have to take part in the mean.
        """
        own = batch[self.number :: self.processes]
        return own or batch[:1], len(own) * self.processes / len(batch)

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model whose gradients are the mean of all processes."""
        return model if self.accelerator is None else self.accelerator.prepare(model)

    def sum(self, value: float) -> float:
        """Return the sum of all processes' values."""
        if self.accelerator is None:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.reduce(total, "sum").item()


ALONE = Share()


def train_together(
    processes: int,
    train: Callable[..., dict[str, float]],
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *arguments: Any,
) -> dict[str, float]:
    """Train `model` and `optimizer` in place by `train(share, model, optimizer, device, *arguments)` in each process.

    Returns what the first one returned. Each builds the model and the optimizer by the recipes of `ModelInterface`,
    and gives them this one's values. Recipes, `train` and `arguments` are pickled: functions have to be importable.

    Raises SettingsError for what cannot be sent, torch.multiprocessing.ProcessRaisedException with the traceback
    if one of the processes fails, and ProcessExitedException if one is killed; the others are ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder, GIVEN), (built_by(model), State.of(model, optimizer), arguments))
        queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
        given = processes, _free_port(), train, folder, queue
        started = spawn(_take_part, given, processes, join=False)
        while not started.join(LOOK_SECONDS):
            _pass_on(queue)
        _pass_on(queue)
        made = torch.load(Path(folder, MADE), map_location="cpu", weights_only=True)
    model.load_state_dict(made["model"])
    optimizer.load_state_dict(made["optimizer"])
    return made["result"]


class State(NamedTuple):
    """The values of a model and its optimizer, and the seed of torch, as a task has them at its start."""

    buffers: dict[str, torch.Tensor]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    seed: int

    @classmethod
    def of(cls, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> "State":
        """Return the values of a model, which is moved to the CPU, and of its optimizer."""
        model.cpu()
        return cls(dict(model.named_buffers()), model.state_dict(), optimizer.state_dict(), torch.initial_seed())

    def build(self, recipes: ModelInterface, device: torch.device) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """Return a model on `device` and its optimizer, built by their recipes, with these values."""
        model = recipes.provide_model()
        model.load_state_dict(self.model)
        for name, buffer in model.named_buffers():  # also those that a state_dict lacks
            buffer.copy_(self.buffers[name])
        model.to(device)
        optimizer = recipes.provide_optimizer()
        optimizer.load_state_dict(self.optimizer)
        if hasattr(optimizer, "set_old_weights"):
            remember_weights(optimizer)
        return model, optimizer


def _write(path: Path, given: tuple) -> None:
    try:
        path.write_bytes(pickle.dumps(given))
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise SettingsError(
            f"what is trained cannot be sent to other processes ({error}): set processes to 1, or name functions and "
            "classes at the top of a module"
        ) from error


def _take_part(
    number: int, processes: int, port: int, train: Callable[..., dict[str, float]], folder: str, queue: Any
) -> None:
    gpus = torch.cuda.device_count()
    on_gpus = gpus >= processes
    os.environ |= {
        "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    if not on_gpus:
        os.environ |= {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # A layer that is dropped in a step, or frozen, gets no gradient.
    accelerator = Accelerator(
        cpu=not on_gpus, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]
    )
    with Path(folder, GIVEN).open("rb") as file:
        recipes, state, arguments = pickle.load(file)  # the file is ours
    model, optimizer = state.build(recipes, accelerator.device)
    torch.manual_seed(state.seed + number)
    if number == 0:
        threading.Thread(target=_tell_of_changes, args=(queue,), daemon=True).start()
    result = train(Share(accelerator, number, processes), model, optimizer, accelerator.device.type, *arguments)
    if number == 0:
        made = {"model": model.cpu().state_dict(), "optimizer": optimizer.state_dict(), "result": result}
        torch.save(made, Path(folder, MADE))
        _tell(queue, current())
    accelerator.end_training()


def _tell_of_changes(queue: Any) -> None:
    told = current()
    while True:
        time.sleep(LOOK_SECONDS)
        if (progress := current()) is not told:
            told = progress
            _tell(queue, progress)


def _tell(queue: Any, progress: Progress) -> None:
    values = {name: float(value) for name, value in progress.values.items()}
    queue.put((progress.step, progress.total, progress.clips, values))


def _pass_on(queue: Any) -> None:
    while not queue.empty():
        step, total, clips, values = queue.get()
        report(step, total, clips=clips, **values)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
