"""Private training of every workload that has it: one more unit changes nothing of what the others contribute."""

import json
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openfl_audio.node.private_task import private_task
from openfl_audio.protocol.privacy import RecordLevel
from openfl_audio.training import private_round
from openfl_audio.training.private_steps import PrivateSteps
from tests.unit.workspaces.test_clips_alone import WHISPER
from workspaces.keyword_spotting import tasks as keyword_tasks
from workspaces.keyword_spotting.data import EncoderClips
from workspaces.keyword_spotting.ssl_features import create_upstream
from workspaces.keyword_spotting.whisper import create_whisper

# A bound that no gradient reaches, so that their sizes can be compared.
LEVEL = RecordLevel(noise_multiplier=1.0, clip=1e6, delta=1e-3, probability=0.5, steps=1)
LABELS = ("low", "high", "_silence_")
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


CASES = {each.__name__: each for each in (head_on_log_mel, small_whisper)}


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
    assert [clips.indices[items].tolist() for items in taken] == [[0, 1, 2, 3, 4]]
