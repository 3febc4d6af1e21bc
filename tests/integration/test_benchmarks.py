"""The README's benchmarks and its chaos, for a moment: that they run, and what they print."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import REPOSITORY

pytestmark = pytest.mark.integration


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / script), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


@pytest.mark.slow
def test_the_benchmark_prints_one_json_object_of_a_run_whose_result_it_has_checked():
    result = json.loads(run("rounds.py", "--workload", "head", "--rounds", "2", "--floor", "--json"))
    assert {key: result[key] for key in ("engine", "workload", "envoys", "tls", "parameters", "tensors")} == {
        "engine": "ours", "workload": "head", "envoys": 2, "tls": False, "parameters": 781_964, "tensors": 4,
    }  # fmt: skip
    assert result["seconds_per_round"].keys() == {"median", "min", "max"}
    assert result["rss_mb"].keys() == {"director", "envoy", "worker"}
    # The trained tensors and at most a hundredth more.
    assert 1 <= result["bytes_up"] / (4 * 781_964) < 1.01
    assert 1 <= result["bytes_down"] / (4 * 781_964) < 1.01
    assert result["floor"].keys() == result["times_floor"].keys() == {"grpc", "sockets"}
    for line, seconds in result["floor"].items():
        assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
        # Of figures that are rounded to milliseconds themselves.
        assert result["times_floor"][line] == pytest.approx(
            result["seconds_per_round"]["median"] / seconds["median"], rel=0.2
        )


@pytest.mark.slow
def test_chaos_ends_with_the_weights_of_an_undisturbed_run(tmp_path: Path):
    run("chaos.py", "--minutes", "0.05", "--seed", "1", "--out", str(tmp_path))
    [found] = tmp_path.glob("*/result.json")
    result = json.loads(found.read_text())
    assert sum(result["faults"].values()) >= 1
    assert result["rounds_completed"] >= 4
    wrong = ("rounds_lost", "rounds_repeated", "largest_difference_of_final_weights")
    assert [result[key] for key in wrong] == [0, 0, 0]


@pytest.mark.slow
def test_chaos_with_secure_aggregation_ends_with_the_weights_of_a_simulation(tmp_path: Path):
    run("chaos.py", "--secure", "--minutes", "0.05", "--seed", "1", "--out", str(tmp_path))
    [found] = tmp_path.glob("*/result.json")
    result = json.loads(found.read_text())
    assert sum(result["faults"].values()) >= 1
    assert 0 <= result["rounds_that_lost_an_envoy"] < result["rounds_completed"]
    wrong = ("rounds_lost", "rounds_repeated", "largest_difference_of_final_weights")
    assert [result[key] for key in wrong] == [0, 0, 0]


@pytest.mark.slow
def test_a_secure_run_is_measured_beside_a_plain_one():
    result = json.loads(run("rounds.py", "--workload", "many", "--envoys", "3", "--rounds", "2", "--secure", "--json"))
    plain, secure = result["plain"], result["secure"]
    assert (plain["tls"], plain["secure"], secure["tls"], secure["secure"]) == (True, False, True, True)
    ratio = secure["seconds_per_round"]["median"] / plain["seconds_per_round"]["median"]
    assert result["times_plain"]["seconds"] == pytest.approx(ratio, abs=1e-3)
    # A word has as many bytes as a weight, and messages of the other stages are few beside those of this model.
    assert 1 <= result["times_plain"]["bytes_up"] < 1.15
    assert result["cipher_gb_per_s"] > 0


@pytest.mark.slow
def test_the_benchmark_of_reports_prints_what_they_cost_beside_a_run_without_them():
    result = json.loads(run("reports.py", "--workload", "head", "--steps", "3", "--pairs", "1", "--json"))
    assert (result["workload"], result["steps"], result["pairs"]) == ("head", 3, 1)
    assert result["cpu_s"].keys() == result["wall_s"].keys() == {"off", "on"}
    assert min(*result["cpu_s"].values(), *result["wall_s"].values()) > 0
    cost = result["sender_cpu_s"] + result["calls_s"]
    # Of figures that are rounded themselves.
    assert result["share"] == pytest.approx(cost / result["cpu_s"]["on"], rel=0.1, abs=1e-3)


def test_the_load_generator_prints_a_json_object_for_each_number_of_envoys_and_the_director_does_not_grow_by_rounds():
    arguments = ("--floats", "100000", "--tls", "--json")
    lines = run("load.py", "--envoys", "2", "12", "--rounds", "2", *arguments).splitlines()
    results = [json.loads(line) for line in lines]
    assert [(result["envoys"], result["tls"], result["rounds"]) for result in results] == [(2, True, 2), (12, True, 2)]
    assert all(0 < result["seconds_per_round"]["median"] <= result["seconds_per_round"]["p90"] for result in results)
    assert all(0 < result["director_rss_mb"]["last"] <= result["director_rss_mb"]["peak"] for result in results)
    # Each envoy has a connection of its own; a file of an update may be open, or not.
    assert results[1]["director_open_files"] - results[0]["director_open_files"] > 10 / 2

    later = json.loads(run("load.py", "--envoys", "12", "--rounds", "62", *arguments))
    # One update of 0.4 MB a round would be 24 MB; of those that are gone, the allocator keeps a few.
    assert later["director_rss_mb"]["peak"] - results[1]["director_rss_mb"]["peak"] < 12


@pytest.mark.slow
def test_light_envoys_take_part_in_secure_rounds():
    lines = run("load.py", "--envoys", "4", "--rounds", "2", "--secure", "--json").splitlines()
    plain, secure = map(json.loads, lines)
    assert [(each["secure"], each["tls"], each["envoys"]) for each in (plain, secure)] == [
        (False, True, 4),
        (True, True, 4),
    ]
    # Keys, shares and signatures of four envoys are more work than four updates of ten numbers.
    assert secure["cpu_seconds_per_round"]["envoys"] > plain["cpu_seconds_per_round"]["envoys"] > 0
