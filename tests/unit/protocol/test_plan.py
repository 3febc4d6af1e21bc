from typing import Any

import pytest

from openfl_audio.errors import DefinitionError
from openfl_audio.protocol.aggregation import Aggregation
from openfl_audio.protocol.participation import Participation
from openfl_audio.protocol.plan import BestModel, ExperimentPlan, Task, is_better
from openfl_audio.protocol.rules import Median
from openfl_audio.protocol.server_optimizers import FedAdam

VALIDATE = Task(name="aggregated_model_validate", function_name="validate", task_type="validate")
LOCAL = Task(name="locally_tuned_model_validate", function_name="validate", task_type="validate", apply_local=True)
TRAIN = Task(name="train", function_name="fit", task_type="train")


def make_plan(**changes: Any) -> ExperimentPlan:
    best = BestModel(metric="accuracy", direction="max")
    content = {"name": "toy", "federation_uuid": "uuid", "rounds": 3, "tasks": [VALIDATE, TRAIN], "best": best}
    return ExperimentPlan(**(content | changes))


def test_a_plan_comes_back_from_json_as_it_was():
    plan = make_plan(
        corpus="superb",
        participation=Participation(fraction=0.5, deadline_seconds=0.1, quorum=2, evaluators=["a"]),
        aggregation=Aggregation(rule=Median(), clip_norm=0.3, server_optimizer=FedAdam(betas=(0.5, 0.6))),
        best=BestModel(metric="loss", direction="min", patience=4),
        keep=2,
        precision="float16",
        untrained=["running_mean"],
    )
    assert ExperimentPlan.model_validate_json(plan.model_dump_json()) == plan


@pytest.mark.parametrize("name", ["a", "My-run_2.1", "x" * 64, "7"])
def test_a_name_that_can_be_a_folder_is_taken(name):
    assert make_plan(name=name).name == name


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "a\\b", ".hidden", "-x", "a b", "a\n", "ä", "x" * 65])
def test_a_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(DefinitionError, match="use 1 to 64 letters, digits"):
        make_plan(name=name)


BAD_PLANS = {
    "no rounds": {"rounds": 0},
    "no tasks": {"tasks": []},
    "an empty list of envoys": {"envoys": []},
    "another precision": {"precision": "float8"},
    "a negative keep": {"keep": -1},
    "a field nobody knows": {"colour": "red"},
    "another direction": {"best": {"metric": "accuracy", "direction": "up"}},
    "no patience at all": {"best": {"metric": "accuracy", "direction": "max", "patience": 0}},
}


@pytest.mark.parametrize("fault", BAD_PLANS)
def test_a_bad_plan_is_refused(fault):
    field = next(iter(BAD_PLANS[fault]))
    with pytest.raises(DefinitionError, match=field):
        make_plan(**BAD_PLANS[fault])


def test_the_last_round_validates_what_the_round_before_trained_and_then_there_is_none():
    plan = make_plan(rounds=2, tasks=[VALIDATE, TRAIN, LOCAL])
    assert plan.tasks_for_round(0) == plan.tasks_for_round(1) == [VALIDATE, TRAIN, LOCAL]
    assert plan.tasks_for_round(2) == [VALIDATE]
    assert plan.tasks_for_round(3) == []


def test_one_that_does_not_train_validates_the_global_model_only():
    plan = make_plan(tasks=[VALIDATE, TRAIN, LOCAL])
    assert plan.tasks_for_round(0, trains=False) == [VALIDATE]


def test_without_a_validation_there_is_no_round_after_the_last():
    assert make_plan(rounds=2, tasks=[TRAIN]).tasks_for_round(2) == []


def test_a_validation_of_the_trained_model_goes_with_the_training():
    plan = make_plan(rounds=3, tasks=[VALIDATE, TRAIN, LOCAL], participation=Participation(validate_every=2))
    assert plan.tasks_for_round(1) == [TRAIN, LOCAL]
    assert plan.tasks_for_round(2) == [VALIDATE, TRAIN, LOCAL]
    assert plan.tasks_for_round(3) == [VALIDATE]


@pytest.mark.parametrize(
    ("direction", "value", "than", "expected"),
    [
        ("max", 0.5, None, True),
        ("max", 0.6, 0.5, True),
        ("max", 0.5, 0.5, False),
        ("min", 0.4, 0.5, True),
        ("min", 0.6, 0.5, False),
        ("min", 0.0, None, True),
    ],
)
def test_better_is_what_the_direction_says_and_anything_is_better_than_nothing(direction, value, than, expected):
    assert is_better(value, than, direction) is expected


def best_by(metric: str, others: dict[str, Any] | None = None, **changes: Any) -> ExperimentPlan:
    return make_plan(best=BestModel(metric=metric, direction="max", others=others or {}), **changes)


NO_MEANS = {
    "by its name": {"metric": "f1"},
    "by its name in capitals": {"metric": "mAP"},
    "by declaration": {"metric": "d2", "mean_over": {"d2": None}},
    "with two evaluators": {"metric": "f1", "participation": Participation(evaluators=["c", "d"])},
    "with two envoys": {"metric": "f1", "envoys": ["a", "b"]},
    "for one more model": {"metric": "accuracy", "others": {"f1": "max"}},
}


@pytest.mark.parametrize("case", NO_MEANS)
def test_a_metric_that_is_no_mean_cannot_choose_a_model_where_several_validate(case):
    with pytest.raises(ValueError, match=r"metric '\w+' cannot choose the best model: .* Name one envoy that has all"):
        best_by(**NO_MEANS[case]).check_best()


def test_the_metrics_that_could_choose_instead_are_named():
    mean_over = {"pr_auc": None, "lwlrap": "labels", "loss": "clips"}
    with pytest.raises(ValueError, match="'pr_auc' .* give `best` a metric that is a mean: 'loss' or 'lwlrap'$"):
        best_by("pr_auc", mean_over=mean_over).check_best()


MEANS = {
    "by default": {"metric": "accuracy"},
    "declared against its name": {"metric": "f1", "mean_over": {"f1": "clips"}},
    "with one evaluator": {"metric": "f1", "participation": Participation(evaluators=["c"])},
    "with one envoy": {"metric": "f1", "envoys": ["a"]},
    "with one envoy beside one evaluator": {
        "metric": "f1",
        "envoys": ["a", "c"],
        "participation": Participation(evaluators=["c"]),
    },
    "where nobody validates": {"metric": "f1", "tasks": [TRAIN]},
}


@pytest.mark.parametrize("case", MEANS)
def test_a_metric_that_is_a_mean_or_of_one_site_may_choose_a_model(case):
    best_by(**MEANS[case]).check_best()


SECURE = {"secure_aggregation": {}, "envoys": ["a", "b", "c"]}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"envoys": None}, "among envoys that are named"),
        ({"envoys": ["a", "b"]}, "takes 3 envoys that train, and there are 2"),
        ({"envoys": ["a", "a", "b"]}, "there are 2"),
        ({"envoys": [f"e{i}" for i in range(1001)]}, "at most 1000 envoys that train, and not 1001"),
        ({"secure_aggregation": {"bits": 30}, "envoys": [*"abcde"]}, "a sum of 5 integers of 30 bits .* 32 bits"),
        ({"aggregation": {"rule": {"rule": "median"}}}, "rule median takes single updates"),
        (
            {"aggregation": {"rule": {"rule": "trimmed_mean", "share": 0.4}}},
            "rule trimmed_mean takes single updates",
        ),
        ({"aggregation": {"rule": {"rule": "geometric_median"}}}, "rule geometric_median takes single updates"),
        ({"aggregation": {"max_share": 0.5}}, "max_share looks at each weight"),
        ({"precision": "float16"}, "use precision float32"),
        ({"participation": {"evaluators": ["a"]}}, "leave out evaluators"),
        ({"participation": {"fraction": 0.5}}, "leave out fraction and count"),
        ({"participation": {"deadline_seconds": 9, "quorum": 5}}, "a quorum of 5 is more than the 3 of 3 envoys"),
    ],
)
def test_secure_aggregation_is_refused_with_what_looks_at_single_updates(changes, sentence):
    given = {"name": "x", "federation_uuid": "", "rounds": 1, "best": {"metric": "accuracy", "direction": "max"}}
    tasks = [{"name": "train", "function_name": "train", "task_type": "train"}]
    plan = ExperimentPlan.model_validate(given | {"tasks": tasks} | SECURE)
    plan.check_secure()
    with pytest.raises(ValueError, match=sentence):
        ExperimentPlan.model_validate(given | {"tasks": tasks} | SECURE | changes).check_secure()
