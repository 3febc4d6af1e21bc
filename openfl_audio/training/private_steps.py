"""DP-SGD of Abadi et al., "Deep learning with differential privacy", arXiv 1607.00133, algorithm 1, by unit.

A unit is what is protected: a record, or a speaker with all clips that are taken of it. In a step each of n units is
drawn by itself with probability q. With g_u the gradient of the loss of a drawn unit, C the bound, z the noise
multiplier, and both the number of units and that of a unit's clips replaced by fixed ones, the gradient of the step is

    g_u = sum over the clips of u of gradient(loss of the clip) / clips_per_unit
    g   = (sum_u clip(g_u, C) + N(0, (z * C)^2)) / (q * n)

A step that draws nobody has noise alone. The loss of a clip may not depend on the other clips: `each_alone`.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from openfl_audio.errors import PrivacyError
from openfl_audio.privacy.clipping import bounds, check_positive
from openfl_audio.privacy.noise import Noise
from openfl_audio.protocol.privacy import Clipping

# The losses (clips,) of clips, which are given by their numbers.
Losses = Callable[[Sequence[int]], torch.Tensor]
Rows = list[torch.Tensor]
BATCH_NORMS = (torch.nn.modules.batchnorm._BatchNorm,)
# Gradients of clips add up to that of the batch: in float32 to this share of the largest sum of their sizes, as they
# may cancel out, or to this one of the model's largest, as those of an attention's key bias do. Wrong ones do not.
SUM_TOLERANCE, CANCELLED = 1e-3, 1e-6


@dataclass(frozen=True)
class PrivateSettings:
    """Settings of DP-SGD.

    Attributes:
        clip: the largest norm of a unit's part in a step's gradient.
        noise_multiplier: the standard deviation of the noise over `clip`.
        probability: that of a unit to be drawn in a step.
        clips_per_unit: how many clips of a drawn unit are taken at most; 1 where the unit is a record.
        clipping: of the whole gradient ("flat"), or tensor by tensor.
    """

    clip: float
    noise_multiplier: float
    probability: float
    clips_per_unit: int = 1
    clipping: Clipping = "flat"

    def __post_init__(self) -> None:
        """Raise ValueError for a setting that cannot be right."""
        check_positive(clip=self.clip, noise_multiplier=self.noise_multiplier, probability=self.probability)
        if self.probability > 1:
            raise ValueError(f"probability is {self.probability}: it should be at most 1")
        if self.clips_per_unit < 1:
            raise ValueError(f"clips_per_unit is {self.clips_per_unit}: it should be 1 or more")


def draw_units(owners: Sequence[str], settings: PrivateSettings, noise: Noise) -> list[list[int]]:
    """Return the clips of each unit that is drawn for a step; `owners` (clips,) says which unit a clip is of.

    Of a unit with more than `clips_per_unit` clips so many are drawn anew in every step. The draw is as secret as the
    noise, which is what the accountant's gain by sampling rests on.
    """
    units: dict[str, list[int]] = {}
    for clip, owner in enumerate(owners):
        units.setdefault(owner, []).append(clip)
    clips = list(units.values())
    return [
        _some(clips[unit], settings.clips_per_unit, noise) for unit in noise.chosen(len(clips), settings.probability)
    ]


def _some(clips: list[int], most: int, noise: Noise) -> list[int]:
    if len(clips) <= most:
        return clips
    return [clips[place] for place in np.argsort(noise.uniform(len(clips)))[:most]]


def each_alone(loss: Callable[..., torch.Tensor], *batch: torch.Tensor) -> torch.Tensor:
    """Return the loss of every clip as that of a batch of one: (clips,), from tensors with the clips first.

    A mean over what a batch holds (clips, frames, letters, weights of classes) couples the clips in it; that over a
    batch of one has a normaliser of its own.
    """
    return torch.stack([loss(*(tensor[i : i + 1] for tensor in batch)) for i in range(len(batch[0]))])


class PrivateSteps:
    """Makes the gradients of steps of DP-SGD for any optimizer: it sets `grad` of a model's trained parameters.

    Nothing else of the clips is returned: losses and how many were drawn or clipped are no part of the guarantee.

    Attributes:
        settings: of DP-SGD.
        num_units: how many units there are to draw from.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        settings: PrivateSettings,
        num_units: int,
        noise: Noise,
        clips_per_pass: int | None = None,
    ) -> None:
        """Check that `model` can be trained privately.

        With `clips_per_pass` gradients of so many clips, or of one unit with more, are computed at once with Opacus.
        Without it they are those of one unit at a time, which is right for every model and needs no Opacus. Raises
        PrivacyError, naming the layer, for a model that normalises over the batch, or one that Opacus does not know.
        """
        check_positive(num_units=num_units)
        refuse_batch_norm(model)
        self.settings, self.num_units = settings, num_units
        self._model, self._noise, self._clips_per_pass = model, noise, clips_per_pass
        self._parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self._bounds = bounds(settings.clip, settings.clipping, [each.numel() for each in self._parameters.values()])
        for name, module in model.named_modules():
            if clips_per_pass is not None and isinstance(module, torch.nn.RNNBase):
                raise PrivacyError(self._not_at_once(f"{name} is a {type(module).__name__}"))

    def make_gradients(self, units: Sequence[Sequence[int]], losses: Losses) -> None:
        """Set the gradients of a step from the clips of drawn `units`, any number of them.

        `losses` are those of clips. Raises PrivacyError where Opacus does not see all of the model's gradients, or the
        model changes a buffer, which would leave without noise.
        """
        total = [torch.zeros_like(each) for each in self._parameters.values()]
        buffers = {name: buffer._version for name, buffer in self._model.named_buffers()}
        for rows in self._gradients(units, losses):
            for tensor, clipped in zip(total, self._clip(rows), strict=True):
                tensor += clipped.sum(0)
        self._refuse_changed(buffers)
        deviation = self.settings.noise_multiplier * self.settings.clip
        expected = self.settings.probability * self.num_units
        for parameter, tensor in zip(self._parameters.values(), total, strict=True):
            noise = torch.from_numpy(self._noise.normal(tensor.numel())).view(tensor.shape).to(tensor)
            parameter.grad = (tensor + deviation * noise) / expected

    def clipped_gradients(self, units: Sequence[Sequence[int]], losses: Losses) -> dict[str, torch.Tensor]:
        """Return the clipped gradients, without noise, (units, ...) by the parameter's name. They are not private."""
        parts = [self._clip(rows) for rows in self._gradients(units, losses)]
        return {name: torch.cat(each) for name, each in zip(self._parameters, zip(*parts, strict=True), strict=True)}

    def _gradients(self, units: Sequence[Sequence[int]], losses: Losses) -> Iterator[Rows]:
        """Yield the gradients of some units, (units, ...) for each parameter, until all had their turn."""
        if self._clips_per_pass is None:
            yield from (self._one_by_one(unit, losses) for unit in units)
            return
        for some in _passes(units, self._clips_per_pass):
            yield self._at_once(some, losses)

    def _one_by_one(self, unit: Sequence[int], losses: Losses) -> Rows:
        loss = self._sum_of(unit, losses) / self.settings.clips_per_unit
        parameters = list(self._parameters.values())
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        return [gradient.unsqueeze(0) for gradient in gradients]

    def _sum_of(self, clips: Sequence[int], losses: Losses) -> torch.Tensor:
        values = losses(clips)
        if values.shape != (len(clips),):
            raise PrivacyError(
                f"the losses of {len(clips)} clips have the shape {tuple(values.shape)}: a loss for each clip is needed"
            )
        return values.sum()

    def _at_once(self, units: Sequence[Sequence[int]], losses: Losses) -> Rows:
        clips = [clip for unit in units for clip in unit]
        owners = torch.tensor([place for place, unit in enumerate(units) for _ in unit])
        for parameter in self._parameters.values():
            parameter.grad = None
        with _hooks(self._model):
            self._backward(clips, losses)
            rows = self._of_clips(len(clips))
        return [row.new_zeros(len(units), *row.shape[1:]).index_add_(0, owners.to(row.device), row) for row in rows]

    def _backward(self, clips: Sequence[int], losses: Losses) -> None:
        try:
            (self._sum_of(clips, losses) / self.settings.clips_per_unit).backward()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise PrivacyError(f"{self._not_at_once(str(error).rstrip('.'))}") from error

    def _of_clips(self, clips: int) -> Rows:
        """Return the gradients that Opacus has found for clips, which have to add up to that of them all."""
        gradients = [each.grad for each in self._parameters.values() if each.grad is not None]
        largest = max((float(gradient.abs().max()) for gradient in gradients), default=0.0)
        rows = []
        for name, parameter in self._parameters.items():
            total, found = parameter.grad, getattr(parameter, "grad_sample", None)
            if total is None:
                rows.append(parameter.new_zeros((clips, *parameter.shape)))
                continue
            if not (isinstance(found, torch.Tensor) and found.shape == (clips, *parameter.shape)):
                raise PrivacyError(
                    self._not_at_once(f"{name} is used outside of its layer, or not with the clips first")
                )
            if (found.sum(0) - total).abs().max() > SUM_TOLERANCE * found.abs().sum(0).max() + CANCELLED * largest:
                raise PrivacyError(self._not_at_once(f"those of {name} do not add up"))
            rows.append(found.detach())
        return rows

    def _not_at_once(self, reason: str) -> str:
        model = type(self._model).__name__
        return f"Opacus does not find the gradients of clips of {model} ({reason}): compute them one by one"

    def _clip(self, rows: Rows) -> Rows:
        """Return gradients (units, ...) whose norm is at most the bound; those that are not finite become zeros."""
        norms = torch.stack([row.flatten(1).double().norm(dim=1) for row in rows])  # (parameters, units)
        whole = norms.norm(dim=0)
        if self._bounds is None:
            scales = (self.settings.clip / whole).clamp(max=1).expand_as(norms)
        else:
            scales = (norms.new_tensor(self._bounds).unsqueeze(1) / norms).clamp(max=1)
        finite = whole.isfinite()
        return [
            torch.where(_over(finite, row), row * _over(scale, row).to(row.dtype), torch.zeros_like(row))
            for row, scale in zip(rows, scales, strict=True)
        ]

    def _refuse_changed(self, buffers: dict[str, int]) -> None:
        for name, buffer in self._model.named_buffers():
            if buffers.get(name) != buffer._version:
                raise PrivacyError(
                    f"{type(self._model).__name__} changes its buffer {name} in training, which no noise protects: "
                    "take a variant without running statistics"
                )


def refuse_batch_norm(model: torch.nn.Module) -> None:
    """Raise PrivacyError, naming the first layer, for a model that normalises over the batch."""
    for name, module in model.named_modules():
        if isinstance(module, BATCH_NORMS):
            raise PrivacyError(
                f"{type(model).__name__} normalises over the clips of a batch ({type(module).__name__} {name}), so "
                "that a clip's gradient depends on the others: take the variant with GroupNorm"
            )


def _over(values: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """Return `values` (units,) with as many axes as `row` (units, ...)."""
    return values.view(-1, *[1] * (row.dim() - 1))


def _passes(units: Sequence[Sequence[int]], most: int) -> Iterator[Sequence[Sequence[int]]]:
    """Yield units in order, as many at a time as have up to `most` clips together, and one at least."""
    some: list[Sequence[int]] = []
    for unit in units:
        if some and sum(map(len, some)) + len(unit) > most:
            yield some
            some = []
        some.append(unit)
    if some:
        yield some


@contextmanager
def _hooks(model: torch.nn.Module) -> Iterator[None]:
    """Let Opacus note the gradients of every clip (`grad_sample`) as long as the block lasts."""
    hooks_of = _opacus()
    # Layers that write over their inputs cannot have hooks.
    overwriting: list[Any] = [module for module in model.modules() if getattr(module, "inplace", False)]
    for module in overwriting:
        module.inplace = False
    hooks = hooks_of(model, loss_reduction="sum", strict=False)
    try:
        with warnings.catch_warnings():
            # The first layer's inputs, the clips, have no gradients, and need none.
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            yield
    finally:
        hooks.cleanup()
        for module in overwriting:
            module.inplace = True
        for module in model.modules():
            for left in ("activations", "max_batch_len"):
                vars(module).pop(left, None)


@cache
def _opacus() -> Any:
    """Return Opacus's hooks, which take a layer of a class derived from one that they know for such a one."""
    try:
        from opacus.grad_sample.grad_sample_module import GradSampleHooks
    except ImportError:
        raise PrivacyError("Opacus is not installed: pip install 'openfl-audio[privacy]'") from None

    class Hooks(GradSampleHooks):
        def _get_module_type(self, module: torch.nn.Module) -> type:
            # A parametrized weight is no parameter of its layer. All others are checked by their sum.
            if torch.nn.utils.parametrize.is_parametrized(module):
                return type(module)
            known = (kind for kind in type(module).__mro__ if kind in self.GRAD_SAMPLERS)
            return next(known, type(module))

        def capture_activations_hook(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
            # It reads the windows of a convolution by strides, which are others for images that lie channels-last.
            super().capture_activations_hook(module, [tensor.contiguous() for tensor in inputs], output)

    return Hooks
