"""Classifiers as files of ONNX, compared with PyTorch."""

import numpy as np
import pytest
import torch

from openfl_audio.cli.main import main
from workspaces.keyword_spotting.export import save_keywords
from workspaces.keyword_spotting.whisper import create_whisper
from workspaces.sound_events.export import save_tagger
from workspaces.sound_events.model import create_tagger
from workspaces.speech_enhancement.export import save_sudormrf
from workspaces.speech_enhancement.model import create_sudormrf
from workspaces.speech_enhancement.settings import SudoRmRfSettings

LABELS = ("yes", "no", "other")


def logits_of(path, **inputs: torch.Tensor) -> np.ndarray:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})[0]


@pytest.mark.parametrize("form", ["short", "exact"])
def test_a_keyword_spotter_gives_the_same_logits(form, tmp_path, capsys):
    pytest.importorskip("onnx", reason="onnx is not installed")
    model = create_whisper(config="whisper_small.json", labels=LABELS, form=form, frozen=False).eval()
    save_keywords(model, tmp_path / "model")
    assert main(["onnx", str(tmp_path / "model"), str(tmp_path / "keywords.onnx")]) == 0
    mels, frames = model.input_shape
    assert f"takes input_features (batch, {mels}, {frames})" in capsys.readouterr().out
    features = torch.randn(3, mels, frames, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(features).numpy()
    np.testing.assert_allclose(logits_of(tmp_path / "keywords.onnx", input_features=features), expected, atol=1e-4)


@pytest.mark.parametrize("architecture", ["vgg", "crnn"])
def test_a_tagger_gives_the_same_logits(architecture, tmp_path, capsys):
    pytest.importorskip("onnx", reason="onnx is not installed")
    recipe = {"architecture": architecture, "classes": 3, "normalisation": "group", "width": 0.25}
    model = create_tagger(**recipe, seed=1).eval()
    save_tagger(model, recipe, tmp_path / "model")
    assert main(["onnx", str(tmp_path / "model"), str(tmp_path / "events.onnx")]) == 0
    assert "takes patches (batch, 101, 96)" in capsys.readouterr().out
    patches = torch.randn(5, 101, 96, generator=torch.Generator().manual_seed(0)) - 5
    with torch.no_grad():
        expected = model(patches).numpy()
    np.testing.assert_allclose(logits_of(tmp_path / "events.onnx", patches=patches), expected, atol=1e-4)


def test_what_is_no_classifier_is_refused(tmp_path, capsys):
    sizes = SudoRmRfSettings(
        out_channels=16, in_channels=32, num_blocks=1, upsampling_depth=3, num_bases=48, num_groups=2
    )
    save_sudormrf(create_sudormrf(sizes), tmp_path)
    assert main(["onnx", str(tmp_path), str(tmp_path / "model.onnx")]) == 1
    assert "is a SudoRmRfForSpeechEnhancement: onnx wants a classifier" in capsys.readouterr().err


def test_without_onnx_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    recipe = {"architecture": "vgg", "classes": 3, "normalisation": "group", "width": 0.25}
    save_tagger(create_tagger(**recipe), recipe, tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert main(["onnx", str(tmp_path), str(tmp_path / "model.onnx")]) == 1
    assert "pip install 'openfl-audio[onnx]'" in capsys.readouterr().err
