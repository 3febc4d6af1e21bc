import json
from pathlib import Path

import matplotlib as mpl
import pytest
from transformers import HubertForCTC

mpl.use("Agg")

from openfl_audio.config import load_settings
from openfl_audio.errors import SettingsError
from openfl_audio.experiments.run import run
from shard_descriptors.librispeech.preparation import prepare_librispeech
from tests.unit.shard_descriptors.librispeech_corpus import make_corpus
from tests.unit.workspaces.speech_recognition.speech import TINY
from workspaces.speech_recognition.model import CONFIGS
from workspaces.speech_recognition.tasks import OF_WORDS
from workspaces.speech_recognition.workload import SpeechRecognition, SpeechRecognitionSettings

pytestmark = pytest.mark.training

WORKLOAD = SpeechRecognition()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("librispeech")
    prepare_librispeech(make_corpus(folder / "LibriSpeech").root, folder / "two", clients=2)
    return folder / "two"


def load(config: str = "small.yaml", **changes) -> SpeechRecognitionSettings:
    return load_settings(CONFIGS / config, SpeechRecognitionSettings, changes)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_is_valid(path):
    settings = load(path.name)
    if settings.model.config is None:
        assert settings.model.upstream
        return  # there is no hub
    assert (CONFIGS / settings.model.config).exists()
    assert WORKLOAD.start_arguments(settings)["best"] == ("wer", "min")


def test_a_model_has_one_source_that_is_found_from_anywhere(tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match="model needs either upstream or config"):
        load(**{"model.upstream": "facebook/hubert-base-ls960"})
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = load(**{"model.upstream": "model", "model.config": None})
    assert settings.model.upstream == str(tmp_path / "model")


@pytest.mark.parametrize("mode", ["centralized", "simulated"])
def test_a_run_leaves_a_recognizer_with_its_scores_and_a_picture(mode, prepared, tmp_path):
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(TINY))
    settings = load(**{"model.config": str(config), "rounds": 2, "local_epochs": 1})
    assert WORKLOAD.natural_clients(settings, prepared) == 2
    result = run(WORKLOAD, settings, mode, prepared, tmp_path / "run")
    for model in ("best", "last"):
        splits = {"validation", "dev", "test"}
        assert result["metrics"][model].keys() == {*splits, *(f"{split} speakers" for split in splits)}
        assert all(set(result["metrics"][model][split]) == {"loss", "cer", *OF_WORDS} for split in splits)
        assert result["metrics"][model]["test speakers"]["clients"] >= 1
    records = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert result["metrics"]["last"]["validation"] == records[-1]["metrics"]["aggregated_model_validate"]
    trained = {name for record in records for name in record["envoys"] if name != "evaluation"}
    assert len(trained) == (2 if mode == "simulated" else 1)
    assert records[1]["metrics"]["train"]["loss"] < records[0]["metrics"]["train"]["loss"]
    assert HubertForCTC.from_pretrained(tmp_path / "run" / "model").lm_head.out_features == 29
    pictures = {"error_rates.png"} | ({"per_client.png"} if mode != "individual" else set())
    assert {path.name for path in Path(tmp_path / "run").glob("*.png")} == pictures
