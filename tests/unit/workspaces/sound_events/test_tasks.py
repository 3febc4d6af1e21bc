import evaluate
import numpy as np
import pytest
import torch

from openfl_audio.node.progress import current
from workspaces.sound_events.data import Patches
from workspaces.sound_events.model import create_tagger
from workspaces.sound_events.tasks import METRICS, TrainingSettings, score_clips, train_round, validate_clips

pytestmark = pytest.mark.training


def train(model, patches, rounds, learning_rate=3e-3):
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    settings = TrainingSettings(local_epochs=2, batch_size=16)
    return [train_round(model, patches, optimizer, "cpu", r, settings)["loss"] for r in range(rounds)]


@pytest.mark.parametrize(
    ("architecture", "normalisation", "n_train", "n_unseen"),
    [
        ("vgg", "group", 40, 24),
        pytest.param("crnn", "group", 60, 40, marks=pytest.mark.slow),
        pytest.param("vgg", "evaluation_batch", 40, 24, marks=pytest.mark.slow),
    ],
)
def test_training_learns(make_clips, architecture, normalisation, n_train, n_unseen):
    unseen = Patches(make_clips(n_unseen, seed=1))
    model = create_tagger(architecture, 4, normalisation, width=0.25)
    before = validate_clips(model, unseen, "cpu")
    losses = train(model, Patches(make_clips(n_train)), rounds=4)
    after = validate_clips(model, unseen, "cpu")
    assert losses[-1] < losses[0]
    assert after["loss"] < before["loss"]
    assert before["pr_auc"] < 0.6
    assert min(after["pr_auc"], after["mAP"], after["lwlrap"]) > 0.8
    assert after["d_prime"] > before["d_prime"] + 1


def test_training_and_validation_are_repeatable(make_clips):
    clips = Patches(make_clips(20))
    results = []
    for _ in range(2):
        model = create_tagger("vgg", 4, width=0.25)
        results.append((train(model, clips, 2), validate_clips(model, clips, "cpu")))
    assert results[0] == results[1]


def test_an_epoch_is_every_patch_once_and_the_loss_is_their_mean(make_clips):
    """With a learning rate of 0 the loss does not depend on the order; batches of unequal size must not count alike."""
    dataset = make_clips(7)
    model = create_tagger("vgg", 4, "group", width=0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loss = train_round(model, Patches(dataset), optimizer, "cpu", 3, TrainingSettings(local_epochs=2, batch_size=5))
    assert sorted(dataset.read) == sorted([*range(len(dataset))] * 2)
    assert (current().step, current().clips) == (current().total, 2 * len(dataset))
    inputs = torch.from_numpy(dataset.patches(np.arange(len(dataset))))
    labels = torch.from_numpy(dataset.clip_labels[dataset.clip])
    with torch.no_grad():
        expected = torch.nn.BCELoss()(model(inputs).sigmoid(), labels).item()
    assert loss["loss"] == pytest.approx(expected, rel=1e-5)


def test_training_lowers_the_loss_that_the_settings_name(make_clips):
    """The negative logits: binary cross-entropy would raise most of them."""
    clips, model = Patches(make_clips(7)), create_tagger("vgg", 4, "group", width=0.25)
    settings = TrainingSettings(local_epochs=2, batch_size=16, loss=lambda logits, labels: -logits.mean())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = [train_round(model, clips, optimizer, "cpu", r, settings)["loss"] for r in range(2)]
    assert losses[1] < losses[0] < 0.5
    assert (score_clips(model, clips, "cpu")[0] > 0.5).all()


def test_every_round_has_an_order_of_its_own(make_clips):
    dataset = make_clips(10)
    model = create_tagger("vgg", 4, width=0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    orders = []
    for round_number in (0, 1, 0):
        dataset.read.clear()
        train_round(model, Patches(dataset), optimizer, "cpu", round_number, TrainingSettings(batch_size=4))
        orders.append(tuple(dataset.read))
    assert orders[0] == orders[2] != orders[1]


def test_a_clips_score_is_the_mean_over_its_patches(make_clips):
    dataset = make_clips(11)
    model = create_tagger("vgg", 4, "group", width=0.25, seed=5)
    scores, loss = score_clips(model, Patches(dataset), "cpu", batch_size=4)
    assert len(set(np.bincount(dataset.clip))) > 2  # clips of several lengths
    with torch.no_grad():
        p = model(torch.from_numpy(dataset.patches(np.arange(len(dataset))))).sigmoid().numpy()
    expected = np.stack([p[dataset.clip == clip].mean(axis=0) for clip in range(11)])
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    labels = dataset.clip_labels[dataset.clip]
    assert loss == pytest.approx(-np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p)), rel=1e-5)


def test_validation_scores_clips_not_patches(make_clips):
    dataset = make_clips(30)
    model = create_tagger("vgg", 4, "group", width=0.25, seed=5)
    metrics = validate_clips(model, Patches(dataset), "cpu")
    assert set(metrics) == {"loss", "pr_auc", "pr_auc_macro", "mAP", "d_prime", "d_prime_mean", "lwlrap"}
    scores, _ = score_clips(model, Patches(dataset), "cpu")

    def compute(predictions, references):
        metric = evaluate.load(str(METRICS / "mean_average_precision.py"))
        return metric.compute(predictions=predictions, references=references)["mAP"]

    assert metrics["mAP"] == compute(scores, dataset.clip_labels)
    with torch.no_grad():
        of_patches = model(torch.from_numpy(dataset.patches(np.arange(len(dataset))))).sigmoid().numpy()
    assert abs(metrics["mAP"] - compute(of_patches, dataset.clip_labels[dataset.clip])) > 1e-3


def test_a_client_with_a_single_patch_trains_too(make_clips):
    dataset = next(made for made in (make_clips(1, seed=seed) for seed in range(50)) if len(made) == 1)
    model = create_tagger("crnn", 4, width=0.25)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    assert np.isfinite(train_round(model, Patches(dataset), optimizer, "cpu", 0, TrainingSettings())["loss"])
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
