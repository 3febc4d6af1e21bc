"""Exported models of each workload, loaded and used: by the commands, and by Transformers without this project."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from openfl_audio.cli.main import main
from openfl_audio.config import load_settings
from openfl_audio.training.export import extend_config, label_names
from shard_descriptors.common.audio import read_waveform
from shard_descriptors.fsd50k.preparation import MelTransform
from shard_descriptors.fsd50k.store import PATCH_FRAMES, PATCH_HOP, count_patches
from tests.unit.workspaces.speech_recognition.speech import TINY
from workspaces.audio_classification.model import CONFIGS as CLASSIFIERS
from workspaces.audio_classification.model import create_classifier
from workspaces.audio_classification.targets import Targets
from workspaces.audio_classification.workload import AudioClassification, AudioClassificationSettings
from workspaces.hubert.model import create_hubert, save_model
from workspaces.keyword_spotting.export import save_keywords
from workspaces.keyword_spotting.model import EncoderModel
from workspaces.keyword_spotting.ssl_features import create_upstream
from workspaces.keyword_spotting.whisper import create_whisper
from workspaces.keyword_spotting_wav2vec2.model import create_feature_extractor, create_wav2vec2, save_wav2vec2
from workspaces.sound_events.export import save_tagger
from workspaces.sound_events.model import create_tagger
from workspaces.sound_events.modeling_sound_events import mel_frames
from workspaces.speech_enhancement.export import save_sudormrf
from workspaces.speech_enhancement.model import create_sudormrf
from workspaces.speech_enhancement.settings import SudoRmRfSettings
from workspaces.speech_enhancement.tasks import enhance
from workspaces.speech_recognition.letters import decode
from workspaces.speech_recognition.model import create_recognizer, save_recognizer

LABELS = ("yes", "no", "other")
SMALL_CLASSIFIER = CLASSIFIERS / "small.yaml"
TAGGER = {"architecture": "vgg", "classes": 3, "normalisation": "group", "width": 0.25}
SMALL = SudoRmRfSettings(
    out_channels=16, in_channels=32, num_blocks=1, upsampling_depth=3, num_bases=48, num_groups=2, num_sources=3
)


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    """1.7 seconds at 44.1 kHz in two channels."""
    path = tmp_path_factory.mktemp("recordings") / "tone.wav"
    time = np.arange(75_000) / 44_100
    noise = np.random.default_rng(0).normal(0, 0.01, (75_000, 2))
    soundfile.write(path, 0.2 * np.sin(2 * np.pi * 440 * time)[:, None] + noise, 44_100)
    return path


def keyword_model(kind: str, folder: Path) -> EncoderModel:
    if kind == "whisper":
        return create_whisper(config="whisper_small.json", labels=LABELS, form="short", frozen=False).eval()
    if kind == "log_mel":
        return create_upstream("log_mel", labels=LABELS).eval()
    config = folder / "hubert.json"
    config.write_text(json.dumps(TINY))
    return create_upstream(config=config, labels=LABELS).eval()


def probabilities(logits: torch.Tensor) -> dict[str, float]:
    return dict(zip(LABELS, logits.softmax(-1).tolist(), strict=True))


def scores_of(capsys, *arguments: str) -> dict[str, float]:
    assert main(["predict", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["scores"]


@pytest.mark.parametrize("kind", ["whisper", "log_mel", "hubert"])
def test_a_keyword_model_hears_the_first_second(kind, recording, tmp_path, capsys):
    model = keyword_model(kind, tmp_path)
    save_keywords(model, tmp_path / "model")
    waveform = read_waveform(recording, 16_000)[:16_000]
    with torch.inference_mode():
        expected = probabilities(model(model.make_inputs([waveform]))[0])
    assert scores_of(capsys, str(tmp_path / "model"), str(recording)) == pytest.approx(expected, abs=1e-4)


def test_wav2vec2_hears_the_first_second_and_a_short_clip_filled_up(recording, tmp_path, capsys):
    model = create_wav2vec2(config="wav2vec2_small.json", labels=LABELS).eval()
    save_wav2vec2(model, tmp_path / "model")
    short = tmp_path / "short.wav"
    soundfile.write(short, soundfile.read(recording)[0][:20_000], 44_100)
    for path in (recording, short):
        waveform = read_waveform(path, 16_000)[:16_000]
        waveform = np.pad(waveform, (0, 16_000 - len(waveform)))
        inputs = create_feature_extractor()(waveform, sampling_rate=16_000, return_tensors="pt")
        with torch.inference_mode():
            expected = probabilities(model(**inputs).logits[0])
        assert scores_of(capsys, str(tmp_path / "model"), str(path)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("targets", "activation"),
    [
        (Targets("label", LABELS), lambda logits: logits.softmax(-1)),
        (Targets("labels", LABELS), torch.sigmoid),
        (Targets("number"), lambda logits: logits),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_classifier_of_a_sites_own_hears_as_much_as_it_was_trained_on(
    targets, activation, recording, tmp_path, capsys
):
    config = load_settings(SMALL_CLASSIFIER, AudioClassificationSettings, {"clip_s": 0.5})
    model = create_classifier(config=config.model.config, targets=targets).eval()
    AudioClassification().save(model, config, tmp_path / "model")
    waveform = read_waveform(recording, 16_000)[:8_000]
    inputs = AudioClassification().extractor(config)(waveform, sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        expected = activation(model(**inputs).logits[0]).tolist()
    labels = targets.classes or ("LABEL_0",)
    assert scores_of(capsys, str(tmp_path / "model"), str(recording)) == pytest.approx(
        dict(zip(labels, expected, strict=True)), abs=1e-5
    )


@pytest.mark.parametrize("features", ["log_mel", "power"])
@pytest.mark.parametrize("seconds", [0.4, 1.7])
def test_a_tagger_scores_a_recording_as_a_prepared_clip(features, seconds, recording, tmp_path, capsys):
    model = create_tagger(**TAGGER).eval()
    save_tagger(model, TAGGER, tmp_path / "model")
    extend_config(tmp_path / "model", {**label_names(LABELS), "features": features})
    path = tmp_path / "clip.wav"
    samples, rate = soundfile.read(recording, dtype="float32")
    soundfile.write(path, samples[: round(seconds * rate)], rate)
    frames = MelTransform(features)(soundfile.read(path, dtype="float32")[0].mean(axis=1), rate).astype(np.float32)
    if features == "power":
        frames *= 4
    heard = mel_frames(torch.from_numpy(read_waveform(path, 22_050)), features)
    # float16 keeps three digits, and its smallest powers have fewer.
    np.testing.assert_allclose(heard, frames, rtol=2e-3, atol=2e-3 if features == "log_mel" else 1e-5)
    within = PATCH_HOP * np.arange(count_patches(len(frames)))[:, None] + np.arange(PATCH_FRAMES)
    with torch.inference_mode():
        scores = model(torch.from_numpy(frames[within % len(frames)])).sigmoid().mean(0).tolist()
    expected = dict(zip(LABELS, scores, strict=True))
    assert scores_of(capsys, str(tmp_path / "model"), str(path)) == pytest.approx(expected, abs=2e-3)


def test_a_recognizer_writes_what_its_own_decoder_reads(recording, tmp_path, capsys):
    (tmp_path / "hubert.json").write_text(json.dumps(TINY))
    model = create_recognizer(config=tmp_path / "hubert.json", seed=1).eval()
    save_recognizer(model, tmp_path / "model")
    waveform = torch.from_numpy(read_waveform(recording, 16_000))[None]
    with torch.inference_mode():
        expected = decode(model(waveform, torch.tensor([waveform.shape[1]]))[0].argmax(-1))
    assert main(["predict", str(tmp_path / "model"), str(recording)]) == 0
    assert capsys.readouterr().out.strip() == f"{recording}: {expected}".strip()


def test_enhance_writes_the_first_source_at_the_models_rate(recording, tmp_path, capsys):
    model = create_sudormrf(SMALL, seed=2).eval()
    save_sudormrf(model, tmp_path / "model")
    out = tmp_path / "clean.wav"
    assert main(["enhance", str(tmp_path / "model"), str(recording), str(out)]) == 0
    speech, rate = soundfile.read(out, dtype="float32")
    assert rate == 16_000
    waveform = torch.from_numpy(read_waveform(recording, 16_000))[None]
    np.testing.assert_allclose(speech, enhance(model, waveform, "cpu")[0].numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("predict {sudormrf} {wav}", "predict wants a classifier or a recognizer; openfl-audio enhance takes this one"),
        ("predict {hubert} {wav}", "is a HubertModel: predict wants a classifier or a recognizer"),
        ("enhance {hubert} {wav} out.wav", "is a HubertModel: enhance wants a model for speech enhancement"),
        ("enhance {sudormrf} {wav} {wav}", "is the recording itself: give another name for what is written"),
        ("predict {run} {wav}", "has no config.json (the model of a run is in its model/)"),
        ("predict {foreign} {wav}", "comes with code of its own: --trust-code runs it"),
    ],
)
def test_what_cannot_be_used_is_a_sentence(command, sentence, recording, tmp_path, capsys):
    save_sudormrf(create_sudormrf(SMALL), tmp_path / "sudormrf")
    save_model(create_hubert("hubert_small.json", clusters=4), tmp_path / "run" / "model")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "foreign", "auto_map": {"AutoConfig": "evil.Config"}}')
    names = {name: tmp_path / name for name in ("sudormrf", "run", "foreign")} | {"wav": recording}
    assert main(command.format(**names, hubert=tmp_path / "run" / "model").split()) == 1
    assert sentence in capsys.readouterr().err


WITHOUT_THE_PROJECT = """
import sys
for name in ("openfl_audio", "workspaces", "shard_descriptors"):
    sys.modules[name] = None  # an import of it fails
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification
torch.manual_seed(0)
waveform = torch.rand(20_000)
for name in ("whisper", "log_mel", "hubert", "tagger"):
    folder = f"{sys.argv[1]}/{name}"
    model = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    inputs = extractor(waveform.numpy(), sampling_rate=extractor.sampling_rate, return_tensors="pt")
    print(name, model.config.id2label[0], tuple(model(**inputs).logits.shape))
model = AutoModel.from_pretrained(f"{sys.argv[1]}/sudormrf", trust_remote_code=True)
print("sudormrf", tuple(model(waveform[None]).shape))
"""


@pytest.mark.process
def test_transformers_loads_each_model_where_this_project_is_not(tmp_path, monkeypatch):
    """Seconds, as a new process imports Transformers."""
    for kind in ("whisper", "log_mel", "hubert"):
        save_keywords(keyword_model(kind, tmp_path), tmp_path / kind)
    save_tagger(create_tagger(**TAGGER), TAGGER, tmp_path / "tagger")
    extend_config(tmp_path / "tagger", label_names(LABELS))
    save_sudormrf(create_sudormrf(SMALL), tmp_path / "sudormrf")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = [sys.executable, "-c", WITHOUT_THE_PROJECT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    keywords = [f"{name} yes (1, 3)" for name in ("whisper", "log_mel", "hubert", "tagger")]
    assert done.stdout.splitlines() == [*keywords, "sudormrf (1, 3, 20000)"]
