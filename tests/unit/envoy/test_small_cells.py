"""A class with few clips: nothing that leaves says how many, nor lets it be worked out."""

import pytest

from openfl_audio.envoy.policy import Policy
from openfl_audio.envoy.small_cells import withheld_cells
from openfl_audio.protocol.messages import TaskResult


def table(*clips: int) -> TaskResult:
    """Return what a task reports of so many clips of each class, half of which are taken for the class after it."""
    total, number = sum(clips), len(clips)
    metrics = {"accuracy": 0.5, "loss": 1.0}
    for i, of_class in enumerate(clips):
        metrics[f"true/{i}"] = of_class / total
        metrics[f"hit/{i}"] = of_class / 2 / total
        metrics[f"confused/{i}/{(i + 1) % number}"] = of_class / 2 / total
        metrics[f"predicted/{i}"] = (of_class + clips[i - 1]) / 2 / total
    return TaskResult(size=total, metrics=metrics)


def of_classes(*classes: int, number: int) -> set[str]:
    names = {f"{name}/{i}" for name in ("true", "hit", "predicted") for i in classes}
    pairs = {(i, (i + 1) % number) for i in range(number)}
    return names | {f"confused/{i}/{j}" for i, j in pairs if {i, j}.intersection(classes)}


@pytest.mark.parametrize(
    ("clips", "classes"),
    [
        ((40, 30, 20), ()),
        ((40, 0, 20), ()),
        ((40, 3, 4, 60), (1, 2)),
        ((40, 3, 20, 60), (1, 2)),  # class 1 would be what the others leave of all clips
        ((3, 40), (0, 1)),
        ((3, 0, 0), (0,)),
        ((9, 10, 11), (0, 1)),
    ],
)
def test_nothing_tells_of_a_class_with_few_clips_nor_of_the_one_that_would_give_it_away(clips, classes):
    assert withheld_cells(table(*clips), 10) == of_classes(*classes, number=len(clips))


def test_shares_are_counted_by_the_clips_that_they_are_over():
    result = TaskResult(size=1000, metrics={"true/0": 0.5, "true/1": 0.5}, counts={"true/0": 8, "true/1": 8})
    assert withheld_cells(result, 5) == {"true/0", "true/1"}


def test_the_policy_lets_the_rest_leave():
    result = table(400, 3, 4, 600)
    released = Policy(min_count=10).check_update({"validate": result}, 0)["validate"]
    assert released.metrics == {
        name: each for name, each in result.metrics.items() if name not in of_classes(1, 2, number=4)
    }
    assert released.metrics["accuracy"] == 0.5
    assert Policy().check_update({"validate": result}, 0)["validate"] == result
