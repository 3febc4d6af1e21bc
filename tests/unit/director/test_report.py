import html.parser
import json
from pathlib import Path

import pytest

from openfl_audio.cli.main import main
from openfl_audio.director.report import make_report
from openfl_audio.errors import RecordError
from openfl_audio.protocol.record import Record, sha256_of_file
from tests.unit.director.toy_experiment import CLIPS, make_experiment, play, serve

HOSTILE = "a|b\n<script>alert(1)</script> [x](javascript:y) `c`"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The folder of a director with an experiment that has finished."""
    experiment = make_experiment(tmp_path, rounds=2)
    about = {"by": "user 'me'", "rounds": 2, "envoys": ["a", "b"], "registered": {}, **experiment.folder.hashes}
    experiment.note("submitted", aggregation=experiment.plan.aggregation.model_dump(), **about)
    play(experiment, serve(experiment, "a"), serve(experiment, "b"))
    experiment.record.append("fetched", experiment="toy", model="last", by="user 'me'")
    experiment.record.append("refused", experiment="toy", round=1, envoy="a", reason=HOSTILE)
    return tmp_path


def test_the_numbers_of_a_report_are_those_of_record_and_rounds(runs):
    report = make_report(runs, "toy")
    rows = {section.heading: section.rows for section in report.sections}
    assert ["rounds aggregated", 2] in rows["Experiment"]
    assert [[row[0], row[1], row[3], row[4]] for row in rows["Participants"]] == [
        ["a", 3, 2, str(CLIPS["a"])],
        ["b", 3, 2, str(CLIPS["b"])],
    ]
    assert ["last.safetensors", sha256_of_file(runs / "toy" / "last.safetensors")] in rows["Hashes (SHA-256)"]
    assert ["rule.rule", "mean"] in rows["Aggregation"]
    history = [json.loads(line) for line in (runs / "toy" / "history.jsonl").read_text().splitlines()]
    best = max(entry["round"] for entry in history if entry["best"])
    assert rows["Metrics over all clips"] == [
        (f"{number}, of the best model" if number == best else number, task, metric, value)
        for number in dict.fromkeys((best, history[-1]["round"]))
        for task, values in history[number]["metrics"].items()
        for metric, value in values.items()
    ]
    assert rows["Metrics of each site"] == [
        (number, envoy, task, metric, value)
        for number in dict.fromkeys((best, history[-1]["round"]))
        for envoy, tasks in history[number]["envoys"].items()
        for task, values in tasks.items()
        for metric, value in values.items()
    ]
    assert "Differential privacy" not in rows
    assert [row[1:3] for row in rows["Steering"]] == [("fetched", "user 'me'")]
    assert rows["Records"][0][1].startswith("whole")


def test_a_report_is_made_of_the_record_alone_and_of_a_round_that_was_measured_twice_the_later_time_counts(runs):
    before = make_report(runs, "toy")
    (runs / "toy" / "history.jsonl").unlink()
    assert make_report(runs, "toy") == before
    about = {"best": False, "metrics": {"train": {"loss": 0.125}}, "envoys": {}}
    spent = {"epsilon": {"a": 1.5}, "delta": 1e-5, "unit": "record", "adjacency": "add or remove one unit"}
    spent["trust"] = "nobody"
    Record(runs / "record.jsonl", "director 'director'").append(
        "measured", experiment="toy", round=2, privacy=spent, **about
    )
    rows = {section.heading: section.rows for section in make_report(runs, "toy").sections}
    assert [row for row in rows["Metrics over all clips"] if row[0] == 2] == [(2, "train", "loss", 0.125)]
    assert rows["Differential privacy"] == [("a", 1.5, 1e-5, "record", "add or remove one unit", "nobody")]


def test_a_report_of_rounds_by_an_earlier_build_says_whom_its_privacy_trusts(runs):
    spent = {"epsilon": {"a": 1.5}, "delta": 1e-5, "unit": "site"}
    about = {"best": False, "metrics": {}, "envoys": {}}
    Record(runs / "record.jsonl", "director 'director'").append(
        "measured", experiment="toy", round=2, privacy=spent, **about
    )
    rows = {section.heading: section.rows for section in make_report(runs, "toy").sections}
    trusted = "the director, which adds the noise"
    assert rows["Differential privacy"] == [("a", 1.5, 1e-5, "site", "add or remove one unit", trusted)]


def test_hostile_names_are_text_in_both_forms(runs):
    report = make_report(runs, "toy")
    text = report.markdown()
    (line,) = [line for line in text.splitlines() if "alert" in line]
    assert line.count(" | ") == 2
    assert "a\\|b &lt;script&gt;alert(1)&lt;/script&gt; \\[x\\](javascript:y) \\`c\\`" in line
    tags = set()
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.add(tag)  # type: ignore[method-assign]
    parser.feed(report.page())
    assert tags <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    }


def test_approvals_come_from_the_records_of_sites(runs, tmp_path, capsys):
    site = Record(tmp_path / "site" / "record.jsonl", "envoy 'a'")
    site.append("approved", experiment="toy", sha256="f" * 64, by="olga")
    words = [
        "audit",
        "report",
        "toy",
        "--runs",
        str(runs),
        "--sites",
        str(site.path),
        "--out",
        str(tmp_path / "report"),
    ]
    assert main(words) == 0
    assert f"| approved | olga | {'f' * 64} |" in (tmp_path / "report" / "toy.md").read_text()
    assert "<td>olga</td>" in (tmp_path / "report" / "toy.html").read_text()


def test_there_is_no_report_of_what_the_record_does_not_have(runs):
    with pytest.raises(RecordError, match="has no experiment 'other'"):
        make_report(runs, "other")
