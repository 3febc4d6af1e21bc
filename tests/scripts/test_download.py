"""Downloads from a server on this machine: broken off, damaged, complete, and what lies in the folder afterwards."""

import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from scripts import download as script
from scripts.download import ARCHIVES, Archive, DownloadError, download

AUDIO = bytes(range(256)) * 4_000  # about 1 MB
FILES = {
    "LibriSpeech/SPEAKERS.TXT": b"; readers",
    "LibriSpeech/dev-clean/84/121/84-121-0000.flac": AUDIO,
    "LibriSpeech/dev-clean/84/121/84-121.trans.txt": b"84-121-0000 GO",
}


def make_tar(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz", compresslevel=0) as members:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            members.addfile(member, io.BytesIO(data))
    return content.getvalue()


def make_zip(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as members:
        for name, data in files.items():
            members.writestr(name, data)
    return content.getvalue()


class Server(ThreadingHTTPServer):
    """Serves `content`, with ranges if `has_ranges`; after `breaks_after` bytes the connection ends."""

    content = b""
    has_ranges = True
    breaks_after: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []

    def archive(self, name: str, folder: str, sha256: str | None) -> Archive:
        return Archive(f"http://127.0.0.1:{self.server_port}/{name}", folder, sha256)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        if self.path.endswith("missing.tar.gz"):
            self.send_error(404)
            return
        size = len(self.server.content)
        begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.has_ranges else 0
        if begin >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.end_headers()
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(size - begin))
        self.end_headers()
        self.wfile.write(self.server.content[begin : self.server.breaks_after])

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def dev_clean(server):
    server.content = make_tar(FILES)
    return server.archive("dev-clean.tar.gz", "LibriSpeech/dev-clean", hashlib.sha256(server.content).hexdigest())


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_archive_is_unpacked_and_nothing_else_is_left(dev_clean, tmp_path):
    assert download(dev_clean, tmp_path / "data")
    assert files_of(tmp_path / "data") == FILES
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["LibriSpeech"]


def test_what_is_there_is_not_fetched_again(server, dev_clean, tmp_path):
    assert download(dev_clean, tmp_path)
    assert not download(dev_clean, tmp_path)
    assert server.ranges == [None]


def test_a_second_subset_comes_beside_the_first(server, dev_clean, tmp_path):
    download(dev_clean, tmp_path)
    server.content = make_tar({"LibriSpeech/SPEAKERS.TXT": b"; all readers", "LibriSpeech/test-clean/61/x": b"y"})
    download(server.archive("test-clean.tar.gz", "LibriSpeech/test-clean", None), tmp_path)
    assert files_of(tmp_path) == FILES | {
        "LibriSpeech/SPEAKERS.TXT": b"; all readers",
        "LibriSpeech/test-clean/61/x": b"y",
    }


def test_a_download_that_broke_off_goes_on_where_it_was(server, dev_clean, tmp_path):
    server.breaks_after = 300_000
    with pytest.raises(DownloadError, match="the connection ended after 300,000 of .* bytes; what came is kept"):
        download(dev_clean, tmp_path)
    server.breaks_after = None
    assert download(dev_clean, tmp_path)
    assert server.ranges == [None, "bytes=300000-"]
    assert files_of(tmp_path) == FILES


def test_a_server_without_ranges_sends_all_again(server, dev_clean, tmp_path):
    server.has_ranges = False
    (tmp_path / "dev-clean.tar.gz.part").write_bytes(b"of something else")
    assert download(dev_clean, tmp_path)
    assert files_of(tmp_path) == FILES


def test_a_download_that_was_complete_but_not_checked_is_not_fetched_again(server, dev_clean, tmp_path):
    (tmp_path / "dev-clean.tar.gz.part").write_bytes(server.content)
    assert download(dev_clean, tmp_path)
    assert server.ranges == [f"bytes={len(server.content)}-"]
    assert files_of(tmp_path) == FILES


def test_a_damaged_archive_is_refused_and_removed(server, dev_clean, tmp_path):
    server.content = server.content.replace(b"; readers", b"; writers")
    with pytest.raises(DownloadError, match=f"has the SHA-256 .*, and {dev_clean.sha256} is published"):
        download(dev_clean, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_zip_file_is_checked_by_the_checksums_in_it(server, tmp_path):
    files = {"wham_noise/tr/a.wav": AUDIO, "wham_noise/metadata/a.csv": b"1,2"}
    noise = server.archive("wham_noise.zip", "wham_noise", None)
    server.content = make_zip(files)
    damaged = bytearray(server.content)
    damaged[5_000] ^= 1
    server.content = bytes(damaged)
    with pytest.raises(DownloadError, match=r"wham_noise.zip is broken \(Bad CRC-32 .* and is removed"):
        download(noise, tmp_path)
    assert not (tmp_path / "wham_noise").exists()
    server.content = make_zip(files)
    assert download(noise, tmp_path)
    assert files_of(tmp_path) == files


def test_an_unpacking_that_was_killed_begins_anew(server, dev_clean, tmp_path):
    (tmp_path / ".dev-clean.tar.gz.partial/LibriSpeech/dev-clean").mkdir(parents=True)
    (tmp_path / ".dev-clean.tar.gz.partial/LibriSpeech/dev-clean/half.flac").touch()
    (tmp_path / "dev-clean.tar.gz").write_bytes(server.content)
    assert download(dev_clean, tmp_path)
    assert server.ranges == []
    assert files_of(tmp_path) == FILES


def test_what_cannot_be_had_is_one_sentence(server, tmp_path, monkeypatch, capsys):
    with pytest.raises(DownloadError, match="missing.tar.gz: the server answers 404 Not Found"):
        download(server.archive("missing.tar.gz", "x", None), tmp_path)
    server.content = make_tar({"elsewhere/x": b"y"})
    with pytest.raises(DownloadError, match="has no folder LibriSpeech/dev-clean: it is not the archive"):
        download(server.archive("other.tar.gz", "LibriSpeech/dev-clean", None), tmp_path)
    gone = Archive("http://127.0.0.1:1/dev-clean.tar.gz", "LibriSpeech/dev-clean", None)
    monkeypatch.setitem(ARCHIVES, "dev-clean", gone)
    assert script.main(["--out", str(tmp_path), "dev-clean"]) == 1
    assert "error: http://127.0.0.1:1/dev-clean.tar.gz: " in capsys.readouterr().err


def test_the_command_says_what_it_did(dev_clean, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(ARCHIVES, "dev-clean", dev_clean)
    assert [script.main(["--out", str(tmp_path), "dev-clean"]) for _ in range(2)] == [0, 0]
    folder = tmp_path / "LibriSpeech/dev-clean"
    assert capsys.readouterr().out == f"{folder}: downloaded\n{folder}: is there already\n"


def test_checksums_are_those_of_torchaudio():
    from torchaudio.datasets import librispeech

    published = {url.rsplit("/", 1)[-1]: sha256 for url, sha256 in librispeech._CHECKSUMS.items()}
    assert {archive.name: archive.sha256 for archive in ARCHIVES.values() if archive.sha256} == published
