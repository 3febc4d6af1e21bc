import math

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from workspaces.keyword_spotting_wav2vec2.model import create_wav2vec2
from workspaces.keyword_spotting_wav2vec2.tasks import (
    ACCURACY,
    TrainingSettings,
    count_steps,
    train_round,
    validate_clips,
)

pytestmark = pytest.mark.training

LABELS = ("low", "high")

SMALL = "wav2vec2_small.json"


class Tones(torch.utils.data.Dataset):
    """Low and high tones with noise, alternating."""

    def __init__(self, n_clips: int) -> None:
        self.n_clips = n_clips

    def __len__(self) -> int:
        return self.n_clips

    def __getitem__(self, index: int) -> dict:
        label = index % 2
        noise = np.random.default_rng(index).normal(size=4_000)
        tone = np.sin(2 * np.pi * (1_500 if label else 300) * np.arange(4_000) / 16_000)
        return {"input_values": (2 * tone + noise).astype(np.float32), "labels": label}

    def begin_round(self, round_number: int) -> None:
        self.round_number = round_number


def test_training_learns_and_is_repeatable():
    clips = Tones(32)
    results = []
    for _ in range(2):
        model = create_wav2vec2(config=SMALL, labels=LABELS, seed=0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        settings = TrainingSettings(rounds=2, local_epochs=3, batch_size=8)
        before = validate_clips(model, clips, "cpu")
        losses = [train_round(model, clips, optimizer, "cpu", r, settings)["loss"] for r in range(2)]
        results.append((losses, validate_clips(model, clips, "cpu")))
    assert results[0] == results[1]
    assert results[0][1]["loss"] < before["loss"] / 2
    assert results[0][1]["accuracy"] > 0.9
    assert clips.round_number == 1


def test_validation_is_the_mean_over_all_clips():
    """Not over batches: 5 clips in batches of 4 must not count the last clip four times."""
    model = create_wav2vec2(config=SMALL, labels=LABELS, seed=0).eval()
    clips = Tones(5)
    with torch.no_grad():
        logits = torch.stack([model(torch.from_numpy(clips[i]["input_values"])[None]).logits[0] for i in range(5)])
    labels = torch.tensor([clips[i]["labels"] for i in range(5)])
    metrics = validate_clips(model, clips, "cpu", batch_size=4)
    assert metrics["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-5)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(-1) == labels).float().mean().item())


def without_dropout() -> torch.nn.Module:
    model = create_wav2vec2(config=SMALL, labels=LABELS, seed=0)
    model.config.hidden_dropout = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 1), (2, 2)])
def test_the_training_loss_is_the_mean_over_all_clips(batch_size, accumulate):
    """With a learning rate of 0 it is that of the clips: the fifth must not count as much as the four before."""
    model = without_dropout()
    clips = Tones(5)
    settings = TrainingSettings(rounds=1, local_epochs=2, batch_size=batch_size, accumulate=accumulate)
    loss = train_round(model, clips, torch.optim.SGD(model.parameters(), lr=0.0), "cpu", 0, settings)["loss"]
    assert loss == pytest.approx(validate_clips(model, clips, "cpu")["loss"], abs=1e-5)


def test_a_loss_that_is_no_number_is_told():
    """One batch of two is broken: the mean of the other would look like a validation of all."""
    clips = Tones(8)
    broken = [clips[i] for i in range(8)]
    broken[1]["input_values"] = np.full(4_000, np.nan, dtype=np.float32)
    assert math.isnan(validate_clips(create_wav2vec2(config=SMALL, labels=LABELS), broken, "cpu", batch_size=4)["loss"])


def test_accuracy_agrees_with_scikit_learn():
    import evaluate
    from sklearn.metrics import accuracy_score

    predictions, references = np.random.default_rng(0).integers(0, 3, size=(2, 50))
    value = evaluate.load(str(ACCURACY)).compute(predictions=predictions, references=references)["accuracy"]
    assert value == pytest.approx(accuracy_score(references, predictions))
    assert not math.isclose(value, 1.0)


def trained_with(learning_rate: float = 0.1, **changes) -> torch.Tensor:
    """All weights after one step of SGD on eight clips, or with an accumulation on as many."""
    model = without_dropout()
    settings = TrainingSettings(rounds=1, **{"batch_size": 8, "clip_grad_norm": 0.0, "warmup": 0.0} | changes)
    train_round(model, Tones(8), torch.optim.SGD(model.parameters(), lr=learning_rate), "cpu", 0, settings)
    return torch.nn.utils.parameters_to_vector(model.parameters())


def test_accumulated_batches_make_the_step_of_one_large_batch():
    whole, halves, two_steps = trained_with(), trained_with(batch_size=4, accumulate=2), trained_with(batch_size=4)
    torch.testing.assert_close(halves, whole, rtol=0, atol=1e-5)
    assert not torch.allclose(two_steps, whole, rtol=0, atol=1e-5)


def test_gradients_are_clipped_to_the_norm_or_not_at_all():
    before = torch.nn.utils.parameters_to_vector(without_dropout().parameters())
    # A step of SGD is as long as the gradient times the learning rate, in the middle of its linear schedule.
    clipped, longer = ((trained_with(clip_grad_norm=norm) - before).norm().item() for norm in (0.01, 0.02))
    assert longer == pytest.approx(2 * clipped, rel=1e-3)
    assert (trained_with(clip_grad_norm=0.0) - before).norm() > 2 * longer


def test_autocast_computes_in_half_the_precision():
    full, half = trained_with(), trained_with(autocast="bfloat16")
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0, atol=1e-2)


def test_several_gpus_share_a_batch_and_take_fewer_steps():
    """As `TrainingArguments` counts them; there is no machine with two here."""

    def steps(clips: int, gpus: int, **more: int) -> int:
        arguments = TrainingArguments(per_device_train_batch_size=8, use_cpu=True, report_to="none", **more)
        arguments._n_gpu = gpus
        return count_steps(clips, arguments)

    assert steps(65, 1, num_train_epochs=2) == 2 * 9
    assert steps(65, 2, num_train_epochs=2) == 2 * 5
    assert steps(65, 2, num_train_epochs=1, gradient_accumulation_steps=3) == 2
