"""FSD50K's tables -> clips, and what is said about tables that are not right."""

import shutil

import pytest

from shard_descriptors.common.errors import CorpusError
from shard_descriptors.fsd50k.layout import read_layout
from tests.unit.shard_descriptors.fsd50k_corpus import CLASSES, make_corpus, write_tables

DEV = "FSD50K.ground_truth/dev.csv"


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_every_clip_has_the_split_labels_and_uploader_of_the_tables(tmp_path):
    made = make_corpus(tmp_path)
    layout = read_layout(tmp_path)
    assert layout.classes == CLASSES
    assert [(clip.name, clip.file, clip.split, clip.uploader) for clip in layout.clips] == [
        (clip.name, clip.file, clip.split, clip.uploader) for clip in made
    ]
    assert [{CLASSES[label] for label in clip.labels} for clip in layout.clips] == [set(clip.labels) for clip in made]
    assert {clip.split for clip in layout.clips} == {"train", "validation", "test"}


def test_a_change_of_any_table_changes_its_digest(tmp_path):
    make_corpus(tmp_path)
    before = read_layout(tmp_path).digests
    edit(tmp_path / DEV, ",val", ",train")
    after = read_layout(tmp_path).digests
    assert len(after) == 5
    assert [name for name in before if before[name] != after[name]] == [DEV]


def test_another_folder_is_told_what_it_lacks(tmp_path):
    (tmp_path / "FSD50K.dev_audio").mkdir()
    with pytest.raises(
        CorpusError, match="is not an FSD50K folder: it lacks FSD50K.ground_truth/vocabulary.csv, .*eval_audio"
    ):
        read_layout(tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        (DEV, "Rain", "Snow", "clip 9993 has the label 'Snow', which is not in FSD50K.ground_truth/vocabulary.csv"),
        (DEV, ",train", ",training", "clip 10000 is of split 'training'; the splits are train, val"),
        (DEV, "fname", "name", "dev.csv: lacks the columns fname"),
        (DEV, "9993", "10000", "list more than once: 10000"),
        ("FSD50K.ground_truth/vocabulary.csv", "2,Dog", "3,Dog", r"row 2 is \['3', 'Dog', '/m/2'\], not 2, a class"),
        ("FSD50K.ground_truth/vocabulary.csv", "Dog", "Bark", "5 rows name 4 classes; each is named once"),
        ("FSD50K.metadata/eval_clips_info_FSD50K.json", '"eve"', '""', "clip 9909 has no uploader there"),
        ("FSD50K.metadata/eval_clips_info_FSD50K.json", "{", "", r"eval_clips_info_FSD50K.json: is not JSON \("),
    ],
)  # fmt: skip
def test_a_table_that_is_wrong_is_named_with_what_is_wrong(tmp_path, file, old, new, sentence):
    make_corpus(tmp_path)
    edit(tmp_path / file, old, new)
    with pytest.raises(CorpusError, match=sentence):
        read_layout(tmp_path)


def test_a_clip_without_metadata_has_no_uploader(tmp_path):
    made = make_corpus(tmp_path)
    metadata = tmp_path / "FSD50K.metadata/dev_clips_info_FSD50K.json"
    kept = metadata.read_text()
    write_tables(tmp_path, made[1:])
    without = metadata.read_text()
    write_tables(tmp_path, made)
    assert metadata.read_text() == kept
    metadata.write_text(without)
    with pytest.raises(CorpusError, match="clip 10000 has no uploader there"):
        read_layout(tmp_path)


def test_the_tables_may_be_in_a_folder_of_their_own(tmp_path):
    make_corpus(tmp_path)
    own = tmp_path / "own labels"
    shutil.copytree(tmp_path / "FSD50K.ground_truth", own)
    edit(own / "dev.csv", ",val", ",train")
    published, changed = read_layout(tmp_path), read_layout(tmp_path, own)
    assert [a.name for a, b in zip(published.clips, changed.clips, strict=True) if a != b] == [
        next(clip.name for clip in published.clips if clip.split == "validation")
    ]
    assert [name for name in published.digests if published.digests[name] != changed.digests[name]] == [DEV]
    (own / "eval.csv").unlink()
    with pytest.raises(CorpusError, match="it lacks own labels/eval.csv$"):
        read_layout(tmp_path, own)
