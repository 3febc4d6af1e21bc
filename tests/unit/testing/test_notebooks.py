"""Every notebook, cell by cell in this process: its experiment is simulated, all else is done as it stands there."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nbformat
import pandas as pd
import pytest

import openfl_audio
from openfl_audio.simulation.simulation import Simulation
from openfl_audio.testing.corpora.fsd50k import make_fsd50k
from openfl_audio.testing.corpora.librispeech import make_librispeech
from openfl_audio.testing.corpora.speech_commands import make_speech_commands
from openfl_audio.testing.demo import NOTEBOOKS, WORKLOADS, Workload
from openfl_audio.training.history import per_envoy

pytestmark = pytest.mark.training
pytest.importorskip("espeakng_loader")

# Of the demo's settings: so small that nothing is learned.
TINY_SUDORMRF = {"out_channels": 16, "in_channels": 32, "num_blocks": 1, "num_bases": 32, "num_groups": 2}
STUDENT = {
    "LAYERS": [1, 2], "CONFIG": "student_small.json", "ALPHA": 0.5, "MAX_SAMPLES_PER_BATCH": 160_000,
    "MAX_CLIP_SAMPLES": 80_000,
}  # fmt: skip


class Envoys:
    """Stand-in for the `Federation` of a notebook."""

    def __init__(self, shard_descriptor: str, params: dict[str, dict[str, Any]], folder: Path) -> None:
        module, _, name = shard_descriptor.rpartition(".")
        self.kind, self.params, self.folder = getattr(import_module(module), name), params, folder

    def open(self, envoy: str) -> Any:
        return self.kind(**self.params[envoy])

    def get_shard_registry(self) -> dict[str, dict[str, Any]]:
        shards = {name: self.open(name) for name in self.params}
        described = {
            name: SimpleNamespace(shard_description=shard.dataset_description, target_shape=shard.target_shape)
            for name, shard in shards.items()
        }
        return {name: {"is_online": True, "shard_info": info} for name, info in described.items()}


class SimulatedExperiment(Simulation):
    """Stand-in for the `FLExperiment` of a notebook."""

    def __init__(self, federation: Envoys, name: str, workspace: ModuleType | list[ModuleType]) -> None:
        super().__init__(list(federation.params), federation.open, federation.folder / name)
        self.name, self.corpus, self.packages = name, federation.kind.corpus, workspace

    def start(self, *, corpus: str | None = None, if_exists: str = "error", **arguments: Any) -> None:
        assert corpus in (None, self.corpus)
        super().start(self.name, **arguments)

    def per_envoy(self) -> pd.DataFrame:
        return per_envoy(self.records)


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Execute the notebook of a demo on the corpus in `data`, and return its result and the names of its files."""

    def execute(demo: Workload, data: Path, **parameters: Any) -> tuple[dict, set[str]]:
        folder = tmp_path / demo.notebook
        prepared = demo.corpus.prepare(folder / "corpus", data)
        shards = {name: {"data_path": str(prepared)} | part for name, part in demo.corpus.shards(prepared).items()}
        federation = Envoys(demo.corpus.shard_descriptor, shards, folder / "experiments")
        monkeypatch.setattr(openfl_audio, "Federation", lambda **_: federation)
        monkeypatch.setattr(openfl_audio, "FLExperiment", SimulatedExperiment)
        own = {
            "CERTIFICATES": None,
            "TEST_DATA": str(prepared),
            "OUT": str(folder / "out"),
            "ROUNDS": 1,
            "NAME": "demo",
        }
        run(demo.notebook, demo.parameters | own | parameters)
        # Once more, with the experiments that have ended, by somebody who has no recordings to test on.
        run(demo.notebook, demo.parameters | own | parameters | {"TEST_DATA": None, "OUT": str(folder / "untested")})
        untested = json.loads((folder / "untested" / "result.json").read_text())
        assert {} in untested.values()
        assert "There are none." in (folder / "untested" / "model" / "README.md").read_text()
        result = json.loads((folder / "out" / "result.json").read_text())
        card = (folder / "out" / "model" / "README.md").read_text()
        assert "| rounds | 1 |" in card
        assert f"jupyter lab notebooks/{demo.notebook}" in card
        return result, {path.name for path in (folder / "out").iterdir()}

    return execute


def run(notebook: str, parameters: dict[str, Any]) -> None:
    names: dict[str, Any] = {"__name__": "notebook"}
    cells = [cell for cell in nbformat.read(NOTEBOOKS / notebook, as_version=4).cells if cell.cell_type == "code"]
    for number, cell in enumerate(cells):
        exec(compile(cell.source, f"{notebook}, cell {number}", "exec"), names)
        if "parameters" in cell.metadata.get("tags", ()):
            assert parameters.keys() <= names.keys(), "a parameter that the notebook does not have"
            names |= parameters
    assert names["ROUNDS"] == parameters["ROUNDS"], "a notebook has a cell of parameters"


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    make_speech_commands(tmp_path_factory.mktemp("words") / "corpus", n_speakers=9)
    return tmp_path_factory.getbasetemp() / "words0" / "corpus"


@pytest.fixture(scope="module")
def speech_and_sounds(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("speech-and-sounds")
    make_fsd50k(folder / "FSD50K", n_dev_clips=40, n_eval_clips=18)
    make_librispeech(folder / "LibriSpeech", n_train_speakers=6, n_dev_speakers=1, n_test_speakers=1, n_utterances=4)
    return folder


def test_a_wav2vec2_spots_keywords(execute, words):
    result, files = execute(WORKLOADS["wav2vec2"], words)
    assert set(result["accuracy"]) == {"initial", "last", "best", "alone"}
    assert {"metrics.png", "shards.png", "model"} <= files


def test_a_whisper_spots_keywords(execute, words, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENFL_AUDIO_CACHE", str(tmp_path / "cache"))
    result, files = execute(WORKLOADS["whisper"], words, FROZEN=True)
    assert set(result["accuracy"]) == {"initial", "last", "best"}
    assert {"accuracy.png", "shards.png", "model"} <= files


def test_a_head_is_trained_with_privacy(execute, words, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENFL_AUDIO_CACHE", str(tmp_path / "cache"))
    result, files = execute(WORKLOADS["private"], words, UPSTREAM="log_mel", STEPS=2)
    assert set(result["accuracy"]) == {"initial", "last", "best"}
    assert (result["privacy"]["unit"], result["privacy"]["delta"]) == ("record", 1e-4)
    assert set(result["privacy"]["epsilon"]) == {"envoy_1", "envoy_2", "envoy_3"}
    assert {"accuracy.png", "shards.png", "model"} <= files


def test_a_tagger_hears_sounds(execute, speech_and_sounds):
    result, files = execute(WORKLOADS["fsd50k"], speech_and_sounds / "FSD50K", LOCAL_EPOCHS=1)
    assert set(result["pr_auc"]) == {"initial", "last", "best"}
    assert {"scores.png", "clips_per_uploader.png", "class_by_uploader.png", "model"} <= files


def test_a_sudormrf_enhances_speech(execute, speech_and_sounds):
    result, files = execute(WORKLOADS["librifsd50k"], speech_and_sounds, MODEL=TINY_SUDORMRF, LOCAL_EPOCHS=0.2)
    assert set(result["si_sdri"]) == {"initial", "last", "best"}
    assert {"si_sdri.png", "spectrograms.png", "examples", "model"} <= files


def test_a_hubert_is_pretrained_and_a_student_learns_from_it(execute, speech_and_sounds, tmp_path):
    result, files = execute(WORKLOADS["librispeech"], speech_and_sounds / "LibriSpeech", LOCAL_EPOCHS=1)
    assert set(result["masked_accuracy"]) == {"initial", "last", "best"}
    assert {"progress.png", "model"} <= files

    student = replace(WORKLOADS["librispeech"], notebook="librispeech_distillation.ipynb", parameters=STUDENT)
    teacher = str(tmp_path / "librispeech_hubert.ipynb" / "out" / "model")
    result, files = execute(student, speech_and_sounds / "LibriSpeech", TEACHER=teacher)
    assert set(result["loss"]) == {"initial", "last", "best"}
    assert result["size_and_speed"]["teacher_parameters"] > result["size_and_speed"]["student_parameters"]
    assert {"progress.png", "model"} <= files


TINY_BERT = {
    "model_type": "wav2vec2-bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "feature_projection_input_dim": 80, "left_max_position_embeddings": 4,
    "right_max_position_embeddings": 2, "apply_spec_augment": False,
}  # fmt: skip
TINY_WHISPER = {
    "model_type": "whisper", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_source_positions": 500,
    "max_target_positions": 128, "num_mel_bins": 40,
}  # fmt: skip


@pytest.mark.parametrize(
    ("notebook", "settings", "model"),
    [
        ("librispeech_ctc.ipynb", "wav2vec2.yaml", TINY_BERT),
        ("librispeech_whisper.ipynb", "whisper.yaml", TINY_WHISPER),
    ],
)
def test_speech_is_recognized_with_adapters(execute, speech_and_sounds, tmp_path, notebook, settings, model):
    (tmp_path / "tiny.json").write_text(json.dumps(model))
    changes = {"model.upstream": None, "model.config": str(tmp_path / "tiny.json"), "adapter.r": 2}
    demo = replace(WORKLOADS["recognition"], notebook=notebook, parameters={"SETTINGS": settings, "CHANGES": changes})
    result, files = execute(demo, speech_and_sounds / "LibriSpeech")
    assert set(result["wer"]) == set(result["cer"]) == {"initial", "last", "best"}
    assert {"substitutions", "deletions", "insertions"} <= result["test"]["best"]["test"].keys()
    assert result["test"]["best"]["test speakers"]["clients"] == 1
    assert {"error_rates.png", "model"} <= files
    adapter = json.loads((tmp_path / notebook / "out" / "model" / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["task_type"]) == (2, None)


def test_every_notebook_is_executed_here():
    own = {"librispeech_distillation.ipynb", "librispeech_whisper.ipynb"}
    executed = {demo.notebook for demo in WORKLOADS.values()} | own
    assert executed == {path.name for path in NOTEBOOKS.glob("*.ipynb")}
