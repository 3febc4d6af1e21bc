"""A site's policy: what it refuses before training, and what it lets leave."""

import math
from datetime import datetime
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from openfl_audio.envoy.policy import Policy, SentToday, Shard, is_within, shard_of, without_values
from openfl_audio.envoy.running_experiment import lines_of_code
from openfl_audio.errors import PolicyError
from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.bundle import read_bundle
from openfl_audio.protocol.messages import TaskResult
from openfl_audio.protocol.plan import PUBLIC_PLAN_FILE
from openfl_audio.protocol.privacy import RecordLevel, SiteLevel
from openfl_audio.protocol.rules import Mean
from openfl_audio.protocol.secure_aggregation import SecureAggregation
from tests.unit.protocol.test_bundle import files, plan, write

PRIVACY = RecordLevel(noise_multiplier=0.8, clip=1.0, delta=1e-5, probability=0.1, steps=10)
NOISY_SUMS = {
    "privacy": SiteLevel(noise_multiplier=1.0, clip=1.0, delta=1e-5, colluders=0),
    "secure_aggregation": SecureAggregation(),
    "envoys": ["a", "b", "c"],
    "aggregation": Aggregation(rule=Mean(weighted=False)),
}
SHARD = Shard(clips=20, speakers=4)


def reasons(tmp_path, policy, user="ada", is_proven=True, shard=SHARD, sent=0, **changes):
    write(tmp_path, files() | {PUBLIC_PLAN_FILE: plan(**changes).model_dump_json().encode()})
    return "; ".join(Policy(**policy).judge(read_bundle(tmp_path), user, is_proven, shard, sent))


@pytest.mark.parametrize(
    ("policy", "good", "bad", "sentence"),
    [
        ({"users": ["ada"]}, {}, {"user": "bob"}, "it is one of 'bob', and may be one of 'ada'"),
        ({"users": ["ada"]}, {}, {"is_proven": False}, "whose certificate has not signed it"),
        ({"corpora": ["superb"]}, {"corpus": "superb"}, {"corpus": "other"}, "for the corpus 'other'"),
        ({"corpora": ["superb"]}, {"corpus": "superb"}, {}, "for the corpus None"),
        ({"min_clips": 20}, {}, {"shard": Shard(clips=19, speakers=4)}, "needs 20 clips here"),
        ({"min_speakers": 4}, {}, {"shard": Shard(clips=20, speakers=3)}, "needs 4 speakers here, and they are fewer"),
        ({"min_speakers": 1}, {}, {"shard": Shard(clips=20, speakers=None)}, "and they are not counted"),
        (
            {"min_participants": 2},
            {"participation": {"quorum": 2, "deadline_seconds": 9.0}},
            {"participation": {"quorum": 1, "deadline_seconds": 9.0}, "envoys": ["a", "b", "c"]},
            "may close with 1 updates, and need 2",
        ),
        ({"min_participants": 2}, {"envoys": ["a", "b"]}, {"envoys": ["a"]}, "may close with 1 updates, and need 2"),
        ({"min_participants": 2}, {"envoys": ["a", "b"]}, {}, "may close with 1 updates"),
        ({"metrics": ["accuracy"]}, {}, {"best": {"metric": "wer", "direction": "min"}}, "is chosen by 'wer'"),
        ({"max_round_mb": 24e-6}, {}, None, ""),
        ({"max_round_mb": 23e-6}, None, {}, "an update has 2.4e-05 MB, and may have 2.3e-05"),
        ({"max_day_mb": 30e-6}, {"sent": 6}, {"sent": 7}, "more than 3e-05 MB would leave today"),
        ({"precision": "float16"}, {"precision": "float16"}, {}, "its precision is float32, and has to be float16"),
        ({"secure_aggregation": True}, None, {}, "its updates are not masked"),
        ({"max_epsilon": 8.0}, None, {}, "it has no differential privacy, and has to cost an epsilon of at most 8"),
        (
            {"max_epsilon": 8.0},
            {"privacy": PRIVACY, "rounds": 3},
            {"privacy": PRIVACY, "rounds": 6},
            "at a delta of 1e-05, and may cost 8",
        ),
        (
            {"max_epsilon": 8.0},
            NOISY_SUMS | {"rounds": 2},
            NOISY_SUMS | {"rounds": 3},
            "it costs an epsilon of 9.01 at a delta of 1e-05, and may cost 8",
        ),
        (
            {"max_epsilon": 8.0},
            None,
            {"privacy": NOISY_SUMS["privacy"], "rounds": 1},
            "the director would add its noise, and it has to cost an epsilon of at most 8 by noise that sites add",
        ),
    ],
)
def test_an_experiment_is_refused_by_one_rule_and_runs_without(tmp_path, policy, good, bad, sentence):
    if good is not None:
        assert reasons(tmp_path / "good", policy, **good) == ""
    if bad is not None:
        assert sentence in reasons(tmp_path / "bad", policy, **bad)
        assert reasons(tmp_path / "bad", {}, **bad) == ""


def test_hours_may_go_past_midnight(tmp_path):
    now = datetime.now()
    other = f"{(now.hour + 2) % 24:02}:00-{(now.hour + 3) % 24:02}:00"
    assert "only" in reasons(tmp_path, {"hours": other})
    for hour, within in ((21, False), (22, True), (23, True), (5, True), (6, False)):
        assert is_within("22:00-06:00", datetime(2026, 1, 1, hour)) == within
    with pytest.raises(ValidationError, match="give two times of the day"):
        Policy(hours="night")


def test_what_leaves_with_an_update_is_what_may():
    policy = Policy(metrics=["accuracy", "wer"], min_count=10, min_clips=2, max_round_mb=1)
    result = TaskResult(
        size=9, metrics={"accuracy": 0.5, "wer": 0.25, "patient_7": 1.0}, counts={"wer": 10, "patient_7": 12}
    )
    released = policy.check_update({"validate": result}, 1_000_000)["validate"]
    assert released.metrics.keys() == {"accuracy", "wer"}
    assert math.isnan(released.metrics["accuracy"]), "over 9 clips only"
    assert released.metrics["wer"] == 0.25
    assert released.counts == {"wer": 10}
    assert policy.released_values({"accuracy": 1.0, "patient_7": 2.0}) == {"accuracy": 1.0}
    assert Policy().check_update({"validate": result}, 10**12) == {"validate": result}
    with pytest.raises(PolicyError, match=r"larger than 1 MB"):
        policy.check_update({}, 1_000_001)
    with pytest.raises(PolicyError, match="fewer clips than the 2"):
        policy.check_update({"train": TaskResult(size=1, metrics={})}, 0)
    assert policy.check_update({"train": TaskResult(size=0, metrics={})}, 0), "an envoy without clips says so"


def test_bytes_of_a_day_are_counted_over_restarts(tmp_path, monkeypatch):
    path = tmp_path / "sent.json"
    SentToday(path).add(600_000, 1.0)
    assert SentToday(path).read() == 600_000
    with pytest.raises(PolicyError, match="more than 1 MB would leave today"):
        SentToday(path).add(500_000, 1.0)
    SentToday(path).add(400_000, 1.0)
    monkeypatch.setattr("time.strftime", lambda _: "tomorrow")
    assert SentToday(path).read() == 0


@pytest.mark.parametrize(
    ("counts", "text", "sizes"),
    [
        ("exact", "428 clips of 3 speakers, 1,234.5 s", {"train": {"clips": 428, "frames": 3}}),
        (
            "rounded",
            "about 400 clips of fewer than 10 speakers, about 1,000 s",
            {"train": {"clips": 500, "frames": 10}},
        ),
        ("none", "not described", {}),
    ],
)
def test_a_shard_is_described_as_its_site_wants(counts, text, sizes):
    policy = Policy(counts=counts)
    assert policy.describe("428 clips of 3 speakers, 1,234.5 s") == text
    assert policy.sizes({"train": {"clips": 428, "frames": 3}}) == sizes


def test_speakers_are_those_of_the_training_split():
    dataset = SimpleNamespace(speakers=["a", "b", "", "a"])
    descriptor = SimpleNamespace(get_dataset=lambda split: dataset)
    assert shard_of(descriptor, {"train": {"clips": 4}, "validate": {"clips": 2}}) == Shard(clips=2, speakers=2)
    del dataset.speakers
    assert shard_of(descriptor, {"train": {"clips": 4}, "validate": {"clips": 0}}) == Shard(clips=4, speakers=None)


def test_a_traceback_without_values_has_lines_of_code_and_no_message():
    try:
        try:
            int("meier")
        except ValueError as error:
            raise KeyError("meier") from error
    except KeyError as error:
        text = without_values(error)
    assert 'raise KeyError("meier") from error' in text, "what stands in the code is no value"
    assert "builtins.KeyError\n" in text
    assert "builtins.ValueError" in text
    assert "invalid literal" not in text
    assert f'File "{__file__}"' not in text
    assert 'File "test_policy.py", line' in text


def test_of_a_killed_worker_only_lines_of_code_are_told():
    output = (
        "meier\nFatal Python error: Segmentation fault\n\nCurrent thread 0x00007f (most recent call first):\n"
        '  File "/srv/meier/workspace/toy/experiment.py", line 3 in train\nFatal meier\nTimeout (0:00:01)!\n'
    )
    assert lines_of_code(output).splitlines() == [
        "Fatal Python error: Segmentation fault",
        "Current thread 0x00007f (most recent call first):",
        '  File "toy/experiment.py", line 3 in train',
        "Timeout (0:00:01)!",
    ]
