"""`openfl-audio tune` on a small demo corpus: a killed search goes on, and a trial that falls behind is ended."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from openfl_audio.cli.main import main
from openfl_audio.testing.corpora.speech_commands import make_speech_commands
from tests.integration.conftest import REPOSITORY, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
pytest.importorskip("ray")

SMALL = ["--set", "clients=3", "--set", "batch_size=8", "--set", "rounds=8"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tune") / "corpus"
    make_speech_commands(folder, n_speakers=9)
    return folder


def start(corpus: Path, out: Path, *arguments: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "openfl_audio.cli",
        "tune",
        "keyword_spotting",
        "--data",
        str(corpus),
        "--out",
        str(out),
    ]
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [*command, *SMALL, *arguments], cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def test_a_killed_search_goes_on_and_ends_the_trial_that_falls_behind(corpus, tmp_path):
    out = tmp_path / "search"
    # One after the other: the second learns nothing, and is compared with the first.
    over = ["--early-stopping", "--over", "optimizer.learning_rate=0.002,0.000000001"]
    process = start(corpus, out, *over)
    try:
        ended = out / "trials" / "optimizer.learning_rate=0.002"
        wait_for((ended / "result.json").exists, seconds=200)
    finally:
        # Ray's processes stop by themselves when the one that started them is gone.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (out / "results.csv").exists()
    assert start(corpus, out, *over).wait(300) == 0, out.with_suffix(".log").read_text()[-3000:]

    trials = pd.read_csv(out / "results.csv").set_index("optimizer.learning_rate")
    assert trials["finished"].tolist() == [True, False]
    assert trials["rounds"][0.002] == 8 == json.loads((ended / "result.json").read_text())["rounds"]
    assert trials["rounds"][1e-9] < 8
    assert trials["validation accuracy"][0.002] > trials["validation accuracy"][1e-9]
    assert trials["test accuracy"].notna().tolist() == [True, False]
    assert (out / "curves.png").exists()


def test_a_grid_leaves_a_table_and_a_heat_map(corpus, tmp_path):
    out = tmp_path / "grid"
    over = ["--over", "fraction=0.3,1", "--over", "local_epochs=1,2", "--set", "rounds=1", "--workers", "2"]
    assert start(corpus, out, *over).wait(300) == 0, out.with_suffix(".log").read_text()[-3000:]
    trials = pd.read_csv(out / "results.csv")
    assert list(zip(trials["fraction"], trials["local_epochs"], strict=True)) == [(0.3, 1), (0.3, 2), (1, 1), (1, 2)]
    assert trials["finished"].all()
    # One of three clients sends, or all do.
    assert trials["MB sent"][2] == pytest.approx(3 * trials["MB sent"][0], rel=0.05)
    assert {"curves.png", "heatmap.png"} <= {path.name for path in out.iterdir()}
    assert start(corpus, out, "--over", "fraction=0.3", "--over", "local_epochs=1").wait(120) == 1
    assert "has a run with trials" in out.with_suffix(".log").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--over", "fracton=0.1,0.2"], "unknown key 'fracton' (known here: rounds, clients, fraction"),
        (["--over", "fraction"], "'fraction' should be key=value,value,..."),
        (["--over", "fraction=0.1", "--set", "fraction=0.2"], "fraction is given twice"),
    ],
)
def test_what_is_wrong_with_a_search_is_said_in_a_sentence(corpus, tmp_path, arguments, sentence, capsys):
    out = tmp_path / "search"
    beginning = ["tune", "keyword_spotting", "--data", str(corpus), "--out", str(out)]
    assert main([*beginning, *SMALL, *arguments]) == 1
    assert sentence in capsys.readouterr().err
    assert not out.exists()
