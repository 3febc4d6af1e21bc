"""Adapters in keyword models: what is trained and transmitted, and a run whose models others load."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from safetensors.torch import load_file

mpl.use("Agg")

from openfl_audio.config import load_settings
from openfl_audio.errors import SettingsError
from openfl_audio.experiments.prediction import predict
from openfl_audio.experiments.run import run
from openfl_audio.node.adapter import transmitted
from openfl_audio.training.adapters import Lora
from shard_descriptors.superb.layout import LABELS
from tests.unit.workspaces.keyword_spotting.test_ssl_features import TINY as TINY_UPSTREAM
from tests.unit.workspaces.keyword_spotting.words import make_corpus
from workspaces.keyword_spotting.model import CONFIGS
from workspaces.keyword_spotting.ssl_features import create_upstream
from workspaces.keyword_spotting.whisper import create_whisper
from workspaces.keyword_spotting.workload import KeywordSpotting, KeywordSpottingSettings

LORA = Lora(r=2, alpha=4)
TINY_WHISPER = {
    "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "num_mel_bins": 8,
    "max_source_positions": 50,
}  # fmt: skip
TINY = {"whisper": TINY_WHISPER, "upstream": TINY_UPSTREAM | {"model_type": "wav2vec2"}}
CREATE = {"whisper": create_whisper, "upstream": create_upstream}


@pytest.fixture
def config(kind, tmp_path) -> Path:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY[kind]))
    return tmp_path / "tiny.json"


@pytest.mark.parametrize("kind", TINY)
def test_adapters_and_the_head_are_trained_and_the_model_starts_as_it_was(kind, config):
    whole = CREATE[kind](config=config, labels=LABELS, frozen=False).eval()
    adapted = CREATE[kind](config=config, labels=LABELS, frozen=False, adapter=LORA).train()
    names = set(transmitted(adapted))
    assert {name.split(".")[0] for name in names} == {"encoder", "head"}
    assert all(".lora_" in name for name in names if name.startswith("encoder."))
    assert {name for name in names if name.startswith("head.")} == {f"head.{name}" for name in whole.head.state_dict()}
    inputs = torch.randn(2, *whole.input_shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(adapted.eval()(inputs), whole(inputs))


@pytest.mark.parametrize("kind", TINY)
def test_a_frozen_encoder_has_no_adapters(kind, config):
    with pytest.raises(SettingsError, match="a frozen encoder has no adapters: set frozen to false"):
        CREATE[kind](config=config, labels=LABELS, adapter=LORA)
    changes = {"model.frozen": True, "adapter.r": 2}
    with pytest.raises(SettingsError, match=r"a frozen encoder has no adapters: set model\.frozen to false"):
        load_settings(CONFIGS / "small.yaml", KeywordSpottingSettings, changes)


# Nothing but the folder is there: no project, no peft, and no hub.
FRESH = """
import sys
sys.modules["peft"] = sys.modules["openfl_audio"] = sys.modules["workspaces"] = None
import numpy
from transformers import pipeline
classify = pipeline("audio-classification", model=sys.argv[1], trust_remote_code=True, top_k=None)
print(sorted(each["label"] for each in classify(numpy.zeros(16000, "float32"))))
"""


@pytest.mark.training
@pytest.mark.process
@pytest.mark.parametrize("kind", ["whisper", pytest.param("upstream", marks=pytest.mark.slow)])
def test_a_run_with_adapters_leaves_what_pipeline_and_predict_load(kind, config, tmp_path, monkeypatch):
    changes = {
        "model.architecture": kind, "model.config": str(config), "rounds": 2, "clients": 2, "batch_size": 4,
        "adapter.r": 2, "optimizer.learning_rate": 0.05, "model.form": "short",
    }  # fmt: skip
    settings = load_settings(CONFIGS / "small.yaml", KeywordSpottingSettings, changes)
    corpus = make_corpus(tmp_path / "corpus")
    run(KeywordSpotting(), settings, "simulated", corpus, tmp_path / "run")
    model = tmp_path / "run" / "model-last"
    start = CREATE[kind](config=config, labels=LABELS, frozen=False, seed=settings.seed, **_form(kind)).state_dict()
    saved = load_file(model / "model.safetensors")
    assert saved.keys() <= start.keys()  # merged: there is no factor left
    changed = {name for name, tensor in saved.items() if not torch.equal(tensor, start[name])}
    assert {name.split(".")[-2] for name in changed if name.startswith("encoder.")} == {"q_proj", "v_proj"}
    assert (model / "adapter" / "adapter_config.json").exists()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fresh = subprocess.run([sys.executable, "-c", FRESH, str(model)], cwd="/", capture_output=True, text=True)
    assert fresh.returncode == 0, fresh.stderr[-2000:]
    assert fresh.stdout.strip() == str(sorted(LABELS))
    [heard] = predict(str(model), [next(corpus.glob("yes/*.wav"))])
    assert heard.scores.keys() == set(LABELS)


def _form(kind: str) -> dict[str, str]:
    return {"form": "short"} if kind == "whisper" else {}
