"""Results that benchmarks keep: whole files, of one form, from one option."""

import argparse
import json
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from benchmarks import simulation
from benchmarks.arguments import REPOSITORY, RESULTS, add_save, load, save

BENCHMARKS = [path for path in (REPOSITORY / "benchmarks").glob("*.py") if "ArgumentParser(" in path.read_text()]


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_save(parser)
    return parser.parse_args(arguments)


def test_a_result_that_was_saved_loads_with_what_it_stands_on(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", [str(REPOSITORY / "benchmarks/rounds.py"), "--workload", "base model"])
    values = {"seconds": {"median": 0.25}, "rounds": [1, 2]}
    save(options("--save", "base", "--note", "the machine was busy"), values, tmp_path / "results")
    result = load(tmp_path / "results/base.json")
    assert result.values == values
    assert result.note == "the machine was busy"
    assert result.command == "python benchmarks/rounds.py --workload 'base model'"
    assert result.machine.cores == len(os.sched_getaffinity(0))
    assert result.machine.torch
    assert result.machine.processor
    assert result.date.tzinfo is not None
    assert len(result.commit.removesuffix("+changes")) == 40
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["base.json"]


def test_nothing_is_written_unless_it_is_asked_for(tmp_path):
    save(options(), {}, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_file_of_another_form_is_none(tmp_path):
    save(options("--save", "base"), {}, tmp_path)
    path = tmp_path / "base.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"second": 1}))
    with pytest.raises(ValidationError, match="second"):
        load(path)


def test_the_results_of_the_repository_load():
    for path in RESULTS.glob("*"):
        result = load(path)
        assert result.command.startswith("python benchmarks/")
        assert result.values


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_every_benchmark_takes_the_option(path: Path):
    source = path.read_text()
    assert "    add_save(parser)\n" in source
    assert "    save(" in source


def test_a_benchmark_saves_what_it_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks/simulation.py", "--rounds", "1", "--json", "--save", "simulation"])
    monkeypatch.setattr(simulation, "compare", lambda kind, rounds: {"rounds": rounds})
    monkeypatch.setattr(simulation, "registered_clients", lambda clients, rounds: clients)
    monkeypatch.setattr(save, "__defaults__", (tmp_path,))
    simulation.main()
    assert load(tmp_path / "simulation.json").values == json.loads(capsys.readouterr().out)
