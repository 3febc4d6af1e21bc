import pickle

import numpy as np
import pytest
import torch

from openfl_audio.errors import SettingsError
from workspaces.sound_events.data import Patches, SoundEventData, shuffled_batches


def test_every_index_comes_once_and_batches_have_nearly_the_same_size():
    for number, batch_size in ((65, 64), (64, 64), (1, 64), (200, 32), (7, 1)):
        batches = shuffled_batches(number, batch_size, (0, 0, 0))
        sizes = [len(batch) for batch in batches]
        assert sorted(np.concatenate(batches)) == list(range(number))
        assert len(batches) == -(-number // batch_size)
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= batch_size
    assert shuffled_batches(0, 64, (0,)) == []


def test_the_order_is_a_function_of_seed_round_and_epoch():
    def order(*seed):
        return np.concatenate(shuffled_batches(100, 10, seed)).tolist()

    assert order(0, 1, 2) == order(0, 1, 2)
    assert len({tuple(order(*seed)) for seed in ((0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3))}) == 4


def test_a_patch_comes_with_the_labels_of_its_clip(make_clips):
    dataset = make_clips(9)
    patches = Patches(dataset)
    assert len(patches) == len(dataset) > 9
    seen = 0
    for clip, inputs, labels in patches.batches(8, (0,), "cpu"):
        assert inputs.dtype == labels.dtype == torch.float32
        assert inputs.shape[1:] == (101, 96)
        for number, patch, label in zip(clip, inputs, labels, strict=True):
            (index,) = [i for i in np.flatnonzero(dataset.clip == number) if np.array_equal(dataset[i][0], patch)]
            np.testing.assert_array_equal(label, dataset[index][1])
            seen += 1
    assert seen == len(dataset)
    assert sorted(dataset.read) == list(range(len(dataset)))


def test_an_envoy_counts_its_patches(make_shard):
    data = pickle.loads(pickle.dumps(SoundEventData(4)))  # as it comes out of an experiment's archive
    data.shard_descriptor = shard = make_shard()
    assert data.get_train_data_size() == len(shard.get_dataset("train")) > 30
    assert data.get_valid_data_size() == len(shard.get_dataset("validation")) > 20
    assert data.get_train_loader().clip_labels.shape == (30, 4)
    assert data.get_valid_loader().clip_labels.shape == (20, 4)


def test_a_model_with_another_number_of_classes_is_refused(make_shard):
    with pytest.raises(SettingsError, match="model.classes is 200, but the corpus has 4: set model.classes=4"):
        SoundEventData(200).shard_descriptor = make_shard()
