import json

import matplotlib as mpl
import pytest
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

mpl.use("Agg")

from openfl_audio.config import load_settings
from openfl_audio.errors import SettingsError
from openfl_audio.experiments.run import run
from tests.unit.workspaces.keyword_spotting.words import make_corpus
from workspaces.keyword_spotting_wav2vec2.model import CONFIGS
from workspaces.keyword_spotting_wav2vec2.workload import Wav2Vec2KeywordSpotting, Wav2Vec2KeywordSpottingSettings

pytestmark = pytest.mark.training

WORKLOAD = Wav2Vec2KeywordSpotting()


def load(config: str = "small.yaml", **changes) -> Wav2Vec2KeywordSpottingSettings:
    return load_settings(CONFIGS / config, Wav2Vec2KeywordSpottingSettings, changes)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_is_valid(path):
    assert load_settings(path, Wav2Vec2KeywordSpottingSettings, {}).warmup == 0.05


def test_a_model_needs_one_source():
    with pytest.raises(SettingsError, match="model needs either pretrained or config"):
        load(**{"model.pretrained": "facebook/wav2vec2-base"})


def test_the_best_model_is_chosen_by_the_metric_of_the_settings():
    chosen = [WORKLOAD.start_arguments(load(metric_for_best=name))["best"] for name in ("accuracy", "loss")]
    assert chosen == [("accuracy", "max"), ("loss", "min")]


def test_the_package_that_it_builds_on_travels_along():
    names = [package.__name__ for package in WORKLOAD.packages]
    assert names == ["workspaces.keyword_spotting_wav2vec2", "workspaces.keyword_spotting"]


def test_a_run_leaves_a_model_that_transformers_loads_with_its_scores_and_a_picture(tmp_path):
    settings = load(rounds=1, clients=2, batch_size=4)
    result = run(WORKLOAD, settings, "simulated", make_corpus(tmp_path / "corpus"), tmp_path / "run")
    assert result["metrics"]["best"].keys() == {"validation", "test"}
    assert all(set(metrics) == {"loss", "accuracy"} for metrics in result["metrics"]["best"].values())
    records = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert result["metrics"]["last"]["validation"] == records[-1]["metrics"]["aggregated_model_validate"]
    pictures = {path.name for path in (tmp_path / "run").glob("*.png")}
    assert pictures == {"accuracy.png", "clips_per_client.png", "per_client.png"}
    assert AutoModelForAudioClassification.from_pretrained(tmp_path / "run" / "model").config.num_labels == 12
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "run" / "model").do_normalize
