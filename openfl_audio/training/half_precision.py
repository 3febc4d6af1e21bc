"""Grouped convolutions that stay in float32 on processors where they are wrong in half precision.

On CPUs with AMX, PyTorch (2.11 to 2.14, by way of oneDNN) computes some grouped convolutions in bfloat16 wrongly: with
8 channels a group, output and both gradients are off by more than their own size. With `ONEDNN_MAX_CPU_ISA` set to
AVX512_CORE_BF16 they are right.
"""

import logging
from functools import cache, partial
from typing import Any, TypeVar, cast

import torch
from torch import nn

logger = logging.getLogger(__name__)

HALF = (torch.bfloat16, torch.float16)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# bfloat16 has 8 bits of precision: a right result is within 1 % of that in float32, a wrong one beyond its own size.
TOLERANCE = 0.05
# Outputs along each axis with which a convolution is tried: more than a block of any kernel has.
TRIED_OUTPUTS = 40

Model = TypeVar("Model", bound=nn.Module)


def guard_grouped_convolutions(model: Model) -> Model:
    """Let the grouped convolutions of `model` run in half precision on a CPU only where that gives right numbers.

    Each is tried when it first runs in bfloat16 or float16 on the CPU, once for its shape, precision and process, on
    noise: its output and both gradients are compared with those in float32. If one is wrong, the convolution runs
    in float32, with autocast off around it, and a line in the log says so. Names of weights, parametrizations and
    other devices are not touched. Returns `model`.
    """
    for module in model.modules():
        if isinstance(module, CONVOLUTIONS) and module.groups > 1:
            # An attribute of the instance: a subclass would take the place of the one that weight norm made.
            vars(module)["_conv_forward"] = partial(_convolve, module)
    return model


def _convolve(convolution: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute a convolution in a precision that is right: it takes the place of `_conv_forward` of `convolution`."""
    forward = type(convolution)._conv_forward
    precision = _precision_of(inputs)
    if precision not in HALF or is_right(_shape_of(convolution, weight), precision):
        return forward(convolution, inputs, weight, bias)
    with torch.autocast("cpu", enabled=False):
        outputs = forward(convolution, inputs.float(), weight.float(), None if bias is None else bias.float())
    return outputs.to(precision)


def _precision_of(inputs: torch.Tensor) -> torch.dtype | None:
    """Return the precision in which a convolution of `inputs` runs on the CPU; None on another device."""
    if inputs.device.type != "cpu":
        return None
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else inputs.dtype


def _shape_of(convolution: Any, weight: torch.Tensor) -> tuple:
    """Return what tells convolutions apart: type, weight shape, stride, padding, dilation, groups and padding mode."""
    kind = next(kind for kind in CONVOLUTIONS if isinstance(convolution, kind))
    padding = convolution.padding
    return (
        kind,
        tuple(weight.shape),
        convolution.stride,
        padding if isinstance(padding, str) else tuple(padding),
        convolution.dilation,
        convolution.groups,
        convolution.padding_mode,
    )


@cache
def is_right(shape: tuple, precision: torch.dtype) -> bool:
    """Tell whether a convolution of this `shape` (see `_shape_of`) has output and gradients of float32, within 5 %."""
    kind, (out_channels, per_group, *kernel), stride, padding, dilation, groups, padding_mode = shape
    # Neither the autocast, the inference nor the random numbers of the one who asks have a part in it.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolution = kind(
            per_group * groups, out_channels, tuple(kernel), stride, padding, dilation, groups, True, padding_mode
        )
        sizes = [(TRIED_OUTPUTS - 1) * s + d * (k - 1) + 1 for s, d, k in zip(stride, dilation, kernel, strict=True)]
        inputs = torch.randn(2, per_group * groups, *sizes)
        exact = _outputs_and_gradients(convolution, inputs, None)
        found = _outputs_and_gradients(convolution, inputs, precision)
    errors = [((f - e).norm() / e.norm()).item() for f, e in zip(found, exact, strict=True)]
    # Not `error > TOLERANCE`: NaN is wrong as well.
    right = all(error <= TOLERANCE for error in errors)
    if not right:
        logger.warning(
            "this CPU computes a grouped convolution in %s wrongly (%d channels in %d groups, kernel %s: output and "
            "gradients of inputs and weights are off by %s): it stays in float32",
            str(precision).removeprefix("torch."),
            per_group * groups,
            groups,
            "x".join(map(str, kernel)),
            ", ".join(f"{error:.0%}" for error in errors),
        )
    return right


def _outputs_and_gradients(
    convolution: Any, inputs: torch.Tensor, precision: torch.dtype | None
) -> tuple[torch.Tensor, ...]:
    """Return output and gradients of inputs and weight, with noise as the output's gradient, in `precision`."""
    inputs = inputs.clone().requires_grad_()
    with torch.autocast("cpu", precision, enabled=precision is not None):
        outputs = convolution(inputs)
    noise = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1))
    weight = cast(torch.Tensor, convolution.weight)
    gradients = torch.autograd.grad(outputs, [inputs, weight], noise.to(outputs.dtype))
    return outputs.detach().float(), *(gradient.float() for gradient in gradients)
