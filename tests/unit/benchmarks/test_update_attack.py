"""The attack on an update: its closed form by hand, frames of a real update, and that it fails on masked words."""

import json

import numpy as np
import pytest
import torch

from benchmarks import update_attack
from benchmarks.update_attack import (
    Case,
    Spaces,
    _mended,
    distinct,
    frames_of,
    in_order,
    likeness,
    linked,
    main,
    row_space,
    seen_by_director,
)
from tests.unit.workspaces.speech_recognition.speech import Spoken
from workspaces.speech_recognition.model import create_recognizer


class Heard(Spoken):
    """One clip of tones, with the member that the attack's utterances have."""

    @property
    def waveform(self) -> np.ndarray:
        return self.read_waveform(0)


def gradients(frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of a linear layer's weight and bias, by torch, of a loss over so many frames."""
    layer = torch.nn.Linear(frames.shape[1], 20).double()
    (layer(frames).sin().cumsum(0) ** 2).sum().backward()
    return layer.weight.grad, layer.bias.grad


def test_one_frame_is_the_quotient_of_the_gradients_of_weight_and_bias_and_spans_the_rows():
    frame = torch.randn(1, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight, bias = gradients(frame)
    torch.testing.assert_close(weight[3] / bias[3], frame[0])
    [row] = row_space(weight, 1e-10)
    assert abs(float(row @ frame[0])) == pytest.approx(float(frame.norm()))


def test_fewer_frames_than_the_layer_is_wide_are_in_the_space_that_its_gradient_tells_and_others_are_not():
    frames = torch.randn(7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    space = row_space(gradients(frames)[0], 1e-10)
    assert len(space) == 7
    torch.testing.assert_close(frames @ space.T @ space, frames)
    assert float((torch.eye(12, dtype=torch.float64) @ space.T).norm(dim=1).max()) < 1
    assert len(row_space(gradients(torch.cat([frames, frames.flip(1)]))[0], 1e-10)) == 12


def test_frames_are_put_in_the_order_in_which_their_windows_fit():
    time = torch.arange(12, dtype=torch.float64)
    windows = torch.stack([torch.sin(time / 4 + band) for band in range(5)], dim=1)
    frames = windows.reshape(6, 10)
    shuffled = frames[torch.tensor([3, 0, 5, 2, 4, 1])]
    assert linked(frames, in_order(shuffled, torch.zeros(6, 1, dtype=torch.float64))) == 1.0
    assert linked(frames, frames.flip(0)) == 0.0
    assert len(distinct(torch.cat([frames, frames]))) == 6


def test_parts_of_a_path_that_were_swapped_are_moved_to_where_they_fit():
    places = np.arange(8.0)
    links = np.abs(places[None] - places[:, None] - 1)  # nothing from each place to the next one
    assert _mended([0, 3, 4, 5, 1, 2, 6, 7], links) == [*range(8)]
    assert _mended([6, 7, 0, 1, 2, 3, 4, 5], links) == [*range(8)]


def test_every_frame_of_a_short_utterance_is_recovered_from_one_step_and_none_from_masked_words(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(update_attack, "STARTS", 24)
    model = create_recognizer(config="wav2vec2_bert_small.json")
    heard = Heard(["AB"])
    frames = frames_of(model, heard)

    def attacked(case: Case) -> tuple[int, torch.Tensor]:
        spaces = Spaces(model, seen_by_director(model, [heard], case), case)
        return spaces.num_frames, likeness(frames, spaces.recover(torch.Generator().manual_seed(0)))

    rank, alike = attacked(Case(words=1))
    assert rank == len(frames) == 9
    assert float(alike.min()) > 0.9999
    rank, alike = attacked(Case(words=1, seen="masked"))
    assert rank == 96
    assert float(alike.max()) < 0.8


@pytest.mark.slow
@pytest.mark.training
def test_the_benchmark_recovers_a_word_from_an_update_and_from_a_sum_that_is_hardly_rounded(tmp_path, capsys):
    torch.set_num_threads(1)
    picture = tmp_path / "attack.png"
    cases = ["plain-1", "sum-of-8-of-3", "fine-sum-of-3-of-1"]
    assert main(["--cases", *cases, "--seeds", "1", "--json", "--picture", str(picture)]) == 0
    plain, hidden, told = map(json.loads, capsys.readouterr().out.splitlines())
    assert plain["found"] == "1.00 ± 0.00"
    assert hidden["found"] == "0.00 ± 0.00"
    assert float(told["found"].split()[0]) > 0.5
    assert picture.stat().st_size > 10_000
