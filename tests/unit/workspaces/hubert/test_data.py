import pickle

import numpy as np
import pytest
import torch

from openfl_audio.errors import SettingsError
from tests.unit.workspaces.hubert.tones import CLUSTERS, Shard, Tones
from workspaces.hubert.data import BatchLimits, Clips, HubertData, plan_batches
from workspaces.hubert.masking import MaskSettings, expected_share

MASK = MaskSettings()
LENGTHS = np.random.default_rng(0).integers(16_000, 200_000, size=60)
LIMITS = BatchLimits(max_samples=400_000, max_clip_samples=100_000, max_clips=64)


def padded_samples(batch):
    return len(batch) * max(crop.num_samples for crop in batch)


def test_batches_have_every_clip_once_within_the_limit():
    plan = plan_batches(LENGTHS, LIMITS, np.random.default_rng(1))
    assert sorted(crop.item for batch in plan for crop in batch) == list(range(60))
    assert max(map(padded_samples, plan)) <= 400_000
    assert min(len(batch) for batch in plan) < max(len(batch) for batch in plan)


def test_clips_of_a_batch_are_of_similar_length():
    plan = plan_batches(LENGTHS, LIMITS, np.random.default_rng(1))
    samples = sum(crop.num_samples for batch in plan for crop in batch)
    assert samples / sum(map(padded_samples, plan)) > 0.85
    mixed = np.minimum(LENGTHS, 100_000).reshape(-1, 4)  # in the order of the corpus
    assert mixed.sum() / (4 * mixed.max(axis=1)).sum() < 0.85


def test_one_long_clip_does_not_make_a_batch_larger():
    lengths = np.append(LENGTHS, 5_000_000)
    plan = plan_batches(lengths, LIMITS, np.random.default_rng(1))
    assert max(map(padded_samples, plan)) <= 400_000
    assert max(crop.num_samples for batch in plan for crop in batch) == 100_000


def test_a_batch_has_no_more_clips_than_allowed():
    plan = plan_batches(LENGTHS, BatchLimits(10**9, 100_000, 7), np.random.default_rng(1))
    assert sorted(map(len, plan)) == [4, *[7] * 8]


def test_the_order_and_the_crops_are_new_in_every_epoch_and_follow_from_the_generator():
    first, again = (plan_batches(LENGTHS, LIMITS, np.random.default_rng(1)) for _ in range(2))
    generator = np.random.default_rng(1)
    epochs = [plan_batches(LENGTHS, LIMITS, generator) for _ in range(2)]
    assert first == again == epochs[0]
    starts = [
        {crop.item: crop.start for batch in plan for crop in batch if LENGTHS[crop.item] > 100_320} for plan in epochs
    ]
    assert len(starts[0]) > 20
    assert sum(starts[0][item] != starts[1][item] for item in starts[0]) > 0.9 * len(starts[0])


def test_a_crop_has_the_targets_of_its_part():
    tones = Tones([150_000, 90_000])
    clips = Clips(tones, MASK, CLUSTERS)
    generator = np.random.default_rng(3)
    plan = clips.train_batches(BatchLimits(10**6, 50_000, 64), 5, generator)
    starts = set()
    for crops, batch in zip(plan, clips.load(plan, generator), strict=True):
        assert batch.waveforms.shape == (2, 50_000)
        for row, crop in enumerate(crops):
            waveform, targets = tones[crop.item]
            np.testing.assert_array_equal(batch.waveforms[row], waveform[crop.start : crop.start + 50_000])
            # Frame f of the crop hears what frame start / 320 + f of the clip hears.
            assert crop.start % 320 == 0
            np.testing.assert_array_equal(batch.targets[row], targets[crop.start // 320 :][:156])
            starts.add(crop.start)
    assert len(starts) > 5


def test_padding_is_zero_and_never_masked():
    clips = Clips(Tones([16_000, 30_000, 22_000]), MASK, CLUSTERS)
    plan = clips.train_batches(BatchLimits(10**6, 10**6, 64), 1, np.random.default_rng(0))
    (batch,) = clips.load(plan, np.random.default_rng(0))
    for row, (samples, frames) in enumerate(zip(batch.lengths, batch.frames, strict=True)):
        assert not batch.waveforms[row, samples:].any()
        assert not batch.mask[row, frames:].any()
        assert batch.mask[row, :frames].any()
        assert batch.real[row].sum() == frames


def test_training_masks_as_large_a_share_as_the_paper():
    clips = Clips(Tones([64_400] * 40), MASK, CLUSTERS)  # 201 frames each
    generator = np.random.default_rng(0)
    batches = list(clips.load(clips.train_batches(LIMITS, 5, generator), generator))
    masked = sum(int(batch.mask.sum()) for batch in batches) / sum(int(batch.frames.sum()) for batch in batches)
    assert masked == pytest.approx(expected_share(201, MASK), abs=0.01)


def test_a_validation_mask_belongs_to_its_clip_whatever_the_batches():
    clips = Clips(Tones([16_000, 30_000, 22_000, 40_000]), MASK, CLUSTERS)

    def masks(max_samples):
        found = {}
        for batch in clips.validation_batches(max_samples):
            for mask, frames in zip(batch.mask, batch.frames.tolist(), strict=True):
                found[frames] = mask[:frames].tolist()
        return found

    assert len(masks(10**6)) == 4
    assert masks(10**6) == masks(30_000) == masks(10**6)
    assert clips.masked_frames == sum(sum(mask) for mask in masks(10**6).values())


def test_without_mask_and_targets_there_is_nothing_hidden():
    clips = Clips(Tones([16_000]), None, None)
    (batch,) = clips.validation_batches(10**6)
    assert not batch.mask.any()
    assert not batch.targets.any()


def test_sizes_are_frames_so_that_federated_scores_are_those_over_all_frames():
    data = pickle.loads(pickle.dumps(HubertData(MASK, CLUSTERS)))  # as it comes out of an experiment's archive
    data.shard_descriptor = Shard([16_000, 30_000, 22_000, 40_000])
    assert data.get_train_data_size() == 49 + 93 + 68 + 124
    assert data.get_valid_data_size() == data.get_valid_loader().masked_frames
    distils = HubertData(None, None)
    distils.shard_descriptor = Shard([16_000, 30_000, 22_000, 40_000])
    assert distils.get_valid_data_size() == 49 + 93 + 68


class NoTargets(Tones):
    targets_info = None


class LateTargets(Tones):
    def __getitem__(self, index):
        waveform, targets = super().__getitem__(index)
        return waveform, targets[1:]


class WrongTargets(Tones):
    def __getitem__(self, index):
        waveform, targets = super().__getitem__(index)
        return waveform, targets + 5


def test_targets_that_do_not_fit_are_refused_with_a_sentence():
    with pytest.raises(SettingsError, match=r"no targets: name a folder of targets with data\.targets"):
        Clips(NoTargets([16_000]), MASK, CLUSTERS)
    with pytest.raises(SettingsError, match=r"targets have 8 clusters, and model\.clusters is 4"):
        Clips(Tones([16_000]), MASK, 4)
    with pytest.raises(SettingsError, match="clip clip-0 has 48 targets and 49 frames: make its targets again"):
        next(Clips(LateTargets([16_000]), MASK, CLUSTERS).validation_batches(10**6))
    with pytest.raises(SettingsError, match="clip clip-0 has targets outside of 0 to 7"):
        list(Clips(WrongTargets([60_000]), MASK, CLUSTERS).validation_batches(16_000))
    with pytest.raises(SettingsError, match="clip clip-1 has 399 samples: one frame needs 400"):
        Clips(Tones([16_000, 399]), MASK, CLUSTERS)


def test_batches_move_to_a_device_with_what_stays_behind():
    (batch,) = Clips(Tones([16_000]), MASK, CLUSTERS).validation_batches(10**6)
    moved = batch.to("meta")
    assert moved.waveforms.device.type == moved.targets.device.type == moved.mask.device.type == "meta"
    assert torch.equal(moved.frames, batch.frames)
