import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from benchmarks.sudormrf import compare, load_published
from openfl_audio.errors import WeightsError
from openfl_audio.node.model_interface import ModelInterface
from workspaces.speech_enhancement.export import load_sudormrf
from workspaces.speech_enhancement.model import chunk_size, create_sudormrf, make_consistent
from workspaces.speech_enhancement.settings import SudoRmRfSettings
from workspaces.speech_enhancement.workload import SpeechEnhancement, SpeechEnhancementSettings

SMALL = SudoRmRfSettings(
    out_channels=24, in_channels=32, num_blocks=2, upsampling_depth=3, kernel_size=21, num_bases=20, num_groups=4
)
# A checkout of github.com/etzinis/fedenhance.
PUBLISHED = os.environ.get("FEDENHANCE_CHECKOUT")


class Reference:
    """The published definition, layer by layer in plain arithmetic, on weights by their published names."""

    def __init__(self, weights: dict[str, torch.Tensor], settings: SudoRmRfSettings) -> None:
        self.weights, self.settings = weights, settings

    def __call__(self, waveform: torch.Tensor) -> torch.Tensor:
        s, half = self.settings, self.settings.kernel_size // 2
        multiple = half * 2 ** (s.upsampling_depth - 1)
        length = waveform.shape[-1]
        padded = torch.cat([waveform, waveform.new_zeros(len(waveform), -length % multiple)], dim=1)
        framed = torch.cat([padded.new_zeros(len(padded), half), padded, padded.new_zeros(len(padded), half)], dim=1)
        frames = framed.unfold(1, s.kernel_size, half)  # (batch, frames, kernel)
        encoded = torch.einsum("btk,nk->bnt", frames, self.weights["encoder.weight"][:, 0])
        x = self.dense(self.norm(encoded, "ln"), "bottleneck")
        for block in range(s.num_blocks):
            x = torch.cat(self.block(list(x.chunk(s.num_groups, dim=1)), f"sm.{block}"), dim=1)
        masks = self.dense(self.prelu(x, "mask_net.0"), "mask_net.1").relu()
        masked = torch.cat([mask * encoded for mask in masks.chunk(s.num_sources, dim=1)], dim=1)
        pieces = torch.einsum("bnt,nsk->bstk", masked, self.weights["decoder.weight"])
        output = torch.zeros(len(waveform), s.num_sources, framed.shape[-1], dtype=waveform.dtype)
        for i in range(pieces.shape[2]):
            output[..., i * half : i * half + s.kernel_size] += pieces[:, :, i]
        return output[..., half : half + length]

    def block(self, groups: list[torch.Tensor], name: str) -> list[torch.Tensor]:
        inner = [self.prelu(self.dense(g, f"{name}.TAC.TAC_input.0"), f"{name}.TAC.TAC_input.1") for g in groups]
        mean = sum(inner) / len(inner)
        mean = self.prelu(self.dense(mean, f"{name}.TAC.TAC_mean.0"), f"{name}.TAC.TAC_mean.1")
        outputs = []
        for group, own in zip(groups, inner, strict=True):
            both = self.dense(torch.cat([own, mean], dim=1), f"{name}.TAC.TAC_output.0")
            update = self.norm(self.prelu(both, f"{name}.TAC.TAC_output.1"), f"{name}.TAC.TAC_norm")
            outputs.append(self.u_block(group + update, f"{name}.UBlock"))
        return outputs

    def u_block(self, x: torch.Tensor, name: str) -> torch.Tensor:
        y = self.prelu(
            self.norm(self.dense(x, f"{name}.proj_1x1.conv"), f"{name}.proj_1x1.norm"), f"{name}.proj_1x1.act"
        )
        levels = []
        for level in range(self.settings.upsampling_depth):
            weight, bias = (self.weights[f"{name}.spp_dw.{level}.conv.{kind}"] for kind in ("weight", "bias"))
            windows = F.pad(y, (2, 2)).unfold(2, 5, 2 if level else 1)  # (batch, channels, frames, 5)
            y = self.norm((windows * weight).sum(-1) + bias[:, None], f"{name}.spp_dw.{level}.norm")
            levels.append(y)
        total = levels.pop()
        while levels:
            total = levels.pop() + total.repeat_interleave(2, dim=-1)
        total = self.prelu(self.norm(total, f"{name}.final_norm.norm"), f"{name}.final_norm.act")
        return x + self.dense(total, f"{name}.res_conv")

    def dense(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight = self.weights[f"{name}.weight"].flatten(1)
        return torch.einsum("oc,bct->bot", weight, x) + self.weights[f"{name}.bias"][:, None]

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(dim=(1, 2), keepdim=True)
        scale = (centred.pow(2).mean(dim=(1, 2), keepdim=True) + 1e-8).sqrt()
        return centred / scale * self.weights[f"{name}.gamma"][:, None] + self.weights[f"{name}.beta"][:, None]

    def prelu(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.where(x > 0, x, self.weights[f"{name}.weight"] * x)


def published_shapes(settings: SudoRmRfSettings) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the published model's parameters, by their names there."""
    s = settings
    channels, hidden = s.out_channels // s.num_groups, s.in_channels // s.num_groups
    shared = s.out_channels * 3 // s.num_groups
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (s.num_bases, 1, s.kernel_size),
        "decoder.weight": (s.num_bases * s.num_sources, s.num_sources, s.kernel_size),
        "mask_net.0.weight": (1,),
    }

    def dense(name: str, outputs: int, *inputs: int) -> None:
        shapes.update({f"{name}.weight": (outputs, *inputs), f"{name}.bias": (outputs,)})

    def norm(name: str, channels: int) -> None:
        shapes.update({f"{name}.gamma": (channels,), f"{name}.beta": (channels,)})

    norm("ln", s.num_bases)
    dense("bottleneck", s.out_channels, s.num_bases, 1)
    dense("mask_net.1", s.num_sources * s.num_bases, s.out_channels, 1)
    for block in range(s.num_blocks):
        tac, u_block = f"sm.{block}.TAC", f"sm.{block}.UBlock"
        dense(f"{tac}.TAC_input.0", shared, channels)
        dense(f"{tac}.TAC_mean.0", shared, shared)
        dense(f"{tac}.TAC_output.0", channels, 2 * shared)
        norm(f"{tac}.TAC_norm", channels)
        dense(f"{u_block}.proj_1x1.conv", hidden, channels, 1)
        norm(f"{u_block}.proj_1x1.norm", hidden)
        for level in range(s.upsampling_depth):
            dense(f"{u_block}.spp_dw.{level}.conv", hidden, 1, 5)
            norm(f"{u_block}.spp_dw.{level}.norm", hidden)
        norm(f"{u_block}.final_norm.norm", hidden)
        dense(f"{u_block}.res_conv", channels, hidden, 1)
        for activation in ("TAC_input.1", "TAC_mean.1", "TAC_output.1"):
            shapes[f"{tac}.{activation}.weight"] = (1,)
        for activation in ("proj_1x1.act", "final_norm.act"):
            shapes[f"{u_block}.{activation}.weight"] = (1,)
    return shapes


def random_weights(settings: SudoRmRfSettings, seed: int = 0) -> dict[str, torch.Tensor]:
    """No two alike, so that a tensor in a wrong place shows."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * (0.3 if len(shape) == 1 else 1 / shape[1] ** 0.5)
        for name, shape in published_shapes(settings).items()
    }


def test_the_model_has_the_published_number_of_parameters():
    model = create_sudormrf(SudoRmRfSettings())
    assert sum(parameter.numel() for parameter in model.parameters()) == 794_921
    assert sum(torch.Size(shape).numel() for shape in published_shapes(SudoRmRfSettings()).values()) == 794_921


@pytest.mark.parametrize("num_samples", [1_200, 1_163])  # with and without padding
def test_with_the_same_weights_it_computes_what_the_published_definition_says(num_samples):
    weights = random_weights(SMALL)
    model = create_sudormrf(SMALL)
    model.load_state_dict(model.read_published(weights))
    waveform = torch.randn(2, num_samples, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output, expected = model(waveform), Reference(weights, SMALL)(waveform)
    assert output.shape == (2, 3, num_samples)
    # float32 sums in another order
    assert (output - expected).abs().max() < 1e-5 * expected.abs().max()


def test_an_experiment_starts_from_a_file_of_the_published_code(tmp_path):
    weights = random_weights(SMALL)
    torch.save(weights, tmp_path / "model_epoch_100")
    provider = ModelInterface(partial(create_sudormrf, SMALL), partial(torch.optim.Adam, lr=0.1))
    provider.start_from(tmp_path / "model_epoch_100")
    model = provider.model_with(provider.initial_tensors(with_optimizer=False))
    waveform = torch.randn(1, 1_200, generator=torch.Generator().manual_seed(1))
    expected = Reference(weights, SMALL)(waveform)
    assert (model(waveform) - expected).abs().max() < 1e-5 * expected.abs().max()
    # Its own names, and a wrapper around the dictionary, are read as well.
    torch.save({"state_dict": model.state_dict()}, tmp_path / "own.pt")
    provider.start_from(tmp_path / "own.pt")
    assert np.array_equal(provider.initial_tensors(False)["norm.bias"], weights["ln.beta"].numpy())
    torch.save(weights | {"ln.beta": torch.zeros(3)}, tmp_path / "other.pt")
    provider.start_from(tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"other.pt does not fit: 'norm.bias' should be float32\("):
        provider.initial_tensors(False)


def test_gradients_are_those_of_the_published_definition():
    weights = {name: weight.double().requires_grad_() for name, weight in random_weights(SMALL).items()}
    model = create_sudormrf(SMALL).double()
    model.load_state_dict(model.read_published({name: weight.detach() for name, weight in weights.items()}))
    waveform, direction = torch.randn(2, 2, 1_200, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    (model(waveform) * direction.unsqueeze(1)).sum().backward()
    (Reference(weights, SMALL)(waveform) * direction.unsqueeze(1)).sum().backward()
    expected = model.read_published({name: weight.grad for name, weight in weights.items()})
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-8, atol=1e-10)


@pytest.mark.skipif(PUBLISHED is None, reason="FEDENHANCE_CHECKOUT names no checkout of etzinis/fedenhance")
def test_outputs_and_gradients_are_those_of_the_published_code():
    settings = SudoRmRfSettings(num_blocks=2)
    published, model = load_published(Path(PUBLISHED), settings), create_sudormrf(settings)
    model.load_state_dict(model.read_published(published.state_dict()))
    errors = compare(model, published, torch.randn(2, 3, 16_000))
    assert errors["outputs"] < 1e-5
    assert errors["gradients"] < 1e-6


def test_an_example_does_not_look_at_others_of_its_batch():
    """So that gradients of parts of a batch add up."""
    model = create_sudormrf(SMALL)
    waveforms = torch.randn(3, 1_000)
    with torch.no_grad():
        together, alone = model(waveforms), torch.cat([model(waveform[None]) for waveform in waveforms])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_estimates_add_up_to_the_mixture_at_any_level():
    model = create_sudormrf(SMALL)
    mixture = torch.randn(2, 1_000)
    with torch.no_grad():
        estimate, quiet = model.separate(mixture + 0.5), model.separate(1e-3 * (mixture + 0.5))
    torch.testing.assert_close(estimate.sum(dim=1), mixture + 0.5, rtol=0, atol=1e-5)
    torch.testing.assert_close(quiet, 1e-3 * estimate, rtol=0, atol=1e-6)


def test_mixture_consistency_spreads_what_is_missing_evenly():
    estimate = torch.tensor([[[1.0, 2.0], [0.0, 1.0], [2.0, 0.0]]])
    consistent = make_consistent(estimate, torch.tensor([[6.0, 0.0]]))
    assert consistent.tolist() == [[[2.0, 1.0], [1.0, 0.0], [3.0, -1.0]]]


def test_silence_is_separated_into_silence():
    with torch.no_grad():
        estimate = create_sudormrf(SMALL).separate(torch.zeros(1, 1_000))
    assert torch.equal(estimate, torch.zeros(1, 3, 1_000))


def test_the_random_start_depends_on_the_seed_and_on_nothing_else():
    torch.manual_seed(3)
    first = create_sudormrf(SMALL, seed=1).state_dict()
    torch.manual_seed(4)
    again, other = create_sudormrf(SMALL, seed=1).state_dict(), create_sudormrf(SMALL, seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.weight"], other["encoder.weight"])


def test_a_saved_model_is_loaded_as_it_was(tmp_path):
    model = create_sudormrf(SMALL, seed=5)
    settings = SpeechEnhancementSettings(rounds=1, batch_size=1, optimizer={"learning_rate": 0.1}, model=SMALL)
    SpeechEnhancement().save(model, settings, tmp_path / "model")
    loaded = load_sudormrf(tmp_path / "model")
    waveform = torch.randn(1, 500)
    with torch.no_grad():
        assert torch.equal(loaded(waveform), model(waveform))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"kernel_size": 40}, "it should be odd"),
        ({"num_groups": 7}, r"it should divide (out|in)_channels, which is"),
        ({"out_channels": 100}, r"it should divide out_channels, which is 100"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(values, sentence):
    with pytest.raises(ValidationError, match=sentence):
        SudoRmRfSettings(**values)


def test_on_a_cpu_long_examples_go_one_by_one_and_on_a_gpu_together():
    assert chunk_size(64_000, 6, "cpu") == 1
    assert chunk_size(16_000, 6, "cpu") == 4
    assert chunk_size(16_000, 2, "cpu") == 2
    assert chunk_size(64_000, 6, "cuda") == 6
