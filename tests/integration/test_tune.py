"""`openfl-audio tune` on a line through points: a killed search resumes, and a trial that falls behind is ended."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import psutil
import pytest

from openfl_audio.cli.main import main
from tests.integration.conftest import REPOSITORY, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
pytest.importorskip("ray")

LINE = REPOSITORY / "tests" / "workloads" / "line"
TUNE = ["tune", str(LINE), "--data", str(LINE), "--set", "clients=3"]


def start(out: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "openfl_audio.cli", *TUNE, "--out", str(out), *arguments]
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def kill_with_all_that_it_started(process: subprocess.Popen) -> None:
    """Kill Ray's processes as well, which would work on for a moment."""
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for child in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(started, timeout=60)


@pytest.mark.slow
def test_a_killed_search_resumes_and_ends_the_trial_that_falls_behind(tmp_path):
    out, gate = tmp_path / "search", tmp_path / "gate"
    # One after the other: the second learns nothing, and is compared with the first. It waits at the gate meanwhile.
    over = ["--early-stopping", "--over", "steps=20,0", "--set", "rounds=8", "--set", f"gate={gate}"]
    process = start(out, *over)
    ended, waits = (out / "trials" / f"steps={steps}" for steps in (20, 0))
    try:
        wait_for(lambda: ((ended / "result.json").exists() and waits.exists()) or process.poll() is not None, 200)
        assert process.poll() is None, out.with_suffix(".log").read_text()[-3000:]
    finally:
        kill_with_all_that_it_started(process)
    assert not (out / "results.csv").exists()
    before = (ended / "history.jsonl").read_bytes()
    gate.touch()
    assert start(out, *over).wait(300) == 0, out.with_suffix(".log").read_text()[-3000:]

    trials = pd.read_csv(out / "results.csv").set_index("steps")
    assert trials["finished"].tolist() == [True, False]
    assert trials["rounds"][20] == 8 == json.loads((ended / "result.json").read_text())["rounds"]
    assert (ended / "history.jsonl").read_bytes() == before, "what had ended is not run again"
    assert trials["rounds"][0] < 8
    assert trials["validation loss"][20] < trials["validation loss"][0]
    assert trials["test loss"].notna().tolist() == [True, False]
    assert (out / "curves.png").exists()


@pytest.mark.slow
def test_a_grid_leaves_a_table_and_a_heat_map(tmp_path, capsys):
    out = tmp_path / "grid"
    over = ["--over", "fraction=0.3,1", "--over", "steps=1,2", "--set", "rounds=1", "--workers", "2"]
    assert start(out, *over).wait(300) == 0, out.with_suffix(".log").read_text()[-3000:]
    trials = pd.read_csv(out / "results.csv")
    assert list(zip(trials["fraction"], trials["steps"], strict=True)) == [(0.3, 1), (0.3, 2), (1, 1), (1, 2)]
    assert trials["finished"].all()
    sent = [
        json.loads((out / "trials" / f"fraction={fraction},steps=1" / "result.json").read_text())["bytes"]["up"]
        for fraction in (0.3, 1)
    ]
    assert sent[1] == pytest.approx(3 * sent[0], rel=0.05), "one of three clients sends, or all do"
    assert {"curves.png", "heatmap.png"} <= {path.name for path in out.iterdir()}
    assert main([*TUNE, "--out", str(out), "--over", "fraction=0.3", "--over", "steps=1"]) == 1
    assert "has a run with trials" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--over", "fracton=0.1,0.2"], "unknown key 'fracton' (known here: rounds, clients, fraction"),
        (["--over", "fraction"], "'fraction' should be key=value,value,..."),
        (["--over", "fraction=0.1", "--set", "fraction=0.2"], "fraction is given twice"),
    ],
)
def test_what_is_wrong_with_a_search_is_said_in_a_sentence(tmp_path, arguments, sentence, capsys):
    out = tmp_path / "search"
    assert main([*TUNE, "--out", str(out), *arguments]) == 1
    assert sentence in capsys.readouterr().err
    assert not out.exists()
