"""The two commands that prepare LibriSpeech for HuBERT, run one after the other as a user runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

from openfl_audio.cli.main import main
from shard_descriptors.librispeech import LibriSpeechShardDescriptor
from tests.unit.shard_descriptors.librispeech_corpus import make_corpus

pytestmark = pytest.mark.process

TARGETS = ["data", "prepare", "hubert-targets"]


def prepare(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "openfl_audio.cli",
        "data",
        "prepare",
        "librispeech",
        "--data",
        "LibriSpeech",
        *arguments,
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_a_corpus_is_prepared_and_gets_targets(tmp_path, capsys):
    make_corpus(tmp_path / "LibriSpeech")
    run = prepare(tmp_path, "--out", "two", "--clients", "2", "--workers", "2")
    assert run.returncode == 0, run.stderr
    assert "2 clients by speaker, seed 0: 0.01 to 0.01 h of train and validation clips on each" in run.stdout
    assert "test-other: there, and not used" in run.stdout

    command = [*TARGETS, "--data", str(tmp_path / "two"), "--codebook", "federated", "--clusters", "5", "--rounds", "4"]
    assert main([*command, "--mfcc", "13"]) == 0
    said = capsys.readouterr().out
    assert "federated codebook of mfcc13: 5 clusters, of which 5 have frames, fitted on " in said
    assert main([*command, "--mfcc", "13"]) == 0  # nothing is left to do
    assert capsys.readouterr().out == said
    shard = LibriSpeechShardDescriptor(tmp_path / "two", "2,2", targets="federated-mfcc13-5")
    assert set(shard.get_dataset("train").read_targets(0)) <= set(range(5))

    assert main([*TARGETS, "--data", str(tmp_path / "two"), "--codebook", "central", "--share", "2"]) == 1
    assert (
        capsys.readouterr().err
        == "openfl-audio data prepare hubert-targets: share: 2.0 should be above 0, and 1 at most\n"
    )


def test_what_cannot_be_prepared_is_said_in_a_sentence(tmp_path):
    run = prepare(tmp_path, "--out", "two", "--clients", "2")
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("openfl-audio data prepare librispeech: there is no LibriSpeech folder ")


def test_a_layer_belongs_to_a_run(capsys):
    with pytest.raises(SystemExit):
        main([*TARGETS, "--data", "two", "--codebook", "client", "--layer", "6"])
    assert "--features and --layer go together: a run, and a layer of its model" in capsys.readouterr().err
