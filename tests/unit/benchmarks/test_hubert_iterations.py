"""The benchmark of HuBERT's iterations: the second one clusters a layer of the first one's model."""

import json
from pathlib import Path
from types import SimpleNamespace

from benchmarks import hubert_iterations
from benchmarks.arguments import load, save
from openfl_audio.experiments.codebooks import MFCC


def test_the_second_iteration_learns_clusters_of_a_layer_of_the_first(tmp_path, monkeypatch, capsys):
    pretrained, spotted = {}, {}

    def pretrain(codebook, data, out, clusters, changes, features):
        pretrained[out.name] = (codebook, clusters, changes, features)
        return {"masked_accuracy": 0.25 if out.name == "first" else 0.5, "most_frequent_accuracy": 0.125}

    def spot(keywords, out, name, upstream, seeds):
        spotted[name] = Path(upstream[1].removeprefix("model.upstream="))
        return {"validation": [0.5] * seeds, "test": [0.25] * seeds}

    monkeypatch.setattr(hubert_iterations, "pretrain", pretrain)
    monkeypatch.setattr(hubert_iterations, "spot_keywords", spot)
    monkeypatch.setattr(
        hubert_iterations, "HiddenStates", lambda folder, layer: SimpleNamespace(name=f"layer{layer}", folder=folder)
    )
    monkeypatch.setattr(save, "__defaults__", (tmp_path / "results",))
    arguments = ["--data", "clients", "--keywords", "words", "--out", str(tmp_path), "--layer", "3", "--rounds", "2"]
    assert hubert_iterations.main([*arguments, "--seeds", "2", "--save", "iterations"]) == 0
    assert pretrained["first"] == ("federated", 100, ["--rounds", "2"], MFCC)
    codebook, clusters, changes, features = pretrained["second"]
    assert (codebook, clusters, changes) == pretrained["first"][:3]
    assert (features.name, features.folder) == ("layer3", tmp_path / "first")
    assert spotted == {name: tmp_path / name / "model" for name in ("first", "second")}
    values = load(tmp_path / "results" / "iterations.json").values
    assert values == json.loads(capsys.readouterr().out)
    assert values["second"] == {
        "features": "layer3",
        "masked_accuracy": 0.5,
        "most_frequent_cluster": 0.125,
        "keyword_accuracy": {"validation": [0.5, 0.5], "test": [0.25, 0.25]},
    }
