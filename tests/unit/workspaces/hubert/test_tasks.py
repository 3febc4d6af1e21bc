import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.amp.grad_scaler import GradScaler

from openfl_audio.node.progress import current
from tests.unit.workspaces.hubert.tones import CLUSTERS, Tones, batch_of, clips_of, tiny_hubert
from workspaces.hubert.batch_size_finder import find_max_samples, free_bytes
from workspaces.hubert.data import BatchLimits, Clips
from workspaces.hubert.loss import FrameCounts, MaskedPrediction
from workspaces.hubert.masking import MaskSettings, expected_share
from workspaces.hubert.tasks import TrainingSettings, add_gradients, train_round, validate_clips, validate_objective

pytestmark = pytest.mark.training

OBJECTIVE = MaskedPrediction(feature_penalty=1.0)
SETTINGS = TrainingSettings(
    rounds=1,
    learning_rate=3e-3,
    local_epochs=2,
    max_samples=200_000,
    max_clip_samples=64_000,
    warmup=0.1,
    feature_grad_mult=1.0,
)


@pytest.fixture(scope="module")
def clips():
    lengths = np.random.default_rng(0).integers(24_000, 80_000, size=48).tolist()
    return Clips(Tones(lengths), MaskSettings(), CLUSTERS)


@pytest.fixture(scope="module")
def few_clips():
    return Clips(Tones([24_000, 40_000, 31_000, 52_000, 36_000]), MaskSettings(), CLUSTERS)


def train(tmp_path, clips, settings=SETTINGS, seed=0, rounds=range(1), **changes):
    model = tiny_hubert(tmp_path, **changes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
    metrics = []
    for number in rounds:
        torch.manual_seed(seed + number)
        metrics.append(train_round(model, clips, optimizer, "cpu", number, settings, OBJECTIVE))
    return model, before, metrics


def test_a_small_model_learns_more_than_the_most_frequent_cluster(tmp_path, clips):
    model, _, (metrics,) = train(tmp_path, clips, replace(SETTINGS, local_epochs=15))
    scores = validate_clips(model, clips, "cpu")
    assert scores["masked_accuracy"] > 2 * scores["most_frequent_accuracy"]
    assert scores["loss"] < math.log(CLUSTERS)
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    frames = float(np.mean(clips.frames))
    assert metrics["masked_share"] == pytest.approx(expected_share(round(frames), MaskSettings()), abs=0.02)


def test_training_is_a_function_of_the_seed(tmp_path, few_clips):
    (first, _, metrics), (again, _, repeated), (other, _, _) = (
        train(tmp_path, few_clips, seed=seed, hidden_dropout=0.1, layerdrop=0.2) for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert metrics[0]["loss"] == repeated[0]["loss"]
    assert not torch.equal(first.final_proj.weight, other.final_proj.weight)


def test_the_learning_rate_goes_on_over_the_rounds(tmp_path, few_clips):
    settings = replace(SETTINGS, rounds=4, warmup=0.25, local_epochs=1)
    _, _, metrics = train(tmp_path, few_clips, settings, rounds=range(4))
    # The last of s steps of round r is (r + (s - 0.5) / s) / 4 of the way: up during the first round, then down to 0.
    (plan,) = {len(few_clips.train_batches(_limits(settings), 1, np.random.default_rng(0)))}
    progress = [(r + (plan - 0.5) / plan) / 4 for r in range(4)]
    expected = [p / 0.25 if p < 0.25 else (1 - p) / 0.75 for p in progress]
    assert [m["learning_rate"] / 3e-3 for m in metrics] == pytest.approx(expected, abs=0.02)
    assert expected[0] == max(expected)


def test_batches_that_are_accumulated_make_the_step_of_one_batch(tmp_path):
    batch = batch_of([16_000, 11_111, 6_400])
    gradients = []
    for parts in ([batch], clips_of(batch)):
        model = tiny_hubert(tmp_path)
        add_gradients(model, parts, OBJECTIVE, "float32", GradScaler("cpu", enabled=False), {})
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


def test_accumulation_takes_fewer_steps_over_the_same_clips(tmp_path, few_clips):
    settings = replace(SETTINGS, local_epochs=3, max_samples=64_000)
    one, four = (train(tmp_path, few_clips, replace(settings, accumulate=n)) for n in (1, 4))
    # AdamW moves each weight by about the learning rate a step.
    moved = [(m.final_proj.weight - b["final_proj.weight"]).abs().mean().item() for m, b, _ in (one, four)]
    assert moved[0] > 1.5 * moved[1]


@pytest.mark.parametrize("cpu", ["this one", "one that is wrong"])
@pytest.mark.parametrize(("autocast", "tolerance"), [("bfloat16", 0.02), ("float16", 0.005)])
def test_a_loss_in_half_precision_is_about_that_in_float32(tmp_path, autocast, tolerance, cpu, request):
    if cpu == "one that is wrong":
        request.getfixturevalue("wrong_in_half_precision")
    model = tiny_hubert(tmp_path)
    batch = batch_of([16_000, 6_400])
    exact, _ = OBJECTIVE(model, batch, FrameCounts.of([batch]))
    sums: dict = {}
    add_gradients(model, [batch], OBJECTIVE, autocast, GradScaler("cpu", enabled=False), sums)
    loss = OBJECTIVE.metrics(sums)["loss"]
    assert loss == pytest.approx(exact.item(), rel=tolerance)
    assert loss != exact.item()
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == torch.float32 for p in model.parameters())


def test_training_in_float16_goes_on_and_says_what_it_skipped(tmp_path, few_clips):
    model, before, (metrics,) = train(tmp_path, few_clips, replace(SETTINGS, autocast="float16"))
    assert metrics["skipped_steps"] == 0
    assert math.isfinite(metrics["gradient_norm"])
    assert not torch.equal(model.final_proj.weight, before["final_proj.weight"])


def test_the_proximal_term_keeps_the_weights_near_where_the_round_began(tmp_path, few_clips):
    distances = []
    for mu in (0.0, 1.0, 100.0):
        settings = replace(SETTINGS, proximal_mu=mu, learning_rate=1e-3, local_epochs=4)
        model, before, _ = train(tmp_path, few_clips, settings, layerdrop=0.5)
        distances.append(sum((p - before[n]).square().sum().item() for n, p in model.named_parameters()) ** 0.5)
    assert distances[0] > distances[1] > distances[2]


def test_the_proximal_gradient_is_that_of_its_formula(tmp_path):
    """One epoch in two steps of SGD with a small rate: the second is pulled by mu times the way of the first."""
    clips = Clips(Tones([32_000] * 4), MaskSettings(), CLUSTERS)
    changes = []
    for mu in (0.0, 10.0):
        torch.manual_seed(0)
        model = tiny_hubert(tmp_path)
        start = model.final_proj.weight.detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        settings = replace(
            SETTINGS, proximal_mu=mu, local_epochs=1, learning_rate=1e-3, max_samples=64_000, warmup=0.0, rounds=10**6
        )
        assert len(clips.train_batches(_limits(settings), 1, np.random.default_rng(0))) == 2
        train_round(model, clips, optimizer, "cpu", 0, settings, OBJECTIVE)
        changes.append(model.final_proj.weight.detach() - start)
    # w2' - w0 = (w2 - w0) - rate * mu * (w1 - w0), and w1 - w0 is about half of w2 - w0: 0.5 % less.
    ratio = (changes[1].norm() / changes[0].norm()).item()
    assert ratio == pytest.approx(1 - 0.5 * 1e-3 * 10, abs=2e-3)
    assert ratio < 0.9985


def test_gradients_are_clipped_and_reported_as_they_were(tmp_path, few_clips):
    model = tiny_hubert(tmp_path)
    start = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    settings = replace(SETTINGS, local_epochs=1, max_samples=10**7, clip_grad_norm=1e-3, warmup=0.0, learning_rate=1.0)
    metrics = train_round(model, few_clips, optimizer, "cpu", 0, settings, OBJECTIVE)  # one step
    moved = sum((p - s).square().sum().item() for p, s in zip(model.parameters(), start, strict=True)) ** 0.5
    assert (current().step, current().total, current().clips) == (1, 1, len(few_clips))
    assert metrics["learning_rate"] == pytest.approx(0.5)
    assert moved == pytest.approx(0.5e-3, rel=1e-3)
    assert metrics["gradient_norm"] > 0.1


def test_validation_is_over_all_frames_whatever_the_batches(tmp_path, few_clips):
    model = tiny_hubert(tmp_path, feat_extract_norm="group").eval()
    scores = [validate_clips(model, few_clips, "cpu", max_samples) for max_samples in (1_000, 10**7)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    predicted, targets, masked = [], [], []
    with torch.no_grad():
        for batch in few_clips.validation_batches(1):
            predicted.append(model.logits(model.encode(model.convolve(batch.waveforms), mask=batch.mask)[-1])[0])
            targets.append(batch.targets[0])
            masked.append(batch.mask[0])
    logits, truth, hidden = torch.cat(predicted), torch.cat(targets), torch.cat(masked)
    right = logits.argmax(-1) == truth
    assert scores[0]["masked_accuracy"] == pytest.approx(right[hidden].double().mean().item())
    assert scores[0]["unmasked_accuracy"] == pytest.approx(right[~hidden].double().mean().item())
    assert scores[0]["loss"] == pytest.approx(F.cross_entropy(logits[hidden], truth[hidden]).item(), rel=1e-5)
    assert scores[0]["most_frequent_accuracy"] == torch.bincount(truth[hidden]).max().item() / hidden.sum().item()
    assert scores[0]["cluster_usage"] == len(set(logits[hidden].argmax(-1).tolist())) / CLUSTERS
    assert few_clips.masked_frames == hidden.sum().item()


def test_two_nodes_together_score_what_one_with_all_clips_does(tmp_path):
    """The mean weighted by their sizes, as it is taken of the answers of a round."""
    model = tiny_hubert(tmp_path).eval()

    whole = Clips(Tones([24_000, 40_000, 31_000, 52_000, 36_000]), MaskSettings(), CLUSTERS)
    first = Clips(Tones([24_000, 40_000]), MaskSettings(), CLUSTERS)
    second = Clips(_Part([31_000, 52_000, 36_000], first=2), MaskSettings(), CLUSTERS)
    scores = [validate_clips(model, clips, "cpu") for clips in (whole, first, second)]
    sizes = [clips.masked_frames for clips in (whole, first, second)]
    assert sizes[0] == sizes[1] + sizes[2]
    for name in ("masked_accuracy", "loss"):
        mean = (scores[1][name] * sizes[1] + scores[2][name] * sizes[2]) / sizes[0]
        assert scores[0][name] == pytest.approx(mean, rel=1e-5)


def test_the_objective_over_all_clips_is_its_loss(tmp_path, few_clips):
    model = tiny_hubert(tmp_path).eval()
    without_penalty = validate_objective(model, few_clips, "cpu", MaskedPrediction(feature_penalty=0.0), 40_000)
    assert without_penalty["loss"] == pytest.approx(validate_clips(model, few_clips, "cpu")["loss"], rel=1e-5)


def test_no_clips_are_no_score(tmp_path):
    none = Clips(Tones([]), MaskSettings(), CLUSTERS)
    with pytest.raises(ValueError, match="no clips to validate with"):
        validate_clips(tiny_hubert(tmp_path), none, "cpu")


def test_as_many_samples_as_fit_are_found():
    """A step that holds 256 MB in any case and 256 MB a clip of 1000 samples, of which 80 % of what is free may be."""

    def step(clips):
        held = np.ones((256 + 256 * clips) * 2**17)  # of 8 bytes
        assert held.sum() > 0
        # A step takes long enough for its memory to be seen.
        torch.ones(1_500, 1_500) @ torch.ones(1_500, 1_500)

    # Others on this machine take and give back memory meanwhile.
    free = [free_bytes("cpu")]
    found = find_max_samples(step, 1_000, "cpu", reserved_bytes=0)
    free.append(free_bytes("cpu"))
    least, most = (1_000 * (0.8 * limit - 256 * 2**20) / (256 * 2**20) for limit in (min(free), max(free)))
    assert 0.8 * least < found < 1.25 * most


def test_a_batch_that_does_not_fit_still_has_one_clip():
    assert find_max_samples(lambda clips: None, 1_000, "cpu", reserved_bytes=2**60) == 1_000


def test_training_with_as_much_as_fits_trains(tmp_path, few_clips):
    settings = replace(SETTINGS, max_samples="auto", max_clip_samples=32_000, local_epochs=1)
    model, before, (metrics,) = train(tmp_path, few_clips, settings)
    assert not torch.equal(model.final_proj.weight, before["final_proj.weight"])
    assert metrics["rss_bytes"] > 2**20
    assert metrics["samples_per_second"] > 0


def test_large_gradients_are_told(tmp_path, few_clips, caplog):
    train(tmp_path, few_clips, replace(SETTINGS, warn_grad_norm=1e9, local_epochs=1))
    assert "large gradients" not in caplog.text
    _, _, (metrics,) = train(tmp_path, few_clips, replace(SETTINGS, warn_grad_norm=1e-9, local_epochs=1))
    assert "round 0, step 1: large gradients, of norm " in caplog.text
    assert metrics["flops_per_second"] > 1e6
    assert metrics["cpu_percent"] > 1
    assert metrics["peak_rss_bytes"] >= metrics["rss_bytes"]


def _limits(settings):
    return BatchLimits(settings.max_samples, settings.max_clip_samples, settings.max_clips)


class _Part(Tones):
    """Some of the clips, from clip `first` on."""

    def __init__(self, lengths, first):
        super().__init__(lengths)
        self.first = first
        self.names = [f"clip-{first + i}" for i in range(len(lengths))]

    def __getitem__(self, index):
        whole = Tones([0] * self.first + self.num_samples.tolist())
        return whole[index + self.first]
