"""The made recordings of three sites: as people keep them, and as shards read them."""

import unicodedata

import pytest

pytest.importorskip("espeakng_loader")

from openfl_audio.testing.corpora.own_data import WORDS, make_own_data
from openfl_audio.testing.demo import ENVOYS, three_sites
from shard_descriptors.common.recordings_shard import count_classes
from shard_descriptors.folder import FolderShardDescriptor
from shard_descriptors.table import TableShardDescriptor

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("own") / "data"
    assert make_own_data(out, n_speakers=3)
    assert not make_own_data(out, n_speakers=3), "it is there already"
    return out


def test_the_slips_are_there(made):
    table = (made / "clinic" / "Aufnahmen.csv").read_bytes()
    assert table.startswith(b"\xef\xbb\xbfDatei;Wort;Patient\r\n")
    assert "Hörer".encode() in table
    (folder, *_) = (made / "clinic" / "Aufnahmen").iterdir()
    assert unicodedata.is_normalized("NFD", folder.name)
    assert not unicodedata.is_normalized("NFC", folder.name)
    school = (made / "school" / "clips.csv").read_text()
    assert "clips\\yes\\child0-0.flac,Yes,child0,test" in school
    assert ",no ,child0," in school
    assert (made / "school/clips/yes/extra.flac").read_bytes() == (made / "school/clips/yes/child0-0.flac").read_bytes()
    assert {path.name for path in (made / "archive").iterdir()} == {"yes", "no", "stop", "GO"}


def test_each_site_is_served_with_what_cannot_be_used_named(made):
    params = three_sites(made)
    clinic, school = (
        TableShardDescriptor(**{k: v for k, v in params[name].items() if k != "template"}) for name in ENVOYS[:2]
    )
    archive = FolderShardDescriptor(**params[ENVOYS[2]])
    assert clinic.division.left_out == archive.division.left_out == {}
    assert school.division.left_out == {
        "clips\\yes\\extra.flac": "is in test as well, with the same content",
        "clips\\memo.m4a": "is AAC, which is not decoded here: convert it, as `ffmpeg -i FILE FILE.wav` does",
    }
    assert {label for split in school.splits.values() for label in count_classes(split)} == {"Yes", "no", "stop", "go"}
    assert {each.group for each in archive.splits["train"]} < {"voice0", "voice1", "voice2"}
    for shard in (clinic, school, archive):
        assert sum(map(len, shard.splits.values())) == 3 * 5 * len(WORDS)
        waveform, _ = shard.get_dataset("train")[0]
        assert 12_000 < len(waveform) < 16_000
        assert abs(waveform).max() > 0.1


def test_speakers_of_no_site_are_kept_apart(made):
    unseen = FolderShardDescriptor(made / "unseen", validation_share=0, test_share=0)
    assert count_classes(unseen.splits["train"]) == dict.fromkeys(sorted(WORDS), 15)
