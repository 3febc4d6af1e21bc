"""The benchmark of the modes: what has finished is kept, and a row says how much of it that is."""

import json

from benchmarks import modes
from benchmarks.arguments import load, save


def test_what_has_finished_is_kept_with_its_number_of_seeds(tmp_path, monkeypatch, capsys):
    out = tmp_path / "runs"
    rounds = {"centralized": 4, "centralized-equal-steps": 1, "centralized-seed-1": 4, "federated": 4}
    for number, (folder, count) in enumerate(rounds.items()):
        scores = {split: {"loss": 1.0, "accuracy": number / 8} for split in ("validation", "test")}
        result = {"clients": 1, "rounds": count, "metrics": {"best": scores, "last": scores}}
        (out / folder).mkdir(parents=True)
        (out / folder / "result.json").write_text(json.dumps(result))
    monkeypatch.setattr(save, "__defaults__", (tmp_path / "results",))
    corpus = ["keyword_spotting_wav2vec2", "--data", str(tmp_path), "--out", str(out)]
    assert modes.main([*corpus, "--seeds", "2", "--rounds", "4", "--finished", "--save", "modes"]) == 0
    values = load(tmp_path / "results" / "modes.json").values
    assert values == json.loads(capsys.readouterr().out)
    runs = values["runs"]
    # Four rounds of all data are those of three clients by a third: 4 / 3, rounded.
    assert list(runs) == ["centralized", "centralized, equal steps", "individual", "simulated", "federated"]
    assert runs["centralized"] == {
        "clients": 1,
        "rounds": 4,
        "seeds": 2,
        "scores": {"accuracy, validation, best": [0.0, 0.25], "accuracy, test, best": [0.0, 0.25]},
    }
    assert (runs["federated"]["seeds"], runs["federated"]["scores"]["accuracy, test, best"]) == (1, [0.375])
    assert runs["simulated"] == {"clients": None, "rounds": None, "seeds": 0, "scores": {}}
