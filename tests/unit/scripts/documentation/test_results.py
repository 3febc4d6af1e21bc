import json

import pytest

from scripts.documentation.results import (
    cohorts,
    hubert_iterations,
    modes,
    privacy_accuracy,
    substitutions,
    supervised_share,
    typed_results,
)

RESULT = {
    "command": "python benchmarks/rounds.py --save fast-rounds",
    "date": "2026-11-27T01:49:12Z",
    "commit": "99906bd",
    "machine": {"cores": 2, "processor": "AMD EPYC", "python": "3.11.7", "torch": "2.14.1"},
    "values": {"seconds_per_round": {"median": 0.228}},
}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("| federated | 3 | 0.842 |", ["0.842"]),
        ("| short | 43 s | 2.7 s to 3 s |", ["43 s", "2.7 s"]),
        ("| federated | 0.451 ± 0.012 |", ["0.451 ± 0.012"]),
        ("| ours | 3.4 to 3.8 s |", ["3.4 to 3.8 s"]),
        ("A round took 2.57 s, and the next one 3 s.", ["2.57 s"]),
        ("It was 5.7 times as fast.", ["5.7 times"]),
        ("A connection that stalls is noticed after 15 s.", []),
        ('The view says "no word for 4.2 s".', []),
        ("| federated | {{ result.rounds.seconds_per_round.median }} s |", []),
        ("| `rate` | `0.01` |", []),
        ("Use Python 3.10 to 3.12 with `--set x=0.5 s`.", []),
        ("```text\n0.842 MB\n| a | 0.842 |\n```", []),
        ("```text\n1.0 s\n```\nIt took 1.5 s.\n```text\n2.0 s\n```", ["1.5 s"]),
    ],
)
def test_a_result_that_somebody_typed_is_found(line, found):
    assert [text for _, text in typed_results(line)] == found


def test_a_typed_result_is_told_with_its_line():
    assert list(typed_results("# Page\n\n```sh\na\n```\n\n| a | 0.5 |")) == [(7, "0.5")]


def test_pages_name_results_by_their_file(tmp_path):
    (tmp_path / "fast-rounds.json").write_text(json.dumps(RESULT))
    assert substitutions(tmp_path) == {"fast_rounds": {"seconds_per_round": {"median": 0.228}}}


def test_a_file_that_is_no_result_is_refused(tmp_path):
    (tmp_path / "typed.json").write_text(json.dumps({"values": 3}))
    with pytest.raises(ValueError, match="command"):
        substitutions(tmp_path)


def test_a_table_of_modes_says_of_how_many_seeds_a_row_is(tmp_path):
    runs = {
        "centralized": {"clients": 1, "rounds": 9, "seeds": 3, "scores": {"accuracy, test, best": [0.5, 0.25, 0.75]}},
        "federated": {"clients": 3, "rounds": 9, "seeds": 1, "scores": {"accuracy, test, best": [0.5]}},
        "simulated": {"clients": None, "rounds": None, "seeds": 0, "scores": {}},
    }
    values = {"workload": "a_workload", "runs": runs}
    (tmp_path / "modes-a-workload.json").write_text(json.dumps(RESULT | {"values": values}))
    assert modes("a_workload", tmp_path).splitlines()[2:] == [
        "| centralized | 1 | 9 | 3 | 0.500 ± 0.250 (-0.121 to 1.121) |",
        "| federated | 3 | 9 | 1 | 0.500 |",
        "| simulated |  |  | not run |  |",
        "",
        "[Its command, day and machine](../design/benchmarks.md#modes-a-workload)",
    ]


def test_each_result_of_a_workload_is_a_table_and_none_of_another(tmp_path):
    for name, workload in (("a", "word"), ("a-short", "word"), ("b", "words")):
        runs = {name: {"clients": 1, "rounds": 9, "seeds": 1, "scores": {"wer": [0.5]}}}
        result = RESULT | {"values": {"workload": workload, "runs": runs}}
        (tmp_path / f"modes-{name}.json").write_text(json.dumps(result))
    shown = modes("word", tmp_path)
    assert shown.count("| run | clients |") == 2
    assert "| a | 1 | 9 | 1 | 0.500 |" in shown
    assert "| a-short | 1 |" in shown
    assert "| b |" not in shown


def test_a_workload_without_a_result_says_so(tmp_path):
    assert modes("a_workload", tmp_path) == "No comparison of the modes is among the results yet."


def test_a_table_of_accuracy_says_what_was_not_run_and_of_how_many_seeds_a_score_is(tmp_path):
    points = {"1": {"scores": [0.25, 0.5, 0.75]}, "inf": {"scores": [0.9]}}
    rows = {"head": {"metric": "accuracy", "points": points}, "sounds": {"metric": "pr_auc", "points": {}}}
    values = {"seeds": 3, "epsilons": ["1", "8", "inf"], "rows": rows}
    (tmp_path / "privacy-accuracy.json").write_text(json.dumps(RESULT | {"values": values}))
    assert privacy_accuracy(tmp_path).splitlines() == [
        "| row | score | epsilon 1 | epsilon 8 | epsilon inf |",
        "| --- | --- | --- | --- | --- |",
        "| head | accuracy | 0.500 (0.250 to 0.750) | not run | 0.900 (0.900 to 0.900, 1 of 3 seeds) |",
        "| sounds | pr_auc | not run | not run | not run |",
    ]


def test_a_table_of_cohorts_has_a_column_for_each_size(tmp_path):
    row = {"start": "seed", "server": "lamb", "local_epochs": 3}
    rates = {8: [0.5, 0.25], 16: [0.25], 4: []}
    rows = [row | {"cohort": size, "wer": wer} for size, wer in rates.items()]
    rows.append(row | {"local_epochs": 6, "cohort": 8, "wer": [0.75]})
    values = {"rounds": 16, "seeds": 2, "seed_model": [0.75], "rows": rows}
    (tmp_path / "cohorts.json").write_text(json.dumps(RESULT | {"values": values}))
    assert cohorts(tmp_path).splitlines() == [
        "| start | server optimizer | local epochs | 4 clients a round | 8 clients a round | 16 clients a round |",
        "| --- | --- | --- | --- | --- | --- |",
        "| seed | lamb | 3 | not run | 0.375 (0.250 to 0.500) | 0.250 (0.250 to 0.250, 1 of 2 seeds) |",
        "| seed | lamb | 6 | not run | 0.750 (0.750 to 0.750, 1 of 2 seeds) | not run |",
    ]


def test_a_table_of_iterations_has_the_mean_accuracy_of_keywords(tmp_path):
    first = {"masked_accuracy": 0.25, "most_frequent_cluster": 0.125, "keyword_accuracy": {"test": [0.5, 0.75]}}
    second = {"masked_accuracy": 0.5, "most_frequent_cluster": 0.0625, "keyword_accuracy": {"test": [0.75, 0.75]}}
    values = {"layer": 2, "clusters": 100, "first": first, "second": second}
    (tmp_path / "hubert-iterations.json").write_text(json.dumps(RESULT | {"values": values}))
    assert hubert_iterations(tmp_path).splitlines() == [
        "| iteration | masked accuracy | most frequent cluster | keywords, test |",
        "| --- | --- | --- | --- |",
        "| first | 0.250 | 0.125 | 0.625 |",
        "| second | 0.500 | 0.062 | 0.750 |",
    ]


def test_a_table_of_shares_has_a_column_for_each_number_of_clients(tmp_path):
    scores = {(0.0, 8): (1.0, 2.0), (0.0, 4): (1.25, 2.25), (0.5, 8): (3.0, 4.125), (0.5, 4): (-0.5, 0.0)}
    trials = [
        {"p_supervised": share, "clients": clients, "si_sdri_1_noise": one, "si_sdri_2_noises": two}
        for (share, clients), (one, two) in scores.items()
    ]
    (tmp_path / "supervised-share.json").write_text(json.dumps(RESULT | {"values": {"rounds": 2, "trials": trials}}))
    assert supervised_share(tmp_path).splitlines() == [
        "| supervised clients | of 4 clients | of 8 clients |",
        "| --- | --- | --- |",
        "| 0% | 1.25, 2.25 | 1.00, 2.00 |",
        "| 50% | -0.50, 0.00 | 3.00, 4.12 |",
    ]
