import re

import pytest
import torch
from torch.nn import functional as F

from openfl_audio.errors import PrivacyError
from openfl_audio.node.private_task import current_private, private_task
from openfl_audio.protocol.privacy import RecordLevel, SpeakerLevel
from openfl_audio.testing.noise import noise_that_repeats
from openfl_audio.training.private_round import clips_at_once, is_private, steps_of_round, train_privately
from openfl_audio.training.private_steps import each_alone

INPUTS = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 2
SPEAKERS = ["ann", "ann", "ann", "bob", "", "", "cy", "bob"]
RECORDS = RecordLevel(noise_multiplier=1.0, clip=1.0, delta=1e-3, probability=0.5, steps=4)
VOICES = SpeakerLevel(noise_multiplier=1.0, clip=1.0, delta=1e-3, probability=1.0, steps=3, clips_per_speaker=2)


def train(level, speakers=SPEAKERS, client="site"):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    passes = []

    def losses(clips):
        passes.append(list(clips))
        return each_alone(F.cross_entropy, model(INPUTS[clips]), LABELS[clips])

    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with private_task(level, client, 0, "train"):
        assert is_private()
        assert steps_of_round(100) == level.steps
        metrics = train_privately(model, optimizer, speakers, losses)
    return metrics, passes, torch.cat([each.detach().flatten() for each in model.parameters()])


def test_a_round_takes_the_steps_of_the_plan_and_tells_nothing_of_the_clips():
    metrics, passes, _ = train(RECORDS)
    assert metrics == {}
    assert all(len(clips) == 1 for clips in passes)
    assert not is_private()
    assert steps_of_round(100) == 100


def test_clips_of_a_speaker_come_together_and_those_of_nobody_are_one_unit():
    _, passes, _ = train(VOICES)
    assert len(passes) == 3 * 4  # in each step all units, as the probability is 1
    owners = [{SPEAKERS[clip] for clip in clips} for clips in passes]
    assert all(len(each) == 1 for each in owners)
    assert {*map(len, passes)} == {1, 2}


def test_of_a_recording_in_several_clips_a_step_takes_one():
    torch.manual_seed(0)
    model, passes = torch.nn.Linear(3, 2), []

    def losses(clips):
        passes.append(list(clips))
        return each_alone(F.cross_entropy, model(INPUTS[clips]), LABELS[clips])

    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with private_task(RECORDS.model_copy(update={"probability": 1.0}), "site", 0, "train"):
        train_privately(model, optimizer, [""] * 8, losses, recordings=[0, 0, 0, 0, 1, 1, 2, 2])
    assert len(passes) == 3 * 4, "of three recordings one clip each, in four steps"


def test_two_runs_differ_unless_a_test_wants_noise_that_repeats():
    assert not torch.equal(train(RECORDS)[2], train(RECORDS)[2])
    with noise_that_repeats(5):
        first, again, other = train(RECORDS)[2], train(RECORDS)[2], train(RECORDS, client="b")[2]
        assert not current_private()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(train(RECORDS)[2], first)


def test_a_task_that_does_not_take_its_private_steps_fails():
    refusal = pytest.raises(PrivacyError, match="task 'train' took 0 private steps, and its plan says 4")
    with refusal, private_task(RECORDS, "site", 0, "train"):
        pass


@pytest.mark.parametrize(
    ("level", "speakers", "message"),
    [(VOICES, ["", ""], "the shard does not tell its speakers apart"), (RECORDS, [], "there are no clips")],
)
def test_units_that_nobody_can_tell_are_refused(level, speakers, message):
    with pytest.raises(PrivacyError, match=re.escape(message)):
        train(level, speakers)


def test_private_steps_without_a_plan_that_wants_them_are_refused():
    with pytest.raises(PrivacyError, match="the experiment's plan has no privacy"):
        train_privately(torch.nn.Linear(3, 2), None, SPEAKERS, lambda clips: None)


def test_gradients_are_found_at_once_on_an_accelerator_and_one_by_one_on_a_cpu():
    assert clips_at_once(torch.nn.Linear(3, 2), 16) is None
    assert clips_at_once(torch.nn.Linear(3, 2, device="meta"), 16) == 16
    assert clips_at_once(torch.nn.Linear(3, 2, device="meta"), None) is None
    assert clips_at_once(torch.nn.GRU(3, 2, device="meta"), 16) is None


def test_a_round_on_a_cpu_takes_a_pass_for_each_unit_whatever_its_workload_would_take_at_once():
    passes, model = [], torch.nn.Linear(3, 2)

    def losses(clips):
        passes.append(len(clips))
        return each_alone(F.cross_entropy, model(INPUTS[clips]), LABELS[clips])

    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with private_task(RECORDS.model_copy(update={"probability": 1.0, "steps": 1}), "site", 0, "train"):
        train_privately(model, optimizer, SPEAKERS, losses, clips_per_pass=16)
    assert passes == 8 * [1]
