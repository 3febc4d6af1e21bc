"""Each metric against its definition written out here, pair by pair and rank by rank, and against scikit-learn."""

from itertools import pairwise

import evaluate
import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from workspaces.sound_events.tasks import METRIC_NAMES, METRICS

# Scores travel as float32.
CLOSE = {"rel": 1e-6, "abs": 1e-6}


def score(name: str, scores: np.ndarray, labels: np.ndarray) -> float:
    (value,) = evaluate.load(str(METRICS / f"{name}.py")).compute(predictions=scores, references=labels).values()
    return value


def draw(seed: int, clips: int = 60, classes: int = 7, steps: int = 1_000) -> tuple[np.ndarray, np.ndarray]:
    """Scores with about that many different values, better than chance, and labels; the last class has no clip."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((clips, classes)) < np.linspace(0.5, 0.1, classes)).astype(np.float32)
    labels[:, -1] = 0
    noisy = 0.3 * labels + 0.7 * generator.random((clips, classes))
    return np.round(noisy * steps).astype(np.float32) / steps, labels


def precision_and_recall(scores: np.ndarray, labels: np.ndarray) -> list[tuple[float, float]]:
    """At every threshold from the highest on."""
    points = []
    for threshold in sorted(set(scores), reverse=True):
        chosen = labels[scores >= threshold]
        points.append((chosen.mean(), chosen.sum() / labels.sum()))
    return points


def pr_auc(scores, labels):
    points = precision_and_recall(scores.ravel(), labels.ravel())
    points = [(1.0, 0.0), *points]
    return sum((r2 - r1) * (p1 + p2) / 2 for (p1, r1), (p2, r2) in pairwise(points))


def pr_auc_macro(scores, labels):
    return np.mean([pr_auc(*pair) for pair in zip(scores.T, labels.T, strict=True) if pair[1].any()])


def mean_average_precision(scores, labels):
    values = []
    for column, truth in zip(scores.T, labels.T, strict=True):
        if truth.any():
            points = [(1.0, 0.0), *precision_and_recall(column, truth)]
            values.append(sum((r2 - r1) * p2 for (_, r1), (p2, r2) in pairwise(points)))
    return np.mean(values)


def areas_of(scores, labels):
    areas = []
    for column, truth in zip(scores.T, labels.T, strict=True):
        positive, negative = column[truth == 1], column[truth == 0]
        if len(positive) and len(negative):
            wins = positive[:, None] > negative[None]
            ties = positive[:, None] == negative[None]
            areas.append((wins + ties / 2).mean())
    return areas


def d_prime(scores, labels):
    return np.sqrt(2) * norm.ppf(np.mean(areas_of(scores, labels)))


def d_prime_mean(scores, labels):
    return np.mean(np.sqrt(2) * norm.ppf(areas_of(scores, labels)))


def lwlrap(scores, labels):
    precisions = []
    for row, truth in zip(scores, labels, strict=True):
        for value in row[truth == 1]:
            at_least_as_high = row >= value
            precisions.append(truth[at_least_as_high].mean())
    return np.mean(precisions)


DEFINITIONS = {
    "pr_auc": pr_auc,
    "pr_auc_macro": pr_auc_macro,
    "mean_average_precision": mean_average_precision,
    "d_prime": d_prime,
    "d_prime_mean": d_prime_mean,
    "lwlrap": lwlrap,
}


def test_every_metric_has_a_definition_here():
    assert set(METRIC_NAMES) == DEFINITIONS.keys() == {path.stem for path in METRICS.glob("*.py")}


@pytest.mark.parametrize("name", METRIC_NAMES)
@pytest.mark.parametrize("steps", [1_000, 5], ids=["few ties", "many ties"])
def test_a_metric_is_its_definition_with_ties_and_without_clips_of_a_class(name, steps):
    for seed in range(3):
        scores, labels = draw(seed, steps=steps)
        labels[seed] = 0  # a clip without labels
        assert score(name, scores, labels) == pytest.approx(DEFINITIONS[name](scores, labels), **CLOSE)


def test_metrics_agree_with_scikit_learn_where_it_has_a_value():
    scores, labels = draw(0)
    precision, recall, _ = precision_recall_curve(labels.ravel(), scores.ravel())
    assert score("pr_auc", scores, labels) == pytest.approx(auc(recall, precision), **CLOSE)
    present = [(labels[:, i], scores[:, i]) for i in range(labels.shape[1] - 1)]
    expected = np.mean([average_precision_score(*pair) for pair in present])
    assert score("mean_average_precision", scores, labels) == pytest.approx(expected, **CLOSE)
    area = np.mean([roc_auc_score(*pair) for pair in present])
    assert score("d_prime", scores, labels) == pytest.approx(np.sqrt(2) * norm.ppf(area), **CLOSE)


def test_a_class_that_every_clip_has_counts_for_map_and_not_for_d_prime():
    scores, labels = draw(0)
    with_all = np.append(labels, np.ones((len(labels), 1), np.float32), axis=1)
    with_scores = np.append(scores, scores[:, :1], axis=1)
    for name in ("d_prime", "d_prime_mean"):
        assert score(name, with_scores, with_all) == pytest.approx(score(name, scores, labels), **CLOSE)
    assert score("mean_average_precision", with_scores, with_all) > score("mean_average_precision", scores, labels)


def test_perfect_and_worst_scores_are_finite_and_beyond_all_others():
    labels = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    assert {score(name, labels, labels) for name in METRIC_NAMES if "d_prime" not in name} == {1}
    for name in ("d_prime", "d_prime_mean"):
        perfect = score(name, labels, labels)
        assert np.isfinite(perfect)
        # One tie among eight pairs is the least that can go wrong.
        tied = np.array([[1, 0], [0, 0], [0, 1], [0, 1]], np.float32)
        assert score(name, tied, labels) < perfect
        assert score(name, 1 - labels, labels) == pytest.approx(-perfect)


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_without_any_label_a_score_is_undefined_and_no_error(name):
    """On one node of many: its training counts, and the others have scores."""
    assert np.isnan(score(name, np.ones((3, 2), np.float32), np.zeros((3, 2), np.float32)))


def test_a_single_clip_has_every_score_but_the_one_that_compares_clips():
    labels = np.array([[1, 0]], np.float32)
    undefined = {name for name in METRIC_NAMES if np.isnan(score(name, np.ones((1, 2), np.float32), labels))}
    assert undefined == {"d_prime", "d_prime_mean"}


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_the_score_over_all_clips_is_not_the_mean_of_the_clients_scores(name):
    """Score three unequal clients, weighted as a director weights them."""
    scores, labels = draw(1, clips=120)
    clients = np.split(np.arange(120), [10, 40])
    mean = sum(score(name, scores[c], labels[c]) * len(c) for c in clients) / 120
    whole = score(name, scores, labels)
    assert whole == pytest.approx(DEFINITIONS[name](scores, labels), **CLOSE)
    assert abs(whole - mean) > 1e-3


def test_lwlrap_merges_when_clients_are_weighted_by_their_labels():
    scores, labels = draw(1, clips=120)
    clients = np.split(np.arange(120), [10, 40])
    merged = sum(score("lwlrap", scores[c], labels[c]) * labels[c].sum() for c in clients) / labels.sum()
    assert merged == pytest.approx(score("lwlrap", scores, labels), **CLOSE)
