"""Downloads from a server on this machine: broken off, damaged, in parts, complete, and what they leave behind."""

import hashlib
import io
import random
import re
import shutil
import subprocess
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from shard_descriptors import download as module
from shard_descriptors.download import CORPORA, Archive, DownloadError, download

needs_zip = pytest.mark.skipif(shutil.which("zip") is None, reason="zip is not installed")

AUDIO = random.Random(0).randbytes(1_000_000)
FILES = {
    "LibriSpeech/SPEAKERS.TXT": b"; readers",
    "LibriSpeech/dev-clean/84/121/84-121-0000.flac": AUDIO,
    "LibriSpeech/dev-clean/84/121/84-121.trans.txt": b"84-121-0000 GO",
}


def make_tar(files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz", compresslevel=0) as members:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            members.addfile(member, io.BytesIO(data))
    return content.getvalue()


def make_zip(files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as members:
        for name, data in files.items():
            members.writestr(name, data)
    return content.getvalue()


class Server(ThreadingHTTPServer):
    """Serves `contents`; cuts its first answers after `cuts` bytes, and remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.has_ranges = True
        self.says_length = True
        self.requests: list[tuple[str, str | None]] = []

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def archive(self, folder, *names, root=""):
        """Return the archive of files that are served, with their sums: those of a split zip are published as MD5."""
        algorithm = "md5" if len(names) > 1 else "sha256"
        sums = [f"{algorithm}:{hashlib.new(algorithm, self.contents[name]).hexdigest()}" for name in names]
        return Archive(dict(zip(map(self.url, names), sums, strict=True)), folder, root)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.strip("/")
        wanted = self.headers.get("Range")
        self.server.requests.append((name, wanted))
        if name not in self.server.contents:
            self.send_error(503 if name == "busy.zip" else 404)
            return
        content = self.server.contents[name]
        begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.has_ranges else 0
        if begin >= len(content):
            self.send_response(416)
            self.end_headers()
            return
        self.send_response(206 if begin else 200)
        if self.server.says_length:
            self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        self.wfile.write(content[begin:][: self.server.cuts.pop(0) if self.server.cuts else None])

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
    server.contents["dev-clean.tar.gz"] = make_tar(FILES)
    return server.archive("LibriSpeech/dev-clean", "dev-clean.tar.gz")


@pytest.fixture
def split(server, tmp_path):
    """An archive in four parts of 64 KiB or less, and the files in it."""
    files = {f"FSD50K.dev_audio/{i}.wav": random.Random(i).randbytes(50_000) for i in range(5)}
    source = tmp_path / "source"
    (source / "FSD50K.dev_audio").mkdir(parents=True)
    for name, data in files.items():
        (source / name).write_bytes(data)
    subprocess.run(["zip", "-q", "-r", "-s", "64k", "FSD50K.dev_audio.zip", "FSD50K.dev_audio"], cwd=source, check=True)
    parts = sorted(path for path in source.iterdir() if path.is_file())
    assert [path.suffix for path in parts] == [".z01", ".z02", ".z03", ".zip"]
    server.contents |= {path.name: path.read_bytes() for path in parts}
    archive = server.archive("FSD50K/FSD50K.dev_audio", *[path.name for path in parts], root="FSD50K")
    return archive, {f"FSD50K/{name}": data for name, data in files.items()}


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_archive_is_unpacked_and_nothing_else_is_left(dev_clean, tmp_path):
    assert download(dev_clean, tmp_path / "data")
    assert files_of(tmp_path / "data") == FILES
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["LibriSpeech"]


def test_what_is_there_is_not_fetched_again(server, dev_clean, tmp_path):
    assert download(dev_clean, tmp_path)
    assert not download(dev_clean, tmp_path)
    assert server.requests == [("dev-clean.tar.gz", None)]


def test_a_second_subset_comes_beside_the_first(server, dev_clean, tmp_path):
    download(dev_clean, tmp_path)
    second = {"LibriSpeech/SPEAKERS.TXT": b"; all readers", "LibriSpeech/test-clean/61/x": b"y"}
    server.contents["test-clean.tar.gz"] = make_tar(second)
    download(server.archive("LibriSpeech/test-clean", "test-clean.tar.gz"), tmp_path)
    assert files_of(tmp_path) == FILES | second


def test_an_archive_without_a_folder_of_its_own_becomes_one(server, tmp_path):
    files = {"yes/0a7c2a8d_nohash_0.wav": AUDIO, "validation_list.txt": b"yes/0a7c2a8d_nohash_0.wav\n"}
    server.contents["speech_commands_v0.02.tar.gz"] = make_tar({f"./{name}": data for name, data in files.items()})
    archive = server.archive("speech_commands", "speech_commands_v0.02.tar.gz", root="speech_commands")
    assert download(archive, tmp_path)
    assert files_of(tmp_path) == {f"speech_commands/{name}": data for name, data in files.items()}


@needs_zip
def test_an_archive_in_parts_becomes_the_folder_that_preparation_reads(server, split, tmp_path):
    archive, files = split
    assert download(archive, tmp_path / "data")
    assert files_of(tmp_path / "data") == files
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["FSD50K"]
    assert len(server.requests) == 4


@needs_zip
def test_of_an_archive_in_parts_only_what_lacks_is_fetched(server, split, tmp_path):
    archive, files = split
    out = tmp_path / "data"
    out.mkdir()
    (out / "FSD50K.dev_audio.z01").write_bytes(server.contents["FSD50K.dev_audio.z01"])
    (out / "FSD50K.dev_audio.z02.part").write_bytes(server.contents["FSD50K.dev_audio.z02"][:9])
    assert download(archive, out)
    assert server.requests == [
        ("FSD50K.dev_audio.z02", "bytes=9-"),
        ("FSD50K.dev_audio.z03", None),
        ("FSD50K.dev_audio.zip", None),
    ]
    assert files_of(out) == files


@needs_zip
def test_a_part_that_lacks_stops_the_unpacking(server, split, tmp_path):
    archive, _ = split
    lacking = {url: checksum for url, checksum in archive.files.items() if not url.endswith(".z02")}
    with pytest.raises(DownloadError, match=r"FSD50K.dev_audio.zip: zip cannot join its parts \(.*z02"):
        download(archive._replace(files=lacking), tmp_path / "data")
    assert not (tmp_path / "data/FSD50K").exists()


def test_without_zip_nothing_is_loaded(server, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    server.contents |= {"x.z01": b"x", "x.zip": b"y"}
    with pytest.raises(DownloadError, match="zip is not installed, and joins the parts of FSD50K/x: apt install zip"):
        download(server.archive("FSD50K/x", "x.z01", "x.zip"), tmp_path)
    assert server.requests == []


def test_a_connection_that_breaks_off_is_taken_up_where_it_was(server, dev_clean, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 2)  # in a row that bring nothing: each of these brings something
    server.cuts = [300_000, 400_000]
    assert download(dev_clean, tmp_path)
    assert [wanted for _, wanted in server.requests] == [None, "bytes=300000-", "bytes=700000-"]
    assert files_of(tmp_path) == FILES


def test_a_server_that_sends_nothing_more_is_told_and_the_same_command_goes_on(
    server, dev_clean, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    server.cuts = [300_000, 0, 0]
    with pytest.raises(DownloadError, match="the connection ended after 300,000 of .* bytes; what came is kept"):
        download(dev_clean, tmp_path)
    assert download(dev_clean, tmp_path)
    assert [wanted for _, wanted in server.requests] == [None, *["bytes=300000-"] * 3]
    assert files_of(tmp_path) == FILES


def test_a_server_without_ranges_sends_all_again(server, dev_clean, tmp_path):
    server.has_ranges = False
    (tmp_path / "dev-clean.tar.gz.part").write_bytes(b"of something else")
    assert download(dev_clean, tmp_path)
    assert files_of(tmp_path) == FILES


def test_a_server_without_ranges_that_never_gets_further_is_left(server, dev_clean, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    server.has_ranges = False
    server.cuts = [300_000, 200_000, 300_000]
    with pytest.raises(DownloadError, match="the connection ended after 300,000 of .* bytes"):
        download(dev_clean, tmp_path)


def test_a_server_need_not_say_how_much_it_sends(server, dev_clean, tmp_path):
    server.says_length = False
    assert download(dev_clean, tmp_path)
    assert files_of(tmp_path) == FILES


def test_a_download_that_was_complete_but_not_checked_is_not_fetched_again(server, dev_clean, tmp_path):
    content = server.contents["dev-clean.tar.gz"]
    (tmp_path / "dev-clean.tar.gz.part").write_bytes(content)
    assert download(dev_clean, tmp_path)
    assert server.requests == [("dev-clean.tar.gz", f"bytes={len(content)}-")]
    assert files_of(tmp_path) == FILES


@needs_zip
def test_what_is_not_what_was_published_is_refused_and_removed(server, dev_clean, split, tmp_path):
    out = tmp_path / "data"
    for archive, algorithm in ((dev_clean, "SHA256"), (split[0], "MD5")):
        url, checksum = next(iter(archive.files.items()))
        name = url.rsplit("/", 1)[-1]
        server.contents[name] = server.contents[name][:-1] + b"\1"
        published = checksum.split(":")[1]
        with pytest.raises(DownloadError, match=f"{name}: its {algorithm} is [0-9a-f]+, and {published} is published"):
            download(archive, out)
        assert list(out.iterdir()) == []


def test_a_zip_file_is_checked_by_the_checksums_in_it(server, tmp_path):
    files = {"wham_noise/tr/a.wav": AUDIO, "wham_noise/metadata/a.csv": b"1,2"}
    noise = Archive({server.url("wham_noise.zip"): None}, "wham_noise")
    damaged = bytearray(make_zip(files))
    damaged[5_000] ^= 1
    server.contents["wham_noise.zip"] = bytes(damaged)
    with pytest.raises(DownloadError, match=r"wham_noise.zip is broken \(Bad CRC-32 .* and is removed"):
        download(noise, tmp_path)
    assert not (tmp_path / "wham_noise").exists()
    server.contents["wham_noise.zip"] = make_zip(files)
    assert download(noise, tmp_path)
    assert files_of(tmp_path) == files


def test_an_unpacking_that_was_killed_begins_anew(server, dev_clean, tmp_path):
    half = tmp_path / ".dev-clean.tar.gz.partial/content/LibriSpeech/dev-clean/half.flac"
    half.parent.mkdir(parents=True)
    half.touch()
    (tmp_path / "dev-clean.tar.gz").write_bytes(server.contents["dev-clean.tar.gz"])
    assert download(dev_clean, tmp_path)
    assert server.requests == []
    assert files_of(tmp_path) == FILES


def test_what_cannot_be_had_is_one_sentence(server, tmp_path, monkeypatch):
    with pytest.raises(DownloadError, match="missing.zip: the server answers 404 Not Found"):
        download(Archive({server.url("missing.zip"): None}, "x"), tmp_path)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    with pytest.raises(DownloadError, match="busy.zip: the server answers 503 Service Unavailable; what came is kept"):
        download(Archive({server.url("busy.zip"): None}, "x"), tmp_path)
    assert [name for name, _ in server.requests] == ["missing.zip", "busy.zip", "busy.zip"]
    server.contents["other.tar.gz"] = make_tar({"elsewhere/x": b"y"})
    with pytest.raises(DownloadError, match="has no folder dev-clean: it is not the archive that was published"):
        download(server.archive("LibriSpeech/dev-clean", "other.tar.gz"), tmp_path)


def test_checksums_are_those_of_torchaudio():
    from torchaudio.datasets import librispeech, speechcommands

    published = {url.rsplit("/", 1)[-1]: f"sha256:{sum}" for url, sum in librispeech._CHECKSUMS.items()}
    commands = "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
    published[commands.rsplit("/", 1)[-1]] = f"sha256:{speechcommands._CHECKSUMS[commands]}"
    files = {
        url: checksum for corpus in CORPORA.values() for archive in corpus for url, checksum in archive.files.items()
    }
    ours = {url.rsplit("/", 1)[-1]: sum for url, sum in files.items() if sum and sum.startswith("sha256:")}
    assert ours == published


def test_fsd50k_is_ten_files_with_sums_of_their_own_and_the_four_folders_of_its_layout():
    corpus = CORPORA["fsd50k"]
    names = [[url.rsplit(".", 1)[-1] for url in archive.files] for archive in corpus]
    assert names == [["z01", "z02", "z03", "z04", "z05", "zip"], ["z01", "zip"], ["zip"], ["zip"]]
    parts = ["dev_audio", "eval_audio", "ground_truth", "metadata"]
    assert [archive.folder for archive in corpus] == [f"FSD50K/FSD50K.{part}" for part in parts]
    sums = [checksum for archive in corpus for checksum in archive.files.values()]
    assert all(checksum and re.fullmatch("md5:[0-9a-f]{32}", checksum) for checksum in sums)
    assert len(set(sums)) == 10
