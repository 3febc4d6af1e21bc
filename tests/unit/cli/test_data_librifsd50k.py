"""The two commands that prepare speech enhancement: what they print, and how they end."""

import json
import subprocess
import sys

import pytest

from openfl_audio.cli.main import main
from shard_descriptors.librifsd50k import LibriFsd50kShardDescriptor
from tests.unit.shard_descriptors.librifsd50k_corpora import make_corpora, make_wham

pytestmark = pytest.mark.process

PREPARE = ["data", "prepare", "librifsd50k"]
FEDWHAM = ["data", "prepare", "fedwham"]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    return make_corpora(tmp_path_factory.mktemp("corpora"), dev_clips=20, eval_clips=4)


def test_the_command_writes_a_store_that_a_shard_reads_and_says_what_is_in_it(corpora, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "openfl_audio.cli", *PREPARE, "--out", out, "--workers", "2"]
    sources = ["--librispeech", corpora.librispeech, "--fsd50k", corpora.fsd50k]
    done = subprocess.run([*command, *sources], capture_output=True, text=True, timeout=120, check=True)
    report = json.loads((out / "report.json").read_text())
    assert report["splits"]["train"]["pairs"] == 15  # all of 15 utterances
    counts = report["splits"]["train"]
    assert f"train: {counts['chunks']} chunks in 15 pairs of {counts['speakers']} speakers" in done.stdout
    assert "left out 6: has a speech-like label" in done.stdout
    assert "LibriSpeech train-clean-360: 5 utterances of the published 104,014" in done.stdout
    assert done.stdout.endswith(f"See {out / 'report.json'}\n")
    assert "21/21" in done.stderr  # the progress: 15 + 2 + 4 pairs
    assert len(LibriFsd50kShardDescriptor(out).get_dataset("train")) == counts["chunks"]


def test_a_wrong_folder_is_one_sentence(corpora, tmp_path, capsys):
    arguments = ["--librispeech", str(corpora.fsd50k), "--fsd50k", str(corpora.fsd50k), "--out", str(tmp_path / "out")]
    assert main([*PREPARE, *arguments]) == 1
    assert capsys.readouterr().err.startswith(
        f"openfl-audio data prepare librifsd50k: {corpora.fsd50k} is not a LibriSpeech folder"
    )
    assert main([*FEDWHAM, "--wham", str(corpora.fsd50k), "--out", str(tmp_path / "out")]) == 1
    assert "is no folder of WHAM" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_seed_below_0_and_a_folder_that_cannot_be_written_are_one_sentence(corpora, tmp_path, capsys):
    sources = ["--librispeech", str(corpora.librispeech), "--fsd50k", str(corpora.fsd50k)]
    assert main([*PREPARE, *sources, "--out", str(tmp_path / "out"), "--seed", "-1"]) == 1
    assert (
        capsys.readouterr().err
        == "openfl-audio data prepare librifsd50k: seed: -1 should be a whole number from 0 on\n"
    )
    (tmp_path / "file").touch()
    assert main([*PREPARE, *sources, "--out", str(tmp_path / "file" / "out")]) == 1
    assert capsys.readouterr().err.startswith("openfl-audio data prepare librifsd50k: [Errno 20] Not a directory")


def test_fedwham_is_written_and_read_by_the_same_shard(tmp_path, capsys):
    names = [f"{speaker}a010{take}_1_999a0102_-1" for speaker in ("011", "012") for take in range(3)]
    folders = {"tr": names, "cv": [f"cv{name}" for name in names], "tt": [f"tt{name}" for name in names]}
    make_wham(tmp_path / "wham", folders)
    out = tmp_path / "out"
    assert main([*FEDWHAM, "--wham", str(tmp_path / "wham"), "--out", str(out)]) == 0
    assert "train: 6 chunks in 6 pairs of 2 speakers" in capsys.readouterr().out
    shard = LibriFsd50kShardDescriptor(out, available_speech_percentage=0.5)
    assert [len(shard.get_dataset(split)) for split in ("train", "validation", "test")] == [3, 3, 3]
