"""The private training of a round, which all workloads use: as many steps of DP-SGD as the plan says."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from openfl_audio.errors import PrivacyError
from openfl_audio.node.private_task import PrivateTask, current_private
from openfl_audio.node.progress import report
from openfl_audio.training.private_steps import Losses, PrivateSettings, PrivateSteps, draw_units

Function = TypeVar("Function", bound=Callable[..., Any])
MARK, REASON = "trains_privately", "not_private"


def trains_privately(train: Function) -> Function:
    """Declare of a training task that it calls `train_privately` where `is_private` says so: else it is refused."""
    setattr(train, MARK, True)
    return train


def can_train_privately(task: Callable[..., Any]) -> bool:
    """Tell whether a task has been declared by `trains_privately`."""
    return getattr(task, MARK, False)


def not_private(reason: str) -> Callable[[Function], Function]:
    """Declare of a training task why it cannot be private, in a clause such as "its targets were fitted to clips"."""

    def mark(train: Function) -> Function:
        setattr(train, REASON, reason)
        return train

    return mark


def why_not_private(task: Callable[..., Any]) -> str:
    """Return what `not_private` has declared of a training task, "" for others."""
    return getattr(task, REASON, "")


def is_private() -> bool:
    """Tell whether the training that runs has to be private."""
    return current_private() is not None


def steps_of_round(usual: int = 0) -> int:
    """Return how many steps the training of a round has: those of the plan where it is private, else the `usual` ones.

    A schedule of the learning rate needs to know.
    """
    task = current_private()
    return usual if task is None else task.level.steps


def train_privately(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    speakers: Sequence[str],
    losses: Losses,
    clips_per_pass: int | None = None,
    recordings: Sequence[int] | None = None,
    after_step: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Train `model` in place, in the mode that it is in, by the steps of DP-SGD that the plan says.

    Args:
        model: its parameters that have gradients are trained.
        optimizer: of the same parameters; it gets noisy gradients only.
        speakers: who says each clip, (clips,). Where records are protected only their number matters.
        losses: of clips, which are given by their numbers: each may depend on that clip alone.
        clips_per_pass: how many clips Opacus takes at once on an accelerator (`clips_at_once`); without it units have
            their turns there too, which is right for every model.
        recordings: which recording each clip is a part of, (clips,), where a recording has several; a step then takes
            one of a drawn recording.
        after_step: called after each step, by a schedule of the learning rate, say.

    Returns no metrics: losses of the clips drawn, and how many were, are no part of the guarantee, and stay here.
    Raises PrivacyError if the training need not be private, or the model cannot be trained so.
    """
    task = current_private()
    if task is None:
        raise PrivacyError("the experiment's plan has no privacy: train without private steps")
    owners, settings = owners_of(task, speakers, recordings), settings_of(task)
    steps = PrivateSteps(model, settings, len(set(owners)), task.noise, clips_at_once(model, clips_per_pass))
    total = task.level.steps
    for step in range(1, total + 1):
        steps.make_gradients(draw_units(owners, settings, task.noise), losses)
        task.steps += 1
        optimizer.step()
        after_step()
        report(step, total)
    return {}


def clips_at_once(model: torch.nn.Module, most: int | None) -> int | None:
    """Return how many clips Opacus takes at once: `most` on an accelerator, and None, one unit at a time, elsewhere.

    A small pass leaves most of an accelerator idle, and none of a core: there units in turn are faster for most models,
    and take a fraction of the memory (`benchmarks/privacy_step.py`). Recurrent layers are no layers of Opacus: theirs
    hand their weights to one function of torch, in which it does not find the gradients of clips.
    """
    on_cpu = all(each.device.type == "cpu" for each in model.parameters())
    recurrent = any(isinstance(module, torch.nn.RNNBase) for module in model.modules())
    return None if on_cpu or recurrent else most


def owners_of(task: PrivateTask, speakers: Sequence[str], recordings: Sequence[int] | None) -> Sequence[str]:
    """Return which unit each clip is of, (clips,). Clips without a speaker, "", are one unit together.

    Raises PrivacyError where there is nobody to protect.
    """
    if not len(speakers):
        raise PrivacyError("there are no clips to train with")
    if task.level.unit == "speaker":
        if not any(speakers):
            raise PrivacyError("the shard does not tell its speakers apart: protect records, or give it `speakers`")
        return speakers
    return [str(each) for each in (range(len(speakers)) if recordings is None else recordings)]


def settings_of(task: PrivateTask) -> PrivateSettings:
    """Return the settings of DP-SGD that a plan says."""
    level = task.level
    return PrivateSettings(
        clip=level.clip,
        noise_multiplier=level.noise_multiplier,
        probability=level.probability,
        clips_per_unit=level.clips_per_unit,
        clipping=level.clipping,
    )
