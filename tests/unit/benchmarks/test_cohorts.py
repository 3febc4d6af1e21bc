"""The benchmark of cohorts: its rows are runs that there can be, and what has finished is kept."""

import json
from pathlib import Path

import pytest

from benchmarks import cohorts
from benchmarks.arguments import load, save
from openfl_audio.cli.compare import check_train
from openfl_audio.config import load_settings
from openfl_audio.experiments.comparison import train_arguments
from workspaces.speech_recognition.model import CONFIGS
from workspaces.speech_recognition.workload import SpeechRecognitionSettings


@pytest.mark.parametrize("row", cohorts.ROWS, ids=lambda row: row.name)
def test_a_row_is_a_run_with_its_cohort_and_its_server_optimizer(row, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").touch()
    arguments = row.arguments(8, cohorts.CLIENTS, tmp_path)
    command = check_train(train_arguments("speech_recognition", arguments, Path("data"), Path("out")))
    settings = load_settings(CONFIGS / command.config, SpeechRecognitionSettings, command.changes())
    assert settings.fraction * settings.clients == row.cohort
    assert settings.aggregation.server_optimizer.optimizer == row.server
    assert (settings.init is not None) == (row.start == "seed")
    assert (settings.rounds, settings.local_epochs) == (8, row.local_epochs)


def test_what_has_finished_is_kept_with_each_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(save, "__defaults__", (tmp_path / "results",))
    rates = {"seed-model-seed-0": 0.75, "lamb-seed-8-3-seed-0": 0.5, "lamb-seed-8-3-seed-1": 0.25}
    for name, wer in rates.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        result = {"metrics": {"last": {"test": {"wer": wer}}, "best": {"test": {"wer": 0.0}}}}
        (tmp_path / "runs" / name / "result.json").write_text(json.dumps(result))
    assert cohorts.main(["--out", str(tmp_path), "--finished", "--seeds", "2", "--save", "cohorts"]) == 0
    values = load(tmp_path / "results" / "cohorts.json").values
    assert values == json.loads(capsys.readouterr().out)
    assert values["seed_model"] == [0.75]
    assert {
        (row["server"], row["start"], row["cohort"], row["local_epochs"]): row["wer"] for row in values["rows"]
    } == {(row.server, row.start, row.cohort, row.local_epochs): [] for row in cohorts.ROWS} | {
        ("lamb", "seed", 8, 3): [0.5, 0.25]
    }


def test_data_of_clients_needs_data_of_the_seed_model(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cohorts.main(["--data", str(tmp_path)])
    assert "--data and --seed-data are given together" in capsys.readouterr().err
