"""The benchmark of supervised clients: its trials are a search, and what their models are worth is kept."""

import json
from pathlib import Path

import pandas as pd

from benchmarks import supervised_share
from benchmarks.arguments import load, save
from openfl_audio.cli.tune import Tune


def test_a_trial_is_a_share_and_a_number_of_clients():
    settings = supervised_share.search(Path("data"), Path("out"), 3, 1).search().settings
    assert [(each.p_supervised, each.clients) for each in settings] == [
        (share, clients) for share in (0.0, 0.5, 1.0) for clients in (4, 8, 24)
    ]
    assert {(each.rounds, each.fraction) for each in settings} == {(3, 1.0)}


def test_test_scores_of_each_trial_are_kept_and_drawn(tmp_path, monkeypatch, capsys):
    def run(command):
        trial = {"validation si_sdri_1_noise": 9.0, "test si_sdri_1_noise": 1.234, "test si_sdri_2_noises": -0.5}
        rows = [{"p_supervised": share, "clients": 4} | trial for share in (0.0, 1.0)]
        pd.DataFrame(rows).to_csv(command.out / "results.csv", index=False)

    monkeypatch.setattr(Tune, "run", run)
    monkeypatch.setattr(save, "__defaults__", (tmp_path / "results",))
    arguments = ["--data", "data", "--out", str(tmp_path), "--rounds", "3", "--save", "shares"]
    assert supervised_share.main([*arguments, "--figure", str(tmp_path / "shares.png")]) == 0
    kept = {"clients": 4, "si_sdri_1_noise": 1.23, "si_sdri_2_noises": -0.5}
    values = load(tmp_path / "results" / "shares.json").values
    assert values == {"rounds": 3, "trials": [{"p_supervised": share} | kept for share in (0.0, 1.0)]}
    assert values["trials"] == json.loads(capsys.readouterr().out)
    assert (tmp_path / "shares.png").read_bytes().startswith(b"\x89PNG")
