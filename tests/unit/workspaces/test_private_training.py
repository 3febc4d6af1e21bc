"""Private training of every workload that has it: one more unit changes nothing of what the others contribute."""

import json
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import Trainer

from openfl_audio.errors import PrivacyError
from openfl_audio.node.private_task import private_task
from openfl_audio.protocol.privacy import RecordLevel
from openfl_audio.training import private_round
from openfl_audio.training.private_steps import PrivateSteps
from tests.unit.workspaces.audio_classification.recordings import Tones as OwnTones
from tests.unit.workspaces.audio_classification.recordings import create_cnn
from tests.unit.workspaces.hubert.tones import TINY, tiny_hubert
from tests.unit.workspaces.hubert.tones import Tones as Utterances
from tests.unit.workspaces.speech_recognition.speech import Spoken, tiny_recognizer
from tests.unit.workspaces.test_clips_alone import WHISPER
from workspaces.audio_classification import tasks as own_tasks
from workspaces.audio_classification.data import Augmentation
from workspaces.audio_classification.data import Clips as OwnClips
from workspaces.audio_classification.targets import Targets
from workspaces.audio_classification.workload import AudioClassificationSettings
from workspaces.hubert.data import Clips as HubertClips
from workspaces.hubert.model import save_model
from workspaces.hubert.tasks import TrainingSettings as HubertSettings
from workspaces.hubert_distillation import tasks as student_tasks
from workspaces.hubert_distillation.loss import Distillation
from workspaces.hubert_distillation.model import create_student
from workspaces.keyword_spotting import tasks as keyword_tasks
from workspaces.keyword_spotting.data import EncoderClips
from workspaces.keyword_spotting.ssl_features import create_upstream
from workspaces.keyword_spotting.whisper import create_whisper
from workspaces.keyword_spotting.workload import KeywordSpottingSettings
from workspaces.keyword_spotting_wav2vec2 import tasks as wav2vec2_tasks
from workspaces.keyword_spotting_wav2vec2.data import TrainClips
from workspaces.keyword_spotting_wav2vec2.model import CONFIGS, create_wav2vec2
from workspaces.sound_events import tasks as sound_tasks
from workspaces.sound_events.data import Patches
from workspaces.sound_events.model import create_tagger
from workspaces.speech_recognition import tasks as speech_tasks
from workspaces.speech_recognition.data import Clips

# A bound that no gradient reaches, so that their sizes can be compared.
LEVEL = RecordLevel(noise_multiplier=1.0, clip=1e6, delta=1e-3, probability=0.5, steps=1)
LABELS = ("low", "high", "_silence_")
WORDS = Targets("label", ("low", "high"))
# Passes with one more clip round otherwise in the last bits.
TOLERANCE = 2e-5

# Trains a round on a corpus of its own, with the optimizer's rate 0, and returns its metrics.
Train = Callable[[], dict[str, float]]


class Tones:
    """Clips of tones, of several lengths; the last are silence. Label 0 is rare."""

    labels = (0, 1, 1, 2, 2)
    speakers = ("ann", "ann", "bob", "cy", "")

    def __len__(self) -> int:
        return len(self.labels)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: clips are the same in every epoch."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        samples = 16_000 - 1_000 * index
        tone = np.sin(2 * np.pi * (300 + 500 * index) * np.arange(samples) / 16_000)
        return (0.1 * tone).astype(np.float32), self.labels[index]


class Seconds(Tones):
    """Tones of a second each, as a shard gives them."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        waveform, label = super().__getitem__(index)
        return np.pad(waveform, (0, 16_000 - len(waveform))), label


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.0)


def keywords_on(model: Any) -> Train:
    clips, settings = EncoderClips(Tones(), repeat_rare=True), keyword_tasks.TrainingSettings(rounds=1)
    return lambda: keyword_tasks.train_round(model, clips, optimizer_of(model), "cpu", 0, settings)


def head_on_log_mel(folder: Path) -> Train:
    return keywords_on(create_upstream("log_mel", labels=LABELS))


def small_whisper(folder: Path) -> Train:
    path = folder / "whisper.json"
    path.write_text(json.dumps(WHISPER | {"max_source_positions": 50, "dropout": 0.0}))
    return keywords_on(create_whisper(config=path, labels=LABELS, form="short", frozen=False))


def small_wav2vec2(folder: Path) -> Train:
    values = json.loads((CONFIGS / "wav2vec2_small.json").read_text())
    path = folder / "still.json"
    # What dropout leaves out depends on how many units were before, and on nothing of them.
    path.write_text(json.dumps(values | {"hidden_dropout": 0.0}))
    model = create_wav2vec2(config=path, labels=LABELS)
    settings = wav2vec2_tasks.TrainingSettings(rounds=1)
    return lambda: wav2vec2_tasks.train_round(model, TrainClips(Seconds()), optimizer_of(model), "cpu", 0, settings)


class Sounds:
    """Two patches of each of five clips, in a store's order."""

    clip = np.repeat(np.arange(5), 2)
    clip_labels = np.eye(5, 4, dtype=np.float32)

    def patches(self, indices: np.ndarray) -> np.ndarray:
        assert (np.diff(indices) > 0).all(), "a memory map is read forward"
        noise = np.random.default_rng(0).normal(size=(10, 101, 96)).astype(np.float32)
        return noise[indices]


def sounds_for(architecture: str) -> Train:
    model = create_tagger(architecture, 4, width=0.25)
    patches, settings = Patches(Sounds()), sound_tasks.TrainingSettings()
    return lambda: sound_tasks.train_round(model, patches, optimizer_of(model), "cpu", 0, settings)


def vgg_tagger(folder: Path) -> Train:
    return sounds_for("vgg")


def crnn_tagger(folder: Path) -> Train:
    return sounds_for("crnn")


def letters(folder: Path) -> Train:
    model = tiny_recognizer(folder, layerdrop=0.0, feat_extract_norm="layer", final_dropout=0.0)
    clips = Clips(Spoken(["A", "ABAC", "CAB", "DA CAB", "DAB"]))
    settings = speech_tasks.TrainingSettings(rounds=1, learning_rate=0.0)
    return lambda: speech_tasks.train_round(model, clips, optimizer_of(model), "cpu", 0, settings)


def own_recordings(folder: Path) -> Train:
    clips = OwnClips(OwnTones(["low", "high", "high", "low", "high"]), WORDS, 0.1, augmentation=Augmentation(gain_db=6))
    settings = own_tasks.TrainingSettings(rounds=1, learning_rate=0.0)
    model = create_cnn(2)
    return lambda: own_tasks.train_round(model, clips, optimizer_of(model), "cpu", 0, settings)


def student(folder: Path) -> Train:
    save_model(tiny_hubert(folder), folder / "teacher")
    path = folder / "student.json"
    path.write_text(json.dumps(TINY | {"hidden_size": 16, "num_hidden_layers": 1}))
    teacher = str(folder / "teacher")
    model, objective = create_student(path, teacher, (1, 2)), Distillation(teacher, (1, 2))
    clips = HubertClips(Utterances([4_000, 2_400, 3_000, 2_000, 1_000]), None, None)
    settings = HubertSettings(rounds=1, learning_rate=0.0)
    return lambda: student_tasks.train_round(model, clips, optimizer_of(model), "cpu", 0, settings, objective)


TRAINED = (head_on_log_mel, small_whisper, small_wav2vec2, vgg_tagger, crnn_tagger, letters, own_recordings, student)
CASES = {each.__name__: each for each in TRAINED}


@contextmanager
def drawing(units: Sequence[Sequence[int]], seen: list[dict[str, torch.Tensor]]):
    """Draw these units in every private step, and note their clipped gradients."""
    make = PrivateSteps.make_gradients

    def noted(self: PrivateSteps, drawn: Any, losses: Any) -> None:
        seen.append({name: each.clone() for name, each in self.clipped_gradients(drawn, losses).items()})
        make(self, drawn, losses)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private_round, "draw_units", lambda *_: units)
        patch.setattr(PrivateSteps, "make_gradients", noted)
        yield


def test_a_step_takes_one_patch_of_a_recording_that_is_drawn(tmp_path):
    drawn, draw = [], private_round.draw_units
    train = vgg_tagger(tmp_path)
    everybody = LEVEL.model_copy(update={"probability": 1.0, "steps": 2})
    with pytest.MonkeyPatch.context() as patch, private_task(everybody, "site", 0, "train"):
        patch.setattr(private_round, "draw_units", lambda *given: drawn.append(draw(*given)) or drawn[-1])
        train()
    for units in drawn:
        assert [Sounds.clip[patches].tolist() for patches in units] == [[0], [1], [2], [3], [4]]


@pytest.mark.parametrize("case", CASES)
def test_one_more_unit_leaves_the_clipped_gradients_of_the_others_as_they_are(case, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENFL_AUDIO_CACHE", str(tmp_path / "cache"))
    train, seen = CASES[case](tmp_path), []
    for units in ([[1], [3]], [[0], [1], [2], [3]]):
        with drawing(units, seen), private_task(LEVEL, "site", 0, "train"):
            assert train() == {}, "nothing of the clips is told"
    two, four = seen
    largest = max(float(gradient.abs().max()) for gradient in two.values())
    assert largest > 0
    for name, gradients in two.items():
        torch.testing.assert_close(four[name][[1, 3]], gradients, rtol=0, atol=TOLERANCE * largest, msg=name)


@pytest.mark.training
def test_a_private_round_takes_no_step_of_the_trainer_and_one_that_does_fails_by_name(tmp_path, monkeypatch):
    train = small_wav2vec2(tmp_path)
    with pytest.MonkeyPatch.context() as patch, private_task(LEVEL, "site", 0, "train"):
        patch.setattr(Trainer, "train", lambda *_: pytest.fail("the Trainer's steps have no noise"))
        assert train() == {}
    monkeypatch.setattr(wav2vec2_tasks, "is_private", lambda: False)
    refusal = pytest.raises(PrivacyError, match="task 'train' took 0 private steps, and its plan says 1")
    with refusal, private_task(LEVEL, "site", 0, "train"):
        assert train().keys() == {"loss"}, "the Trainer has trained"


def test_a_private_round_takes_each_clip_of_the_shard_once_however_rare_its_label_is(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENFL_AUDIO_CACHE", str(tmp_path / "cache"))
    clips, drawn = EncoderClips(Tones(), repeat_rare=True), []
    assert len(clips) > clips.num_clips, "rare labels are repeated"
    draw, batch, taken = private_round.draw_units, clips.batch, []
    monkeypatch.setattr(clips, "batch", lambda items: taken.append(items) or batch(items))
    monkeypatch.setattr(private_round, "draw_units", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    model = create_upstream("log_mel", labels=LABELS)
    everybody = LEVEL.model_copy(update={"probability": 1.0})
    with private_task(everybody, "site", 0, "train"):
        keyword_tasks.train_round(model, clips, optimizer_of(model), "cpu", 0, keyword_tasks.TrainingSettings(rounds=1))
    assert drawn == [[[0], [1], [2], [3], [4]]]
    assert [index for items in taken for index in clips.indices[items].tolist()] == [0, 1, 2, 3, 4]


def test_balanced_classes_and_silence_that_shares_recordings_are_refused_with_privacy():
    shared = {"rounds": 1, "batch_size": 4, "optimizer": {"learning_rate": 0.1}, "privacy": LEVEL.model_dump()}
    model = {"config": "wav2vec2_small.json"}
    with pytest.raises(ValidationError, match="balance sampling follows from the classes of private clips"):
        AudioClassificationSettings.model_validate(shared | {"model": model, "clip_s": 1.0, "balance": "sampling"})
    keywords = shared | {"model": {"architecture": "upstream", "upstream": "log_mel"}}
    with pytest.raises(ValidationError, match=r"data\.silence_share cuts a noise recording into several clips"):
        KeywordSpottingSettings.model_validate(keywords | {"data": {"silence_share": 0.1}})
    clips, model = OwnClips(OwnTones(["low", "high"]), WORDS, 0.1), create_cnn(2)
    settings = own_tasks.TrainingSettings(rounds=1, balance="weights")
    refusal = pytest.raises(PrivacyError, match="balance 'weights' follows from the classes of private clips")
    with refusal, private_task(LEVEL, "site", 0, "train"):
        own_tasks.train_round(model, clips, optimizer_of(model), "cpu", 0, settings)
