"""Tables of a status. That it is the director's: see tests/integration/test_notebook.py."""

import io
import time

import pytest
from rich.console import Console

from openfl_audio.cli.connected import PIPED_WIDTH
from openfl_audio.cli.main import main
from openfl_audio.cli.status import Envoys, Experiments
from openfl_audio.cli.steering import tables_of

ERROR = "envoy '[red]a': the process ended (exit code 1)\nTraceback\n  File \"x\"\nValueError: \x1b[31mno luck\n"
EXPERIMENT = {
    "name": "words-of-many-speakers", "owner": "ada", "corpus": "speech_commands", "status": "in_progress",
    "round": 3, "rounds": 20, "envoys": ["a", "b"], "waiting_for": ["a", "b"], "waits": "",
    "seconds_per_round": 12.34, "error": "",
}  # fmt: skip
STATUS = {
    "envoys": [
        {
            "name": "a", "corpus": "speech_commands", "online": True, "experiment": "words-of-many-speakers",
            "since": 1e9, "last_error": "",
            "progress": {"name": "a", "state": "works", "task": "train", "step": 3, "total": 7,
                         "values": {"loss": 0.5}, "clips_per_second": 35.4, "seconds_left": 41.0,
                         "memory_bytes": 123_000_000, "gpu_memory_bytes": 2_100_000_000},
        },
        {
            "name": "b", "corpus": "", "online": False, "experiment": "", "since": 0.0,
            "last_error": "ValueError: no luck", "progress": None,
        },
    ],
    "experiments": [
        EXPERIMENT,
        EXPERIMENT | {"name": "broken", "status": "failed", "round": 0, "seconds_per_round": None,
                      "waiting_for": [], "error": ERROR},
        EXPERIMENT | {"name": "done", "status": "finished", "round": 21, "waiting_for": []},
    ],
}  # fmt: skip


def shown(status: dict, width: int = PIPED_WIDTH) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, markup=False, highlight=False, emoji=False)
    for command in (Envoys, Experiments):
        console.print(command.table(command.part(status)))
    return file.getvalue()


def cells(text: str, name: str) -> list[str]:
    """Return the cells of the row that begins with `name`; two spaces are between any two of them."""
    [line] = [line for line in text.splitlines() if line.split()[:1] == [name]]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_envoys_are_shown_with_corpus_and_whether_they_are_there():
    text = shown(STATUS)
    since = time.strftime("%m-%d %H:%M:%S", time.localtime(1e9))
    assert cells(text, "a") == [
        "a", "speech_commands", f"yes since {since}", "words-of-many-speakers",
        "train 3/7 (loss 0.500) at 35 clips/s, 41 s left", "123 MB, GPU 2.10 GB", "-",
    ]  # fmt: skip
    assert cells(text, "b") == ["b", "-", "no", "-", "-", "-", "ValueError: no luck"]


def test_an_experiment_is_shown_in_one_line_however_long():
    assert cells(shown(STATUS), "words-of-many-speakers") == [
        "words-of-many-speakers", "ada", "speech_commands", "in_progress", "3 of 20", "12.3", "a, b", "-",
    ]  # fmt: skip


def test_the_validation_after_the_last_round_is_no_round_more():
    assert cells(shown(STATUS), "done")[4] == "20 of 20"


def test_of_an_error_the_first_and_the_last_line_are_shown_as_they_are():
    text = shown(STATUS)
    assert cells(text, "broken")[-1] == "envoy '[red]a': the process ended (exit code 1)"
    assert "ValueError:  [31mno luck" in text
    assert "File" not in text
    assert "\x1b" not in text


def test_the_mean_of_sites_that_an_experiment_is_judged_by_is_called_one():
    record = {
        "round": 0, "best": True, "metrics": {"aggregated_model_validate": {"f1": 0.25}}, "envoys": {"a": {}},
        "means_of_sites": {"aggregated_model_validate": ["f1"]}, "refused": {}, "missing": [], "notes": {},
        "seconds": 1.5, "bytes_up": 100, "bytes_down": 100,
    }  # fmt: skip
    details = EXPERIMENT | {
        "history": [record], "departed": {}, "submitted": 1e9, "ended": None,
        "best": {"metric": "f1", "direction": "max"}, "now": None,
    }  # fmt: skip
    state, rounds = tables_of(details)
    assert "f1 (mean of sites), higher is better" in list(state.columns[1].cells)
    assert [column.header for column in rounds.columns][:2] == ["round", "f1 (mean of sites)"]


def test_the_open_round_of_an_experiment_is_a_table_of_what_its_envoys_do():
    [works] = [envoy["progress"] for envoy in STATUS["envoys"] if envoy["progress"]]
    now = {"live": 3, "rounds": 20, "seconds": 41.2, "seconds_left": None, "envoys": [works]}
    details = EXPERIMENT | {
        "history": [], "departed": {}, "submitted": 1e9, "ended": None, "now": now,
        "best": {"metric": "f1", "direction": "max"},
    }  # fmt: skip
    _, open_round = tables_of(details)
    assert open_round.title == "round 3 of 20, 41 s"
    assert [cell for column in open_round.columns for cell in column.cells] == [
        "a", "train 3/7 (loss 0.500)", "35", "41 s", "123 MB, GPU 2.10 GB",
    ]  # fmt: skip


def test_in_a_narrow_terminal_nothing_is_cut_off():
    assert "…" not in shown(STATUS, width=70)


def test_a_federation_without_anybody_has_empty_tables():
    assert "Envoys" in shown({"envoys": [], "experiments": []})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--disable-tls", "--director", "localhost:1"], "cannot reach the director at localhost:1"),
        (["--disable-tls", "--director", "::1"], "cannot reach the director at [::1]:50051"),
        (["--disable-tls", "--director", "localhost:x"], "the port must be a number"),
        ([], "give --user NAME"),
        (["--user", "ada", "--certificates", "nowhere"], "nowhere does not exist"),
    ],
)
def test_without_an_answer_there_is_a_sentence(capsys, arguments, sentence):
    assert main(["envoys", *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("openfl-audio envoys: ")
    assert sentence in printed.err
    assert len(printed.err.splitlines()) == 1
