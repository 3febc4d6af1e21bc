import pytest
import torch

from openfl_audio.training import half_precision
from tests.unit.workspaces.hubert.tones import tiny_hubert
from workspaces.keyword_spotting.ssl_features import UpstreamForKeywords, UpstreamKeywordsConfig
from workspaces.keyword_spotting_wav2vec2.model import create_wav2vec2
from workspaces.speech_recognition.model import create_recognizer


def wav2vec2(_) -> torch.nn.Module:
    return create_wav2vec2(config="wav2vec2_small.json", labels=("yes", "no"))


def recognizer(_) -> torch.nn.Module:
    return create_recognizer(config="hubert_small.json").hubert


def upstream(_) -> torch.nn.Module:
    values = create_wav2vec2(config="wav2vec2_small.json", labels=("yes", "no")).config.to_dict()
    return UpstreamForKeywords(UpstreamKeywordsConfig(upstream=values)).encoder


@pytest.mark.parametrize("create", [tiny_hubert, wav2vec2, recognizer, upstream])
def test_grouped_convolutions_of_every_model_are_tried_before_they_run_in_half_precision(create, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(half_precision, "is_right", lambda *shape: bool(tried.append(shape)) or True)
    model = create(tmp_path).eval()
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(1, 16_000))
    assert len(tried) == sum(getattr(module, "groups", 1) > 1 for module in model.modules()) > 0
