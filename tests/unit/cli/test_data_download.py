"""`openfl-audio data download`: what it prints, and how it ends; downloads have tests of their own."""

import io
import re
import tarfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from openfl_audio.cli.main import main
from shard_descriptors import download
from shard_descriptors.download import CORPORA, Archive

pytestmark = pytest.mark.process


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def archive(tmp_path) -> Iterator[Archive]:
    """An archive on this machine, of one folder with one file."""
    with tarfile.open(tmp_path / "dev-clean.tar.gz", "w:gz") as members:
        member = tarfile.TarInfo("LibriSpeech/dev-clean/file.txt")
        member.size = 1
        members.addfile(member, io.BytesIO(b"x"))
    address = ("127.0.0.1", 0)
    with ThreadingHTTPServer(address, lambda *args: Handler(*args, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/dev-clean.tar.gz"
            yield Archive({url: None}, "LibriSpeech/dev-clean")
        finally:
            server.shutdown()
            thread.join()


def call(folder: Path, name: str = "dev-clean") -> int:
    return main(["data", "download", "--out", str(folder), name])


def test_the_command_says_what_it_did(archive, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(CORPORA, "dev-clean", (archive,))
    assert [call(tmp_path / "data") for _ in range(2)] == [0, 0]
    folder = tmp_path / "data" / "LibriSpeech" / "dev-clean"
    assert capsys.readouterr().out == f"{folder}: downloaded\n{folder}: is there already\n"
    assert (folder / "file.txt").read_bytes() == b"x"


def test_the_command_says_why_it_stopped(archive, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    monkeypatch.setitem(CORPORA, "dev-clean", (Archive({"http://127.0.0.1:1/dev-clean.tar.gz": None}, "x"),))
    assert call(tmp_path / "data") == 1
    printed = capsys.readouterr().err
    assert re.match("openfl-audio data download: http://127.0.0.1:1/dev-clean.tar.gz: .*; what came is kept", printed)
    monkeypatch.setitem(CORPORA, "dev-clean", (archive,))
    (tmp_path / "data" / "LibriSpeech").touch()  # where its folder should go
    assert call(tmp_path / "data") == 1
    assert re.search(
        "openfl-audio data download: .*File exists.*; the same command resumes it", capsys.readouterr().err
    )


def test_an_unknown_corpus_is_refused_with_those_there_are(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        call(tmp_path, "fsd5k")
    assert ended.value.code == 2
    assert "argument NAME: invalid choice: 'fsd5k' (choose from" in capsys.readouterr().err
