"""Values that the browser is told of envoys, experiments and rounds."""

import time

from openfl_audio.page.shown import actions, details, envoy, federation, progress, round_of
from openfl_audio.protocol.messages import (
    BestMetric,
    EnvoyProgress,
    EnvoySummary,
    ExperimentDetails,
    ExperimentSummary,
    FederationStatus,
)
from openfl_audio.protocol.page import SessionDetails
from tests.unit.page.test_curves import record_of

STEER = ["StopExperiment", "ResumeExperiment", "DeleteExperiment", "DropEnvoy", "GetModel", "GetLog"]


def session(*calls: str) -> SessionDetails:
    return SessionDetails(name="ada", role="user", ends=0.0, calls=list(calls), version="1")


def experiment(status: str, **changes) -> ExperimentDetails:
    values = {
        "name": "words",
        "owner": "ada",
        "error": "",
        "round": 3,
        "rounds": 2,
        "best": BestMetric(metric="wer", direction="min"),
        "history": [],
        "plan": {"best": {"metric": "wer", "direction": "min", "others": {"loss": "min"}}},
    }
    return ExperimentDetails(status=status, **(values | changes))


def test_an_envoy_is_offline_free_busy_or_does_what_it_reports():
    def state(**changes) -> str:
        return envoy(EnvoySummary(**({"name": "a", "corpus": "", "online": True, "experiment": ""} | changes)))["state"]

    assert state(online=False, experiment="words") == "offline"
    assert state() == "free"
    assert state(experiment="another's") == "busy"
    assert state(experiment="words", progress=EnvoyProgress(name="a", state="refused", why="NaN")) == "refused"


def test_a_certificate_that_ends_within_a_month_is_pointed_out():
    def soon(days: float) -> bool:
        entry = EnvoySummary(
            name="a", corpus="", online=True, experiment="", certificate_expires=time.time() + days * 86400
        )
        return envoy(entry)["expiresSoon"]

    assert soon(29)
    assert not soon(31)


def test_a_share_is_of_steps_or_of_bytes_and_silence_is_a_state():
    assert progress(EnvoyProgress(name="a", state="works", task="train", step=3, total=4))["share"] == 0.75
    moving = EnvoyProgress(name="a", state="works", transfer="upload", bytes_moved=1, bytes_total=4, step=3, total=4)
    assert (progress(moving)["share"], progress(moving)["doing"]) == (0.25, "upload 1 B of 4 B")
    assert progress(EnvoyProgress(name="a", state="works"))["share"] is None
    silent = progress(EnvoyProgress(name="a", state="works", task="train", silent_seconds=5.0))
    assert (silent["state"], silent["doing"]) == ("silent", "train, no word for 5.0 s")


def test_actions_are_those_of_the_role_and_of_the_moment():
    assert actions(experiment("in_progress"), session(*STEER)) == ["stop", "drop"]
    assert actions(experiment("stopped"), session(*STEER)) == ["resume", "delete", "drop"]
    assert actions(experiment("finished"), session(*STEER)) == ["delete"]
    assert actions(experiment("in_progress"), session()) == []
    shown = details(experiment("finished"), session(*STEER))
    assert (shown["models"], shown["rounds"], shown["best"]) == (
        ["initial", "last", "best", "best-loss"],
        "2 of 2",
        "wer, lower is better",
    )
    monitor = details(experiment("finished"), session())
    assert (monitor["models"], monitor["logs"]) == ([], False)


def test_what_runs_comes_first_and_then_what_is_newest():
    entries = [
        ExperimentSummary(name=name, owner="ada", status=status, error="", submitted=submitted)
        for name, status, submitted in (("old", "finished", 1.0), ("new", "failed", 3.0), ("runs", "in_progress", 2.0))
    ]
    shown = federation(FederationStatus(envoys=[], experiments=entries))["experiments"]
    assert [each["name"] for each in shown] == ["runs", "new", "old"]


def test_a_round_has_its_envoys_classes_and_what_did_not_count():
    shown = round_of(record_of(1, "b", refused={"a": "NaN"}, notes={"a": ["holds NaN"]}))
    rows = [dict(zip(shown["columns"], row, strict=True)) for row in shown["envoys"]]
    assert [(row["envoy"], row["state"], row["why"]) for row in rows] == [("a", "refused", "NaN"), ("b", "counted", "")]
    assert (rows[0]["accuracy"], rows[1]["accuracy"], rows[1]["upload (s)"]) == ("", "0.500", "2.000")
    assert shown["sentences"] == ["a: holds NaN"]
    about = {"unit": "site", "delta": 0.1, "adjacency": "one", "trust": "nobody", "epsilon": {}}
    private = round_of(record_of(1, "b") | {"privacy": about})
    assert private["sentences"][0].endswith("of data that differ by: one; trusted for it: nobody")
    assert shown["classes"] == [{"metric": "accuracy", "rows": [("dog", "0.250", 0.25)]}]
    assert shown["summary"] == "2.0 s, updates that counted: 1 of 2, 10 B sent and 20 B received by envoys"
