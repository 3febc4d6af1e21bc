import math

from openfl_audio.protocol.messages import EnvoyProgress, LiveRound, PrivacySpent
from openfl_audio.training.history import per_envoy, privacy_sentence, updates_that_counted

RECORD = {
    "round": 3,
    "envoys": {
        "b": {"aggregated_model_validate": {"size": 5, "accuracy": 0.5}, "train": {"size": 7, "loss": 2.0}},
        "a": {"aggregated_model_validate": {"size": 4, "accuracy": 0.75}},
    },
    "refused": {"c": "NaN in 'head'"},
    "missing": ["d"],
    "timings": {"b": {"download": 0.5, "upload": 0.25, "tasks": 9.0}, "c": {"download": 0.125}},
}


def test_each_envoy_of_a_round_has_a_row_with_its_metrics_and_seconds_or_why_it_did_not_count():
    frame = per_envoy([RECORD])
    assert frame[["round", "envoy", "state", "why"]].to_numpy().tolist() == [
        [3, "a", "counted", ""],
        [3, "b", "counted", ""],
        [3, "c", "refused", "NaN in 'head'"],
        [3, "d", "missing", "no answer when the round closed"],
    ]
    by_name = frame.set_index("envoy")
    assert by_name.loc["b", ["size", "accuracy", "train size", "train loss"]].tolist() == [5, 0.5, 7, 2.0]
    assert by_name.loc["b", ["download", "tasks", "upload"]].tolist() == [0.5, 9.0, 0.25]
    assert by_name["accuracy"]["a"] == 0.75
    assert math.isnan(by_name["train loss"]["a"])
    assert by_name["download"]["c"] == 0.125


def test_the_envoys_of_the_open_round_have_rows_with_what_they_do():
    works = EnvoyProgress(name="a", state="works", task="train", step=3, total=7, values={"loss": 0.5})
    open_round = {"rounds": 9, "seconds": 1.0, "seconds_left": None}
    now = LiveRound(live=4, envoys=[works, EnvoyProgress(name="b", state="offline", since=1e9)], **open_round)
    frame = per_envoy([RECORD], now)
    assert frame["round"].tolist() == [3, 3, 3, 3, 4, 4]
    assert frame.iloc[4][["envoy", "state", "task", "step", "total"]].tolist() == ["a", "works", "train", 3, 7]
    assert frame.iloc[5][["envoy", "state", "since"]].tolist() == ["b", "offline", 1e9]
    closed = LiveRound(live=3, envoys=[works], **open_round)  # meanwhile the history has it
    assert per_envoy([RECORD], closed).equals(per_envoy([RECORD]))


def test_without_rounds_there_are_columns_and_no_row():
    frame = per_envoy([])
    assert list(frame) == ["round", "envoy", "state", "why"]
    assert frame.empty


def test_a_secure_round_says_with_how_many_and_against_which_director():
    secure = {"envoys": ["a", "b", "c"], "of": 3, "threshold": 3, "attempt": 1, "approving": 2}
    record = {"envoys": {"a": {}, "b": {}, "c": {}}, "secure": secure}
    assert updates_that_counted(record) == "3 of 3, secure (curious)"
    assert updates_that_counted(record | {"secure": secure | {"approving": 3}}) == "3 of 3, secure (malicious)"
    assert updates_that_counted(record | {"secure": None}) == "3 of 3"


def test_the_privacy_of_a_round_by_an_earlier_build_is_told_as_that_of_one_by_this():
    spent = {"unit": "record", "delta": 1e-5, "epsilon": {"a": 1.0}}
    sentence = (
        "epsilon of a record, at a delta of 1e-05, of data that differ by: add or remove one unit; trusted for it: "
        "nobody: each site adds its noise"
    )
    # As a file has it, and as a director sends it.
    for found in (spent, PrivacySpent.model_validate(spent).model_dump()):
        assert privacy_sentence({"privacy": found}) == sentence
