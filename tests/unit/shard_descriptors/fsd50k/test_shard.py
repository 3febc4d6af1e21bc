"""The FSD50K shard descriptor: whose clips are whose, patches and labels, and what it says about wrong parameters."""

import pickle
import pkgutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from shard_descriptors.common.errors import CorpusError
from shard_descriptors.fsd50k import Fsd50kShardDataset, Fsd50kShardDescriptor
from shard_descriptors.fsd50k.layout import SPLITS, read_layout
from shard_descriptors.fsd50k.preparation import prepare_store
from tests.unit.shard_descriptors.fsd50k_corpus import CLASSES, make_corpus

REPOSITORY = Path(__file__).parents[4]
# Train clips: ann 6, bob 3, cem 2, dot 1; validation: ann 1, dot 1, eli 2, fay 1; gus and hal are in the test split.
UPLOADS = (
    ("ann", "train", (1.0, 1.6, 0.4, 1.0, 2.1, 1.0)),
    ("bob", "train", (1.2, 1.0, 0.6)),
    ("cem", "train", (1.0, 1.0)),
    ("dot", "train", (1.5,)),
    ("ann", "val", (1.1,)),
    ("dot", "val", (0.9,)),
    ("eli", "val", (1.0, 1.7)),
    ("fay", "val", (0.5,)),
    ("gus", "eval", (1.0, 1.0, 1.6)),
    ("hal", "eval", (0.4,)),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("fsd50k")
    clips = make_corpus(root / "FSD50K", UPLOADS)
    prepare_store(read_layout(root / "FSD50K"), root / "store")
    return root / "store", {clip.name: clip for clip in clips}


def shards(made, world_size, **params):
    return [
        Fsd50kShardDescriptor(made[0], rank_worldsize=f"{r},{world_size}", **params) for r in range(1, world_size + 1)
    ]


def names(shard, split):
    return shard.get_dataset(split).clip_names


def of_split(made, split):
    return [name for name, clip in made[1].items() if clip.split == split]


# Patches and labels


def test_every_patch_sounds_like_its_clip_and_has_its_labels(made):
    shard = Fsd50kShardDescriptor(made[0])
    for split in SPLITS:
        dataset = shard.get_dataset(split)
        assert dataset.clip_names == of_split(made, split)
        clips = [made[1][name] for name in dataset.clip_names]
        frames = [1 + round(clip.seconds * 22_050) // 220 for clip in clips]
        assert Counter(dataset.clip.tolist()) == {i: 1 + max(0, n - 101) // 50 for i, n in enumerate(frames)}
        assert (np.diff(dataset.clip) >= 0).all()
        assert dataset.clip.dtype == np.int64
        for i, k in enumerate(dataset.clip):
            patch, labels = dataset[i]
            assert (patch.shape, patch.dtype, labels.dtype) == ((101, 96), np.float32, np.float32)
            assert patch.mean(axis=0).argmax() == clips[k].band
            assert {CLASSES[c] for c in np.flatnonzero(labels)} == set(clips[k].labels)
            np.testing.assert_array_equal(labels, dataset.clip_labels[k])
            # 50 frames of 220 samples later, a tone has faded by so much.
            position = i - int(np.searchsorted(dataset.clip, k))
            first = dataset[i - position][0]
            faded = 2 * 50 * 220 / 22_050 * position
            assert first[50, clips[k].band] - patch[50, clips[k].band] == pytest.approx(faded, abs=0.02)
        assert dataset.uploaders == [clip.uploader for clip in clips]
    assert dataset.classes == list(CLASSES)


def test_many_patches_at_once_are_those_that_come_one_by_one(made):
    dataset = Fsd50kShardDescriptor(made[0]).get_dataset("train")
    order = np.random.default_rng(0).permutation(len(dataset))
    np.testing.assert_array_equal(dataset.patches(order), [dataset[i][0] for i in order])
    np.testing.assert_array_equal(dataset[-1][0], dataset.patches(np.array([len(dataset) - 1]))[0])
    assert dataset.patches(np.array([], dtype=int)).shape == (0, 101, 96)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_a_dataset_survives_the_way_into_a_worker_process(made):
    dataset = shards(made, 2)[1].get_dataset("train")
    again = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(again[3][0], dataset[3][0])
    assert again.clip_names == dataset.clip_names


def test_an_unknown_split_lists_the_known_ones(made):
    with pytest.raises(CorpusError, match="no split 'dev'; the splits are train, validation, test"):
        Fsd50kShardDescriptor(made[0]).get_dataset("dev")


def test_val_is_short_for_validation(made):
    shard = Fsd50kShardDescriptor(made[0], uploader="ann")
    assert names(shard, "val") == names(shard, "validation") != []
    assert Fsd50kShardDataset("val", subdir=made[0]).clip_names == of_split(made, "validation")


def test_transforms_are_applied_to_each_patch(made):
    plain = Fsd50kShardDataset(subdir=made[0])
    changed = Fsd50kShardDataset(subdir=made[0], transforms=lambda patch: patch[::-1] + patch.mean(dtype=np.float64))
    order = np.array([4, 0, 7])
    expected = np.stack([plain[i][0][::-1] + plain[i][0].mean(dtype=np.float64) for i in order])
    assert changed.patches(order).dtype == np.float32
    np.testing.assert_allclose(changed.patches(order), expected, rtol=1e-6)
    np.testing.assert_array_equal(changed[7][0], changed.patches(order)[2])
    assert changed.patches(order[:0]).shape == (0, 101, 96)


def test_transforms_in_an_envoy_s_settings_change_what_trains_only(made):
    plain, backwards = (Fsd50kShardDescriptor(made[0], transforms=name) for name in (None, "numpy.flipud"))
    every = np.arange(len(plain.get_dataset("train")))
    np.testing.assert_array_equal(
        backwards.get_dataset("train").patches(every), plain.get_dataset("train").patches(every)[:, ::-1]
    )
    for split in ("validation", "test"):
        np.testing.assert_array_equal(backwards.get_dataset(split)[0][0], plain.get_dataset(split)[0][0])
    assert pickle.loads(pickle.dumps(backwards)).get_dataset("train").transforms is np.flipud


@pytest.mark.parametrize("name", ["flipud", "numpy.no_such", "no_such.module", "numpy.pi"])
def test_transforms_that_are_no_function_are_refused_by_name(made, name):
    with pytest.raises(CorpusError, match=f"transforms: .*'{name}'.*; it should be a dotted name, such as numpy.flip"):
        Fsd50kShardDescriptor(made[0], transforms=name)


# Who has what


@pytest.mark.parametrize("split", ["official", "uploader"])
@pytest.mark.parametrize("seed", [0, 1])
def test_nodes_divide_train_and_validation_by_uploader_and_share_the_test_split(made, split, seed):
    whole = Fsd50kShardDescriptor(made[0], split=split, seed=seed)
    parts = shards(made, 3, split=split, seed=seed)
    for part in ("train", "validation"):
        assert Counter(name for shard in parts for name in names(shard, part)) == Counter(names(whole, part))
        owners = [{made[1][name].uploader for name in names(shard, part)} for shard in parts]
        assert sum(map(len, owners)) == len(set.union(*owners))
    assert all(names(shard, "test") == of_split(made, "test") for shard in parts)
    sizes = [len(names(shard, "train")) for shard in parts]
    assert Fsd50kShardDescriptor.clips_per_client(made[0], 3, split=split, seed=seed).tolist() == sizes
    assert min(sizes) > 0
    # Whoever trains on a node validates there too.
    trains = [{made[1][name].uploader for name in names(shard, "train")} for shard in parts]
    for shard, others in zip(parts, ([t for t in trains if t is not mine] for mine in trains), strict=True):
        assert not {made[1][name].uploader for name in names(shard, "validation")} & set.union(*others)


def test_with_as_many_nodes_as_uploaders_a_node_is_one_uploader(made):
    assert Fsd50kShardDescriptor.natural_clients(made[0]) == 4
    sizes = Fsd50kShardDescriptor.clips_per_client(made[0], 4)
    assert (sizes.dtype, sorted(sizes.tolist())) == (np.int64, [1, 2, 3, 6])
    assert all(len(set(shard.get_dataset("train").uploaders)) == 1 for shard in shards(made, 4))


def test_uploader_min_leaves_out_small_clients_in_train_only(made):
    assert Fsd50kShardDescriptor.natural_clients(made[0], 2) == 3
    assert Fsd50kShardDescriptor.uploader_sizes(made[0], 2) == {"ann": 6, "bob": 3, "cem": 2}
    assert list(Fsd50kShardDescriptor.uploader_sizes(made[0])) == ["ann", "bob", "cem", "dot"]  # largest first
    assert Fsd50kShardDescriptor.clips_per_client(made[0], 2, uploader_min=3).sum() == 9
    parts = shards(made, 2, uploader_min=3)
    assert sorted(len(names(shard, "train")) for shard in parts) == [3, 6]
    assert sorted(name for shard in parts for name in names(shard, "validation")) == sorted(
        of_split(made, "validation")
    )
    with pytest.raises(
        CorpusError, match="3 nodes cannot share 2 uploaders with at least 3 train clips: there can be 2"
    ):
        Fsd50kShardDescriptor(made[0], rank_worldsize="1,3", uploader_min=3)


def test_a_node_can_be_one_uploader_or_several(made):
    ann = Fsd50kShardDescriptor(made[0], uploader="ann")
    assert set(ann.get_dataset("train").uploaders) == set(ann.get_dataset("validation").uploaders) == {"ann"}
    assert (len(names(ann, "train")), len(names(ann, "validation"))) == (6, 1)
    two = Fsd50kShardDescriptor(made[0], uploaders=["bob", "eli"])
    assert set(two.get_dataset("train").uploaders) == {"bob"}
    assert set(two.get_dataset("validation").uploaders) == {"eli"}
    assert len(Fsd50kShardDescriptor(made[0], uploader="bob").get_dataset("validation")) == 0


def test_uploaders_who_train_can_be_named_and_the_others_validate_all_the_same(made):
    parts = shards(made, 2, uploader_name=["cem", "ann"])
    assert [set(shard.get_dataset("train").uploaders) for shard in parts] == [{"cem"}, {"ann"}]
    assert sorted(name for shard in parts for name in names(shard, "validation")) == sorted(
        of_split(made, "validation")
    )
    assert Fsd50kShardDescriptor.clips_per_client(made[0], 2, uploader_name=["cem", "ann"]).tolist() == [2, 6]
    assert Fsd50kShardDescriptor.natural_clients(made[0], uploader_name=["cem", "ann"]) == 2
    assert set(Fsd50kShardDescriptor(made[0], uploader_name="bob").get_dataset("train").uploaders) == {"bob"}
    together = Fsd50kShardDescriptor(made[0], uploader_name=["cem", "ann"])
    assert set(together.get_dataset("train").uploaders) == {"cem", "ann"}
    for wrong, sentence in (
        ({"uploader_name": "eli"}, "uploader_name: 'eli' has 0 train clips in .*, and 1 are wanted; the most .* 'ann'"),
        ({"uploader_name": ["bob"], "uploader_min": 4}, "'bob' has 3 train clips in .*, and 4 are wanted"),
        ({"uploader_name": ["bob", "bob"]}, "should be a name, or a list of different names"),
        ({"uploader_name": "bob", "uploader": "ann"}, "uploader_name: has no effect where"),
    ):
        with pytest.raises(CorpusError, match=sentence):
            Fsd50kShardDescriptor(made[0], **wrong)


def test_a_validation_split_by_uploader_shares_nobody_with_train_and_has_the_official_size(made):
    drawn = set()
    for seed in range(8):
        shard = Fsd50kShardDescriptor(made[0], split="uploader", seed=seed)
        train, validation = shard.get_dataset("train"), shard.get_dataset("validation")
        assert not set(train.uploaders) & set(validation.uploaders)
        assert sorted(train.clip_names + validation.clip_names) == sorted(
            of_split(made, "train") + of_split(made, "validation")
        )
        assert 3 <= len(validation.clip_names) <= 5  # 5 in the official one; a whole uploader more would be too many
        drawn.add(tuple(validation.clip_names))
        assert names(Fsd50kShardDescriptor(made[0], split="uploader", seed=seed), "validation") == validation.clip_names
    assert len(drawn) > 1


# The dataset by itself


def test_the_dataset_has_the_parameters_of_green_and_plumbley(made):
    dataset = Fsd50kShardDataset(split="train", uploader_min=2, subdir=made[0])
    assert dataset.all_uploaders == ["ann", "bob", "cem"]
    assert Counter(dataset.uploaders) == {"ann": 6, "bob": 3, "cem": 2}
    dataset.set_uploader("bob")
    assert (set(dataset.uploaders), dataset.clip_labels.shape) == ({"bob"}, (3, 5))
    assert dataset[0][0].mean(axis=0).argmax() == made[1][dataset.clip_names[0]].band
    dataset.set_uploader(None)
    assert len(dataset.uploaders) == 11
    assert set(Fsd50kShardDataset("test", uploader_name="hal", subdir=made[0]).uploaders) == {"hal"}
    with pytest.raises(CorpusError, match="uploader_name: 'dot' has no clips here; there are 'ann', 'bob', 'cem'"):
        dataset.set_uploader("dot")


# What it tells


def test_description_and_summary_count_what_the_shard_has(made):
    shard = Fsd50kShardDescriptor(made[0], rank_worldsize="1,1")
    description = yaml.safe_load(shard.dataset_description)
    assert description["corpus"] == "fsd50k"
    assert description["largest_uploaders"] == {"ann": 6, "bob": 3, "cem": 2, "dot": 1}
    patches = {split: len(shard.get_dataset(split)) for split in SPLITS}
    assert description["summary"] == shard.summary == (
        "FSD50K, shard 1 of 1 by uploader, official split: "
        f"12 train clips ({patches['train']} patches) of 4 uploaders, "
        f"5 validation clips ({patches['validation']} patches) of 4 uploaders, "
        f"4 test clips ({patches['test']} patches) of 2 uploaders, "
        "of an incomplete FSD50K (12 / 5 / 4 clips; 36,796 / 4,170 / 10,231 are published)"
    )  # fmt: skip
    assert (shard.sample_shape, shard.target_shape) == (["101", "96"], ["5"])


def test_clips_that_were_left_out_are_named(tmp_path):
    clips = make_corpus(tmp_path / "FSD50K", UPLOADS[:5])
    (tmp_path / "FSD50K" / clips[1].file).unlink()
    prepare_store(read_layout(tmp_path / "FSD50K"), tmp_path / "store")
    shard = Fsd50kShardDescriptor(tmp_path / "store")
    assert shard.left_out == {clips[1].name: "is missing"}
    assert shard.summary.endswith(f"; left out 1 clips: {clips[1].name} is missing")


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        (
            {"uploader": "zoe"},
            "uploader: 'zoe' has no clip in .*; the most prolific are 'ann', 'bob', 'cem' and 1 more",
        ),
        ({"uploader": "bob", "uploader_min": 100}, "uploader: 'bob' has 3 train clips, and uploader_min is 100"),
        ({"uploader": "eli"}, "has no train clip for shard 1 of 1 with uploader_min: 0 and split: official"),
        (
            {"uploader": "ann", "uploaders": ["bob"]},
            r"uploaders: \['bob'\] cannot be given together with uploader: 'ann'",
        ),
        ({"uploaders": "ann"}, "uploaders: 'ann' should be a list of names"),
        ({"uploaders": [1]}, r"uploaders: \[1\] should be a list of names"),
        ({"uploader": 5}, "uploader: 5 should be a name"),
        (
            {"uploader": "ann", "rank_worldsize": "1,2"},
            "rank_worldsize: has no effect with named uploaders, .* 2 nodes",
        ),
        ({"rank_worldsize": "0,2"}, "with 2 nodes the rank goes from 1 to 2"),
        ({"uploader_min": -1}, "uploader_min: -1 should be a whole number from 0 on"),
        ({"seed": "a"}, "seed: 'a' should be a whole number from 0 on"),
        ({"split": "random"}, "split: 'random' is unknown; choose official, uploader"),
        ({"rank_worldsize": "1,5"}, "5 nodes cannot share 4 uploaders with at least 1 train clips"),
    ],
)
def test_a_wrong_parameter_is_named_with_its_value_and_what_would_be_right(made, params, sentence):
    with pytest.raises(CorpusError, match=sentence):
        Fsd50kShardDescriptor(made[0], **params)


def test_the_yaml_of_an_envoy_builds_the_descriptor(made):
    settings = yaml.safe_load((REPOSITORY / "envoys/fsd50k.yaml").read_text())["shard_descriptor"]
    assert pkgutil.resolve_name(settings["template"]) is Fsd50kShardDescriptor
    shard = Fsd50kShardDescriptor(**{**settings["params"], "data_path": made[0]})
    assert (shard.rank, shard.world_size) == (1, 3)
