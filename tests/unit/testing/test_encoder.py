"""The encoder of the private demo: a Wav2Vec2 without its head."""

import pytest
import torch
from transformers import AutoModelForAudioClassification

pytest.importorskip("espeakng_loader")

from openfl_audio.testing.encoder import train_encoder
from shard_descriptors.superb import LABELS
from workspaces.keyword_spotting.ssl_features import create_upstream

pytestmark = pytest.mark.training


def test_a_head_gets_the_features_of_the_model_that_was_trained(tmp_path):
    folder = tmp_path / "encoder"
    train_encoder(folder, 9, 1, seed=1)
    trained = AutoModelForAudioClassification.from_pretrained(tmp_path / "encoder-training" / "model")
    keywords = create_upstream(str(folder), labels=LABELS)
    assert not any(parameter.requires_grad for parameter in keywords.encoder.parameters())
    waveforms = torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = trained.wav2vec2.eval()(waveforms).last_hidden_state
        found = keywords.encoder.eval()(waveforms).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=0)

    (tmp_path / "encoder-words").rename(tmp_path / "gone")
    train_encoder(folder, 9, 1, seed=1)
    assert not (tmp_path / "encoder-words").exists(), "what is there is not trained again"
