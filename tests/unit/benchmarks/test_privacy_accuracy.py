"""Accuracy against epsilon: the matrix of runs, their noise, and a command that goes on."""

import json

import pytest

from benchmarks import privacy_accuracy
from benchmarks.arguments import load, save
from benchmarks.privacy_accuracy import DELTA, EPSILONS, ROWS, Cell, by_row, cells, main, result_of, settings_of
from openfl_audio.privacy.accounting import Release, epsilon


def test_the_matrix_has_every_row_with_four_epsilons_and_three_seeds_in_at_most_100_runs():
    all_cells = [*cells()]
    assert len(all_cells) == 4 * 3 * len(ROWS) <= 100
    assert len({cell.name for cell in all_cells}) == len(all_cells)
    assert {cell.row for cell in all_cells} == {
        "head", "head, 40 clients", "head, 400 clients", "head, per layer", "LoRA", "Wav2Vec2", "sound events",
    }  # fmt: skip
    assert [(cell.seed, cell.epsilon) for cell in cells(["LoRA"], 2)] == [
        (i, each) for i in (0, 1) for each in EPSILONS
    ]


@pytest.mark.parametrize(("row", "target"), [*((row, 1.0) for row in ROWS), ("head", 3.0), ("head", 8.0)])
def test_the_steps_of_a_run_cost_the_epsilon_that_it_is_named_by(row, target, tmp_path):
    settings = settings_of(Cell(row, target, 1), tmp_path)
    level = settings.privacy
    spent = epsilon([Release(level.noise_multiplier, level.probability, settings.rounds * level.steps)], DELTA)
    assert 0.99 * target < spent <= target
    assert (settings.seed, settings.clients, level.clipping) == (1, ROWS[row].clients, ROWS[row].clipping)


def result(folder, cell: Cell, score: float) -> None:
    path = result_of(cell, folder)
    path.parent.mkdir(parents=True)
    metric = ROWS[cell.row].score
    path.write_text(
        json.dumps(
            {
                "metrics": {"last": {"test": {metric: score}}},
                "privacy": {"epsilon": {"client_1": 0.999, "client_2": 0.99}},
                "settings": {"privacy": {"noise_multiplier": 4.0}},
                "seconds": 1.5,
            }
        )
    )


def test_a_second_start_trains_only_what_has_not_ended(tmp_path, monkeypatch):
    trained = []

    def train(cell: Cell, folder) -> None:
        trained.append(cell)
        if len(trained) == 3:
            raise KeyboardInterrupt
        result(folder, cell, 0.25 * len(trained))

    monkeypatch.setattr(privacy_accuracy, "prepare", lambda folder, data: None)
    monkeypatch.setattr(privacy_accuracy, "train", train)
    monkeypatch.setattr(save, "__defaults__", (tmp_path,))
    command = ["--out", str(tmp_path / "out"), "--rows", "head", "--seeds", "1", "--save", "found"]
    with pytest.raises(KeyboardInterrupt):
        main(command)
    assert main([*command, "--hours", "0"]) == 0
    assert len(trained) == 3, "the time was over"
    assert load(tmp_path / "found.json").values["ran"] == 2
    assert main([*command, "--figure", str(tmp_path / "found.png")]) == 0
    assert [cell.epsilon for cell in trained] == [1, 3, 8, 8, float("inf")]
    values = load(tmp_path / "found.json").values
    assert (values["planned"], values["ran"]) == (4 * 3 * len(ROWS), 4)
    assert values["rows"]["head"]["points"]["1"] == {"noise_multiplier": 4.0, "spent": 0.999, "scores": [0.25]}
    assert values["rows"]["head"]["points"]["inf"]["spent"] is None, "without noise nothing is private"
    assert (tmp_path / "found.png").stat().st_size > 5000


def test_the_scores_of_all_seeds_stand_together():
    point = {"row": "head", "epsilon": "3", "noise_multiplier": 1.8, "spent": 2.99}
    runs = [point | {"score": score} for score in (0.5, 0.2, 0.6)]
    expected = {"noise_multiplier": 1.8, "spent": 2.99, "scores": [0.5, 0.2, 0.6]}
    found = by_row([*runs, point | {"row": "LoRA", "score": 0.1}])
    assert found["head"] == {"metric": "accuracy", "points": {"3": expected}}
    assert found["LoRA"] == {"metric": "accuracy", "points": {"3": expected | {"scores": [0.1]}}}
    assert found["sound events"] == {"metric": "pr_auc", "points": {}}
