"""The store as a reader sees it. What preparation writes into it is in test_fsd50k_preparation.py."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shard_descriptors.common.errors import CorpusError
from shard_descriptors.fsd50k.store import (
    StoredClip,
    count_patches,
    count_stored,
    describe_settings,
    open_store,
    read_table,
)

NUM_FRAMES = (31, 0, 101, 201, 100)  # the second was left out


@pytest.fixture
def folder(tmp_path):
    """A store whose frames count up, from 0 in each clip, plus 0.25 times the clip."""
    rows = [
        StoredClip(str(i), f"{i}.wav", "train", (0,), "ann", num_frames, problem=None if num_frames else "is missing")
        for i, num_frames in enumerate(NUM_FRAMES)
    ]
    frames = np.concatenate([np.arange(num_frames) + 0.25 * i for i, num_frames in enumerate(NUM_FRAMES)])
    np.repeat(frames[:, None], 96, axis=1).astype(np.float16).tofile(tmp_path / "frames.f16")
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row._asdict()) + "\n" for row in rows))
    describe(tmp_path)
    return tmp_path


def describe(folder, **changes):
    description = {"version": 1, "complete": True, "settings": describe_settings("log_mel"), "classes": ["Rain"]}
    (folder / "store.json").write_text(json.dumps({**description, **changes}))


def test_patches_and_stored_frames_agree_for_every_length():
    lengths = np.arange(1, 700)
    patches = count_patches(lengths)
    stored = np.array([count_stored(int(length)) for length in lengths])
    assert (stored <= lengths).all()
    long = lengths >= 101
    assert (stored[~long] == lengths[~long]).all()
    assert (stored[long] == 50 * (patches[long] - 1) + 101).all()  # the last patch ends with the last stored frame
    assert (lengths[long] - stored[long] < 50).all()  # one more patch would not fit
    assert (count_patches(stored) == patches).all()


def test_each_patch_is_a_second_every_half_of_its_clip_and_short_clips_begin_again(folder):
    store = open_store(folder)
    assert (store.num_patches.tolist(), store.left_out) == ([1, 1, 3, 1], {"1": "is missing"})
    patches = store.patches(np.array([0, 1, 2, 2, 2, 3]), np.array([0, 0, 0, 1, 2, 0]))
    assert patches.dtype == np.float32
    assert (patches == patches[:, :, :1]).all()
    times = np.arange(101)
    expected = [times % 31, times + 0.5, times + 0.75, times + 50.75, times + 100.75, times % 100 + 1.0]
    np.testing.assert_array_equal(patches[:, :, 0], expected)


def test_power_comes_back_at_its_own_scale(folder):
    describe(folder, settings=describe_settings("power"))
    np.testing.assert_array_equal(
        open_store(folder).patches(np.array([1]), np.array([0]))[0, :, 0], 4 * np.arange(101) + 2
    )


def test_shards_of_a_process_share_a_store_and_a_pickle_has_no_frames(folder):
    store = open_store(folder)
    assert open_store(str(folder)) is store
    assert not store.frames.flags.writeable
    sent = pickle.dumps(store)
    assert len(sent) < 500
    assert pickle.loads(sent) is store


def test_a_store_made_anew_is_read_anew(folder):
    store = open_store(folder)
    shutil.copy(folder / "store.json", folder / "again.json")
    (folder / "again.json").rename(folder / "store.json")
    assert open_store(folder) is not store


def test_a_line_that_was_cut_short_is_not_read(folder):
    table = folder / "clips.jsonl"
    table.write_bytes(table.read_bytes()[:-5])
    assert [row.name for row in read_table(table)] == ["0", "1", "2", "3"]
    assert read_table(folder / "nowhere.jsonl") == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"complete": False}, "is not finished: run openfl-audio data prepare fsd50k again, and it resumes"),
        ({"version": 2}, "is a store of version 2, not 1; prepare it again"),
        (
            {"settings": {**describe_settings("log_mel"), "hop_length": 221}},
            "has other settings than .*'hop_length': 220",
        ),
    ],
)
def test_a_store_that_is_not_ready_or_of_another_kind_is_refused(folder, changes, sentence):
    describe(folder, **changes)
    with pytest.raises(CorpusError, match=sentence):
        open_store(folder)


def test_frames_that_do_not_belong_to_the_table_are_refused(folder):
    with (folder / "frames.f16").open("ab") as file:
        file.write(b"12")
    with pytest.raises(
        CorpusError, match="frames.f16 has 83,138 bytes where clips.jsonl tells of 433 frames of 192 bytes"
    ):
        open_store(folder)
    (folder / "frames.f16").unlink()
    with pytest.raises(CorpusError, match="frames.f16 has 0 bytes where"):
        open_store(folder)


def test_a_folder_that_is_no_store_is_told_how_to_get_one(tmp_path):
    with pytest.raises(
        CorpusError, match="data_path: .* is no store of mel frames; openfl-audio data prepare fsd50k makes one"
    ):
        open_store(tmp_path)


def test_a_shard_is_read_without_torch(folder):
    code = (
        "import sys\n"
        "from shard_descriptors.fsd50k import Fsd50kShardDescriptor\n"
        f"shard = Fsd50kShardDescriptor({str(folder)!r})\n"
        "print(shard.get_dataset('train')[0][0].shape, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[4])
    assert run.stdout == "(101, 96) False\n"
