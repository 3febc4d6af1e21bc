"""Whisper: forced tokens, bounds, and its export; and a run with adapters from a table to a loaded model."""

import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import soundfile
import torch
from transformers import WhisperForConditionalGeneration

from openfl_audio.config import load_settings
from openfl_audio.errors import SettingsError
from openfl_audio.experiments.prediction import predict
from openfl_audio.experiments.run import run
from openfl_audio.node.adapter import transmitted
from openfl_audio.training.adapters import Lora
from tests.unit.workspaces.speech_recognition.speech import Spoken, draw_texts
from workspaces.speech_recognition.data import Batch, Clips
from workspaces.speech_recognition.masks import Masks
from workspaces.speech_recognition.model import CONFIGS, create_recognizer
from workspaces.speech_recognition.workload import SpeechRecognition, SpeechRecognitionSettings

TINY = {
    "model_type": "whisper", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_source_positions": 100,
    "max_target_positions": 64, "num_mel_bins": 40, "dropout": 0.0,
}  # fmt: skip


@pytest.fixture
def config(tmp_path) -> Path:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    return tmp_path / "tiny.json"


def two_clips() -> Batch:
    torch.manual_seed(3)
    return Batch(0.1 * torch.randn(2, 16_000), torch.tensor([16_000, 9_000]), ["It is.", "All right"], ["a", "b"])


def test_the_loss_is_that_of_the_tokens_after_the_forced_ones(config):
    model, batch = create_recognizer(config=config).eval(), two_clips()
    loss, tokens = model.loss_of(batch, "cpu")
    assert tokens == len("It is.") + len("All right") + 2  # bytes, and an end each
    own = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    assert model.tokenizer.convert_ids_to_tokens(model.tokenizer.prefix_tokens) == own
    features = model.extractor(batch.waveforms[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    ids = model.tokenizer("It is.").input_ids
    logits = model(input_features=features, decoder_input_ids=torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
    first = -sum(logits[place, ids[place + 1]] for place in range(3, len(ids) - 1))
    alone, _ = model.loss_of(Batch(batch.waveforms[:1], batch.lengths[:1], batch.texts[:1], ["a"]), "cpu")
    torch.testing.assert_close(alone, first)
    other, _ = model.loss_of(Batch(batch.waveforms[1:, :9_000], batch.lengths[1:], batch.texts[1:], ["b"]), "cpu")
    torch.testing.assert_close(loss, alone + other)  # a clip is heard the same among others
    masked, _ = model.loss_of(batch, "cpu", Masks(time=0.5))
    assert not torch.equal(masked, loss)


def test_what_is_written_ends_at_a_bound_and_is_the_same_alone(config):
    model, batch = create_recognizer(config=config).eval(), two_clips()
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight[model.tokenizer.eos_token_id] = 0  # it never ends by itself
    _, _, texts = model.recognize(batch, "cpu")
    alone = model.recognize(Batch(batch.waveforms[:1], batch.lengths[:1], batch.texts[:1], ["a"]), "cpu")[2]
    assert texts[0] == alone[0]
    assert len(model.tokenizer(texts[0], add_special_tokens=False).input_ids) <= 3 * 30


def test_what_does_not_fit_is_named(config):
    model, batch = create_recognizer(config=config), two_clips()
    with pytest.raises(SettingsError, match="clip b has a text of 67 tokens: Whisper writes at most 64"):
        model.loss_of(Batch(batch.waveforms, batch.lengths, ["a", "b" * 63], ["a", "b"]), "cpu")
    long = Batch(torch.zeros(1, 40_000), torch.tensor([40_000]), ["a"], ["long"])
    with pytest.raises(SettingsError, match=r"clip long has 2.5 s: Whisper hears 2 s"):
        model.recognize(long, "cpu")
    with pytest.raises(SettingsError, match="Whisper knows no 'klingon'"):
        create_recognizer(config=config, language="klingon")
    with pytest.raises(SettingsError, match="a frozen encoder has no adapters"):
        create_recognizer(config=config, frozen=True, adapter=Lora(r=2))


def test_language_task_and_a_frozen_encoder(config):
    model = create_recognizer(config=config, language="german", task="translate", frozen=True).train()
    tokens = model.tokenizer.convert_ids_to_tokens(model.tokenizer.prefix_tokens)
    assert tokens[1:3] == ["<|de|>", "<|translate|>"]
    assert not any("encoder." in name and "encoder_attn" not in name for name in transmitted(model))
    assert not model.model.encoder.training
    adapted = create_recognizer(config=config, adapter=Lora(r=2)).train()
    assert all(".lora_" in name for name in transmitted(adapted))


@pytest.fixture
def table(tmp_path) -> Path:
    """Clips of four speakers with their texts."""
    folder = tmp_path / "site"
    folder.mkdir()
    texts = draw_texts(16, seed=0)
    spoken = Spoken(texts)
    rows = ["path,text,speaker"]
    for index, text in enumerate(texts):
        soundfile.write(folder / f"{index}.wav", spoken.read_waveform(index)[: 2 * 16_000], 16_000)
        rows.append(f"{index}.wav,{text},s{index % 4}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder / "table.csv"


FRESH = """
import sys, numpy
from transformers import pipeline
print(pipeline("automatic-speech-recognition", model=sys.argv[1])(numpy.zeros(9000, "float32"))["text"])
assert not any(name.startswith(("openfl", "workspaces", "peft")) for name in sys.modules)
"""


@pytest.mark.training
@pytest.mark.process
@pytest.mark.slow
def test_a_run_with_adapters_from_a_table_leaves_what_pipeline_predict_and_peft_load(config, table, tmp_path):
    changes = {
        "model.upstream": None, "model.config": str(config), "rounds": 1, "clients": 2, "adapter.r": 2,
        "corpus.columns": {"path": "path", "text": "text", "group": "speaker"},
    }  # fmt: skip
    settings = load_settings(CONFIGS / "whisper.yaml", SpeechRecognitionSettings, changes)
    result = run(SpeechRecognition(), settings, "simulated", table, tmp_path / "run")
    assert {"validation", "validation speakers", "test"} <= set(result["metrics"]["best"])
    model = tmp_path / "run" / "model-last"
    # In an environment that knows nothing of this project; a thousandth of a thought is enough.
    fresh = subprocess.run([sys.executable, "-c", FRESH, str(model)], cwd="/", capture_output=True, text=True)
    assert fresh.returncode == 0, fresh.stderr[-2000:]
    [heard] = predict(str(model), [table.parent / "0.wav"])
    assert isinstance(heard.text, str)
    base = create_recognizer(config=config, seed=settings.seed)
    base.save_recognizer(tmp_path / "base")
    plain = WhisperForConditionalGeneration.from_pretrained(tmp_path / "base")
    adapted = peft.PeftModel.from_pretrained(plain, str(model / "adapter")).merge_and_unload()
    expected = WhisperForConditionalGeneration.from_pretrained(model).state_dict()
    for name, tensor in adapted.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
    changed = [name for name, tensor in expected.items() if not torch.equal(tensor, base.state_dict()[name])]
    assert changed
    assert all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in changed)


def test_recordings_without_texts_are_refused():
    class Labelled:
        kind, sample_rate = "label", 16_000

    with pytest.raises(SettingsError, match="have a label each: name their column of texts"):
        Clips(Labelled())
