"""Downloading from a server on this machine, with small archives in the form of the published ones."""

import hashlib
import http.server
import random
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from scripts import download_fsd50k
from scripts.download_fsd50k import ARCHIVES, Archive, DownloadError, download, download_corpus

needs_zip = pytest.mark.skipif(shutil.which("zip") is None, reason="zip is not installed")


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; cuts the first answers short if told so, and remembers what it was asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.ranges: list[tuple[str, int]] = []
        self.cut_after_bytes: list[int] = []
        self.knows_ranges = True
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.server.folder / self.path.strip("/")
        if not path.is_file():
            self.send_error(404)
            return
        first = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1]) if self.server.knows_ranges else 0
        self.server.ranges.append((path.name, first))
        rest = path.read_bytes()[first:]
        self.send_response(206 if self.server.knows_ranges else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        cut = self.server.cut_after_bytes.pop(0) if self.server.cut_after_bytes else len(rest)
        self.wfile.write(rest[:cut])

    def log_message(self, *args: object) -> None:
        """Nothing on the screen."""


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    server = Server(tmp_path / "served")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def archive_of(path: Path) -> Archive:
    return Archive(path.stat().st_size, hashlib.md5(path.read_bytes()).hexdigest())


@pytest.fixture
def served(server):
    content = random.Random(0).randbytes(3_000_000)
    (server.folder / "file.bin").write_bytes(content)
    return content, archive_of(server.folder / "file.bin")


def test_a_download_that_breaks_off_goes_on_where_it_was(server, served, tmp_path):
    content, archive = served
    server.cut_after_bytes = [1_200_000, 900_000]
    shown = []
    download(f"{server.url}/file.bin", tmp_path / "file.bin", archive, lambda completed: shown.append(completed))
    assert (tmp_path / "file.bin").read_bytes() == content
    assert server.ranges == [("file.bin", 0), ("file.bin", 1_200_000), ("file.bin", 2_100_000)]
    assert shown == sorted(shown)
    assert shown[-1] == 3_000_000
    assert not list(tmp_path.glob("*.partial"))


def test_a_stopped_run_goes_on_and_a_finished_one_asks_for_nothing(server, served, tmp_path):
    content, archive = served
    (tmp_path / "file.bin.partial").write_bytes(content[:1_000_001])
    for _ in range(2):
        download(f"{server.url}/file.bin", tmp_path / "file.bin", archive)
    assert (tmp_path / "file.bin").read_bytes() == content
    assert server.ranges == [("file.bin", 1_000_001)]


def test_a_server_without_ranges_sends_it_all_again(server, served, tmp_path):
    content, archive = served
    server.knows_ranges = False
    (tmp_path / "file.bin.partial").write_bytes(content[:1_000])
    download(f"{server.url}/file.bin", tmp_path / "file.bin", archive)
    assert (tmp_path / "file.bin").read_bytes() == content


def test_another_content_is_refused_and_removed(server, served, tmp_path):
    wrong = served[1]._replace(md5="0" * 32)
    with pytest.raises(
        DownloadError, match=f"its MD5 is {served[1].md5}, and 0{{32}} is published; what was loaded is"
    ):
        download(f"{server.url}/file.bin", tmp_path / "file.bin", wrong)
    assert not list(tmp_path.glob("file.bin*"))


def test_a_file_that_is_not_there_and_a_server_that_sends_nothing_are_told(server, served, tmp_path, monkeypatch):
    with pytest.raises(DownloadError, match="nowhere.bin: the server answers 404 Not Found"):
        download(f"{server.url}/nowhere.bin", tmp_path / "nowhere.bin", served[1])
    monkeypatch.setattr(download_fsd50k, "ATTEMPTS", 2)
    server.cut_after_bytes = [500, 0, 0]
    with pytest.raises(DownloadError, match="file.bin: .*; the same command goes on from here"):
        download(f"{server.url}/file.bin", tmp_path / "file.bin", served[1])
    assert (tmp_path / "file.bin.partial").stat().st_size == 500


@needs_zip
def test_archives_in_parts_become_the_folders_that_preparation_reads(server, tmp_path):
    generator = random.Random(1)
    contents = {f"FSD50K.dev_audio/{i}.wav": generator.randbytes(50_000) for i in range(5)}
    contents["FSD50K.ground_truth/dev.csv"] = b"fname,labels,mids,split\n"
    for name, content in contents.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for folder, options in (("FSD50K.dev_audio", ["-s", "64k"]), ("FSD50K.ground_truth", [])):
        command = ["zip", "-q", "-r", *options, server.folder / f"{folder}.zip", folder]
        subprocess.run(command, cwd=tmp_path / "source", check=True)
    archives = {path.name: archive_of(path) for path in sorted(server.folder.iterdir())}
    assert {"FSD50K.dev_audio.z01", "FSD50K.dev_audio.z02", "FSD50K.dev_audio.zip"} < set(archives)

    out = tmp_path / "FSD50K"
    download_corpus(out, archives, server.url)
    assert {str(path.relative_to(out)): path.read_bytes() for path in out.glob("FSD50K.*/*")} == contents
    assert not list(out.glob("*.partial"))
    # What is unpacked is not loaded again, also when the archives are gone.
    shutil.rmtree(out / "archives")
    asked = len(server.ranges)
    download_corpus(out, archives, server.url)
    assert len(server.ranges) == asked == len(archives)


@needs_zip
def test_a_part_that_is_not_there_stops_the_unpacking(server, tmp_path):
    (tmp_path / "FSD50K.dev_audio").mkdir()
    (tmp_path / "FSD50K.dev_audio/1.wav").write_bytes(random.Random(2).randbytes(200_000))
    archive = server.folder / "FSD50K.dev_audio.zip"
    subprocess.run(["zip", "-q", "-r", "-s", "64k", archive, "FSD50K.dev_audio"], cwd=tmp_path, check=True)
    (server.folder / "FSD50K.dev_audio.z02").unlink()
    archives = {path.name: archive_of(path) for path in sorted(server.folder.iterdir())}
    with pytest.raises(DownloadError, match="FSD50K.dev_audio.zip: zip cannot join its parts"):
        download_corpus(tmp_path / "out", archives, server.url)
    assert not (tmp_path / "out/FSD50K.dev_audio").exists()


def test_without_zip_nothing_is_loaded(server, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DownloadError, match="zip is not installed, and joins archives in several parts"):
        download_corpus(tmp_path / "out", {}, server.url)


def test_the_published_parts_are_of_3_gib_and_the_last_of_a_half_is_the_rest():
    parts = {name: archive.size_bytes for name, archive in ARCHIVES.items() if "audio" in name}
    assert {size for name, size in parts.items() if ".z0" in name} == {3 * 2**30}
    assert all(0 < size < 3 * 2**30 for name, size in parts.items() if name.endswith(".zip"))
    assert len({archive.md5 for archive in ARCHIVES.values()}) == len(ARCHIVES) == 10
    assert all(re.fullmatch("[0-9a-f]{32}", archive.md5) for archive in ARCHIVES.values())
