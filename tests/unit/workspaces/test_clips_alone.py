"""A clip's scores are those it has alone, whatever clips are evaluated with it: of every model of the project.

Each way to score takes clips through the data and evaluation code of its workspace. The neighbours differ in length and
in level by as much as the workspace lets them.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

import workspaces
from tests.unit.workspaces.hubert.tones import CLUSTERS, TINY, tiny_hubert
from tests.unit.workspaces.shipped import WORKLOADS
from tests.unit.workspaces.speech_recognition.speech import tiny_recognizer
from workspaces.audio_classification.data import Clips as RecordingClips
from workspaces.audio_classification.model import create_classifier, create_extractor
from workspaces.audio_classification.targets import Targets
from workspaces.audio_classification.tasks import loss_of, predict_all
from workspaces.hubert.data import Clips as HubertClips
from workspaces.hubert.loss import predict
from workspaces.hubert.masking import MaskSettings
from workspaces.hubert.model import count_frames, save_model
from workspaces.hubert.tasks import validate_clips as validate_hubert
from workspaces.hubert.tasks import validate_objective
from workspaces.hubert_codebooks.features import HiddenStates
from workspaces.hubert_distillation.loss import Distillation
from workspaces.hubert_distillation.model import create_student
from workspaces.keyword_spotting.data import EncoderClips
from workspaces.keyword_spotting.model import EncoderModel
from workspaces.keyword_spotting.ssl_features import create_upstream
from workspaces.keyword_spotting.tasks import validate_clips as validate_encoder
from workspaces.keyword_spotting.whisper import create_whisper
from workspaces.keyword_spotting.workload import ModelSettings as KeywordModelSettings
from workspaces.keyword_spotting_wav2vec2.data import Clips as KeywordClips
from workspaces.keyword_spotting_wav2vec2.model import create_wav2vec2
from workspaces.keyword_spotting_wav2vec2.tasks import validate_clips as validate_wav2vec2
from workspaces.sound_events.data import Patches
from workspaces.sound_events.model import Architecture, create_tagger
from workspaces.sound_events.tasks import score_clips
from workspaces.speech_enhancement.data import Sources
from workspaces.speech_enhancement.model import create_sudormrf
from workspaces.speech_enhancement.settings import SudoRmRfSettings
from workspaces.speech_enhancement.tasks import enhance
from workspaces.speech_enhancement.tasks import validate_clips as validate_enhancement
from workspaces.speech_recognition.data import BatchSize
from workspaces.speech_recognition.data import Clips as SpeechClips
from workspaces.speech_recognition.tasks import validate_clips as validate_speech

TOLERANCE = 1e-5
LABELS = ("low", "high", "_silence_")
WHISPER = {
    "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "num_mel_bins": 80,
    "init_std": 0.2,
}  # fmt: skip

Clip = np.ndarray
# The scores of each of some clips, and the mean loss (or the like) of all with its weight.
Scores = tuple[list[np.ndarray], float, float]
Score = Callable[[Sequence[Clip]], Scores]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENFL_AUDIO_CACHE", str(tmp_path / "cache"))


def waveforms(*lengths: int) -> list[Clip]:
    """Noise, each clip ten times as loud as the one before."""
    generator = np.random.default_rng(0)
    return [(0.01 * 10**i * generator.normal(size=n)).astype(np.float32) for i, n in enumerate(lengths)]


def one_second(waveform: Clip) -> Clip:
    """Fill a clip up to one second, as the shard of keyword spotting does."""
    return np.pad(waveform, (0, 16_000 - len(waveform)))


SPEECH = waveforms(9_000, 16_000, 400, 11_111)
WORDS = waveforms(9_000, 16_000, 12_000)


def check(score: Score, clips: Sequence[Clip]) -> None:
    together, loss, weight = score(clips)
    alone = [score([clip]) for clip in clips]
    for scores, ([by_itself], *_) in zip(together, alone, strict=True):
        assert scores.shape == by_itself.shape
        np.testing.assert_allclose(scores, by_itself, rtol=0, atol=TOLERANCE)
    assert np.std(together[0]) > 100 * TOLERANCE  # scores that are all alike would agree too
    assert weight == sum(each[2] for each in alone)
    assert loss == pytest.approx(sum(each[1] * each[2] for each in alone) / weight, rel=1e-5, abs=TOLERANCE)


# Sound events


class Tagged:
    """Clips of any number of patches, with the members of the FSD50K dataset."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        self.clip = np.repeat(np.arange(len(clips)), [len(clip) for clip in clips])
        self.clip_labels = np.tile(np.array([1, 0, 0, 1], np.float32), (len(clips), 1))
        self._patches = np.concatenate(clips)

    def patches(self, indices: np.ndarray) -> np.ndarray:
        return self._patches[indices]


def patches() -> list[Clip]:
    generator = np.random.default_rng(0)
    return [
        (spread * generator.normal(size=(n, 101, 96)) - 5).astype(np.float32)
        for n, spread in ((1, 0.5), (5, 1), (2, 5), (7, 2))
    ]


def tagger(architecture: str, normalisation: str, batch_size: int) -> Score:
    model = create_tagger(architecture, 4, normalisation, width=0.25)
    with torch.no_grad():
        # Scores that differ from 1/2, as trained ones do.
        model.output.weight *= 10

    def score(clips: Sequence[Clip]) -> Scores:
        data = Patches(Tagged(clips))
        scores, loss = score_clips(model, data, "cpu", batch_size)
        return list(scores), loss, len(data)

    return score


@pytest.mark.parametrize("architecture", get_args(Architecture))
@pytest.mark.parametrize("batch_size", [3, 64])
def test_a_tagger_by_default(architecture, batch_size):
    normalisation = create_tagger(architecture, 4).normalisation
    check(tagger(architecture, normalisation, batch_size), patches())


@pytest.mark.parametrize("architecture", get_args(Architecture))
@pytest.mark.parametrize("normalisation", ["evaluation_batch", "fedbn"])
def test_a_tagger_that_normalises_by_the_evaluation_batch_is_the_exception(architecture, normalisation):
    score = tagger(architecture, normalisation, batch_size=64)
    (first, *_), *_ = score(patches())
    ([alone], *_) = score(patches()[:1])
    assert np.abs(first - alone).max() > 1e-3


# Speech enhancement


class Triples:
    """A clip and two noises, with the members of the LibriFSD50K dataset, where all clips have one length."""

    supervised = True
    sample_rate = 8_000

    def __init__(self, clips: Sequence[Clip]) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Clip, Clip, Clip]:
        clip = self.clips[index]
        return clip, np.roll(clip, 100) ** 2, -np.roll(clip, 3_000)


def test_an_enhancement_model():
    settings = SudoRmRfSettings(
        out_channels=16, in_channels=32, num_blocks=2, upsampling_depth=3, num_bases=48, num_groups=2
    )
    model = create_sudormrf(settings).eval()

    def score(clips: Sequence[Clip]) -> Scores:
        data = Sources(Triples(clips))
        estimates = enhance(model, data.whole(np.arange(len(data))).sum(1), "cpu")
        # Two at a time, so that a part of the batch is not full.
        improvement = validate_enhancement(model, data, "cpu", batch_size=2)["si_sdri_2_noises"]
        return list(estimates.numpy()), improvement, len(data)

    check(score, [one_second(waveform) for waveform in WORDS])


# Keyword spotting


class Words:
    """Clips of one second, with the members of the SUPERB dataset."""

    def __init__(self, clips: Sequence[Clip], length: int | None = 16_000) -> None:
        self.clips = [clip if length is None else one_second(clip) for clip in clips]
        # By the recording, so that a clip alone has the label that it has among others.
        self.labels = np.array([len(clip) % len(LABELS) for clip in clips], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Clip, int]:
        return self.clips[index], int(self.labels[index])

    def set_epoch(self, epoch: int) -> None:
        """Nothing here is drawn anew."""


def test_wav2vec2_on_its_one_length():
    """As published, its first normalisation and its mean over frames take in the padding, so that no batch may add any:
    the shard fills every clip up to one second."""
    model = create_wav2vec2(config="wav2vec2_small.json", labels=LABELS).eval()

    def score(clips: Sequence[Clip]) -> Scores:
        data = KeywordClips(Words(clips))
        inputs = torch.stack([torch.from_numpy(data[i]["input_values"]) for i in range(len(data))])
        with torch.no_grad():
            logits = model(inputs).logits.numpy()
        return list(logits), validate_wav2vec2(model, data, "cpu", batch_size=2)["loss"], len(data)

    check(score, WORDS)
    with pytest.raises(ValueError, match="must have the same shape"):
        validate_wav2vec2(model, KeywordClips(Words(WORDS, length=None)), "cpu")


def save_upstream(folder: Path, kind: str, normalize: bool) -> str:
    make, config = {"hubert": (HubertModel, HubertConfig), "wav2vec2": (Wav2Vec2Model, Wav2Vec2Config)}[kind]
    torch.manual_seed(7)
    sizes = {name: value for name, value in TINY.items() if name != "feat_extract_norm"}
    make(config(**sizes, feat_extract_norm="group", num_feat_extract_layers=3)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=normalize).save_pretrained(folder)
    return str(folder)


def whisper(folder: Path, form: str, frozen: bool) -> EncoderModel:
    path = folder / "whisper.json"
    path.write_text(json.dumps(WHISPER | {"max_source_positions": 50 if form == "short" else 150}))
    return create_whisper(config=path, labels=LABELS, form=form, frozen=frozen)


ENCODERS: dict[str, Callable[[Path], EncoderModel]] = {
    "whisper, short": lambda folder: whisper(folder, "short", frozen=False),
    "whisper, exact": lambda folder: whisper(folder, "exact", frozen=False),
    "whisper, frozen": lambda folder: whisper(folder, "short", frozen=True),
    "upstream log-mel": lambda folder: create_upstream("log_mel", labels=LABELS),
    "upstream hubert": lambda folder: create_upstream(
        save_upstream(folder, "hubert", False), labels=LABELS, frozen=False
    ),
    "upstream hubert, frozen": lambda folder: create_upstream(save_upstream(folder, "hubert", True), labels=LABELS),
    "upstream wav2vec2": lambda folder: create_upstream(
        save_upstream(folder, "wav2vec2", True), labels=LABELS, frozen=False
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_keyword_model_on_an_encoder(name, tmp_path):
    """Recordings that are too short, or too long, are brought to the encoder's one length first."""
    model = ENCODERS[name](tmp_path).eval()

    def score(clips: Sequence[Clip]) -> Scores:
        with torch.no_grad():
            logits = model(model.make_inputs(clips))
        data = EncoderClips(Words(clips))
        return list(logits.numpy()), validate_encoder(model, data, "cpu", batch_size=2)["loss"], len(data)

    check(score, WORDS)
    together = model.make_inputs([*WORDS, *waveforms(40_000)])
    assert together.shape == (4, *model.input_shape)
    torch.testing.assert_close(together[:3], model.make_inputs(WORDS), rtol=0, atol=TOLERANCE)


# HuBERT


class Speech:
    """Clips of any length with targets, with the members of the LibriSpeech dataset. A clip's name is its length."""

    targets_info = {"codebook": "central", "clusters": CLUSTERS, "feature": "none"}  # noqa: RUF012

    def __init__(self, clips: Sequence[Clip]) -> None:
        self.clips = clips
        self.num_samples = np.array([len(clip) for clip in clips])
        self.names = [f"clip of {len(clip)}" for clip in clips]
        self.transcripts = ["A"] * len(clips)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Clip, np.ndarray]:
        clip = self.clips[index]
        return clip, np.arange(count_frames(len(clip))) % CLUSTERS

    def read_waveform(self, index: int) -> Clip:
        return self.clips[index]


def in_order(scores: dict[int, np.ndarray], clips: Sequence[Clip]) -> list[np.ndarray]:
    return [scores[len(clip)] for clip in clips]


@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("normalize", [False, True])
def test_hubert_in_pretraining(norm, normalize, tmp_path):
    model = tiny_hubert(tmp_path, feat_extract_norm=norm).eval()
    model.normalize = normalize

    def score(clips: Sequence[Clip]) -> Scores:
        data = HubertClips(Speech(clips), MaskSettings(length=3), CLUSTERS)
        scores = {}
        with torch.no_grad():
            for batch in data.validation_batches(10**6):
                logits = model.logits(predict(model, batch)[1])
                for row, n, length in zip(logits, batch.frames.tolist(), batch.lengths.tolist(), strict=True):
                    scores[length] = row[:n].numpy()
        return in_order(scores, clips), validate_hubert(model, data, "cpu")["loss"], data.masked_frames

    check(score, SPEECH)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_student_and_teacher(norm, tmp_path):
    save_model(tiny_hubert(tmp_path, feat_extract_norm=norm, seed=5), tmp_path / "teacher")
    path = tmp_path / "student.json"
    path.write_text(json.dumps(TINY | {"feat_extract_norm": norm, "hidden_size": 16, "num_hidden_layers": 1}))
    teacher = str(tmp_path / "teacher")
    student = create_student(path, teacher, (1, 2)).eval()
    objective = Distillation(teacher, (1, 2))

    def score(clips: Sequence[Clip]) -> Scores:
        data = HubertClips(Speech(clips), None, None)
        scores: dict[int, np.ndarray] = {}
        with torch.no_grad():
            for batch in data.validation_batches(10**6):
                output = student(batch.waveforms, batch.lengths)
                for row, n, length in zip(output, batch.frames.tolist(), batch.lengths.tolist(), strict=True):
                    scores[length] = student.predictors[1](row[:n]).numpy()
        loss = validate_objective(student, data, "cpu", objective)["loss"]
        return in_order(scores, clips), loss, int(data.frames.sum())

    check(score, SPEECH)


def test_features_for_targets_are_of_one_clip_at_a_time(tmp_path):
    model = tiny_hubert(tmp_path, feat_extract_norm="group").eval()
    save_model(model, tmp_path / "run" / "model")
    layer = HiddenStates(tmp_path / "run", 2)
    batch = next(HubertClips(Speech(SPEECH), None, None).validation_batches(10**6))
    with torch.no_grad():
        together = model.extract_features(batch.waveforms, batch.lengths)[0][1]
    for row, waveform in zip(together, sorted(SPEECH, key=len), strict=True):
        features = layer(waveform)
        np.testing.assert_allclose(row[: len(features)], features, rtol=0, atol=TOLERANCE)


# Speech recognition


@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_recognizer_of_letters(norm, normalize, tmp_path):
    model = tiny_recognizer(tmp_path, feat_extract_norm=norm).eval()
    model.config.normalize = normalize

    def score(clips: Sequence[Clip]) -> Scores:
        data = SpeechClips(Speech(clips))
        scores = {}
        with torch.no_grad():
            for _, batch in data.validation_batches(BatchSize(16)):
                frames = model.count_frames(batch.lengths).tolist()
                logits = model(batch.waveforms, batch.lengths)
                for row, n, length in zip(logits, frames, batch.lengths.tolist(), strict=True):
                    scores[length] = row[:n].numpy()
        # Each has one letter.
        return in_order(scores, clips), validate_speech(model, data, "cpu", batch_size=3)["loss"], len(data)

    check(score, SPEECH)


# Classification of a site's own recordings


class Labelled:
    """Clips with labels, with the members of a dataset of recordings."""

    sample_rate = 16_000

    def __init__(self, clips: Sequence[Clip]) -> None:
        self.clips = clips
        self.targets = [LABELS[int(len(clip) < 16_000)] for clip in clips]

    def __getitem__(self, index: int) -> tuple[Clip, str]:
        return self.clips[index], self.targets[index]


@pytest.mark.parametrize("batch_size", [2, 32])
def test_a_classifier_of_recordings(batch_size):
    targets = Targets("label", LABELS[:2])
    model = create_classifier(config="wav2vec2_small.json", targets=targets)
    extractor = create_extractor(config="wav2vec2_small.json")

    def score(clips: Sequence[Clip]) -> Scores:
        data = RecordingClips(Labelled(clips), targets, 1.0, extractor)
        logits, labels = predict_all(model, data, "cpu", batch_size)
        return list(logits.numpy()), loss_of("label", logits, labels).item(), len(data)

    check(score, waveforms(16_000, 9_000, 20_000, 4_000))


def test_no_model_is_left_out():
    folder = Path(workspaces.__file__).parent
    assert {path.parent.name for path in folder.glob("*/workload.py")} == WORKLOADS
    architectures = get_args(KeywordModelSettings.model_fields["architecture"].annotation)
    assert {name.split(" ")[0].strip(",") for name in ENCODERS} == set(architectures)
