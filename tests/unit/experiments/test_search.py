"""A search ranks its trials, which run here one by one and without Ray."""

import json
from pathlib import Path

import pandas as pd
import pytest

from openfl_audio.cli.main import parse
from openfl_audio.experiments.run import run

LINE = Path(__file__).parents[2] / "workloads" / "line"


@pytest.mark.training
def test_a_grid_has_a_row_for_each_choice_and_a_heat_map(tmp_path):
    out = tmp_path / "grid"
    axes = ("--over", "fraction=0.3,1", "--over", "steps=1,2", "--set", "rounds=1", "--set", "clients=3")
    command, _ = parse(["tune", str(LINE), "--data", str(LINE), "--out", str(out), *axes])
    search = command.search()
    for name, settings in zip(search.names, search.settings, strict=True):
        run(search.workload, settings, "simulated", search.data, out / "trials" / name)
    search.write_results()

    trials = pd.read_csv(out / "results.csv")
    assert list(zip(trials["fraction"], trials["steps"], strict=True)) == [(0.3, 1), (0.3, 2), (1, 1), (1, 2)]
    assert trials["finished"].all()
    losses = trials["test loss"]
    assert losses[0] > losses[1]
    assert losses[2] > losses[3], "a client that takes two steps gets further than one that takes one"
    sent = [json.loads((out / "trials" / name / "result.json").read_text())["bytes"]["up"] for name in search.names]
    assert sent[2] == pytest.approx(3 * sent[0], rel=0.05), "one of three clients sends, or all do"
    assert {"curves.png", "heatmap.png"} <= {path.name for path in out.iterdir()}
