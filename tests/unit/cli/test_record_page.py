"""The commands of docs/record.md, run on records as a director and an envoy write them, and its table of events."""

import re
import shlex
from pathlib import Path

from openfl_audio.cli.main import main
from openfl_audio.protocol.authority import write_certificates
from openfl_audio.protocol.certificates import load_credentials
from tests.unit.protocol.test_audit import write_records

REPOSITORY = Path(__file__).parents[3]
PAGE = (REPOSITORY / "docs" / "record.md").read_text()


def test_the_commands_of_the_page_do_what_it_says(tmp_path, monkeypatch, capsys):
    write_certificates(tmp_path / "certificates", director_hosts=["localhost"], envoys=["site-a"])
    own = [load_credentials(tmp_path / "certificates", name) for name in ("director", "site-a")]
    for path, name in zip(write_records(tmp_path, tuple(own), "my-experiment"), ("director", "site"), strict=True):
        (tmp_path / name).mkdir()
        path.rename(tmp_path / name / "record.jsonl")
    monkeypatch.chdir(tmp_path)
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
    assert len(commands) == 6
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, capsys.readouterr()
    assert (tmp_path / "report" / "my-experiment.html").exists()


def test_every_event_is_on_the_page():
    sources = [*REPOSITORY.glob("openfl_audio/director/**/*.py"), *REPOSITORY.glob("openfl_audio/envoy/*.py")]
    sources += [REPOSITORY / "openfl_audio/protocol" / name for name in ("record.py", "heads.py")]
    text = "\n".join(path.read_text() for path in sources)
    call = r'(?:\.note|\.append|\.write|_tell|_note)\(\s*"([a-z_ ]+)"'
    events = {
        *re.findall(call, text),
        *re.findall(r'\(_now\(\), "([a-z]+)"', text),
        *re.findall(r'"(certificate_[a-z]+)"', text),
    }
    assert len(events) > 20
    assert {event for event in events if f"`{event}`" not in PAGE} == set()
