import itertools

import evaluate
import numpy as np
import pytest
import soundfile
import torch

from openfl_audio.errors import SettingsError
from openfl_audio.node.progress import current
from workspaces.speech_enhancement.data import Sources
from workspaces.speech_enhancement.listening import write_examples
from workspaces.speech_enhancement.loss import si_sdr
from workspaces.speech_enhancement.model import create_sudormrf
from workspaces.speech_enhancement.tasks import (
    SI_SDRI,
    TrainingSettings,
    accumulate_gradients,
    batches,
    spread_over_clips,
    train_round,
    validate_clips,
)

pytestmark = pytest.mark.training

SETTINGS = TrainingSettings(learning_rate=0.003, batch_size=4, local_epochs=2, num_samples=8_000)


@pytest.fixture
def clips(open_shard):
    def of(name: str, split: str = "train") -> Sources:
        return Sources(open_shard(name).get_dataset(split))

    return of


@pytest.mark.parametrize(("name", "loss"), [("supervised", "supervised_loss"), ("unsupervised", "mixit_loss")])
def test_training_by_the_shards_own_loss_learns_to_enhance_and_is_repeatable(clips, tiny_model, name, loss):
    results = []
    for _ in range(2):
        model = create_sudormrf(tiny_model)
        before = validate_clips(model, clips(name, "validation"), "cpu")
        optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        losses = [train_round(model, clips(name), optimizer, "cpu", r, SETTINGS) for r in range(5)]
        results.append((losses, validate_clips(model, clips(name, "validation"), "cpu")))
    assert results[0] == results[1]
    losses, after = results[0]
    assert [list(each) for each in losses] == [[loss]] * 5
    assert losses[-1][loss] < losses[0][loss] - 3
    for metric in ("si_sdri_1_noise", "si_sdri_2_noises"):
        assert after[metric] > before[metric] + 3
        assert after[metric] > 1


def test_a_model_of_two_sources_learns_speech_and_all_noise_where_speech_is_known(clips, tiny_model):
    model, known = create_sudormrf(tiny_model.model_copy(update={"num_sources": 2})), clips("supervised")
    sources = known.whole(np.arange(len(known)))
    with torch.no_grad():
        speech, noise = model.separate(sources.sum(dim=1)).unbind(dim=1)
    expected = si_sdr(estimate=speech, reference=sources[:, 0])
    expected += si_sdr(estimate=noise, reference=sources[:, 1] + sources[:, 2])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    whole = TrainingSettings(learning_rate=0.003, batch_size=len(known), num_samples=8_000)
    loss = train_round(model, known, optimizer, "cpu", 0, whole)["supervised_loss"]
    assert loss == pytest.approx(-expected.mean().item(), rel=1e-4)
    assert train_round(model, known, optimizer, "cpu", 0, whole)["supervised_loss"] < loss
    with pytest.raises(SettingsError, match=r"num_sources is 2, .*no clean speech.*: there should be 3 at least"):
        train_round(model, clips("unsupervised"), optimizer, "cpu", 0, whole)


def test_gradients_of_parts_are_those_of_the_whole_batch(tiny_model, monkeypatch):
    sources = torch.randn(5, 3, 4_000, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    gradients = []
    for chunk in (1, 2, 5):
        monkeypatch.setattr("workspaces.speech_enhancement.tasks.chunk_size", lambda *_, chunk=chunk: chunk)
        model = create_sudormrf(tiny_model).double()
        loss = accumulate_gradients(model, sources, lambda e, s: -si_sdr(estimate=e, reference=s).mean(-1))
        gradients.append((loss, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])))
    for loss, gradient in gradients[:2]:
        assert loss == pytest.approx(gradients[2][0])
        torch.testing.assert_close(gradient, gradients[2][1], rtol=1e-9, atol=1e-12)


def test_the_learning_rate_is_a_function_of_the_round(clips, tiny_model):
    settings = TrainingSettings(
        learning_rate=0.008,
        divide_lr_by=2.0,
        divide_lr_every=3,
        local_epochs=0.1,
        batch_size=4,
        num_samples=8_000,
    )
    model = create_sudormrf(tiny_model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    train_round(model, clips("supervised"), optimizer, "cpu", 6, settings)
    assert optimizer.param_groups[0]["lr"] == 0.002
    assert (current().step, current().clips) == (current().total, 4 * current().step)


def test_gradients_are_clipped_or_not_at_all(clips, tiny_model):
    def length_of_a_step(clip_grad_norm: float) -> float:
        settings = TrainingSettings(
            1.0, local_epochs=0.1, batch_size=4, num_samples=8_000, clip_grad_norm=clip_grad_norm
        )
        model = create_sudormrf(tiny_model)
        before = torch.nn.utils.parameters_to_vector(model.parameters())
        train_round(model, clips("supervised"), torch.optim.SGD(model.parameters(), lr=1.0), "cpu", 0, settings)
        return (torch.nn.utils.parameters_to_vector(model.parameters()) - before).norm().item()

    assert length_of_a_step(0.25) == pytest.approx(0.25, rel=1e-3)
    assert length_of_a_step(0) == pytest.approx(length_of_a_step(1e9))
    assert length_of_a_step(0) > 0.3


@pytest.mark.parametrize(
    ("number", "local_epochs", "sizes"),
    [
        (10, 1, [4, 4]),
        (10, 0.5, [4]),
        (10, 0.1, [4]),
        (10, 2.5, [4] * 5),
        (3, 1, [3]),
        (3, 2, [3, 3]),
    ],
)
def test_a_local_epoch_may_be_a_fraction_and_a_small_client_has_one_batch(clips, number, local_epochs, sizes):
    sources = clips("unsupervised")
    sources.shard_dataset.number = number
    settings = TrainingSettings(learning_rate=1, batch_size=4, local_epochs=local_epochs, num_samples=100)
    assert [len(batch) for batch in batches(sources, settings, 0)] == sizes


def test_every_epoch_has_every_clip_in_another_order_and_new_noises(clips):
    sources = clips("unsupervised")
    settings = TrainingSettings(learning_rate=1, batch_size=4, local_epochs=2, num_samples=8_000)
    first, second, again = (torch.cat(list(batches(sources, settings, r))) for r in (0, 1, 0))
    assert torch.equal(first, again)
    epochs = [first[:16], first[16:], second[:16], second[16:]]
    for one, other in itertools.combinations(epochs, 2):
        assert not torch.equal(one[:, 0], other[:, 0])
        assert sorted(one[:, 0, 100].tolist()) == sorted(other[:, 0, 100].tolist())
        assert set(one[:, 2, 100].tolist()).isdisjoint(other[:, 2, 100].tolist())


def test_a_client_trains_on_crops_drawn_anew(clips):
    sources, items = clips("unsupervised"), np.arange(4)
    whole = sources.whole(items)
    assert whole.shape == (4, 3, 8_000)
    generator = np.random.default_rng(0)
    crops = [sources.crops(items, 3_000, generator) for _ in range(20)]
    starts = {
        next(start for start in range(5_001) if torch.equal(whole[0, 0, start : start + 3_000], crop[0, 0]))
        for crop in crops
    }
    assert len(starts) > 15
    assert min(starts) < 1_000
    assert max(starts) > 4_000
    settings = TrainingSettings(learning_rate=1, batch_size=4, num_samples=3_000)
    assert {batch.shape for batch in batches(sources, settings, 0)} == {(4, 3, 3_000)}


def test_crops_are_taken_out_of_what_was_recorded(clips, monkeypatch):
    sources = clips("unsupervised")
    speech, noise, silence = np.ones(8_000, np.float32), np.ones(8_000, np.float32), np.zeros(8_000, np.float32)
    noise[3_500:] = 0
    monkeypatch.setattr(type(sources.shard_dataset), "__getitem__", lambda *_: (speech, noise, silence))
    crops = sources.crops(np.zeros(200, int), 3_000, np.random.default_rng(0))
    assert crops[:, :2].all()
    assert not crops[:, 2].any()


def test_validation_is_the_mean_over_all_clips_with_one_noise_and_with_two(clips, tiny_model):
    model, sources = create_sudormrf(tiny_model), clips("unsupervised", "validation")
    scores = validate_clips(model, sources, "cpu", batch_size=3)
    spread = spread_over_clips(model, sources, "cpu", batch_size=3)
    speech, noise, extra = sources.whole(np.arange(4)).double().unbind(1)

    def db(estimate: torch.Tensor) -> torch.Tensor:
        cosine = torch.nn.functional.cosine_similarity(
            estimate - estimate.mean(-1, keepdim=True), speech - speech.mean(-1, keepdim=True)
        )
        return 10 * torch.log10(cosine**2 / (1 - cosine**2))

    for metric, mixture in (("si_sdri_1_noise", speech + noise), ("si_sdri_2_noises", speech + noise + extra)):
        with torch.no_grad():
            estimate = model.separate(mixture.float())[:, 0].double()
        improvements = db(estimate) - db(mixture)
        assert scores[metric] == pytest.approx(improvements.mean().item(), abs=1e-3)
        assert spread[f"{metric}_median"] == pytest.approx(np.median(improvements), abs=1e-3)
        assert spread[f"{metric}_deviation"] == pytest.approx(improvements.std(correction=0).item(), abs=1e-3)
    assert scores["si_sdri_1_noise"] != pytest.approx(scores["si_sdri_2_noises"], abs=0.01)


def test_the_metric_is_a_mean_difference():
    metric = evaluate.load(str(SI_SDRI), keep_in_memory=True)
    metric.add_batch(predictions=[10.0, 4.0], references=[1.0, 2.0])
    metric.add_batch(predictions=[-1.0], references=[0.0])
    assert metric.compute() == {"si_sdri": pytest.approx((9 + 2 - 1) / 3)}


def test_examples_are_files_of_mixture_estimate_and_reference(clips, tiny_model, tmp_path):
    model, sources = create_sudormrf(tiny_model), clips("unsupervised", "validation")
    paths = write_examples(model, sources, range(2), tmp_path / "audio", "cpu")
    assert sorted(path.name for path in paths) == sorted(path.name for path in (tmp_path / "audio").iterdir())
    assert len(paths) == 12
    speech, noise, extra = sources.whole(np.array([1]))[0]
    signals = {}
    for name in ("mixture", "estimate", "reference"):
        signals[name], rate = soundfile.read(tmp_path / "audio" / f"0001_2_noises_{name}.wav", dtype="float32")
        assert rate == 16_000
    assert np.array_equal(signals["reference"], speech.numpy())
    np.testing.assert_allclose(signals["mixture"], (speech + noise + extra).numpy(), atol=1e-7)
    with torch.no_grad():
        estimate = model.separate((speech + noise + extra)[None])[0, 0]
    np.testing.assert_allclose(signals["estimate"], estimate.numpy(), atol=1e-6)
