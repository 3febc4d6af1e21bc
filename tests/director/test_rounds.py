import numpy as np
import pytest

from director.rounds import Rounds, TaskResult, Update, UpdateRefusedError
from federation.plan import BestModel, ExperimentPlan, Task

VALIDATE = Task(name="aggregated_model_validate", function_name="validate", task_type="validate")
TRAIN = Task(name="train", function_name="fit", task_type="train")


def make_rounds(n_rounds: int = 2, direction: str = "max", envoys: str = "ab") -> Rounds:
    plan = ExperimentPlan(
        name="experiment",
        federation_uuid="uuid",
        envoys=list(envoys),
        rounds=n_rounds,
        tasks=[VALIDATE, TRAIN],
        best=BestModel(metric="score", direction=direction),
    )
    return Rounds(plan, {"weight": np.zeros(2, np.float32), "steps": np.array(0)})


def make_update(
    envoy="a", round_number=0, weight=(1.0, 2.0), steps=1, size=1, score=0.5, valid_size=1, **changes
) -> Update:
    results = {
        "train": TaskResult(size, {"loss": 1.0}),
        "aggregated_model_validate": TaskResult(valid_size, {"score": score} if valid_size else {}),
    }
    tensors = {"weight": np.array(weight, np.float32), "steps": np.array(steps)}
    return Update(**({"envoy": envoy, "round_number": round_number, "results": results, "tensors": tensors} | changes))


def test_next_model_is_the_mean_weighted_by_clips():
    rounds = make_rounds()
    rounds.add(make_update("a", weight=(1.0, 2.0), size=1))
    rounds.add(make_update("b", weight=(5.0, -2.0), size=3))
    rounds.close()
    np.testing.assert_allclose(rounds.model["weight"], np.average([(1, 2), (5, -2)], axis=0, weights=(1, 3)))
    assert rounds.model["weight"].dtype == np.float32


def test_counters_take_the_maximum():
    rounds = make_rounds()
    rounds.add(make_update("a", steps=7, size=100))
    rounds.add(make_update("b", steps=9, size=1))
    rounds.close()
    assert rounds.model["steps"] == 9


@pytest.mark.parametrize("seed", range(20))
def test_order_of_arrival_does_not_change_a_bit(seed):
    generator = np.random.default_rng(seed)
    updates = [
        make_update(envoy, weight=generator.normal(size=2), size=int(generator.integers(1, 99))) for envoy in "abcde"
    ]
    models = []
    for order in (updates, updates[::-1]):
        rounds = make_rounds(envoys="abcde")
        for update in order:
            rounds.add(update)
        rounds.close()
        models.append(rounds.model["weight"])
    np.testing.assert_array_equal(*models)


def test_metrics_are_means_over_clips_and_nodes_without_clips_have_no_say():
    rounds = make_rounds()
    rounds.add(make_update("a", score=1.0, valid_size=30))
    rounds.add(make_update("b", score=0.0, valid_size=10))
    assert rounds.record()["metrics"]["aggregated_model_validate"] == {"score": 0.75}

    rounds = make_rounds()
    rounds.add(make_update("a", score=1.0, valid_size=30))
    rounds.add(make_update("b", valid_size=0))
    assert rounds.record()["metrics"]["aggregated_model_validate"] == {"score": 1.0}


def test_a_metric_that_one_envoy_leaves_out_is_the_mean_of_the_others_and_the_round_closes():
    rounds = make_rounds()
    rounds.add(make_update("a", score=0.25, valid_size=10))
    results = {"train": TaskResult(1, {"loss": 1.0}), "aggregated_model_validate": TaskResult(30, {"other": 0.5})}
    rounds.add(make_update("b", results=results))
    assert rounds.record()["metrics"]["aggregated_model_validate"] == {"other": 0.5, "score": 0.25}
    rounds.close()
    assert rounds.round_number == 1


@pytest.mark.parametrize(("direction", "expected"), [("max", [True, True, False]), ("min", [True, False, True])])
def test_best_follows_the_metric_and_its_direction(direction, expected):
    rounds = make_rounds(n_rounds=3, direction=direction)
    flags = []
    for round_number, score in enumerate((0.5, 0.7, 0.2)):
        for envoy in "ab":
            rounds.add(make_update(envoy, round_number=round_number, score=score))
        flags.append(rounds.record()["best"])
        rounds.close()
    assert flags == expected


def test_a_last_round_only_validates_and_leaves_the_model_alone():
    rounds = make_rounds(n_rounds=1)
    for envoy in "ab":
        rounds.add(make_update(envoy))
    rounds.close()
    model = rounds.model
    assert [task.name for task in rounds.tasks_for("a")] == ["aggregated_model_validate"]
    for envoy in "ab":
        results = {"aggregated_model_validate": TaskResult(1, {"score": 1.0})}
        rounds.add(Update(envoy, 1, results, {}))
    assert rounds.complete
    rounds.close()
    assert rounds.finished
    assert rounds.model is model


def test_an_envoy_that_has_answered_has_nothing_to_do_and_a_repeated_update_counts_once():
    rounds = make_rounds()
    rounds.add(make_update("a", weight=(1.0, 1.0)))
    assert rounds.tasks_for("a") == []
    assert rounds.tasks_for("b") != []
    rounds.add(make_update("a", weight=(100.0, 100.0)))
    assert not rounds.complete
    rounds.add(make_update("b", weight=(3.0, 3.0)))
    rounds.close()
    np.testing.assert_array_equal(rounds.model["weight"], [2, 2])


BAD_UPDATES = {
    "a tensor is missing": ({"tensors": {"steps": np.array(1)}}, r"'a'.*missing \['weight'\]"),
    "a tensor is unknown": (
        {"tensors": {"weight": np.zeros(2, np.float32), "steps": np.array(1), "extra": np.zeros(1)}},
        r"unknown \['extra'\]",
    ),
    "a wrong shape": ({"weight": (1.0, 2.0, 3.0)}, r"'weight' is float32\(3,\), not float32\(2,\)"),
    "a wrong type": ({"tensors": {"weight": np.zeros(2), "steps": np.array(1)}}, "float64"),
    "NaN": ({"weight": (np.nan, 0.0)}, "'weight' holds NaN"),
    "infinity": ({"weight": (np.inf, 0.0)}, "'weight' holds NaN or infinity"),
    "no clips": ({"size": 0}, "trained on 0 clips"),
    "a negative size": ({"size": -5}, "reports size -5"),
    "a metric that is NaN": ({"score": np.nan}, "aggregated_model_validate"),
    "a later round": ({"round_number": 1}, "round 0 asks for"),
    "an envoy that nobody asked": ({"envoy": "mallory"}, "'mallory'"),
    "a task is missing": ({"results": {"train": TaskResult(1, {})}}, r"has results of \['train'\]"),
}


@pytest.mark.parametrize("fault", BAD_UPDATES)
def test_a_bad_update_is_refused_and_the_round_goes_on_without_a_trace_of_it(fault):
    changes, sentence = BAD_UPDATES[fault]
    rounds = make_rounds()
    with pytest.raises(UpdateRefusedError, match=sentence):
        rounds.add(make_update(**changes))
    rounds.add(make_update("a", weight=(1.0, 1.0)))
    rounds.add(make_update("b", weight=(3.0, 3.0)))
    rounds.close()
    np.testing.assert_array_equal(rounds.model["weight"], [2, 2])
