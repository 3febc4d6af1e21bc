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
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.spawn import spawn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization, type_before_parametrizations

from openfl_audio.errors import SettingsError
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

    Returns what the first one returned. What is given is pickled: functions have to be importable.

    Raises SettingsError for what cannot be pickled, torch.multiprocessing.ProcessRaisedException with the traceback
    if one of the processes fails, and ProcessExitedException if one is killed; the others are ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder, GIVEN), (model.cpu(), optimizer, torch.initial_seed(), arguments))
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


def _write(path: Path, given: tuple) -> None:
    try:
        with path.open("wb") as file:
            _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(given)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise SettingsError(
            f"what is trained cannot be sent to other processes ({error}): set processes to 1, or name functions and "
            "classes at the top of a module"
        ) from error


class _Pickler(pickle.Pickler):
    """Pickles modules with parametrized weights too, such as the weight norm of Wav2Vec2, which PyTorch refuses."""

    def reducer_override(self, value: Any) -> Any:
        if not (isinstance(value, torch.nn.Module) and is_parametrized(value)):
            return NotImplemented
        kind = type_before_parametrizations(value)
        state = value.__dict__ | {"_modules": dict(value._modules)}
        # Weight norm renames weights of old files by a local function here; no file is loaded into this copy.
        state["_load_state_dict_pre_hooks"] = OrderedDict()
        lists = dict(state["_modules"].pop("parametrizations").items())
        # The state is set after the module has been made, as it may hold the module itself.
        return kind.__new__, (kind,), (state, lists), None, None, _parametrize


def _parametrize(module: torch.nn.Module, sent: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Give a module its state, and parametrize its weights, with the parameters that were sent."""
    state, lists = sent
    module.__dict__.update(state)
    for name, parametrizations in lists.items():
        with torch.no_grad():
            module.register_parameter(name, torch.nn.Parameter(parametrizations()))
        for parametrization in parametrizations:
            register_parametrization(module, name, parametrization, unsafe=True)
        made = module.get_submodule(f"parametrizations.{name}")
        # The optimizer has the parameters that were sent, not those that were made just now.
        for key, parameter in parametrizations.named_parameters(recurse=False):
            setattr(made, key, parameter)


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
        model, optimizer, seed, arguments = pickle.load(file)  # the file is ours
    torch.manual_seed(seed + number)
    model.to(accelerator.device)
    optimizer.load_state_dict(optimizer.state_dict())  # which puts its state where the parameters are
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
