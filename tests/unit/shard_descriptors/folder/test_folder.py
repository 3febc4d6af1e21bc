"""Folders of recordings as Hugging Face's AudioFolder has them."""

import pytest
import yaml

from openfl_audio.envoy.check import check_envoy
from shard_descriptors.common.errors import CorpusError
from shard_descriptors.folder import FolderShardDescriptor
from shard_descriptors.folder.layout import read_folder
from tests.unit.shard_descriptors.own_recordings import write_table, write_tone
from tests.unit.shard_descriptors.table.test_table import REPOSITORY


def test_a_folder_is_a_class_and_the_pattern_finds_the_speaker(tmp_path):
    for i, name in enumerate(("dog/ann_1.wav", "dog/deep/bob_1.flac", "cat/ann_2.ogg", "cat/._ann_2.ogg")):
        write_tone(tmp_path / name, 200 + 50 * i) if "._" not in name else (tmp_path / name).write_bytes(b"x")
    (tmp_path / "dog" / "notes.txt").write_text("none")
    listing = read_folder(tmp_path, group_pattern="([^/_]+)_[^/]*$")
    found = [(each.name, each.target, each.group, each.split) for each in listing.recordings]
    assert found == [
        ("cat/ann_2.ogg", "cat", "ann", ""),
        ("dog/ann_1.wav", "dog", "ann", ""),
        ("dog/deep/bob_1.flac", "dog", "bob", ""),
    ]


def test_folders_of_splits_are_splits(tmp_path):
    for i, name in enumerate(("train/dog/a.wav", "train/cat/a.wav", "valid/dog/b.wav", "test/cat/c.wav")):
        write_tone(tmp_path / name, 200 + 50 * i)
    shard = FolderShardDescriptor(tmp_path)
    described = yaml.safe_load(shard.dataset_description)
    assert [described[split] for split in ("train", "validation", "test")] == [
        {"cat": 1, "dog": 1}, {"dog": 1}, {"cat": 1},
    ]  # fmt: skip
    assert shard.get_dataset("test").files == ["test/cat/c.wav"]


def test_a_class_that_is_called_test_among_others_is_a_class(tmp_path):
    for i, name in enumerate(("test/a.wav", "real/b.wav")):
        write_tone(tmp_path / name, 200 + 50 * i)
    assert {each.target for each in read_folder(tmp_path).recordings} == {"test", "real"}


def test_metadata_names_the_recordings(tmp_path):
    write_table(tmp_path, ["a.wav,dog", "b.wav,cat"], "metadata.csv", "file_name,label")
    write_tone(tmp_path / "stray.wav", 900)
    assert [(each.name, each.target) for each in read_folder(tmp_path).recordings] == [
        ("a.wav", "dog"),
        ("b.wav", "cat"),
    ]


@pytest.mark.parametrize("prepare", ["nothing", "empty", "columns"])
def test_a_folder_without_recordings_and_columns_without_a_table_are_refused(tmp_path, prepare):
    root = tmp_path / "data"
    if prepare != "nothing":
        (root / "dog").mkdir(parents=True)
    sentence = {
        "nothing": "there is no folder",
        "empty": "has no recording: it should have a folder for each class, or metadata.csv",
        "columns": "columns: .* has none of metadata.csv",
    }[prepare]
    with pytest.raises(CorpusError, match=sentence):
        read_folder(root, columns={"path": "a", "label": "b"} if prepare == "columns" else None)


def test_an_mp3_is_read(tmp_path):
    import soundfile

    write_tone(tmp_path / "dog" / "a.wav", 440, seconds=0.5)
    waveform, rate = soundfile.read(tmp_path / "dog" / "a.wav")
    (tmp_path / "dog" / "a.wav").unlink()
    soundfile.write(tmp_path / "dog" / "b.mp3", waveform, rate, format="MP3")
    shard = FolderShardDescriptor(tmp_path, sample_rate=rate, validation_share=0, test_share=0)
    heard, label = shard.get_dataset("train")[0]
    assert label == "dog"
    assert len(heard) == pytest.approx(len(waveform), abs=2_500)  # the encoder's frames
    assert abs(heard).max() == pytest.approx(0.5, abs=0.1)


def test_the_envoys_example_is_checked(tmp_path):
    settings = yaml.safe_load((REPOSITORY / "envoys" / "folder.yaml").read_text())
    for i, name in enumerate(("dog/a.wav", "cat/a.wav", "dog/b.wav", "cat/b.wav")):
        write_tone(tmp_path / "data" / "recordings" / name, 200 + 50 * i)
    (tmp_path / "envoys").mkdir()
    (tmp_path / "envoys" / "folder.yaml").write_text(yaml.safe_dump(settings))
    check = check_envoy(tmp_path / "envoys" / "folder.yaml")
    assert check.faults == []
    assert "corpus: recordings" in check.lines
