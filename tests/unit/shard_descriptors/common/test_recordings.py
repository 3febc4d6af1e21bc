"""Splits by group, duplicates that would leak, windows and nodes: by counts worked out by hand."""

from collections import Counter

import pytest

from shard_descriptors.common.errors import CorpusError
from shard_descriptors.common.partition import split_by_group
from shard_descriptors.common.recordings import (
    Listing,
    Recording,
    assign_nodes,
    compile_pattern,
    cut_windows,
    describe_left_out,
    divide,
)
from tests.unit.shard_descriptors.own_recordings import write_tone

SHARES = {"validation": 0.2, "test": 0.2}


def test_each_split_has_its_share_of_every_class_and_no_group_is_in_two():
    # Twenty speakers, each with 4 clips of a and 2 of b, but for the last five, who say b alone.
    groups = [f"s{i:02}" for i in range(20) for _ in range(6)]
    classes = [("b",) if i >= 15 or k >= 4 else ("a",) for i in range(20) for k in range(6)]
    splits = split_by_group(groups, classes, SHARES, seed=0)
    of_group = {group: {s for g, s in zip(groups, splits, strict=True) if g == group} for group in set(groups)}
    assert all(len(found) == 1 for found in of_group.values())
    counts = Counter(zip(splits, (name for (name,) in classes), strict=True))
    # 60 clips each of a and b: 36 of them train. Only whole speakers move, who have 4 clips of a, or up to 6 of b.
    for name in "ab":
        found = [counts[split, name] for split in ("train", "validation", "test")]
        assert found == pytest.approx([36, 12, 12], abs=6), name


def test_the_seed_decides_and_the_order_of_the_table_does_not():
    groups = [f"s{i}" for i in range(12) for _ in range(2)]
    classes = [("a",)] * len(groups)

    def chosen(groups, seed):
        splits = split_by_group(groups, classes, SHARES, seed)
        return {group for group, split in zip(groups, splits, strict=True) if split == "test"}

    assert chosen(groups, 0) == chosen(groups[::-1], 0)
    assert len({frozenset(chosen(groups, seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize(("speakers", "filled"), [(3, 3), (2, 2), (1, 1)])
def test_a_few_speakers_fill_as_many_splits_as_they_can_and_train_first(speakers, filled):
    groups = [f"s{i}" for i in range(speakers) for _ in range(5)]
    splits = split_by_group(groups, [()] * len(groups), SHARES, seed=0)
    assert len(set(splits)) == filled
    assert "train" in splits


@pytest.fixture
def listing(tmp_path) -> Listing:
    """Ten recordings of five speakers, with the site's own splits and a tone of its own each."""
    splits = ["train"] * 6 + ["validation"] * 2 + ["test"] * 2
    recordings = []
    for i, split in enumerate(splits):
        write_tone(tmp_path / f"{i}.wav", 100 + 50 * i)
        recordings.append(Recording(f"{i}.wav", tmp_path / f"{i}.wav", "ab"[i % 2], f"s{i // 2}", split))
    return Listing("clips.csv", "label", recordings)


def test_a_recording_that_is_in_a_later_split_too_is_left_out_of_the_earlier_one(listing, tmp_path):
    (tmp_path / "0.wav").write_bytes((tmp_path / "8.wav").read_bytes())
    (tmp_path / "7.wav").write_bytes((tmp_path / "9.wav").read_bytes())
    (tmp_path / "2.wav").write_bytes((tmp_path / "1.wav").read_bytes())
    division = divide(listing, 0.15, 0.15, seed=0)
    assert division.left_out == {
        "0.wav": "is in test as well, with the same content",
        "7.wav": "is in test as well, with the same content",
    }
    # Twice in train leaks nothing, and is told.
    assert division.duplicates == {"8.wav": "0.wav", "9.wav": "7.wav", "2.wav": "1.wav"}
    names = {split: [each.name for each in of_split] for split, of_split in division.splits.items()}
    assert names == {
        "train": ["1.wav", "2.wav", "3.wav", "4.wav", "5.wav"], "validation": ["6.wav"], "test": ["8.wav", "9.wav"],
    }  # fmt: skip


def test_parts_of_one_file_are_no_duplicates(tmp_path):
    write_tone(tmp_path / "long.wav", 300, seconds=1.0)
    parts = [
        Recording(f"part {i}", tmp_path / "long.wav", "a", split=split, start_s=i / 2, end_s=i / 2 + 0.5)
        for i, split in enumerate(("train", "test"))
    ]
    assert divide(Listing("t", "label", parts), 0, 0, seed=0).left_out == {}


def test_what_is_no_audio_is_left_out_with_the_way_out(listing, tmp_path):
    (tmp_path / "memo.m4a").write_bytes(b"\0\0\0\x18ftypM4A " + bytes(100))
    (tmp_path / "torn.wav").write_bytes(b"RIFF")
    for name in ("memo.m4a", "torn.wav"):
        listing.recordings.append(Recording(name, tmp_path / name, "a", "s0", "train"))
    left_out = divide(listing, 0.15, 0.15, seed=0).left_out
    way_out = "is AAC, which is not decoded here: convert it, as `ffmpeg -i FILE FILE.wav` does"
    assert left_out["memo.m4a"] == way_out
    assert left_out["torn.wav"].startswith("is not audio")
    assert describe_left_out(left_out)[0] == f"1 left out, as it {way_out}: memo.m4a"


def test_a_group_that_the_site_has_in_two_splits_is_told(listing):
    listing.recordings[0] = Recording("0.wav", listing.recordings[0].file, "a", "s4", "train")
    assert divide(listing, 0.15, 0.15, seed=0).shared_groups == ("s4",)


def test_validation_is_made_of_train_where_the_site_has_none(listing):
    listing.recordings = [each for each in listing.recordings if each.split != "validation"]
    division = divide(listing, 0.3, 0.3, seed=0)
    groups = {split: {each.group for each in of_split} for split, of_split in division.splits.items()}
    assert [len(groups[split]) for split in ("train", "validation", "test")] == [2, 1, 1]
    assert groups["test"] == {"s4"}


def test_recordings_with_and_without_a_split_are_refused(listing):
    listing.recordings[0] = Recording("0.wav", listing.recordings[0].file, "a")
    with pytest.raises(CorpusError, match=r"clips.csv: some recordings have a split and others have none"):
        divide(listing, 0.15, 0.15, seed=0)


def test_windows_overlap_by_the_hop_and_reach_to_the_end(tmp_path):
    write_tone(tmp_path / "a.wav", 300, seconds=1.1)
    (recording,) = [Recording("a.wav", tmp_path / "a.wav", "yes")]
    windows = [(each.start_s, round(each.end_s, 3)) for each in cut_windows([recording], 0.5, 0.25)]
    assert windows == [(0.0, 0.5), (0.25, 0.75), (0.5, 1.0), (0.75, 1.1)]
    # Shorter than a window, and exactly one: one each.
    assert len(cut_windows([recording], 2.0, 1.0)) == 1
    assert len(cut_windows([recording], 1.1, 0.5)) == 1


def test_nodes_share_recordings_by_group_and_those_without_one_by_number(listing):
    nodes = assign_nodes(listing.recordings[:6], 2, seed=0)
    assert nodes[::2] == nodes[1::2]
    assert set(nodes) == {0, 1}
    alone = [Recording(str(i), each.file, "a") for i, each in enumerate(listing.recordings[:5])]
    assert sorted(Counter(assign_nodes(alone, 2, seed=0)).values()) == [2, 3]


@pytest.mark.parametrize("pattern", ["([a-z", "[a-z]+", "(a)(b)"])
def test_a_pattern_that_finds_no_group_is_refused(pattern):
    with pytest.raises(CorpusError, match="group_pattern: "):
        compile_pattern(pattern)
