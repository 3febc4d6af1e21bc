"""Decisions of a run before anything is trained."""

import dataclasses
import json
from pathlib import Path

import pytest

from openfl_audio.cli.main import main
from openfl_audio.config import load_settings
from openfl_audio.errors import FormatError, SettingsError
from openfl_audio.experiments import comparison
from openfl_audio.experiments.comparison import Comparison, mean_history, results_table
from openfl_audio.experiments.modes import EVALUATOR, Clients, choose_clients, client_names, start_arguments
from openfl_audio.experiments.per_client import client_scores
from openfl_audio.experiments.run import add_new_settings, claim, run
from openfl_audio.experiments.workloads import find_workload, workload_names
from openfl_audio.files import read_claim
from shard_descriptors.common.errors import CorpusError
from tests.unit.workspaces.keyword_spotting.words import make_corpus
from workspaces.keyword_spotting import data
from workspaces.keyword_spotting.data import EncoderClips, encode
from workspaces.keyword_spotting.model import CONFIGS
from workspaces.keyword_spotting.workload import KeywordSpotting, KeywordSpottingSettings
from workspaces.sound_events.workload import SoundEvents


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("speech") / "speech_commands")


def load(**changes) -> KeywordSpottingSettings:
    return load_settings(CONFIGS / "small.yaml", KeywordSpottingSettings, changes)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_is_valid(path):
    assert load_settings(path, KeywordSpottingSettings, {}).rounds > 0


def test_a_model_needs_one_source():
    with pytest.raises(SettingsError, match="model needs either pretrained or config"):
        load(**{"model.pretrained": "openai/whisper-tiny"})


def test_names_sort_as_their_numbers_do():
    for number in (1, 10, 11, 422):
        names = client_names(number)
        assert names == sorted(names)
        assert len(set(names)) == number


def test_pictures_show_what_trained_and_not_the_shards_of_others(corpus):
    def parts_of(mode: str, client_ids=(0,)) -> list[str]:
        chosen = choose_clients(KeywordSpotting(), load(clients=5), corpus, mode, client_ids)
        return [clients.trained_part for clients in chosen]

    assert parts_of("simulated") == parts_of("federated") == parts_of("centralized") == ["1,1"]
    assert parts_of("individual", (0, -1)) == ["1,5", "5,5"]


def test_who_the_clients_of_a_mode_are(corpus):
    def names_of(mode: str, client_ids=(0,), **changes) -> list[list[str]]:
        return [c.names for c in choose_clients(KeywordSpotting(), load(**changes), corpus, mode, client_ids)]

    assert names_of("centralized", clients=4) == [["client-0", EVALUATOR]]
    three = [*client_names(3), EVALUATOR]
    assert names_of("simulated", clients=3) == names_of("federated", clients=3) == [three]
    assert names_of("individual", (0, -1), clients=3) == [["client-0", EVALUATOR], ["client-2", EVALUATOR]]
    assert names_of("simulated", clients="natural") == [[*client_names(7), EVALUATOR]]
    groups = {"data.partition": "speaker_groups", "data.speakers_per_group": 3, "clients": "natural"}
    assert names_of("simulated", **groups) == [[*client_names(2), EVALUATOR]]
    with pytest.raises(SettingsError, match="say how many with --clients"):
        names_of("federated", clients="natural")
    with pytest.raises(SettingsError, match=r"client ids \[3, -4\] are not from -3 to 2"):
        names_of("individual", (3, 0, -4), clients=3)


def test_clients_divide_the_corpus_and_the_evaluator_has_all_of_its_validation_clips(corpus):
    [clients] = choose_clients(KeywordSpotting(), load(clients=3), corpus, "simulated", [0])
    speakers = [set(clients.open(name).get_dataset("train").speakers) - {""} for name in clients.trainers]
    assert sorted(speaker for each in speakers for speaker in each) == [f"{number:08x}" for number in range(7)]
    assert len(clients.open(EVALUATOR).get_dataset("validation")) == 2
    # The same client alone has the same clips.
    [_, alone] = choose_clients(KeywordSpotting(), load(clients=3), corpus, "individual", [0, -1])
    assert set(alone.open("client-2").get_dataset("train").speakers) - {""} == speakers[2]


def test_settings_become_arguments_of_an_experiment(corpus):
    settings = load(clients=3, fraction=0.5, seed=4, patience=2, keep=1, validate_every=3, min_trainers=2)
    [clients] = choose_clients(KeywordSpotting(), settings, corpus, "simulated", [0])
    arguments = start_arguments(clients)
    participation = arguments["participation"]
    assert (participation.fraction, participation.seed, participation.evaluators) == (0.5, 4, [EVALUATOR])
    assert (participation.validate_every, arguments["patience"], arguments["keep"]) == (3, 2, 1)
    assert participation.min_trainers == 2
    assert arguments["envoys"] == [*client_names(3), EVALUATOR]
    assert arguments["opt_treatment"] == "CONTINUE_LOCAL"
    alone = dataclasses.replace(clients, trainers=["client-0"])
    assert start_arguments(alone)["participation"].fraction is None


@pytest.mark.parametrize(("clients", "fraction", "count"), [(21, 0.1, 2), (100, 0.29, 29), (4, 0.1, 1), (3, 1.0, 3)])
def test_a_fraction_of_the_clients_may_be_rounded_down(clients, fraction, count, corpus):
    settings = load(clients=clients, fraction=fraction, fraction_rounding="down")
    chosen = Clients(KeywordSpotting(), settings, corpus, clients, client_names(clients))
    participation = start_arguments(chosen)["participation"]
    assert (participation.count, participation.fraction) == (count, None)
    assert len(participation.trainers(0, client_names(clients))) == count


def test_a_run_without_a_corpus_or_without_a_round_leaves_its_folder_to_the_next(tmp_path, corpus):
    out = tmp_path / "run"
    with pytest.raises(CorpusError, match="there is no folder"):
        run(KeywordSpotting(), load(), "simulated", tmp_path / "nowhere", out)
    assert not out.exists()
    claim(out, {"settings": {"clients": 3}})
    (out / "experiment.json").write_text("{}")
    (out / "history.jsonl").touch()
    claim(out, {"settings": {"clients": 2}})
    assert read_claim(out / "run.json") == {"settings": {"clients": 2}}
    assert not (out / "experiment.json").exists()


def test_a_run_of_an_earlier_version_has_the_defaults_of_newer_settings(tmp_path):
    """It is resumed with them, and refused with anything else."""
    values = load().model_dump(mode="json")
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"settings": {name: values[name] for name in values if name != "fraction_rounding"}}))
    (tmp_path / "history.jsonl").write_text("{}")
    add_new_settings(tmp_path, KeywordSpottingSettings)
    claim(tmp_path, {"settings": values})
    with pytest.raises(SettingsError, match="has a run with settings.fraction_rounding 'up', now it is 'down'"):
        claim(tmp_path, {"settings": values | {"fraction_rounding": "down"}})
    path.write_text(later := json.dumps({"format": 2, "version": "9.1", "settings": {}}))
    with pytest.raises(FormatError, match=r"run\.json has format 2, written by openfl-audio 9\.1"):
        add_new_settings(tmp_path, KeywordSpottingSettings)
    assert path.read_text() == later
    path.write_text('{"settings": {"rounds": "many"}}')
    add_new_settings(tmp_path, KeywordSpottingSettings)
    assert path.read_text() == '{"settings": {"rounds": "many"}}'


def test_a_folder_belongs_to_one_run(tmp_path):
    out = tmp_path / "run"
    claim(out, {"mode": "simulated", "settings": {"seed": 0}})
    (out / "history.jsonl").write_text("{}")
    claim(out, {"mode": "simulated", "settings": {"seed": 0}})
    with pytest.raises(SettingsError, match=r"has a run with settings.seed 0, now it is 1: choose another --out"):
        claim(out, {"mode": "simulated", "settings": {"seed": 1}})
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(SettingsError, match="is not empty, and no earlier run"):
        claim(tmp_path / "thesis", {})


@pytest.mark.parametrize("workload", [name for name in workload_names() if name != "speech_recognition"])
def test_a_comparison_runs_all_four_modes(workload):
    rows = Comparison(find_workload(workload), workload, Path("data"), Path("out")).rows()
    modes = {arguments[arguments.index("--mode") + 1] for arguments in rows.values()}
    assert modes == {"centralized", "individual", "simulated", "federated"}


def test_the_table_has_a_row_a_run_and_a_column_for_every_metric_but_the_loss():
    metrics = {
        model: {split: {"loss": 9.0, "accuracy": accuracy} for split, accuracy in values.items()}
        for model, values in {
            "best": {"validation": 0.5, "test": 0.25},
            "last": {"validation": 0.75, "test": 0},
        }.items()
    }
    result = {"clients": 3, "rounds": 2, "metrics": metrics, "seconds": 1.6, "bytes": {"up": 2_000_000}}
    lines = results_table({"alone": [result], "together": [result]}, ["best", "last"]).splitlines()
    assert lines[0].startswith(
        "| run | clients | rounds | accuracy, validation, best | accuracy, test, best | accuracy,"
    )
    assert lines[2:4] == [
        f"| {name} | 3 | 2 | 0.500 | 0.250 | 0.750 | 0.000 | 2 | 2 |" for name in ("alone", "together")
    ]
    assert lines[4:] == ["", "One seed each."]
    without_test = {**result, "metrics": {"best": {"validation": {"accuracy": 0.5}}}}
    last = results_table({"together": [result], "alone": [without_test]}, ["best"]).splitlines()[3]
    assert last == "| alone | 3 | 2 | 0.500 |  | 2 | 2 |"
    with pytest.raises(SettingsError, match="--models best-wer: the runs have kept best, last"):
        results_table({"alone": [result]}, ["best-wer"])
    with pytest.raises(SettingsError, match="--metrics wer: the runs have accuracy"):
        results_table({"alone": [result]}, ["best"], ["wer"])
    assert results_table({"alone": [result]}, ["last"]).splitlines()[2] == "| alone | 3 | 2 | 0.750 | 0.000 | 2 | 2 |"


def result_of(accuracy: float, seconds: float = 1.0, **more) -> dict:
    metrics = {"best": {"validation": {"loss": 9.0, "accuracy": accuracy}}}
    return {"clients": 3, "rounds": 2, "metrics": metrics, "seconds": seconds, "bytes": {"up": 0}} | more


def test_the_table_of_several_seeds_has_means_deviations_and_intervals():
    results = {"alone": [result_of(0.5, 1), result_of(0.6, 3)], "once": [result_of(0.7)]}
    lines = results_table(results, ["best"]).splitlines()
    # Student's t for one degree of freedom is 12.706: 0.05 * 12.706 on either side.
    assert lines[2] == "| alone | 3 | 2 | 0.550 ± 0.071 (-0.085 to 1.185) | 2 | 0 |"
    assert lines[3] == "| once | 3 | 2 | 0.700 | 1 | 0 |"
    assert lines[-1].startswith("2 seeds: mean ± standard deviation (95 % interval of the mean")


def test_the_table_shows_what_the_worst_tenth_of_the_clients_gets():
    summary = {"accuracy": {"worst_tenth": 0.125, "mean": 0.5}}
    lines = results_table({"alone": [result_of(0.5)], "many": [result_of(0.5, per_client=summary)]}, ["best"])
    assert lines.splitlines()[0].endswith("| accuracy, worst 10 % of clients | seconds | MB sent |")
    assert lines.splitlines()[2:4] == [
        "| alone | 3 | 2 | 0.500 |  | 1 | 0 |",
        "| many | 3 | 2 | 0.500 | 0.125 | 1 | 0 |",
    ]


def test_seeds_run_row_by_row_and_the_first_is_that_of_a_comparison_of_one(tmp_path, monkeypatch):
    ran = []

    def train(name, arguments, data, out):
        ran.append((out.name, arguments))
        return result_of(0.5)

    monkeypatch.setattr(comparison, "train", train)
    compared = Comparison(KeywordSpotting(), "keyword_spotting", tmp_path, tmp_path, seeds=2)
    results = compared.run({"alone": ["--seed", "5"], "all, of": ["--mode"]}, {"alone": 5, "all, of": 0})
    assert ran == [
        ("alone", ["--seed", "5"]),
        ("all-of", ["--mode"]),
        ("alone-seed-1", ["--seed", "5", "--seed", "6"]),
        ("all-of-seed-1", ["--mode", "--seed", "1"]),
    ]
    assert {run: len(seeds) for run, seeds in results.items()} == {"alone": 2, "all, of": 2}


def test_the_curve_of_several_seeds_is_their_mean_over_rounds_that_all_have():
    first, second = (
        [{"round": n, "seconds": 1, "metrics": {"train": {"loss": n + shift}}} for n in range(rounds)]
        for shift, rounds in ((0.0, 3), (1.0, 2))
    )
    assert [record["metrics"] for record in mean_history([first, second])] == [
        {"train": {"loss": 0.5}},
        {"train": {"loss": 1.5}},
    ]
    assert mean_history([first]) == first


def test_a_comparison_has_centralized_with_the_steps_of_federated(corpus, tmp_path, monkeypatch):
    """80 rounds of three clients are 27 of one that has everything."""
    compared = {}
    monkeypatch.setattr(Comparison, "run", lambda self, rows, seeds: compared.update(rows=rows, seeds=seeds) or {})
    monkeypatch.setattr(comparison, "results_table", lambda *arguments: "")
    monkeypatch.setattr(Comparison, "plot", lambda self, runs: None)
    command = ["compare", "keyword_spotting", "--data", str(corpus), "--out", str(tmp_path), "--seeds", "3"]
    assert main([*command, "--clients", "3", "--seed", "7"]) == 0
    assert list(compared["rows"])[:3] == ["centralized", "centralized, equal steps", "individual"]
    assert compared["rows"]["centralized, equal steps"][-2:] == ["--rounds", "27"]
    assert set(compared["seeds"].values()) == {7}


def test_clients_are_scored_on_their_own_clips(corpus, tmp_path):
    """Clients without a validation clip are left out; one that has them gets the workload's own metrics."""
    settings = load(clients=3, **{"data.partition": "clips"})
    [clients] = choose_clients(KeywordSpotting(), settings, corpus, "simulated", [0])
    model = KeywordSpotting().model(settings)()
    scores = client_scores(clients, model, "cpu")
    sizes = {name: len(clients.open(name).get_dataset("validation")) for name in clients.trainers}
    assert list(scores) == [name for name, size in sizes.items() if size]
    for name, metrics in scores.items():
        dataset = clients.open(name).get_dataset("validation")
        assert metrics == pytest.approx(KeywordSpotting().validate(model, dataset, "cpu"))


def test_preprocessing_fills_the_cache_and_training_then_encodes_nothing(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENFL_AUDIO_CACHE", str(tmp_path / "cache"))
    encoded = []
    monkeypatch.setattr(data, "encode", lambda *arguments: encoded.append(len(arguments[1])) or encode(*arguments))
    command = ["train", "keyword_spotting", "--mode", "simulated", "--data", str(corpus), "--clients", "3"]
    command += ["--out", str(tmp_path / "run"), "--preprocess"]
    assert main([*command, "--set", "model.frozen=true"]) == 0
    assert "clips are in the cache" in capsys.readouterr().out
    assert sum(encoded) > 10
    assert not (tmp_path / "run").exists()
    encoded.clear()
    [clients] = choose_clients(KeywordSpotting(), load(clients=3, **{"model.frozen": True}), corpus, "simulated", [0])
    model = clients.workload.model(clients.settings)()
    for name in clients.names:
        EncoderClips(clients.open(name).get_dataset("train"), repeat_rare=True).prepare(model, "cpu")
    assert encoded == []
    assert main([*command, "--set", "model.frozen=false"]) == 1
    assert "model.frozen is false: outputs of an encoder that learns are not kept" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="sound_events keeps nothing that could be made beforehand"):
        SoundEvents().preprocess(None, [], "cpu")
