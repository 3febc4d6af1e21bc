"""State that stays with a client from round to round, on the disk of its node or of a simulation."""

import io
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from openfl_audio.files import make_folder, write_whole
from openfl_audio.protocol.tensors import Tensors


def read_local(folder: Path) -> Tensors:
    """Return the tensors that stayed with a client, from its folder of a `ClientStates`; none where it never trained.

    They are those after the last round that the client trained in.
    """
    if not (rounds := _rounds(folder)):
        return {}
    state = torch.load(folder / f"{max(rounds)}.pt", map_location="cpu")
    return {name: tensor.numpy() for name, tensor in state["local"].items()}


def last_round(folder: Path) -> int:
    """Return the last round that a client trained in, as `read_local` finds it. Raises ValueError if there is none."""
    return max(_rounds(folder))


def _rounds(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob("*.pt") if path.stem.isdecimal()]


class ClientStates:
    """Local tensors and an optimizer's state of clients, in files FOLDER/CLIENT/ROUND.pt that `torch.load` reads.

    The state before the last one is kept as well, so that a round that was cut short can be run again.

    Attributes:
        keeps_optimizer: whether an optimizer's state is part of it (CONTINUE_LOCAL).
    """

    def __init__(self, folder: Path, local_tensors: Sequence[str], keeps_optimizer: bool, experiment: str = "") -> None:
        """Use `folder` for tensors that match one of the patterns `local_tensors`.

        `experiment` tells apart experiments that use the same folder one after the other: each finds its own states.
        """
        self._folder, self._patterns, self._experiment = folder, local_tensors, experiment
        self.keeps_optimizer = keeps_optimizer
        make_folder(folder)

    def is_local(self, tensor: str) -> bool:
        """Tell whether a tensor stays with its client."""
        return any(fnmatchcase(tensor, pattern) for pattern in self._patterns)

    def load(self, client: str, round_number: int) -> tuple[Tensors, dict[str, Any] | None]:
        """Return local tensors and optimizer state as they were before the round; empty and None before the first."""
        for number in sorted(_rounds(self._folder / client), reverse=True):
            if number < round_number:
                state = torch.load(self._path(client, number), map_location="cpu")
                if state["experiment"] == self._experiment:
                    return {name: tensor.numpy() for name, tensor in state["local"].items()}, state["optimizer"]
        return {}, None

    def save(self, client: str, round_number: int, local: Tensors, optimizer: dict[str, Any] | None) -> None:
        """Keep what the round has led to, whole or not at all, also after a power cut."""
        state = {
            "experiment": self._experiment,
            "local": {name: torch.from_numpy(tensor) for name, tensor in local.items()},
            "optimizer": optimizer,
        }
        data = io.BytesIO()
        torch.save(state, data)
        path = self._path(client, round_number)
        make_folder(path.parent)
        write_whole(path, data.getvalue(), durable=True)
        # Later rounds are those of an attempt that did not count, or of another experiment.
        rounds = _rounds(path.parent)
        kept = sorted(number for number in rounds if number <= round_number)[-2:]
        for number in set(rounds).difference(kept):
            self._path(client, number).unlink()

    def _path(self, client: str, round_number: int) -> Path:
        return self._folder / client / f"{round_number}.pt"
