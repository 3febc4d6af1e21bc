"""Differential privacy of the task that runs in this process: what its plan wants, and the noise that it takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from openfl_audio.errors import PrivacyError
from openfl_audio.privacy.noise import Noise, noise_of
from openfl_audio.protocol.privacy import GradientLevel


@dataclass
class PrivateTask:
    """A training task that has to be private.

    Attributes:
        level: what is protected, and how.
        noise: the stream that noise and draws come from.
        steps: how many private steps were taken so far.
    """

    level: GradientLevel
    noise: Noise
    steps: int = 0


class _Current:
    """The private task of this process, whose worker runs one task at a time; None between two of them."""

    task: PrivateTask | None = None


def current_private() -> PrivateTask | None:
    """Return the private task that runs, None where the training has no differential privacy."""
    return _Current.task


@contextmanager
def private_task(level: GradientLevel, client: str, round_number: int, task: str) -> Iterator[None]:
    """Let the training in this block be private.

    Raises PrivacyError, naming the `task`, if it has not taken as many private steps as its plan says.
    """
    _Current.task = private = PrivateTask(level, noise_of(client, round_number))
    try:
        yield
    finally:
        _Current.task = None
    if private.steps != level.steps:
        raise PrivacyError(
            f"task '{task}' took {private.steps} private steps, and its plan says {level.steps}: train with "
            "openfl_audio.training.private_round.train_privately"
        )
