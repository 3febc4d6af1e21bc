import base64
import io
import re
import sys
import time

import matplotlib.image
import pandas as pd
import pytest

from openfl_audio.notebook.live_view import MOST_ROWS_SHOWN, draw, live_html, live_sentence, show_progress, to_html
from openfl_audio.protocol.messages import Ended, EnvoyProgress, LiveRound, Waits
from openfl_audio.training.history import columns_of, name_of_scores, scores_by_round, to_frame, updates_that_counted

EXPERIMENT = ("toy", "accuracy", "max", 0)


def record(number: int, best: bool = False, train: dict | None = None, **validation: float) -> dict:
    metrics = {"aggregated_model_validate": validation} if validation else {}
    metrics |= {"train": train} if train else {}
    kept = {"envoys": {"a": {}, "b": {}}, "refused": {"c": "NaN"}, "missing": []}
    return {"round": number, "best": best, "metrics": metrics, "seconds": 1.25, "bytes_up": 2_500_000} | kept


RECORDS = [
    record(0, best=True, train={"loss": 2.0}, accuracy=0.25),
    record(1, best=True, train={"loss": 1.0}, accuracy=0.75),
    record(2, accuracy=0.5),
]


def test_a_table_grows_by_a_line_a_round(capsys):
    history = show_progress([*RECORDS, Ended(status="finished", error="")], *EXPERIMENT)
    assert capsys.readouterr().out.splitlines() == [
        "     round    accuracy  train loss      envoys     seconds        sent",
        "         0       0.250       2.000      2 of 3       1.2 s     2.50 MB",
        "         1       0.750       1.000      2 of 3       1.2 s     2.50 MB",
        "         2       0.500           -      2 of 3       1.2 s     2.50 MB",
    ]
    pd.testing.assert_frame_equal(history, to_frame(RECORDS))


def test_beside_epsilon_stands_what_it_is_about_and_whom_it_trusts(capsys):
    about = {"unit": "site", "delta": 1e-5, "adjacency": "add or remove one", "trust": "no director, but 2 <sites>"}
    rounds = [{**RECORDS[0], "privacy": about | {"epsilon": {"a": 0.5, "b": 1.5}}}]
    show_progress(rounds, *EXPERIMENT)
    told, columns, values = (re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines())
    sentence = "epsilon of a site, at a delta of 1e-05, of data that differ by: add or remove one; trusted for it: no"
    assert told == [f"{sentence} director, but 2 <sites>"]
    assert dict(zip(columns, values, strict=True))["epsilon"] == "1.500"
    assert f"<p>{sentence} director, but 2 &lt;sites&gt;</p>" in to_html(rounds, *EXPERIMENT[:3])
    assert "trusted for it" not in to_html(RECORDS, *EXPERIMENT[:3])


def test_a_mean_of_sites_is_called_one(capsys):
    rounds = [record(0, train={"f1": 0.5}, f1=0.25, loss=1.0), record(1, f1=0.75)]
    rounds[0]["means_of_sites"] = {"aggregated_model_validate": ["f1"]}
    history = show_progress(rounds, "toy", "f1", "max", 0)
    assert "f1 (mean of sites)" in capsys.readouterr().out.splitlines()[0]
    assert columns_of(history, "f1") == ["f1", "f1 (mean of sites)"]
    assert columns_of(history, "accuracy") == []
    assert history["f1 (mean of sites)"].dropna().tolist() == [0.25]
    assert history["train f1"].dropna().tolist() == [0.5]
    assert name_of_scores(rounds, "f1") == "f1 (mean of sites)"
    assert name_of_scores(rounds[1:], "f1") == name_of_scores([], "f1") == "f1"


def test_a_line_is_there_before_the_next_round_ends(capsys):
    def messages():
        for each in RECORDS:
            yield each
            assert capsys.readouterr().out.splitlines()[-1].split()[0] == str(each["round"])

    show_progress(messages(), *EXPERIMENT)


def test_a_metric_that_comes_later_gets_a_column_and_the_names_are_printed_again(capsys):
    records = [record(0, train={"loss": 2.0}), record(1, train={"loss": 1.0}, accuracy=0.5, f1=0.25), record(2, f1=0.5)]
    history = show_progress(records, *EXPERIMENT)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["round", "train", "loss", "envoys", "seconds", "sent"],
        ["0", "2.000", "2", "of", "3", "1.2", "s", "2.50", "MB"],
        ["round", "accuracy", "train", "loss", "envoys", "seconds", "sent"],
        ["1", "0.500", "1.000", "2", "of", "3", "1.2", "s", "2.50", "MB"],
        ["2", "-", "-", "2", "of", "3", "1.2", "s", "2.50", "MB"],
    ]
    assert list(history) == ["round", "accuracy", "f1", "train loss", "seconds", "sent"]
    assert history["accuracy"].isna().tolist() == [True, False, True]


def test_values_stand_below_a_long_name(capsys):
    show_progress([record(0, word_error_rate=0.5)], "toy", "word_error_rate", "min", 0)
    names, values = capsys.readouterr().out.splitlines()
    assert names.index("word_error_rate") + len("word_error_rate") == values.index("0.500") + len("0.500")


@pytest.mark.parametrize(("status", "last"), [("finished", "         2"), ("stopped", "experiment 'toy' was stopped")])
def test_the_last_line_says_that_an_experiment_was_stopped(capsys, status, last):
    show_progress([*RECORDS, Ended(status=status, error="")], *EXPERIMENT)
    assert capsys.readouterr().out.splitlines()[-1].startswith(last)


def test_no_round_is_an_empty_history(capsys):
    history = show_progress([Ended(status="stopped", error="")], *EXPERIMENT)
    assert history.empty
    assert list(history) == ["round", "seconds", "sent"]
    assert capsys.readouterr().out == "experiment 'toy' was stopped; rounds completed: 0\n"


def test_it_is_said_that_an_experiment_waits_and_resumes(capsys):
    show_progress(
        [Waits(waits="disk full on the director"), Waits(waits=""), Ended(status="finished", error="")], *EXPERIMENT
    )
    assert capsys.readouterr().out.splitlines() == [
        "experiment 'toy' waits: disk full on the director",
        "experiment 'toy' resumes",
    ]


SAID = {"a": ["no clips"], "b": ["<b>no answer</b>"], "c": ["no clips"]}


def test_what_did_not_count_is_said_below_its_round_and_in_the_frame(capsys):
    records = [record(0, accuracy=0.25), record(1, accuracy=0.5) | {"notes": SAID}, record(2, accuracy=0.5)]
    history = show_progress(records, *EXPERIMENT)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["round", "0", "1", "a,", "b:", "2"]
    assert lines[3].strip() == "a, c: no clips"
    assert list(history) == ["round", "accuracy", "seconds", "sent", "left out"]
    assert history["left out"][1] == "a, c: no clips; b: <b>no answer</b>"
    assert history["left out"].isna().tolist() == [True, False, True]


def test_many_who_have_the_same_to_say_are_counted(capsys):
    notes = {f"c{number}": ["no clips"] for number in range(500)}
    show_progress([record(0, accuracy=0.25) | {"notes": notes}], *EXPERIMENT)
    assert capsys.readouterr().out.splitlines()[-1].strip() == "c0, c1, c2, c3, c4 and 495 more: no clips"


def test_the_display_says_what_did_not_count_below_the_table():
    html = to_html([record(0, accuracy=0.25), record(1) | {"notes": SAID}], "toy", "accuracy", "max")
    assert re.findall("<li>(.*?)</li>", html) == [
        "round 1: a, c: no clips",
        "round 1: b: &lt;b&gt;no answer&lt;/b&gt;",
    ]
    assert "left out" not in html
    assert "<li>" not in to_html(RECORDS, "toy", "accuracy", "max")


def test_rounds_that_could_not_measure_a_metric_have_no_score():
    records = [record(0, loss=1.0), record(1, loss=0.5, accuracy=0.25), record(2), record(3, accuracy=0.75)]
    assert scores_by_round(records, "accuracy") == {1: 0.25, 3: 0.75}
    assert scores_by_round(records, "f1") == {}


def picture_in(html: str) -> bytes | None:
    found = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    return base64.b64decode(found[1]) if found else None


def test_the_display_has_a_picture_and_a_row_a_round():
    html = to_html(RECORDS, "toy", "accuracy", "max")
    assert picture_in(html) == draw(RECORDS, "toy", "accuracy", "max")
    assert re.findall(r"<td>([^<]+)</td>", html)[:12] == [
        "0", "0.250", "2.000", "2 of 3", "1.2 s", "2.50 MB",
        "1", "0.750", "1.000", "2 of 3", "1.2 s", "2.50 MB",
    ]  # fmt: skip


def test_before_the_first_round_is_over_there_is_no_empty_table():
    assert to_html([], "<toy>", "accuracy", "max") == "<p>&lt;toy&gt;: no round is over so far</p>"


@pytest.mark.parametrize("records", [[record(0, train={"loss": 1.0})], [record(0, slope=1.0)]])
def test_without_the_metric_there_is_a_sentence_in_place_of_the_picture(records):
    html = to_html(records, "toy", "accuracy", "max")
    assert picture_in(html) is None
    assert "no round has validated 'accuracy' so far" in html
    assert html.count("<tr") == 1 + len(records)


def test_rounds_without_validation_leave_no_gap_in_the_curve_and_the_best_round_is_marked():
    sparse = [record(0, best=True, accuracy=0.25), record(1), record(2), record(3, accuracy=0.125)]
    assert reddish(sparse) > 0
    assert reddish([each | {"best": False} for each in sparse]) == 0
    # The straight line from round 0 to round 3 needs no validation in between.
    assert draw(sparse, "toy", "accuracy", "max") == draw([sparse[0], sparse[3]], "toy", "accuracy", "max")


def reddish(records: list[dict]) -> int:
    """Pixels in the colour of the mark, by which nothing else is drawn."""
    image = matplotlib.image.imread(io.BytesIO(draw(records, "toy", "accuracy", "max")))
    return int(((image[..., 0] > 0.8) & (image[..., 1] < 0.3) & (image[..., 2] < 0.3)).sum())


def test_a_long_history_is_shown_without_its_middle():
    html = to_html([record(number, train={"loss": 1.0}) for number in range(1000)], "toy", "accuracy", "max")
    assert "<td>0</td>" in html
    assert "<td>999</td>" in html
    assert html.count("<tr") < MOST_ROWS_SHOWN + 3


@pytest.mark.parametrize("records", [[], [record(0, **{"<b>": 1.0})]])
def test_names_are_text_in_the_display(records):
    html = to_html(records, "<i>toy</i>", "<b>", "max")
    assert "<i>" not in html
    assert "<b>" not in html


WORKS = EnvoyProgress(name="a", state="works", task="train", step=120, total=400, values={"loss": 0.5})
NOW = LiveRound(
    live=3,
    rounds=20,
    seconds=41.2,
    seconds_left=720,
    envoys=[WORKS, EnvoyProgress(name="b", state="done"), EnvoyProgress(name="c", state="offline", since=1e9)],
)


def test_the_line_that_moves_says_who_does_what_and_how_long_it_takes():
    since = time.strftime("%H:%M:%S", time.localtime(1e9))
    assert live_sentence(NOW) == (
        f"round 3 of 20, 41 s: a train 120/400 (loss 0.500), b done, c offline since {since}; about 12 min 00 s left"
    )
    validates = EnvoyProgress(name="a", state="works", task="aggregated_model_validate", step=7)
    many = [validates, EnvoyProgress(name="b", state="works"), *[EnvoyProgress(name="c", state="refused")] * 5]
    last = LiveRound(live=20, rounds=20, seconds=1, seconds_left=3, envoys=many, others=480)
    assert live_sentence(last) == (
        "round 20 of 20, 1.0 s: a validate 7, b at work, c refused, c refused, c refused, 482 more"
    )
    nobody = LiveRound(live=0, rounds=2, seconds=0, seconds_left=None, envoys=[])
    assert live_sentence(nobody) == "round 0 of 2, 0.0 s: nobody has a task"


def test_where_there_is_room_the_line_also_says_how_fast_each_envoy_is():
    trains = WORKS.model_copy(update={"clips_per_second": 35.4, "seconds_left": 63.0})
    fetches = EnvoyProgress(
        name="b", state="works", transfer="download", bytes_moved=12_300_000, bytes_total=360_000_000, seconds_left=8.0
    )
    now = NOW.model_copy(update={"envoys": [trains, fetches], "seconds_left": None})
    long = (
        "round 3 of 20, 41 s: a train 120/400 (loss 0.500) at 35 clips/s, 1 min 03 s left, "
        "b download 12.3 MB of 360 MB, 8.0 s left"
    )
    assert live_sentence(now) == live_sentence(now, len(long)) == long
    short = "round 3 of 20, 41 s: a train 120/400 (loss 0.500), b download 12.3 MB of 360 MB"
    assert live_sentence(now, len(long) - 1) == live_sentence(now, len(short)) == short
    assert live_sentence(now, len(short) - 1) == short[:-4] + "..."


def test_the_display_has_a_row_for_each_envoy_of_the_open_round():
    fast = {"clips_per_second": 3.26, "seconds_left": 63.0, "memory_bytes": 880_000_000, "gpu_memory_bytes": 2 * 10**9}
    trains = WORKS.model_copy(update=fast | {"name": "<a>"})
    html = live_html(NOW.model_copy(update={"envoys": [trains, *NOW.envoys[1:2]], "others": 3}))
    assert "<p>round 3 of 20, 41 s; about 12 min 00 s left</p>" in html
    assert re.findall("<td style=.*?>(.*?)</td>", html) == [
        "&lt;a&gt;", "train 120/400 (loss 0.500)", "3.3", "1 min 03 s", "880 MB, GPU 2.00 GB",
        "b", "done", "-", "-", "-",
    ]  # fmt: skip
    assert "and 3 more" in html
    # A heading stands where its column does.
    styles = re.findall('<th style="(.*?)">', html)
    assert styles * 2 == re.findall('<td style="(.*?)">', html)
    assert [re.search(r"text-align: (\w+)", style)[1] for style in styles] == [
        "left",
        "left",
        "right",
        "right",
        "right",
    ]


def test_it_is_said_of_whom_nothing_is_heard_and_why_an_update_was_refused():
    envoys = [
        WORKS.model_copy(update={"silent_seconds": 4.2, "seconds_left": 3.0}),
        EnvoyProgress(name="b", state="refused", why="NaN in '<b>'"),
    ]
    now = NOW.model_copy(update={"envoys": envoys, "seconds_left": None})
    short = "round 3 of 20, 41 s: a train 120/400 (loss 0.500), no word for 4.2 s, b refused"
    assert live_sentence(now, len(short)) == short
    assert live_sentence(now) == f"{short}: NaN in '<b>'"
    assert ">refused: NaN in &#x27;&lt;b&gt;&#x27;</td>" in live_html(now)


def test_of_many_envoys_those_that_are_not_done_are_named():
    envoys = [EnvoyProgress(name=name, state="works" if name == "h" else "done") for name in "abcdefgh"]
    assert live_sentence(NOW.model_copy(update={"envoys": envoys, "seconds_left": None})) == (
        "round 3 of 20, 41 s: h at work, a done, b done, c done, d done, 3 more"
    )


def test_a_screen_of_100_columns_has_room_for_the_table(capsys):
    metrics = {f"metric number {number}": 1303085009.707 for number in range(20)}
    show_progress([record(0, train={"loss": 2.0}, accuracy=0.25, loss=1303085009.707, **metrics)], *EXPERIMENT)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[1].split() == ["0", "0.250", "1.3e+09", "2.000", "2", "of", "3", "1.2", "s", "2.50", "MB"]


def test_in_a_pipe_no_line_moves(capsys):
    show_progress([NOW, RECORDS[0], NOW], *EXPERIMENT)
    assert len(capsys.readouterr().out.splitlines()) == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_terminal_the_line_is_replaced_and_gone_at_the_end(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "50")
    show_progress(
        [NOW, NOW, RECORDS[0], NOW, Waits(waits="b is offline"), Ended(status="finished", error="")], *EXPERIMENT
    )
    moving = "\r\x1b[K" + live_sentence(NOW)[:46] + "..."
    assert len(moving) == len("\r\x1b[K") + 49
    written = sys.stdout.getvalue()
    assert written.startswith(moving + moving + "\r\x1b[K     round")
    assert written.endswith(moving + "\r\x1b[Kexperiment 'toy' waits: b is offline\n")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"counted": 1, "refused": {"b": "NaN"}, "missing": ["c"]}, "1 of 3"),
        ({"envoys": {"a": {}, "b": {}}, "refused": {}, "missing": []}, "2 of 2"),
        ({}, None),
    ],
)
def test_a_round_says_how_many_updates_counted(record, said):
    assert updates_that_counted(record) == said
