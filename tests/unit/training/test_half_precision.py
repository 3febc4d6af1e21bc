import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from openfl_audio.training.half_precision import guard_grouped_convolutions, is_right

SHAPES = [(32, 4, 16), (64, 8, 128)]  # channels, groups, kernel: 8 channels a group


def convolution(channels: int, groups: int, kernel: int, weight_norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=groups)
    return nn.utils.parametrizations.weight_norm(conv, dim=2) if weight_norm else conv


def run(conv: nn.Module, channels: int, precision: torch.dtype | None) -> list[torch.Tensor]:
    """Output, and gradients of the inputs and of all parameters."""
    inputs = torch.randn(2, channels, 50, generator=torch.Generator().manual_seed(1), requires_grad=True)
    with torch.autocast("cpu", precision, enabled=precision is not None):
        outputs = conv(inputs)
    gradients = torch.autograd.grad(outputs.float().square().sum(), [inputs, *conv.parameters()])
    return [outputs.detach().float(), *gradients]


def worst_error(conv: nn.Module, channels: int, precision: torch.dtype) -> float:
    pairs = zip(run(conv, channels, precision), run(conv, channels, None), strict=True)
    return max(((half - exact).norm() / exact.norm()).item() for half, exact in pairs)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_norm", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_convolution_that_is_wrong_in_half_precision_stays_in_float32(
    wrong_in_half_precision, shape, weight_norm, precision
):
    conv = convolution(*shape, weight_norm)
    assert worst_error(conv, shape[0], precision) > 0.5
    names = list(conv.state_dict())
    guard_grouped_convolutions(nn.Sequential(conv))
    assert worst_error(conv, shape[0], precision) < 0.02
    assert list(conv.state_dict()) == names


def test_a_copy_of_a_guarded_model_convolves_with_its_own_weights(wrong_in_half_precision):
    conv = guard_grouped_convolutions(convolution(*SHAPES[0]))
    other = copy.deepcopy(conv)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    assert worst_error(other, 32, torch.bfloat16) < 0.02
    assert not torch.allclose(run(other, 32, torch.bfloat16)[0], run(conv, 32, torch.bfloat16)[0])


def test_weights_that_are_half_precision_themselves_are_guarded_too(wrong_in_half_precision):
    conv = guard_grouped_convolutions(convolution(*SHAPES[0], weight_norm=False).bfloat16())
    inputs = torch.randn(2, 32, 50).bfloat16()
    exact = F.conv1d(inputs.float(), conv.weight.float(), conv.bias.float(), padding=8, groups=4)
    outputs = conv(inputs)
    assert outputs.dtype == torch.bfloat16
    assert (outputs.float() - exact).norm() < 0.02 * exact.norm()


def test_one_line_says_what_stays_in_float32(wrong_in_half_precision, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            run(guard_grouped_convolutions(convolution(32, 4, 16)), 32, torch.bfloat16)
    (line,) = (record.getMessage() for record in caplog.records)
    assert "in bfloat16 wrongly (32 channels in 4 groups, kernel 16" in line
    assert "float32" in line


def test_a_wrong_gradient_alone_is_found(monkeypatch):
    right = F.conv1d

    def conv1d(inputs, weight, *arguments):
        # The value of the weight, and half of its gradient.
        half = torch.is_autocast_enabled("cpu")
        return right(inputs, (weight + weight.detach()) / 2 if half else weight, *arguments)

    monkeypatch.setattr(F, "conv1d", conv1d)
    is_right.cache_clear()
    conv = guard_grouped_convolutions(convolution(32, 4, 16))
    assert worst_error(conv, 32, torch.bfloat16) < 0.02
    is_right.cache_clear()


def test_what_is_right_runs_in_half_precision(wrong_in_half_precision):
    conv = guard_grouped_convolutions(convolution(96, 6, 31))
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.randn(1, 96, 40)).dtype == torch.bfloat16
    assert not torch.equal(run(conv, 96, torch.bfloat16)[0], run(conv, 96, None)[0])


def test_a_trial_draws_nothing_from_others_generators_and_works_without_gradients(wrong_in_half_precision):
    conv = guard_grouped_convolutions(convolution(32, 4, 16))
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        conv(torch.ones(1, 32, 20))
    assert torch.equal(torch.get_rng_state(), state)
    assert is_right.cache_info().currsize == 1
