"""Scores of sites out of an experiment's records, and which metrics are columns of a table."""

import math

import pytest

from openfl_audio.protocol.plan import TRAIN, VALIDATE
from openfl_audio.training.history import to_frame
from openfl_audio.training.sites import best_round, scores_by_site, summarize_scores, train_sizes
from workspaces.audio_classification.report import plot_sites, recalls_by_site, report_sites
from workspaces.audio_classification.tasks import macro_f1

SHARES = {"true/0": 0.5, "hit/0": 0.25, "true/1": 0.5, "hit/1": 0.5}


def record(number: int, accuracy: float, **of_sites: dict[str, float]) -> dict:
    envoys = {site: {VALIDATE: metrics} for site, metrics in of_sites.items()}
    metrics = {VALIDATE: {"accuracy": accuracy, **SHARES}}
    return {"round": number, "metrics": metrics, "envoys": envoys, "seconds": 1.0, "bytes_up": 8}


RECORDS = [
    record(0, 0.4, b={"accuracy": 0.2}, a={"accuracy": 0.6}),
    record(1, 0.8, b={"accuracy": 0.7, **SHARES}, a={"accuracy": 0.9, **SHARES, "true/0": 0.0, "hit/0": 0.0}, c={}),
    record(2, 0.6, a={"accuracy": 0.6}),
]


def test_the_sites_are_reported_in_the_round_of_the_best_model():
    assert scores_by_site(RECORDS, "accuracy", 0) == {"a": 0.6, "b": 0.2}
    report = report_sites(RECORDS, ("accuracy", "max"))
    assert report["by_site"] == {"a": 0.9, "b": 0.7}
    assert (report["worst"], report["clients"]) == (0.7, 2)
    assert best_round(RECORDS, ("accuracy", "min")) == 0


def test_recalls_are_of_the_classes_that_a_site_has():
    recalls = recalls_by_site({site: tasks.get(VALIDATE, {}) for site, tasks in RECORDS[1]["envoys"].items()}, 2)
    assert recalls["b"] == pytest.approx([0.5, 1.0])
    assert math.isnan(recalls["a"][0])
    assert set(recalls) == {"a", "b"}


def test_shares_of_classes_are_no_columns():
    assert list(to_frame(RECORDS).columns) == ["round", "accuracy", "seconds", "sent"]


def test_the_picture_has_sites_as_points_classes_by_sites_and_the_confusions():
    confused = {"accuracy": 0.8, **SHARES, "predicted/0": 0.25, "predicted/1": 0.75, "confused/0/1": 0.25}
    sites = {name: confused | {"accuracy": score} for name, score in {"a": 0.9, "b": 0.7}.items()}
    validated = record(1, 0.8, **sites)
    validated["metrics"][VALIDATE] |= confused | {"confused/1/0": 0.0}
    for name, size in {"a": 40, "b": 10}.items():
        validated["envoys"][name][TRAIN] = {"size": size}
    assert train_sizes([validated]) == {"a": 40, "b": 10}
    _, points, recalls, taken_for = plot_sites([validated], ("accuracy", "max"), ["no", "yes"]).axes
    assert [each.get_offsets()[0].tolist() for each in points.collections] == [[40, 0.9], [10, 0.7]]
    assert recalls.images[0].get_array().tolist() == [[0.5, 1.0]] * 2
    assert taken_for.images[0].get_array().tolist() == [[0.5, 0.5], [0.0, 1.0]]
    assert [label.get_text() for label in taken_for.get_yticklabels()] == ["no", "yes"]


def test_the_worst_tenth_is_that_of_the_metrics_direction():
    scores = {str(i): float(i) for i in range(11)} | {"none": float("nan")}
    high, low = summarize_scores(scores, "max"), summarize_scores(scores, "min")
    deviation = math.sqrt(10)
    assert high == {
        "clients": 11, "mean": 5.0, "standard_deviation": pytest.approx(deviation), "worst": 0.0, "best": 10.0,
        "p10": 1.0, "worst_tenth": 0.5,
    }  # fmt: skip
    assert low == high | {"worst": 10.0, "best": 0.0, "p10": 9.0, "worst_tenth": 9.5}
    assert summarize_scores({"none": float("nan")}, "max") == {}


def test_what_a_site_withholds_of_a_class_is_empty_and_moves_no_other_class():
    told = {"accuracy": 0.8, "true/1": 0.5, "hit/1": 0.25, "predicted/1": 0.5, "true/2": 0.25, "hit/2": 0.25,
            "predicted/2": 0.5, "confused/1/2": 0.25, "confused/2/1": 0.0}  # fmt: skip
    assert macro_f1(told) == pytest.approx((2 * 0.25 / 1 + 2 * 0.25 / 0.75) / 2)
    recalls = recalls_by_site({"a": told}, 4)["a"]
    assert (recalls[1], recalls[2]) == (0.5, 1.0)
    assert math.isnan(recalls[0])
    assert math.isnan(recalls[3])
    validated = record(1, 0.8, a=told)
    validated["metrics"][VALIDATE] = told
    validated["envoys"]["a"][TRAIN] = {"size": 4}
    *_, of_classes, taken_for = plot_sites([validated], ("accuracy", "max"), ["rare", "b", "c", "absent"]).axes
    assert [label.get_text() for label in of_classes.get_xticklabels()] == ["rare", "b", "c", "absent"]
    assert taken_for.images[0].get_array()[1:3, 1:3].tolist() == [[0.5, 0.5], [0.0, 1.0]]
