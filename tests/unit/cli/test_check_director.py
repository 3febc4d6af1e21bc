"""The content of a director's disk is shown to its operator as it is."""

import re
import time
from pathlib import Path

import pytest

from openfl_audio.cli.main import main
from openfl_audio.director.check import bytes_below
from openfl_audio.director.run_folder import Status
from openfl_audio.protocol.authority import write_certificates
from tests.unit.director.toy_experiment import make_experiment


@pytest.fixture
def config(tmp_path) -> Path:
    runs = tmp_path / "runs"
    runs.mkdir()
    for name, status, days in (("old", Status.FINISHED, 40), ("new", Status.STOPPED, 1), ("works", None, 50)):
        experiment = make_experiment(runs, name=name)
        if status:
            experiment.state.status, experiment.state.ended_at = status, time.time() - days * 86400
        else:
            experiment.state.submitted = time.time() - days * 86400
        experiment.folder.save_state()
    (runs / "submission").unlink()
    (runs / "broken").mkdir()
    (runs / "broken" / "big").write_bytes(bytes(3_000_000))
    config = tmp_path / "director.yaml"
    config.write_text("settings:\n  runs: runs\n  certificates: certificates\n  retention:\n    days: 30\n")
    return config


def test_it_is_shown_what_lies_there_and_what_would_be_removed(config, capsys):
    before = sorted(config.parent.rglob("*"))
    assert main(["check", "director", "-c", str(config), "--disable-tls"]) == 0
    shown = capsys.readouterr().out
    rows = {line.split()[0]: re.split(r"  +", line.strip()) for line in shown.splitlines() if line.strip()}
    assert [rows[name][2] for name in ("old", "new", "works", "broken")] == [
        "finished", "stopped", "pending", "unreadable",
    ]  # fmt: skip
    assert [rows[name][-1] for name in ("old", "new", "works", "broken")] == ["removed", "kept", "kept", "kept"]
    assert rows["broken"][4] == "3.0 MB"
    assert re.search(r"^4 experiments take 3\.0 MB in .*runs; \d+\.\d GB are free there$", shown, re.M)
    assert f"{config.parent}/runs/broken/state.json cannot be read: No such file or directory" in shown
    assert sorted(config.parent.rglob("*")) == before
    main(["check", "director", "-c", str(config), "--disable-tls", "--set", "settings.retention.days=60"])
    assert "removed" not in capsys.readouterr().out


def test_the_certificate_is_checked(config, capsys):
    assert main(["check", "director", "-c", str(config)]) == 1
    assert "certificates does not exist" in capsys.readouterr().err
    write_certificates(config.parent / "certificates", director_hosts=["fl.example.org"])
    assert main(["check", "director", "-c", str(config)]) == 0
    assert re.search(r"^the certificate is for .*fl\.example\.org, until \d{4}-", capsys.readouterr().out)


def test_a_folder_that_is_not_there_yet_is_no_fault(tmp_path, capsys):
    config = tmp_path / "director.yaml"
    config.write_text("settings:\n  runs: nowhere\n")
    assert main(["check", "director", "-c", str(config), "--disable-tls"]) == 0
    assert capsys.readouterr().out.endswith("nowhere does not exist yet: the first start makes it\n")


def test_a_file_with_two_names_counts_once(tmp_path):
    (tmp_path / "a").write_bytes(bytes(1000))
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    assert 1000 <= bytes_below(tmp_path) < 2000
