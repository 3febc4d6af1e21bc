import builtins
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from openfl_audio.errors import PrivacyError
from openfl_audio.privacy.noise import Noise, repeatable_noise
from openfl_audio.training import private_steps
from openfl_audio.training.private_steps import PrivateSettings, PrivateSteps, draw_units, each_alone

INPUTS = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(8) % 2
SETTINGS = PrivateSettings(clip=0.5, noise_multiplier=2.0, probability=0.25)


def linear(**changes) -> tuple[nn.Module, private_steps.Losses]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2, **changes).double()
    return model, lambda clips: each_alone(F.cross_entropy, model(INPUTS[clips]), LABELS[clips])


def noise() -> Noise:
    return repeatable_noise(0, "site", 0)


def make(model: nn.Module, settings: PrivateSettings = SETTINGS, num_units: int = 8, **more) -> PrivateSteps:
    return PrivateSteps(model, settings, num_units, noise(), **more)


class Silent(Noise):
    """No noise, to see what it is added to."""

    def normal(self, count: int):
        return 0 * super().normal(count)


@pytest.mark.parametrize("clips_per_pass", [None, 3])
def test_the_gradient_is_the_clipped_sum_and_noise_over_the_expected_number_of_units(clips_per_pass):
    model, losses = linear()
    units = [[0], [4], [5], [7]]
    steps = PrivateSteps(model, SETTINGS, 8, Silent(), clips_per_pass)
    steps.make_gradients(units, losses)
    # The gradient of cross-entropy after a linear layer: (softmax - one-hot) times the input.
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for (clip,) in units:
        error = model(INPUTS[clip]).softmax(0).detach() - F.one_hot(LABELS[clip], 2)
        gradient = error[:, None] * torch.cat([INPUTS[clip], torch.ones(1)])
        expected += gradient * min(1.0, 0.5 / float(gradient.norm()))
    torch.testing.assert_close(model.weight.grad, expected[:, :3] / 2)  # 8 units, each with probability 1/4
    torch.testing.assert_close(model.bias.grad, expected[:, 3] / 2)


def test_noise_has_the_deviation_that_is_accounted_for_also_in_a_step_that_draws_nobody():
    model = nn.Linear(400, 300)
    make(model).make_gradients([], lambda clips: torch.zeros(len(clips)))
    assert float(model.weight.grad.std()) == pytest.approx(2.0 * 0.5 / (0.25 * 8), rel=0.01)
    assert abs(float(model.weight.grad.mean())) < 0.01


def test_two_steps_have_other_noise_and_two_sites_as_well():
    model, losses = linear()
    steps = make(model)
    gradients = []
    for _ in range(2):
        steps.make_gradients([[0]], losses)
        gradients.append(model.weight.grad.clone())
    make(model).make_gradients([[0]], losses)
    assert not torch.equal(*gradients)
    assert torch.equal(model.weight.grad, gradients[0])
    PrivateSteps(model, SETTINGS, 8, repeatable_noise(0, "site_b", 0)).make_gradients([[0]], losses)
    assert not torch.equal(model.weight.grad, gradients[0])


@pytest.mark.parametrize("clips_per_pass", [None, 4])
@pytest.mark.parametrize("clipping", ["flat", "per_layer", "per_dimension"])
def test_no_unit_adds_more_than_the_bound(clipping, clips_per_pass):
    model, losses = linear()
    settings = PrivateSettings(0.01, 1.0, 0.5, clips_per_unit=3, clipping=clipping)
    units = [[0, 1, 2], [3], [4, 5], [6, 7]]
    steps = make(model, settings, clips_per_pass=clips_per_pass)
    clipped = steps.clipped_gradients(units, lambda clips: 1000 * losses(clips))
    norms = sum(each.flatten(1).square().sum(1) for each in clipped.values()).sqrt()
    torch.testing.assert_close(norms, torch.full((4,), 0.01, dtype=torch.float64))


@pytest.mark.parametrize("clips_per_pass", [None, 8])
def test_a_units_clips_are_summed_and_divided_by_a_number_that_does_not_depend_on_them(clips_per_pass):
    model, losses = linear()
    steps = make(model, PrivateSettings(100.0, 1.0, 0.5, clips_per_unit=4), clips_per_pass=clips_per_pass)
    gradients = steps.clipped_gradients([[0, 1, 2], [5]], losses)["weight"]
    for unit, found in zip(([0, 1, 2], [5]), gradients, strict=True):
        (by_itself,) = torch.autograd.grad(losses(unit).sum() / 4, [model.weight])
        torch.testing.assert_close(found, by_itself)


@pytest.mark.parametrize("clips_per_pass", [None, 8])
def test_a_unit_whose_gradient_is_not_finite_adds_nothing(clips_per_pass):
    model, losses = linear()
    broken = lambda clips: losses(clips) * torch.tensor([float("inf") if clip == 3 else 1.0 for clip in clips])  # noqa: E731
    clipped = make(model, clips_per_pass=clips_per_pass).clipped_gradients([[0], [3], [5]], broken)
    assert float(clipped["weight"][1].abs().max()) == 0.0
    alone = make(model).clipped_gradients([[0], [5]], losses)
    torch.testing.assert_close(clipped["weight"][[0, 2]], alone["weight"])


def test_a_loss_that_is_divided_by_what_the_batch_holds_would_couple_units():
    """The losses of clips alone do not; this shows that the comparison sees it where they do."""
    model, losses = linear()
    loose = PrivateSettings(100.0, 1.0, 0.25)
    first = [make(model, loose, clips_per_pass=8).clipped_gradients(units, losses) for units in ([[0]], [[0], [5]])]
    torch.testing.assert_close(first[0]["weight"][0], first[1]["weight"][0])
    mean = lambda clips: losses(clips) / len(clips)  # noqa: E731
    first = [make(model, loose, clips_per_pass=8).clipped_gradients(units, mean) for units in ([[0]], [[0], [5]])]
    torch.testing.assert_close(first[0]["weight"][0], 2 * first[1]["weight"][0])


def test_a_loss_for_all_clips_together_is_refused():
    model, losses = linear()
    with pytest.raises(PrivacyError, match=r"losses of 2 clips have the shape \(\): a loss for each clip is needed"):
        make(model, PrivateSettings(1.0, 1.0, 0.5, 2)).make_gradients([[0, 1]], lambda clips: losses(clips).mean())


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2).double()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.seen += len(inputs)
        return self.layer(inputs)


def test_a_model_that_changes_a_buffer_is_refused():
    model = Counting()
    losses = lambda clips: each_alone(F.cross_entropy, model(INPUTS[clips]), LABELS[clips])  # noqa: E731
    with pytest.raises(PrivacyError, match="Counting changes its buffer seen in training, which no noise protects"):
        make(model).make_gradients([[0]], losses)


class Borrowing(nn.Module):
    """Uses a weight outside of the layer that has it, besides within it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3).double()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.linear(self.layer(inputs), self.layer.weight)


def test_gradients_that_opacus_finds_in_part_are_refused():
    model = Borrowing()
    losses = lambda clips: each_alone(F.cross_entropy, model(INPUTS[clips]), LABELS[clips])  # noqa: E731
    with pytest.raises(PrivacyError, match=r"clips of Borrowing \(those of layer.weight do not add up\): compute"):
        make(model, clips_per_pass=8).make_gradients([[0], [1]], losses)
    make(model).make_gradients([[0], [1]], losses)


def test_images_that_lie_channels_last_have_the_same_gradients():
    """Opacus by itself reads them in the wrong order."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 2)).double()
    images = torch.randn(4, 2, 8, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    losses = lambda clips: each_alone(F.cross_entropy, model(images[clips]), LABELS[clips])  # noqa: E731
    units = [[0], [1], [2], [3]]
    one, at_once = (make(model, clips_per_pass=most).clipped_gradients(units, losses) for most in (None, 4))
    torch.testing.assert_close(at_once, one)
    assert model[1].inplace


@pytest.mark.parametrize("clips_per_pass", [None, 4])
def test_a_step_leaves_the_model_as_it_was_but_for_gradients(clips_per_pass):
    model, losses = linear()
    model.bias.requires_grad_(False)
    before, names = {name: each.clone() for name, each in model.state_dict().items()}, set(vars(model))
    make(model, clips_per_pass=clips_per_pass).make_gradients([[0], [1]], losses)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert set(vars(model)) == names
    assert not model._forward_hooks
    assert not hasattr(model.weight, "grad_sample")
    assert model.bias.grad is None


def test_all_clips_of_a_drawn_speaker_come_together_up_to_their_bound():
    owners = ["ann", "bob", "ann", "ann", "ann", "cy", "bob"]
    settings = PrivateSettings(1.0, 1.0, 0.5, clips_per_unit=3)
    clips = {"ann": {0, 2, 3, 4}, "bob": {1, 6}, "cy": {5}}
    stream, seen, counts = noise(), set(), dict.fromkeys(clips, 0)
    for _ in range(400):
        for unit in draw_units(owners, settings, stream):
            (owner,) = {owners[clip] for clip in unit}
            assert len(unit) == len(set(unit)) == min(3, len(clips[owner]))
            counts[owner] += 1
            seen.add(tuple(sorted(unit)))
    # Every three of ann's four clips come some time, and the others whole.
    assert seen == {(0, 2, 3), (0, 2, 4), (0, 3, 4), (2, 3, 4), (1, 6), (5,)}
    assert all(150 < count < 250 for count in counts.values())


def test_the_code_of_the_page_on_privacy_runs():
    page = (Path(__file__).parents[3] / "docs" / "privacy.md").read_text(encoding="utf-8")
    code, _ = re.findall(r"```python\n(.*?)```", page, re.S)
    names: dict = {}
    exec(code, names)
    assert 0 < names["spent"] < 100
    assert names["model"].weight.isfinite().all()


def test_without_opacus_gradients_one_by_one_still_are_computed(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("opacus"):
            raise ImportError(name)
        return real(name, *rest)

    private_steps._opacus.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    model, losses = linear()
    make(model).make_gradients([[0]], losses)
    with pytest.raises(PrivacyError, match=r"Opacus is not installed: pip install 'openfl-audio\[privacy\]'"):
        make(model, clips_per_pass=4).make_gradients([[0]], losses)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": 0.0}, "clip is 0.0: it should be a number above 0"),
        ({"noise_multiplier": -1.0}, "noise_multiplier is -1.0"),
        ({"probability": 1.1}, "probability is 1.1: it should be at most 1"),
        ({"clips_per_unit": 0}, "clips_per_unit is 0: it should be 1 or more"),
    ],
)
def test_settings_that_cannot_be_right_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        PrivateSettings(**({"clip": 1.0, "noise_multiplier": 1.0, "probability": 0.5} | changes))


def test_gradients_of_clips_may_cancel_out():
    model = nn.Linear(3, 1, bias=False)
    inputs = torch.randn(64, 3, generator=torch.Generator().manual_seed(2)) * 1e3
    opposite = torch.cat([inputs, -inputs + 1e-4])
    steps = PrivateSteps(model, SETTINGS, 128, noise(), clips_per_pass=128)
    found = steps.clipped_gradients([[clip] for clip in range(128)], lambda clips: model(opposite[clips])[:, 0])
    assert found["weight"].shape == (128, 1, 3)
