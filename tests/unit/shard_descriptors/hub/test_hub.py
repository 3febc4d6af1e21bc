"""Audio datasets as the library `datasets` has them: saved to disk, in Parquet, and in folders, without a network."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import yaml
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Value

from shard_descriptors.common.audit import audit
from shard_descriptors.common.errors import CorpusError
from shard_descriptors.hub import HubShardDescriptor
from tests.unit.shard_descriptors.own_recordings import frequency_of, write_tone

COLUMNS = {"label": "intent", "group": "speaker"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    """The cache of `datasets`, for a test, and no network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def encoded(folder: Path, name: str, frequency_hz: float) -> dict:
    write_tone(folder / name, frequency_hz, seconds=0.25)
    return {"bytes": (folder / name).read_bytes(), "path": name}


def make_dataset(folder: Path, names: list[str], first_hz: int = 200) -> Dataset:
    """A dataset with a tone of its own in each row, two speakers, two classes."""
    rows = {
        "audio": [encoded(folder, name, first_hz + 50 * i) for i, name in enumerate(names)],
        "intent": [i % 2 for i in range(len(names))],
        "speaker": [i // 2 for i in range(len(names))],
    }
    stored = {"bytes": Value("binary"), "path": Value("string")}
    features = Features({"audio": stored, "intent": ClassLabel(names=["stop", "go"]), "speaker": Value("int64")})
    return Dataset.from_dict(rows, features=features).cast_column("audio", Audio(decode=False))


def test_a_saved_dataset_is_read_in_every_format_with_names_of_classes_and_its_own_splits(tmp_path):
    train = make_dataset(tmp_path, ["a.wav", "b.flac", "c.ogg", "d.mp3"])
    parts = {
        "train": train,
        "dev": make_dataset(tmp_path, ["e.wav"], 800),
        "test": make_dataset(tmp_path, ["f.wav"], 900),
    }
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    shard = HubShardDescriptor(str(tmp_path / "saved"), COLUMNS, sample_rate=8_000)
    dataset = shard.get_dataset("train")
    assert dataset.targets == ["stop", "go", "stop", "go"]
    assert dataset.groups == ["0", "0", "1", "1"]
    assert dataset.files[3] == "train, row 3 (d.mp3)"
    for i in range(4):
        assert frequency_of(dataset[i][0]) == pytest.approx(200 + 50 * i, abs=8)
    described = yaml.safe_load(shard.dataset_description)
    assert (described["validation"], described["test"]) == ({"stop": 1}, {"stop": 1})
    assert audit(shard).faults == ["1 groups are in several splits: 0"]


def test_parquet_files_are_read_and_splits_are_made_by_speaker(tmp_path):
    (tmp_path / "parquet").mkdir()
    make_dataset(tmp_path, [f"{i}.wav" for i in range(12)]).to_parquet(tmp_path / "parquet" / "train-0.parquet")
    shard = HubShardDescriptor(str(tmp_path / "parquet"), COLUMNS, window_s=0.1, sample_rate=8_000)
    groups = [{each.group for each in shard.splits[split]} for split in ("train", "validation", "test")]
    assert all(groups)
    assert len(set.union(*groups)) == sum(map(len, groups)) == 6
    assert shard.get_dataset("train")[2][0].shape == (800,)


def test_the_first_rows_of_a_large_dataset_are_streamed_and_kept(tmp_path):
    (tmp_path / "parquet").mkdir()
    make_dataset(tmp_path, [f"{i}.wav" for i in range(8)]).to_parquet(tmp_path / "parquet" / "train-0.parquet")
    shard = HubShardDescriptor(
        str(tmp_path / "parquet"), COLUMNS, max_clips=4, validation_share=0, test_share=0, sample_rate=8_000
    )
    dataset = shard.get_dataset("train")
    assert dataset.files == [f"train, row {i} ({i}.wav)" for i in range(4)]
    (tmp_path / "parquet" / "train-0.parquet").unlink()
    assert frequency_of(dataset[3][0]) == pytest.approx(350, abs=8)


@pytest.mark.parametrize("max_clips", [None, 5])
def test_a_folder_of_classes_needs_no_torchcodec(tmp_path, max_clips):
    for split, first_hz in (("train", 300), ("test", 800)):
        for i, name in enumerate(("go/a.wav", "stop/b.mp3")):
            write_tone(tmp_path / "audio" / split / name, first_hz + 100 * i, seconds=0.25)
    columns = {"label": "label"}
    shard = HubShardDescriptor(
        str(tmp_path / "audio"), columns, validation_share=0, max_clips=max_clips, sample_rate=8_000
    )
    dataset = shard.get_dataset("train")
    assert dataset.targets == ["go", "stop"]
    assert [round(frequency_of(dataset[i][0]), -1) for i in range(2)] == [300, 400]
    assert shard.get_dataset("test").targets == ["go", "stop"]


def test_what_is_not_decoded_here_is_named_with_the_way_out(tmp_path):
    rows = make_dataset(tmp_path, ["a.wav", "b.wav", "c.wav"]).to_dict()
    voice_memo = b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom" + bytes(64)
    rows["audio"][1] = {"bytes": voice_memo, "path": None}
    rows["audio"][2] = None
    stored = {"bytes": Value("binary"), "path": Value("string")}
    features = Features({"audio": stored, "intent": Value("string"), "speaker": Value("int64")})
    dataset = Dataset.from_dict(rows, features=features).cast_column("audio", Audio(decode=False))
    dataset.save_to_disk(tmp_path / "saved")
    shard = HubShardDescriptor(str(tmp_path / "saved"), COLUMNS, validation_share=0, test_share=0)
    assert shard.division.left_out == {
        "train, row 1": "is AAC, which is not decoded here: convert it, as `ffmpeg -i FILE FILE.wav` does",
        "train, row 2": "has no audio",
    }
    assert shard.get_dataset("train").targets == ["0"]


def test_wrong_settings_are_said_with_what_there_is(tmp_path):
    make_dataset(tmp_path, ["a.wav", "b.wav"]).save_to_disk(tmp_path / "saved")
    saved = str(tmp_path / "saved")
    for arguments, sentence in (
        ({"columns": {"label": "word"}}, "lacks the columns word of the settings; it has audio, intent, speaker"),
        ({"columns": COLUMNS, "splits": {"train": "clean"}}, r"splits: clean is unknown; .* has train"),
        ({"columns": COLUMNS, "max_clips": 0}, "max_clips: 0 should be a whole number from 1 on"),
    ):
        with pytest.raises(CorpusError, match=sentence):
            HubShardDescriptor(saved, **arguments)
    with pytest.raises(CorpusError, match="data_path: nobody/nothing cannot be opened as a dataset"):
        HubShardDescriptor("nobody/nothing", COLUMNS)


def test_several_labels_and_numbers_are_targets_too(tmp_path):
    dataset = make_dataset(tmp_path, ["a.wav", "b.wav", "c.wav"])
    tags = datasets.List(ClassLabel(names=["dog", "cat"]))
    dataset = dataset.add_column("tags", [[0, 1], [], [1]], feature=tags).add_column("age", [3.5, 1.0, 2.0])
    dataset.save_to_disk(tmp_path / "saved")
    whole = {"validation_share": 0, "test_share": 0}
    shard = HubShardDescriptor(str(tmp_path / "saved"), {"labels": "tags"}, **whole)
    assert shard.get_dataset("train").targets == [("dog", "cat"), (), ("cat",)]
    shard = HubShardDescriptor(str(tmp_path / "saved"), {"number": "age"}, **whole)
    assert shard.get_dataset("train").targets == [3.5, 1.0, 2.0]


def test_opus_is_read(tmp_path):
    try:
        soundfile.write(tmp_path / "a.opus", np.sin(np.arange(12_000) / 4) * 0.5, 48_000, format="OGG", subtype="OPUS")
    except soundfile.LibsndfileError:
        pytest.skip("this libsndfile writes no Opus")
    content = {"bytes": (tmp_path / "a.opus").read_bytes(), "path": "a.opus"}
    stored = {"bytes": Value("binary"), "path": Value("string")}
    features = Features({"sound": stored, "intent": Value("string")})
    dataset = Dataset.from_dict({"sound": [content], "intent": ["go"]}, features=features)
    dataset.cast_column("sound", Audio(decode=False)).save_to_disk(tmp_path / "saved")
    shard = HubShardDescriptor(str(tmp_path / "saved"), {"label": "intent"}, validation_share=0, test_share=0)
    assert len(shard.get_dataset("train")[0][0]) == 4_000
