from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from openfl_audio.errors import (
    DefinitionError,
    RoundFailedError,
    TooFewUpdatesError,
    UnknownMetricError,
    UpdateRefusedError,
)
from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.messages import TaskResult, UpdateMessage
from openfl_audio.protocol.participation import Participation
from openfl_audio.protocol.plan import BestModel, ExperimentPlan, Task
from openfl_audio.protocol.rounds import MAX_NOTES, Progress, Rounds
from openfl_audio.protocol.rules import Median, TrimmedMean

VALIDATE = Task(name="aggregated_model_validate", function_name="validate", task_type="validate")
TRAIN = Task(name="train", function_name="fit", task_type="train")


def make_rounds(
    n_rounds: int = 2,
    envoys: str = "ab",
    direction: str = "max",
    patience: int | None = None,
    halve_rate_after: int | None = None,
    also_best: dict[str, str] | None = None,
    tasks: Collection[Task] = (VALIDATE, TRAIN),
    metric_bounds: dict[str, tuple[float, float]] | None = None,
    aggregation: Aggregation | None = None,
    units: dict[str, str] | None = None,
    mean_over: dict[str, str | None] | None = None,
    **participation: Any,
) -> Rounds:
    plan = ExperimentPlan(
        name="experiment",
        federation_uuid="uuid",
        rounds=n_rounds,
        tasks=list(tasks),
        best=BestModel(
            metric="score",
            direction=direction,
            others=also_best or {},
            patience=patience,
            halve_rate_after=halve_rate_after,
        ),
        participation=Participation(**participation),
        metric_bounds=metric_bounds or {},
        aggregation=aggregation or Aggregation(),
        units=units or {"train": "clips", "validate": "clips"},
        mean_over=mean_over or {},
    )
    rounds = Rounds(plan, Progress())
    rounds.open(envoys)
    return rounds


def make_update(envoy="a", round_number=0, size=1, score=0.5, valid_size=1, **changes: Any) -> UpdateMessage:
    results = {
        "train": TaskResult(size=size, metrics={"loss": 1.0}),
        "aggregated_model_validate": TaskResult(size=valid_size, metrics={"score": score} if valid_size else {}),
    }
    content = {"experiment": "experiment", "envoy": envoy, "round": round_number, "results": results} | changes
    return UpdateMessage(**content)


def answer(rounds: Rounds, envoy: str, **content: Any) -> None:
    """Check and count an answer with what the tasks of `envoy` ask for."""
    update = make_update(envoy, rounds.round_number, **content)
    wanted = {task.name for task in rounds.tasks_for(envoy)}
    update = update.model_copy(update={"results": {name: update.results[name] for name in wanted}})
    rounds.check(update)
    rounds.count(update)


def next_round(rounds: Rounds, envoys: str = "ab") -> None:
    rounds.progress = rounds.next_progress()
    rounds.open(envoys)


def names_of(tasks: list[Task]) -> list[str]:
    return [task.name for task in tasks]


def test_everybody_validates_the_global_model_then_trains_and_the_last_round_only_validates():
    rounds = make_rounds(n_rounds=1)
    for envoy in "ab":
        assert names_of(rounds.tasks_for(envoy)) == ["aggregated_model_validate", "train"]
        answer(rounds, envoy)
    next_round(rounds)
    assert not rounds.finished
    for envoy in "ab":
        assert names_of(rounds.tasks_for(envoy)) == ["aggregated_model_validate"]
        answer(rounds, envoy)
    assert not rounds.trains
    assert rounds.is_complete(0)
    next_round(rounds)
    assert rounds.finished


def test_without_a_validation_task_the_last_training_is_the_end():
    rounds = make_rounds(n_rounds=2, tasks=[TRAIN])
    ends = []
    for _ in range(2):
        for envoy in "ab":
            answer(rounds, envoy)
        assert rounds.record()["best"] is False
        next_round(rounds)
        ends.append(rounds.finished)
    assert ends == [False, True]
    assert rounds.progress == Progress(round_number=2, aggregations=2)


def test_metrics_are_means_over_clips_and_envoys_without_clips_have_no_say():
    rounds = make_rounds(envoys="abc")
    answer(rounds, "a", score=1.0, valid_size=30)
    answer(rounds, "b", score=0.0, valid_size=10)
    answer(rounds, "c", valid_size=0)
    record = rounds.record()
    assert record["metrics"]["aggregated_model_validate"] == {"score": 0.75}
    assert record["envoys"]["a"] == {
        "aggregated_model_validate": {"size": 30, "score": 1.0},
        "train": {"size": 1, "loss": 1.0},
    }
    assert record["envoys"]["c"]["aggregated_model_validate"] == {"size": 0}


def test_a_metric_that_one_envoy_leaves_out_is_the_mean_of_the_others():
    rounds = make_rounds()
    answer(rounds, "a", score=0.25, valid_size=10)
    other = TaskResult(size=30, metrics={"other": 0.5})
    answer(rounds, "b", results=make_update().results | {"aggregated_model_validate": other})
    assert rounds.record()["metrics"]["aggregated_model_validate"] == {"other": 0.5, "score": 0.25}


@pytest.mark.parametrize("seed", range(10))
def test_the_order_of_arrival_changes_no_bit_of_a_mean_nor_the_order_of_contributions(seed):
    generator = np.random.default_rng(seed)
    said = {envoy: (generator.normal() * 10.0 ** (seed % 4), int(generator.integers(1, 99))) for envoy in "abcdefg"}
    outcomes = []
    for order in ("abcdefg", "gfedcba"):
        rounds = make_rounds(envoys="abcdefg")
        for envoy in order:
            answer(rounds, envoy, score=said[envoy][0], valid_size=said[envoy][1], size=said[envoy][1])
        outcomes.append((rounds.record(), list(rounds.trained.items())))
    assert outcomes[0] == outcomes[1]
    scores, clips = zip(*said.values(), strict=True)
    mean = outcomes[0][0]["metrics"]["aggregated_model_validate"]["score"]
    assert mean == pytest.approx(np.average(scores, weights=clips), rel=1e-9)
    assert outcomes[0][1] == [(envoy, said[envoy][1]) for envoy in "abcdefg"]


@pytest.mark.parametrize(
    ("direction", "expected", "last"), [("max", [True, True, False], 0.7), ("min", [True, False, True], 0.2)]
)
def test_the_best_model_follows_the_metric_and_its_direction(direction, expected, last):
    rounds = make_rounds(n_rounds=3, direction=direction)
    flags = []
    for score in (0.5, 0.7, 0.2):
        for envoy in "ab":
            answer(rounds, envoy, score=score)
        flags.append(rounds.record()["best"])
        next_round(rounds)
    assert flags == expected
    assert rounds.progress.best_scores == {"best": last}


def test_every_metric_has_a_best_model_of_its_own_and_one_of_them_the_patience():
    rounds = make_rounds(n_rounds=9, patience=2, also_best={"error": "min", "unheard_of": "max"})
    better = []
    for score, error in ((0.5, 3.0), (0.7, 4.0), (0.6, 2.0), (0.6, 1.0)):
        validated = TaskResult(size=1, metrics={"score": score, "error": error})
        for envoy in "ab":
            trained = make_update(envoy).results["train"]
            answer(rounds, envoy, results={"aggregated_model_validate": validated, "train": trained})
        better.append(set(rounds.better_scores()))
        next_round(rounds)
    assert better == [{"best", "best-error"}, {"best"}, {"best-error"}, {"best-error"}]
    assert rounds.progress.best_scores == {"best": 0.7, "best-error": 1.0}
    assert rounds.finished


def test_a_metric_that_could_not_be_part_of_a_files_name_has_no_best_model():
    for metric in ("../initial", "a.b", "", "m" * 65):
        with pytest.raises(DefinitionError, match="String should match pattern"):
            make_rounds(also_best={metric: "max"})


def test_a_score_that_is_equal_is_no_better():
    rounds = make_rounds()
    flags = []
    for _ in range(2):
        for envoy in "ab":
            answer(rounds, envoy, score=0.5)
        flags.append("best" in rounds.better_scores())
        next_round(rounds)
    assert flags == [True, False]


def test_patience_counts_validations_since_the_best_one():
    rounds = make_rounds(n_rounds=9, patience=2)
    finished = []
    for score in (0.5, 0.4, 0.6, 0.6, 0.1):
        for envoy in "ab":
            answer(rounds, envoy, score=score)
        next_round(rounds)
        finished.append(rounds.finished)
    assert finished == [False, False, False, False, True]


def test_the_rate_is_halved_after_so_many_validations_without_a_better_one_and_again_after_as_many():
    rounds = make_rounds(n_rounds=9, halve_rate_after=2)
    factors = []
    for score in (0.5, 0.4, 0.5, 0.6, 0.1, 0.2, 0.3, 0.6):
        for envoy in "ab":
            answer(rounds, envoy, score=score)
        next_round(rounds)
        factors.append(rounds.rate_factor)
    assert factors == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_a_round_that_does_not_validate_halves_no_rate():
    rounds = make_rounds(n_rounds=9, halve_rate_after=1, validate_every=3)
    factors = []
    for _ in range(6):
        for envoy in "ab":
            answer(rounds, envoy)
        next_round(rounds)
        factors.append(rounds.rate_factor)
    assert factors == [1, 1, 1, 0.5, 0.5, 0.5]


def test_a_round_that_does_not_validate_costs_no_patience():
    rounds = make_rounds(n_rounds=9, patience=2, validate_every=3)
    waited = []
    for _ in range(7):
        for envoy in "ab":
            answer(rounds, envoy)
        next_round(rounds)
        waited.append(rounds.progress.validations_since_best)
    assert waited == [0, 0, 0, 1, 1, 1, 2]
    assert rounds.finished


def test_validation_takes_place_in_every_nth_round_and_in_the_last():
    rounds = make_rounds(n_rounds=3, validate_every=2)
    asked = []
    while not rounds.finished:
        asked.append(names_of(rounds.tasks_for("a")))
        for envoy in "ab":
            answer(rounds, envoy)
        next_round(rounds)
    validate, train = "aggregated_model_validate", "train"
    assert asked == [[validate, train], [train], [validate, train], [validate]]


def test_where_there_are_evaluators_they_validate_and_the_others_train():
    rounds = make_rounds(n_rounds=2, envoys="abc", evaluators=["c"], validate_every=2)
    assert names_of(rounds.tasks_for("c")) == ["aggregated_model_validate"]
    assert names_of(rounds.tasks_for("a")) == ["train"]
    answer(rounds, "c", score=0.25, valid_size=3)
    assert rounds.trained == {}
    for envoy in "ab":
        answer(rounds, envoy)
    assert rounds.record()["metrics"]["aggregated_model_validate"] == {"score": 0.25}
    assert rounds.trained == {"a": 1, "b": 1}
    next_round(rounds, "abc")
    assert list(rounds.participants) == ["a", "b"]
    assert rounds.tasks_for("c") == []
    for envoy in "ab":
        answer(rounds, envoy)
    next_round(rounds, "abc")
    assert list(rounds.participants) == ["c"]


def test_who_trained_on_no_clips_has_answered_and_is_left_out():
    rounds = make_rounds()
    answer(rounds, "a", size=0)
    answer(rounds, "b", size=7)
    assert rounds.is_complete(0)
    assert rounds.trained == {"b": 7}
    rounds.require_quorum()


def test_a_round_in_which_nobody_has_clips_names_them():
    rounds = make_rounds()
    for envoy in "ab":
        answer(rounds, envoy, size=0)
    sentence = "round 0: 0 updates counted of a quorum of 1: envoy 'a' trained on no clips; envoy 'b' trained"
    with pytest.raises(TooFewUpdatesError, match=sentence):
        rounds.require_quorum()


def test_an_evaluator_that_is_no_member_now_is_not_asked():
    assert list(make_rounds(envoys="ab", evaluators=["z"]).participants) == ["a", "b"]


def test_a_fraction_of_the_members_is_asked_and_the_others_have_nothing_to_do():
    rounds = make_rounds(envoys="abcd", count=2)
    assert list(rounds.participants) == rounds.plan.participation.trainers(0, "abcd")
    idle = set("abcd") - rounds.participants.keys()
    assert len(idle) == 2
    assert all(rounds.tasks_for(envoy) == [] for envoy in idle)


def test_after_a_restart_those_are_asked_who_were_asked_before_even_if_somebody_joined_meanwhile():
    plan = make_rounds(count=2).plan
    for members in ("abcd", "abcde", "cdefgh"):
        before = Rounds(plan, Progress(round_number=1))
        before.open(members)
        after = Rounds(plan, Progress(round_number=1))
        after.open(set("abcdefghij"), participants=list(before.participants))
        assert after.participants == before.participants


def test_an_envoy_that_has_answered_has_nothing_to_do_and_its_answer_is_a_repeated_one():
    rounds = make_rounds()
    assert not rounds.is_late_or_repeated("a", 0)
    answer(rounds, "a")
    assert rounds.tasks_for("a") == []
    assert rounds.tasks_for("b") != []
    assert rounds.is_late_or_repeated("a", 0)
    assert not rounds.is_late_or_repeated("b", 0)
    assert not rounds.is_complete(0)


def test_an_answer_to_an_earlier_round_is_a_late_one_and_one_to_a_later_round_is_not():
    rounds = make_rounds()
    for envoy in "ab":
        answer(rounds, envoy)
    next_round(rounds)
    assert rounds.is_late_or_repeated("a", 0)
    assert rounds.is_late_or_repeated("mallory", 0)
    assert not rounds.is_late_or_repeated("a", 1)
    assert not rounds.is_late_or_repeated("a", 2)


TRAINED = TaskResult(size=1, metrics={"loss": 1.0})
VALIDATED = TaskResult(size=1, metrics={"score": 0.5})
BAD_UPDATES = {
    "a later round": ({"round_number": 1}, r"for round 1: round 0 asks for \['aggregated_model_validate', 'train'\]"),
    "an envoy that nobody asked": ({"envoy": "mallory"}, "'mallory' for round 0: round 0 asks for nothing from it"),
    "a task is missing": ({"results": {"train": TRAINED}}, r"has results of \['train'\], asked for"),
    "a task too many": (
        {"results": {"train": TRAINED, "aggregated_model_validate": VALIDATED, "other": VALIDATED}},
        r"has results of \['aggregated_model_validate', 'other', 'train'\]",
    ),
    "no result at all": ({"results": {}}, r"has results of \[\]"),
}


@pytest.mark.parametrize("fault", BAD_UPDATES)
def test_bad_results_are_refused_and_leave_no_trace(fault):
    changes, sentence = BAD_UPDATES[fault]
    rounds = make_rounds()
    with pytest.raises(UpdateRefusedError, match=sentence):
        rounds.check(make_update(**changes))
    assert rounds.results == {}
    assert names_of(rounds.tasks_for("a")) == ["aggregated_model_validate", "train"]


def test_an_envoy_that_was_refused_has_answered_without_a_contribution():
    rounds = make_rounds()
    rounds.refuse("b", "no good")
    assert rounds.tasks_for("b") == []
    assert rounds.is_late_or_repeated("b", 0)
    answer(rounds, "a", size=7)
    assert rounds.is_complete(0)
    assert rounds.trained == {"a": 7}
    assert rounds.record()["refused"] == {"b": "no good"}
    assert rounds.record()["missing"] == []


def test_without_a_deadline_a_round_waits_for_everybody():
    rounds = make_rounds()
    answer(rounds, "a")
    assert not rounds.is_complete(1e9)
    assert rounds.record()["missing"] == ["b"]
    answer(rounds, "b")
    assert rounds.is_complete(0)


def test_after_the_deadline_a_quorum_of_updates_that_count_is_enough():
    rounds = make_rounds(envoys="abcd", deadline_seconds=10, quorum=2)
    answer(rounds, "a")
    rounds.refuse("b", "no good")
    assert not rounds.is_complete(10), "one update counts, two are a quorum"
    answer(rounds, "c")
    assert not rounds.is_complete(9.9)
    assert rounds.is_complete(10)
    assert rounds.record()["missing"] == ["d"]


def test_an_evaluator_does_not_make_up_a_quorum_of_trained_updates():
    rounds = make_rounds(envoys="abc", evaluators=["c"], deadline_seconds=10)
    answer(rounds, "c")
    assert not rounds.is_complete(11)
    answer(rounds, "a")
    assert rounds.is_complete(11)


def test_a_round_that_is_there_to_train_does_not_count_when_an_evaluator_alone_was_asked():
    rounds = make_rounds(envoys="c", evaluators=["c"])
    answer(rounds, "c")
    with pytest.raises(
        TooFewUpdatesError, match="round 0: 0 updates counted of a quorum of 1: no other envoy was asked"
    ):
        rounds.require_quorum()


def test_with_a_deadline_it_is_trainers_who_can_reach_the_quorum_and_after_the_last_training_all_evaluators():
    rounds = make_rounds(n_rounds=1, envoys="abc", evaluators=["c"], deadline_seconds=10, quorum=2)
    assert [rounds.can_reach_quorum(members) for members in ("abc", "ab", "ac", "c")] == [True, True, False, False]
    for envoy in "abc":
        answer(rounds, envoy)
    next_round(rounds, "abc")
    assert [rounds.can_reach_quorum(members) for members in ("abc", "ab", "c")] == [True, False, True]
    answer(rounds, "c")
    rounds.require_quorum()


def test_of_a_fraction_only_those_who_would_be_asked_can_reach_the_quorum():
    rounds = make_rounds(envoys="abcd", fraction=0.5, deadline_seconds=10, quorum=2)
    assert rounds.can_reach_quorum("abc"), "two of three"
    assert not rounds.can_reach_quorum("ab"), "one of two"


def test_a_last_validation_without_evaluators_that_are_left_asks_nobody_and_is_no_fault():
    rounds = make_rounds(n_rounds=1, envoys="abc", evaluators=["c"], deadline_seconds=10)
    for envoy in "ab":
        answer(rounds, envoy)
    next_round(rounds, "ab")
    assert rounds.is_complete(0)
    rounds.require_quorum()


def test_in_a_round_that_only_validates_the_quorum_is_of_validations():
    rounds = make_rounds(n_rounds=1, deadline_seconds=10)
    for envoy in "ab":
        answer(rounds, envoy)
    next_round(rounds)
    assert not rounds.is_complete(11)
    answer(rounds, "a")
    assert rounds.is_complete(11)


def test_progress_counts_rounds_and_those_of_them_that_made_a_model():
    rounds = make_rounds(n_rounds=1)
    answer(rounds, "a", score=0.25)
    answer(rounds, "b", score=0.75)
    assert rounds.next_progress() == Progress(
        round_number=1, best_scores={"best": 0.5}, aggregations=1, reported=["score"]
    )
    next_round(rounds)
    answer(rounds, "a", score=0.25)
    answer(rounds, "b", score=0.25)
    expected = Progress(
        round_number=2, best_scores={"best": 0.5}, validations_since_best=1, aggregations=1, reported=["score"]
    )
    assert rounds.next_progress() == expected


def test_a_new_round_has_forgotten_the_answers_of_the_one_before():
    rounds = make_rounds()
    answer(rounds, "a")
    rounds.refuse("b", "no good")
    next_round(rounds)
    record = rounds.record()
    assert (record["envoys"], record["refused"], record["missing"]) == ({}, {}, ["a", "b"])


@pytest.mark.parametrize("undefined", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("task", ["aggregated_model_validate", "train"])
def test_an_undefined_metric_is_left_out_of_its_mean_and_said_and_the_update_counts(task, undefined):
    rounds = make_rounds()
    answer(rounds, "a", size=3)
    results = make_update().results
    results |= {task: TaskResult(size=9, metrics={"score": undefined, "loss": undefined, "other": 0.25})}
    answer(rounds, "b", results=results)
    record = rounds.record()
    own = "score" if task == "aggregated_model_validate" else "loss"
    assert record["metrics"][task] == {own: 0.5 if own == "score" else 1.0, "other": 0.25}
    assert record["envoys"]["b"][task] == {"size": 9, "other": 0.25}
    assert record["refused"] == {}
    assert rounds.trained.keys() == {"a", "b"}
    sentence = f"of task '{task}' is {undefined:g}: undefined, and left out of the mean"
    assert record["notes"] == {"b": [f"metric 'score' {sentence}", f"metric 'loss' {sentence}"]}


def test_a_metric_that_only_one_envoy_reports_and_cannot_define_has_no_mean_and_is_no_best():
    rounds = make_rounds()
    for envoy in "ab":
        answer(rounds, envoy, score=np.nan)
    assert rounds.record()["metrics"]["aggregated_model_validate"] == {}
    assert rounds.better_scores() == {}
    rounds.check_answers()


def test_a_validation_in_which_nobody_could_define_the_metric_costs_patience():
    rounds = make_rounds(n_rounds=9, patience=2)
    for _ in range(2):
        for envoy in "ab":
            answer(rounds, envoy, score=np.nan)
        next_round(rounds)
    assert rounds.finished


@pytest.mark.parametrize(
    ("metric", "bounds", "value"),
    [("score", {"score": (0, 1)}, 1.5), ("score", {"score": (0, 1)}, -0.1), ("score", {}, 1e308), ("score", {}, -1e16)],
)
def test_a_metric_outside_its_bounds_is_left_out_and_said(metric, bounds, value):
    rounds = make_rounds(metric_bounds=bounds)
    answer(rounds, "a", score=0.25)
    answer(rounds, "b", score=value)
    assert rounds.record()["metrics"]["aggregated_model_validate"] == {"score": 0.25}
    (sentence,) = rounds.notes()["b"]
    assert sentence.startswith(f"metric 'score' of task 'aggregated_model_validate' is {value:g}: outside its bounds")


@pytest.mark.parametrize(
    ("metric", "value", "counts"),
    [
        ("accuracy", 87.5, True),
        ("accuracy", 101.0, False),
        ("accuracy", -0.5, True),
        ("wer", 1.7, True),
        ("wer", -1, False),
    ],
)
def test_metrics_of_known_names_have_bounds_of_their_own(metric, value, counts):
    rounds = make_rounds()
    validated = TaskResult(size=1, metrics={"score": 0.5, metric: float(value)})
    answer(rounds, "a", results=make_update().results | {"aggregated_model_validate": validated})
    assert (metric in rounds.record()["metrics"]["aggregated_model_validate"]) is counts


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.0, 0.0), (0.0, np.inf), (np.nan, 1.0)])
def test_bounds_that_are_none_are_refused(bounds):
    with pytest.raises(DefinitionError, match="metric_bounds of 'score' are"):
        make_rounds(metric_bounds={"score": bounds})


def test_a_best_metric_that_nobody_reports_is_an_error_at_the_first_validation():
    rounds = make_rounds(also_best={"f1": "max"})
    for envoy in "ab":
        answer(rounds, envoy)
    sentence = r"round 0: no envoy reports the metric 'f1'.*the validation task reports \['score'\]"
    with pytest.raises(UnknownMetricError, match=sentence):
        rounds.check_answers()


def test_a_validation_that_reports_nothing_has_no_best_metric():
    rounds = make_rounds()
    for envoy in "ab":
        answer(rounds, envoy, results=make_update().results | {VALIDATE.name: TaskResult(size=1, metrics={})})
    with pytest.raises(UnknownMetricError, match="'score', .* the validation task reports none; give `best` one"):
        rounds.check_answers()


def test_a_best_metric_that_some_reported_before_or_that_nobody_had_clips_for_is_no_error():
    rounds = make_rounds(validate_every=1)
    for envoy in "ab":
        answer(rounds, envoy, valid_size=0)
    rounds.check_answers()
    next_round(rounds)
    answer(rounds, "a", score=np.nan)
    other = TaskResult(size=1, metrics={"other": 0.5})
    answer(rounds, "b", results=make_update().results | {"aggregated_model_validate": other})
    rounds.check_answers()
    next_round(rounds)
    for envoy in "ab":
        answer(rounds, envoy, results={"aggregated_model_validate": other})
    rounds.check_answers()


def test_everything_that_counts_for_nothing_is_noted_with_who_and_why():
    rounds = make_rounds(envoys="abcde", deadline_seconds=1)
    answer(rounds, "a", size=0)
    answer(rounds, "b", valid_size=0)
    rounds.refuse("c", "no good")
    rounds.note("e", "left the experiment: killed")
    answer(rounds, "e")
    assert rounds.record()["notes"] == {
        "a": ["task 'train' trained on no clips: its update does not count"],
        "b": ["no clips for task 'aggregated_model_validate': its metrics are those of the others"],
        "c": ["no good"],
        "d": ["no answer when the round closed"],
        "e": ["left the experiment: killed"],
    }
    next_round(rounds)
    assert "e" not in rounds.notes()


def test_a_flood_of_undefined_metrics_is_cut_short():
    rounds = make_rounds()
    metrics = {f"{number}" * 1000: np.nan for number in range(100)}
    answer(
        rounds, "a", results=make_update().results | {"aggregated_model_validate": TaskResult(size=1, metrics=metrics)}
    )
    notes = rounds.notes()["a"]
    assert len(notes) == MAX_NOTES + 1
    assert notes[-1] == f"and {100 - MAX_NOTES} more"
    assert max(map(len, notes)) < 200


def test_a_share_of_the_weight_that_is_limited_is_noted():
    rounds = make_rounds(envoys="abc", aggregation=Aggregation(max_share=0.5))
    for envoy, size in (("a", 10**9), ("b", 30), ("c", 10)):
        answer(rounds, envoy, size=size)
    assert rounds.notes() == {"a": ["weight 40 instead of 1000000000: the share of one update is limited"]}


def test_no_answer_weighs_more_than_the_shard_that_was_registered():
    rounds = make_rounds(envoys="abc")
    sizes = {"train": {"clips": 30, "frames": 9_000}, "validate": {"clips": 10}}
    rounds.registered = {"a": sizes, "b": sizes}  # an envoy of OpenFL registers no size
    answer(rounds, "a", size=10**9, valid_size=10**9, score=100.0)
    answer(rounds, "b", size=20, valid_size=10, score=0.0)
    answer(rounds, "c", size=40, valid_size=20, score=0.0)
    assert rounds.trained == {"a": 30, "b": 20, "c": 40}
    assert rounds.record()["metrics"]["aggregated_model_validate"]["score"] == pytest.approx(25)
    claims = "claims 1000000000 clips for task '{}', and registered {}: it weighs those"
    assert rounds.notes() == {"a": [claims.format("aggregated_model_validate", 10), claims.format("train", 30)]}


def test_sizes_are_bounded_in_the_unit_that_the_experiment_counts_in():
    rounds = make_rounds(envoys="ab", units={"train": "frames", "validate": "words"})
    rounds.registered = {key: {"train": {"clips": 3, "frames": 900}, "validate": {"clips": 1}} for key in "ab"}
    answer(rounds, "a", size=901, valid_size=5)
    answer(rounds, "b", size=900, valid_size=5)
    assert rounds.trained == {"a": 900, "b": 900}
    assert rounds.notes() == {"a": ["claims 901 frames for task 'train', and registered 900: it weighs those"]}


def test_one_that_registered_no_clips_has_no_update_that_counts():
    rounds = make_rounds(envoys="ab")
    rounds.registered = {"a": {"train": {"clips": 0}}}
    answer(rounds, "a", size=10**9)
    answer(rounds, "b", size=5)
    assert rounds.trained == {"b": 5}


def test_what_is_noted_between_two_rounds_is_said_in_the_later_one():
    rounds = make_rounds()
    for envoy in "ab":
        answer(rounds, envoy)
    rounds.record()
    rounds.note("a", "left the experiment: killed")
    next_round(rounds)
    assert rounds.record()["notes"]["a"][0] == "left the experiment: killed"
    next_round(rounds)
    assert "left the experiment: killed" not in rounds.notes().get("a", [])


def test_a_trimmed_mean_that_would_trim_nobody_is_refused():
    rounds = make_rounds(envoys="abc", aggregation=Aggregation(rule=TrimmedMean(share=0.1)))
    sentence = "trimmed_mean with share 0.1 cuts nothing off 3 updates, .* takes 10 updates, or a share of at least 1/3"
    with pytest.raises(ValueError, match=sentence):
        rounds.check_members("abc")
    rounds.check_members("abcdefghij")
    for envoy in "abc":
        answer(rounds, envoy)
    with pytest.raises(RoundFailedError, match=f"round 0: {sentence}"):
        rounds.check_answers()


def test_a_median_may_be_of_any_number_of_updates():
    make_rounds(aggregation=Aggregation(rule=Median())).check_members("a")


def test_to_take_in_an_answer_is_as_much_work_however_many_others_have_answered(monkeypatch):
    rounds = make_rounds(envoys=[f"envoy-{number}" for number in range(30)], deadline_seconds=10, quorum=30)
    looked = []
    bounded = rounds.bounded
    monkeypatch.setattr(rounds, "bounded", lambda *of: looked.append(of) or bounded(*of))
    for envoy in rounds.participants:
        assert not rounds.is_complete(11)
        answer(rounds, envoy)
    assert rounds.is_complete(11)
    assert len(looked) == 30


def validated(
    rounds: Rounds, envoy: str, size: int = 1, counts: dict[str, int] | None = None, **metrics: float
) -> None:
    result = TaskResult(size=size, metrics={"score": 0.5} | metrics, counts=counts or {})
    answer(rounds, envoy, results=make_update().results | {VALIDATE.name: result})


def test_a_metric_with_a_count_of_its_own_is_the_mean_over_what_that_counts():
    rounds = make_rounds(envoys="abc", mean_over={"wer": "words"})
    validated(rounds, "a", size=30, wer=0.5, other=1.0, counts={"wer": 100})
    validated(rounds, "b", size=10, wer=0.25, other=0.0, counts={"wer": 300})
    validated(rounds, "c", size=20, wer=np.nan, other=0.0, counts={"wer": 0})
    means = rounds.record()["metrics"][VALIDATE.name]
    assert means["wer"] == (0.5 * 100 + 0.25 * 300) / 400
    assert means["other"] == 30 / 60


def test_a_count_is_bounded_by_what_the_shard_registered_in_its_unit():
    rounds = make_rounds(mean_over={"lwlrap": "labels"})
    rounds.registered = {envoy: {"validate": {"clips": 10, "labels": 40}} for envoy in "ab"}
    validated(rounds, "a", lwlrap=1.0, counts={"lwlrap": 10**9})
    validated(rounds, "b", lwlrap=0.0, counts={"lwlrap": 40})
    assert rounds.record()["metrics"][VALIDATE.name]["lwlrap"] == 0.5
    assert rounds.notes() == {"a": ["claims 1000000000 labels for metric 'lwlrap', and registered 40: it weighs those"]}


def test_a_mean_over_something_else_than_the_size_needs_its_count():
    rounds = make_rounds(mean_over={"wer": "words"})
    validated(rounds, "a", wer=0.5, counts={"wer": 100})
    validated(rounds, "b", wer=0.0)
    assert rounds.record()["metrics"][VALIDATE.name]["wer"] == 0.5
    (sentence,) = rounds.notes()["b"]
    assert "metric 'wer'" in sentence
    assert sentence.endswith("without its number of words (see `MeanOver`), and left out of the mean")


def test_what_a_declared_metric_of_the_validation_is_over_says_nothing_of_training():
    rounds = make_rounds(mean_over={"loss": "letters"})
    for envoy in "ab":
        answer(rounds, envoy)
    assert rounds.record()["metrics"]["train"] == {"loss": 1.0}
    assert rounds.notes() == {}


def test_a_record_names_the_metrics_that_are_means_of_sites():
    rounds = make_rounds(mean_over={"score": None})
    for envoy in "ab":
        validated(rounds, envoy, f1=0.5, accuracy=0.5)
    assert rounds.record()["means_of_sites"] == {VALIDATE.name: ["f1", "score"]}


def test_what_one_evaluator_measures_is_no_mean_of_sites():
    rounds = make_rounds(envoys="abc", mean_over={"score": None}, evaluators=["c"])
    for envoy in "ab":
        answer(rounds, envoy, results={"train": TaskResult(size=1, metrics={"f1": 0.5})})
    answer(rounds, "c")
    record = rounds.record()
    assert record["means_of_sites"] == {"train": ["f1"]}
    assert record["best"] is True


def test_a_release_is_counted_for_each_that_sent_an_update_and_for_none_that_departed():
    privacy = {"unit": "record", "noise_multiplier": 1.0, "clip": 1.0, "delta": 1e-5, "probability": 0.1, "steps": 3}
    tasks = [{"name": "train", "function_name": "fit", "task_type": "train"}]
    best = {"metric": "accuracy", "direction": "max"}
    given = {"name": "toy", "federation_uuid": "", "rounds": 9, "tasks": tasks, "best": best}

    def one_round(**more) -> tuple[Rounds, dict[str, int]]:
        rounds = Rounds(ExperimentPlan(**given | more), Progress(releases={"a": 4}))
        rounds.open(["a", "b", "c", "d"])
        rounds.count(
            UpdateMessage(experiment="toy", envoy="a", round=0, results={"train": TaskResult(size=3, metrics={})})
        )
        rounds.refuse("b", "has NaN")
        rounds.refuse("c", "left the experiment", released=False)
        return rounds, rounds.releases

    rounds, releases = one_round(privacy=privacy)
    assert releases == {"a": 5, "b": 1}
    assert rounds.next_progress().releases == releases
    late = one_round(privacy=privacy, participation={"deadline_seconds": 9.0})[1]
    assert late == {"a": 5, "b": 1, "d": 1}, "an update that came too late has left its site"
    assert one_round()[1] == {"a": 4}
