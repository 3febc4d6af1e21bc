import pytest
import torch
import torch.nn.functional as F

from tests.unit.workspaces.hubert.tones import batch_of, clips_of, tiny_hubert
from workspaces.hubert.loss import FrameCounts, MaskedPrediction
from workspaces.hubert.tasks import add_sums

LENGTHS = [16_000, 11_111, 6_400]
EXTRACTORS = pytest.mark.parametrize("norm", ["group", "layer"])
# Without a weight for unmasked frames, as in the paper, and with one.
OBJECTIVES = pytest.mark.parametrize("objective", [MaskedPrediction(), MaskedPrediction(0.5, 3.0)])


@EXTRACTORS
@OBJECTIVES
def test_a_padded_batch_has_the_loss_the_gradients_and_the_sums_of_its_clips(tmp_path, norm, objective):
    model = tiny_hubert(tmp_path, feat_extract_norm=norm)
    batch = batch_of(LENGTHS)
    counts = FrameCounts.of([batch])
    loss, sums = objective(model, batch, counts)
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    parts = [objective(model, clip, counts) for clip in clips_of(batch)]
    alone = sum(part[0] for part in parts)
    together: dict = {}
    for _, seen in parts:
        add_sums(together, seen)
    # float32: sums of some thousand terms in another order.
    torch.testing.assert_close(loss, alone, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        gradients, torch.autograd.grad(alone, list(model.parameters()), allow_unused=True), rtol=1e-3, atol=1e-5
    )
    assert objective.metrics(sums) == pytest.approx(objective.metrics(together), rel=1e-5)
    assert objective.metrics(sums)["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_what_stands_in_the_padding_is_of_no_account(tmp_path):
    model = tiny_hubert(tmp_path, feat_extract_norm="group")
    batch = batch_of(LENGTHS)
    loss, _ = MaskedPrediction(0.5)(model, batch, FrameCounts.of([batch]))
    batch.waveforms[2, 6_400:] = 5.0
    batch.targets[2, 19:] = 7
    changed, _ = MaskedPrediction(0.5)(model, batch, FrameCounts.of([batch]))
    assert changed.item() == pytest.approx(loss.item(), rel=1e-6)


def test_the_loss_is_that_of_its_formula(tmp_path):
    model = tiny_hubert(tmp_path).eval()
    batch = batch_of([16_000, 6_400])
    loss, _ = MaskedPrediction(unmasked_weight=0.5, feature_penalty=3.0)(model, batch, FrameCounts.of([batch]))
    masked, unmasked, squares = [], [], []
    with torch.no_grad():
        for clip in clips_of(batch):
            features = model.convolve(clip.waveforms)
            output = model.encode(features, mask=clip.mask)[-1][0]
            cosines = F.cosine_similarity(model.final_proj(output)[:, None], model.label_embeddings[None], dim=-1)
            losses = F.cross_entropy(cosines / 0.1, clip.targets[0], reduction="none")
            masked.append(losses[clip.mask[0]])
            unmasked.append(losses[~clip.mask[0]])
            squares.append(features.square().flatten())
    n_masked, n_unmasked = len(torch.cat(masked)), len(torch.cat(unmasked))
    assert n_masked + n_unmasked == 49 + 19
    expected = (torch.cat(masked).sum() + 0.5 * torch.cat(unmasked).sum()) / (n_masked + 0.5 * n_unmasked)
    expected += 3.0 * torch.cat(squares).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_metrics_count_what_is_predicted(tmp_path):
    model = tiny_hubert(tmp_path).eval()
    batch = batch_of([16_000, 6_400])
    objective = MaskedPrediction(feature_penalty=0.0)
    with torch.no_grad():
        metrics = objective.metrics(objective(model, batch, FrameCounts.of([batch]))[1])
        outputs = [model.encode(model.convolve(clip.waveforms), mask=clip.mask)[-1] for clip in clips_of(batch)]
        predicted = torch.cat([model.logits(output)[0].argmax(-1) for output in outputs])
    targets = torch.cat([clip.targets[0] for clip in clips_of(batch)])
    masked = torch.cat([clip.mask[0] for clip in clips_of(batch)])
    correct = (predicted == targets).double()
    assert metrics["masked_accuracy"] == pytest.approx(correct[masked].mean().item())
    assert metrics["unmasked_accuracy"] == pytest.approx(correct[~masked].mean().item())
    assert metrics["cluster_usage"] == len(set(predicted[masked].tolist())) / 8
    assert metrics["masked_share"] == pytest.approx(masked.double().mean().item())
    # Without penalty and weight, the loss is the masked cross-entropy.
    assert metrics["perplexity"] == pytest.approx(torch.tensor(metrics["loss"]).exp().item(), rel=1e-5)
