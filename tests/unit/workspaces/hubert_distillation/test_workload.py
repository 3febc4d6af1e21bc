import json

import matplotlib as mpl
import pytest

mpl.use("Agg")

from openfl_audio.config import load_settings
from openfl_audio.experiments.run import run
from shard_descriptors.librispeech.preparation import prepare_librispeech
from tests.unit.shard_descriptors.librispeech_corpus import make_corpus
from tests.unit.workspaces.hubert.tones import tiny_hubert
from workspaces.hubert.model import load_model, save_model
from workspaces.hubert_distillation.loss import Distillation
from workspaces.hubert_distillation.model import CONFIGS
from workspaces.hubert_distillation.workload import HubertDistillation, HubertDistillationSettings

pytestmark = pytest.mark.training

WORKLOAD = HubertDistillation()


@pytest.fixture
def teacher(tmp_path) -> str:
    save_model(tiny_hubert(tmp_path), tmp_path / "teacher")
    return str(tmp_path / "teacher")


def load(config: str = "small.yaml", **changes) -> HubertDistillationSettings:
    return load_settings(CONFIGS / config, HubertDistillationSettings, {"rounds": 2, "local_epochs": 1} | changes)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_is_valid(path):
    assert (CONFIGS / load_settings(path, HubertDistillationSettings, {}).model.config).exists()


def test_a_student_learns_from_a_trained_model(tmp_path, teacher):
    corpus = make_corpus(tmp_path / "LibriSpeech")
    prepare_librispeech(corpus.root, tmp_path / "two", clients=2)
    settings = load(**{"distillation.teacher": teacher, "distillation.layers": [1, 2], "model.hidden_size": 64})
    result = run(WORKLOAD, settings, "simulated", tmp_path / "two", tmp_path / "student")
    metrics = result["metrics"]["last"]
    assert metrics.keys() == {"validation", "dev", "test", "size_and_speed"}
    assert set(metrics["test"]) == {"loss", "l1", "cosine_similarity", "divergence", "agreement"}
    assert metrics["size_and_speed"]["student_seconds"] > 0
    records = [json.loads(line) for line in (tmp_path / "student" / "history.jsonl").read_text().splitlines()]
    losses = [record["metrics"]["aggregated_model_validate"]["loss"] for record in records]
    assert losses[-1] < losses[0]
    assert min(losses) == result["metrics"]["best"]["validation"]["loss"]
    assert load_model(tmp_path / "student" / "model").config.hidden_size == 64


def test_the_best_model_is_chosen_by_the_loss(teacher):
    settings = load(**{"distillation.teacher": teacher, "distillation.layers": [1, 2]})
    assert WORKLOAD.start_arguments(settings)["best"] == ("loss", "min")


def test_the_package_that_it_builds_on_travels_along():
    assert [package.__name__ for package in WORKLOAD.packages] == [
        "workspaces.hubert_distillation",
        "workspaces.hubert",
    ]


def test_the_teacher_s_folder_is_found_from_anywhere(tmp_path, teacher, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load(**{"distillation.teacher": "teacher"})
    assert settings.distillation.teacher == teacher
    assert load("base.yaml").distillation.teacher == "facebook/hubert-base-ls960"
    assert Distillation(**settings.distillation.model_dump()).layers == (1, 2)
