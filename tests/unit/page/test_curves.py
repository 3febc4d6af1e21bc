"""Rounds in columns: values as they were, gaps where there are none, and fewer points of many envoys."""

import asyncio
import json
import math

from openfl_audio.page import curves as module
from openfl_audio.page.curves import Curves, Histories
from openfl_audio.page.tables import csv_lines, records_of
from openfl_audio.protocol.messages import BestMetric, ExperimentDetails
from openfl_audio.protocol.plan import TRAIN, VALIDATE
from openfl_audio.training.history import envoy_rows, table_row


def record_of(number: int, envoys: str = "ab", accuracy: float | None = 0.5, **changes) -> dict:
    metrics = {TRAIN: {"loss": 1.0 / (number + 1)}}
    if accuracy is not None:
        metrics[VALIDATE] = {"accuracy": accuracy, "accuracy/dog": 0.25}
    return {
        "round": number,
        "best": False,
        "metrics": metrics,
        "means_of_sites": {},
        "envoys": {name: {task: {"size": 3} | values for task, values in metrics.items()} for name in envoys},
        "refused": {},
        "missing": [],
        "notes": {},
        "seconds": 2.0,
        "bytes_up": 10,
        "bytes_down": 20,
        "timings": {name: {"download": 1.0, "upload": 2.0 + place} for place, name in enumerate(envoys)},
    } | changes


def test_columns_have_a_value_or_a_gap_for_each_round():
    curves = Curves()
    curves.add(record_of(0, accuracy=None))
    curves.add(record_of(1, "b", refused={"a": "NaN"}, notes={"a": ["holds NaN"]}))
    curves.add(record_of(2, accuracy=math.nan, missing=["c"]))
    drawn = curves.since(0, 0)
    assert drawn["rounds"] == [0, 1, 2]
    assert drawn["metrics"] == {"train loss": [1.0, 0.5, 0.33333], "accuracy": [None, 0.5, None]}
    assert drawn["phases"] == {"download": [1, 1, 1], "tasks": [None] * 3, "upload": [2.5, 2, 2.5]}
    assert drawn["sizes"]["refused"] == [0, 1, 0]
    assert drawn["sizes"]["missing"] == [0, 0, 1]
    assert drawn["envoys"]["accuracy"] == {"a": [None, None, None], "b": [None, 0.5, None]}
    assert drawn["sentences"] == ["round 1: a: holds NaN"]
    json.dumps(drawn, allow_nan=False)


def test_what_comes_later_continues_what_was_sent():
    curves = Curves()
    for number in range(3):
        curves.add(record_of(number))
    before = curves.since(0, 0)
    curves.add(record_of(3, "ac"))
    added = curves.since(3, 3)
    assert before["rounds"] + added["rounds"] == [0, 1, 2, 3]
    assert added["envoys"]["train loss"] == {"a": [0.25], "b": [None], "c": [0.25]}


def test_lines_of_many_envoys_have_fewer_points_and_that_of_all_keeps_its_own(monkeypatch):
    monkeypatch.setattr(module, "MOST_POINTS", 8)
    monkeypatch.setattr(module, "FEWEST_POINTS", 4)
    curves = Curves()
    for number in range(20):
        curves.add(record_of(number))
    assert curves.stride == 8
    assert curves.envoy_rounds == [0, 8, 16]
    assert curves.since(0, 0)["envoys"]["train loss"]["a"] == [1.0, 0.11111, 0.058824]
    assert len(curves.since(0, 0)["metrics"]["train loss"]) == 20


def test_a_history_that_comes_at_once_is_drawn_as_one_that_came_round_by_round(monkeypatch):
    """Values of envoys are read of those rounds only that are drawn."""
    monkeypatch.setattr(module, "MOST_POINTS", 8)
    monkeypatch.setattr(module, "FEWEST_POINTS", 4)
    records = [record_of(number, "ab", refused={"c": "NaN"}, notes={"c": ["holds NaN"]}) for number in range(20)]
    slowly, at_once = Curves(), Curves(expected=20)
    for record in records:
        slowly.add(record)
        at_once.read(json.dumps(record).encode())
        assert at_once.stride == 8
    at_once.read(b'{"status": "finished", "error": ""}')
    assert at_once.since(0, 0) == slowly.since(0, 0)
    assert (at_once.stride, at_once.envoy_rounds) == (8, [0, 8, 16])


def details_of(rounds: int, submitted: float = 1.0) -> ExperimentDetails:
    best = BestMetric(metric="accuracy", direction="max")
    return ExperimentDetails(
        name="words",
        owner="ada",
        status="in_progress",
        error="",
        round=rounds,
        submitted=submitted,
        best=best,
        history=[],
    )


def test_a_history_is_read_once_and_another_experiment_of_the_same_name_anew():
    asked = []

    async def history(first: int):
        asked.append(first)
        for number in range(first, 4):
            yield json.dumps(record_of(number)).encode()
        yield b'{"status": "in_progress", "error": ""}'

    async def look() -> None:
        histories = Histories()
        first = await histories.of(details_of(4), history)
        assert await histories.of(details_of(4), history) is first
        assert len(first) == 4
        assert await histories.of(details_of(4, submitted=2.0), history) is not first

    asyncio.run(look())
    assert asked == [0, 0]


async def _messages(*records):
    for record in records:
        yield json.dumps(record).encode()
    yield b'{"status": "finished", "error": ""}'


def csv_of(rows_of, columns, *records) -> str:
    async def lines() -> str:
        return "".join([line async for line in csv_lines(records_of(_messages(*records)), columns, rows_of)])

    return asyncio.run(lines())


def test_no_cell_of_a_csv_is_a_formula():
    record = record_of(0, notes={"a": ["=HYPERLINK(0)"]})
    record["metrics"][VALIDATE]["=cmd"] = -0.5
    columns = ["round", "=cmd", "left out"]
    assert csv_of(lambda each: [table_row(each)], columns, record) == "round,'=cmd,left out\n0,-0.5,a: =HYPERLINK(0)\n"
    hostile = record_of(0, refused={"-a": '+1,"2"', "@b": "x\ny"})
    text = csv_of(envoy_rows, ["envoy", "state", "why"], hostile)
    assert '\'-a,refused,"\'+1,""2"""\n' in text
    assert '\'@b,refused,"x\ny"\n' in text
