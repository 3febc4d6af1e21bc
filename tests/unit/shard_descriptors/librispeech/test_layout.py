"""LibriSpeech's folders: which utterances, in which order, and what is said about folders that are not right."""

import shutil
from pathlib import Path

import pytest

from shard_descriptors.common.errors import CorpusError
from shard_descriptors.librispeech.layout import Speaker, read_librispeech, read_speakers

REAL_CORPUS = Path(__file__).parents[5] / "shared" / "data" / "LibriSpeech"


@pytest.fixture
def folder(tmp_path):
    for file in (
        "train-clean-100/1089/134/1089-134-0002.flac",
        "train-clean-100/103/1240/103-1240-0010.flac",
        "train-clean-100/103/1240/103-1240-0009.flac",
        "train-clean-100/103/999/103-999-0000.flac",
        "dev-clean/84/121/84-121-0000.flac",
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "train-clean-100/103/1240/103-1240.trans.txt").write_text("103-1240-0009 HELLO\n")
    return tmp_path


def test_utterances_come_in_the_order_of_their_numbers(folder):
    utterances = read_librispeech(folder)["train-clean-100"]
    assert [utterance.name for utterance in utterances] == [
        "103-999-0000",
        "103-1240-0009",
        "103-1240-0010",
        "1089-134-0002",
    ]
    assert utterances[1].file == "train-clean-100/103/1240/103-1240-0009.flac"
    assert (utterances[1].speaker, utterances[1].chapter) == ("103", "1240")


def test_only_what_is_asked_for_and_there_is_read(folder):
    assert set(read_librispeech(folder)) == {"train-clean-100", "dev-clean"}
    assert set(read_librispeech(folder, ["dev-clean", "test-clean"])) == {"dev-clean"}


def test_a_subset_in_capitals_is_that_subset_and_one_that_is_there_twice_is_refused(folder):
    before = [utterance.name for utterance in read_librispeech(folder)["train-clean-100"]]
    (folder / "train-clean-100").rename(folder / "Train-Clean-100")
    utterances = read_librispeech(folder)["train-clean-100"]
    assert [utterance.name for utterance in utterances] == before
    assert all((folder / utterance.file).exists() for utterance in utterances)
    (folder / "train-clean-100").mkdir()
    with pytest.raises(CorpusError, match="subset train-clean-100 twice, in Train-Clean-100 and in train-clean-100"):
        read_librispeech(folder)


def test_speakers_are_read_with_names_that_have_a_bar(folder):
    (folder / "SPEAKERS.TXT").write_text(
        "; comment | with | many | bars | in it\n"
        "103  | F | train-clean-100  | 25.14 | Karen Savage\n"
        "84   | M | dev-clean        | 8.02  | A | B\n"
    )
    assert read_speakers(folder) == {
        "103": Speaker("F", "train-clean-100", 25.14, "Karen Savage"),
        "84": Speaker("M", "dev-clean", 8.02, "A | B"),
    }


def test_a_line_of_speakers_that_is_no_speaker_is_named(folder):
    (folder / "SPEAKERS.TXT").write_text("103 | F | train-clean-100 | long | Karen Savage\n")
    with pytest.raises(CorpusError, match=r"SPEAKERS.TXT, line 1: '103 .*' should be ID | SEX"):
        read_speakers(folder)


def test_folders_that_are_not_librispeech_are_told_apart(folder, tmp_path):
    with pytest.raises(CorpusError, match="there is no LibriSpeech folder .*/nowhere"):
        read_librispeech(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match=r"is not a LibriSpeech folder: none of its subsets \(test-clean\) is there"):
        read_librispeech(folder, ["test-clean"])
    with pytest.raises(CorpusError, match="LibriSpeech has no subset 'test'; the subsets are train-clean-100, "):
        read_librispeech(folder, ["test"])
    with pytest.raises(CorpusError, match="SPEAKERS.TXT is not there"):
        read_speakers(folder)


def test_a_file_with_another_name_is_refused(folder):
    (folder / "dev-clean/84/121/85-121-0001.flac").touch()
    with pytest.raises(CorpusError, match="85-121-0001.flac: an utterance of LibriSpeech is called <speaker>/"):
        read_librispeech(folder)


def test_a_speaker_in_two_subsets_is_refused(folder):
    shutil.copytree(folder / "dev-clean/84", folder / "train-clean-100/84")
    with pytest.raises(CorpusError, match="speaker 84 is in train-clean-100 and in dev-clean"):
        read_librispeech(folder)


@pytest.mark.skipif(not REAL_CORPUS.is_dir(), reason="no LibriSpeech beside the repository")
def test_a_real_folder_is_read():
    utterances = read_librispeech(REAL_CORPUS)["train-clean-100"]
    speakers = read_speakers(REAL_CORPUS)
    assert {speakers[utterance.speaker].subset for utterance in utterances} == {"train-clean-100"}
    assert len(utterances) == len(list((REAL_CORPUS / "train-clean-100").rglob("*.flac")))
