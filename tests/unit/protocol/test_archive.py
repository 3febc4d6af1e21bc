import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from openfl_audio.errors import ArchiveError
from openfl_audio.protocol.archive import (
    MAX_FILES,
    MAX_UNPACKED_BYTES,
    check_archive,
    extract_file,
    open_archive,
    stream_archive,
    unpack_archive,
)


def named(name: str, mode: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def write_archive(
    path: Path, *entries: zipfile.ZipInfo, content: bytes = b"content", compression: int = zipfile.ZIP_DEFLATED
) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for entry in entries:
            archive.writestr(entry, content, compression)
    return path


def write_claiming(path: Path, *sizes: int) -> Path:
    """An archive whose directory says that its entries unpack to `sizes` bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for index, size in enumerate(sizes):
            archive.writestr(f"file-{index}", b"x")
            archive.filelist[-1].file_size = size
    return path


def corrupt_data(path: Path, start: int, data: bytes) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[:start] + data + content[start + len(data) :])
    return path


OUTSIDE = "leads out of the experiment's folder"
NO_FILE = "is a link or no plain file"
BAD_ARCHIVES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "an absolute path": (lambda path: write_archive(path, named("/etc/passwd")), OUTSIDE),
    "the folder above": (lambda path: write_archive(path, named("../other")), OUTSIDE),
    "the folder above, further in": (lambda path: write_archive(path, named("a/../../other")), OUTSIDE),
    "the folder above, with backslashes": (lambda path: write_archive(path, named("a\\..\\..\\other")), OUTSIDE),
    "an absolute path with a backslash": (lambda path: write_archive(path, named("\\windows")), OUTSIDE),
    "a drive letter": (lambda path: write_archive(path, named("C:/windows")), OUTSIDE),
    "a path from where a drive is": (lambda path: write_archive(path, named("C:outside")), OUTSIDE),
    "a good entry and a bad one": (
        lambda path: write_archive(path, named("good"), named("../bad")),
        r"'\.\./bad' lead",
    ),
    "a symbolic link": (lambda path: write_archive(path, named("link", stat.S_IFLNK | 0o777)), NO_FILE),
    "a named pipe": (lambda path: write_archive(path, named("pipe", stat.S_IFIFO | 0o666)), NO_FILE),
    "a device": (lambda path: write_archive(path, named("device", stat.S_IFBLK | 0o666)), NO_FILE),
    "a file of too many bytes": (
        lambda path: write_claiming(path, MAX_UNPACKED_BYTES + 1),
        f"unpacks to {MAX_UNPACKED_BYTES + 1} bytes, more than {MAX_UNPACKED_BYTES}",
    ),
    "too many bytes together": (
        lambda path: write_claiming(path, *[MAX_UNPACKED_BYTES // 2] * 3),
        "unpacks to 1610612736 bytes",
    ),
    "more names than a list of files may have": (
        lambda path: write_archive(path, *[named(f"{index:0>5}" + "n" * 1500) for index in range(8000)], content=b""),
        "the archive's list of files has [0-9]+ bytes, more than 10240000",
    ),
    "too many files": (
        lambda path: write_archive(path, *[named(f"{index}") for index in range(MAX_FILES + 1)], content=b""),
        f"has {MAX_FILES + 1} files, more than {MAX_FILES}",
    ),
}


@pytest.mark.parametrize("fault", BAD_ARCHIVES)
def test_a_bad_archive_is_refused_before_anything_is_unpacked(tmp_path, fault):
    write, sentence = BAD_ARCHIVES[fault]
    archive = write(tmp_path / "workspace.zip")
    with pytest.raises(ArchiveError, match=sentence):
        check_archive(archive)
    (tmp_path / "target").mkdir()
    with pytest.raises(ArchiveError, match=sentence):
        unpack_archive(archive, tmp_path / "target")
    assert list((tmp_path / "target").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"workspace.zip", "target"}


@pytest.mark.parametrize("fault", ["too many files", "more names than a list of files may have"])
def test_a_long_list_of_files_is_refused_before_it_is_read(tmp_path, monkeypatch, fault):
    archive = BAD_ARCHIVES[fault][0](tmp_path / "workspace.zip")
    monkeypatch.setattr(zipfile, "ZipInfo", None)  # of which zipfile makes one for each file
    with pytest.raises(ArchiveError, match=BAD_ARCHIVES[fault][1]), open_archive(archive):
        pass


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + b"\0" * 100])
def test_other_bytes_are_no_archive(tmp_path, content):
    (tmp_path / "workspace.zip").write_bytes(content)
    with pytest.raises(ArchiveError, match="workspace.zip is no zip archive"):
        check_archive(tmp_path / "workspace.zip")


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        # In the list of files: the version that is needed to unpack, and a name in UTF-8.
        (b"PK\x01\x02\x14\x03\x14\x00", b"PK\x01\x02\x14\x03\xff\x00"),
        ("\u00e9.txt".encode(), b"\xff\xff.txt"),
    ],
)
def test_a_list_of_files_that_cannot_be_read_is_said(tmp_path: Path, good: bytes, bad: bytes) -> None:
    archive = write_archive(tmp_path / "workspace.zip", named("\u00e9.txt"))
    content = archive.read_bytes()
    assert good in content
    archive.write_bytes(content.replace(good, bad))
    with pytest.raises(ArchiveError, match=r"workspace\.zip is no zip archive"):
        check_archive(archive)


def test_a_good_archive_is_unpacked_whatever_system_wrote_it(tmp_path):
    entries = [named("plan/plan.yaml"), named("a..b"), named("file", stat.S_IFREG | 0o644), named("pure mode", 0o644)]
    archive = write_archive(tmp_path / "workspace.zip", *entries, named("folder/", stat.S_IFDIR | 0o755))
    check_archive(archive)
    unpack_archive(archive, tmp_path / "target")
    found = {str(path.relative_to(tmp_path / "target")) for path in (tmp_path / "target").rglob("*") if path.is_file()}
    assert found == {"plan/plan.yaml", "a..b", "file", "pure mode"}
    assert (tmp_path / "target/plan/plan.yaml").read_bytes() == b"content"


def encrypted(path: Path) -> Path:
    archive = write_archive(path, named("file"))
    directory = archive.read_bytes().index(b"PK\x01\x02")
    return corrupt_data(corrupt_data(archive, directory + 8, b"\x01\x00"), 6, b"\x01\x00")


def of_unknown_compression(path: Path) -> Path:
    archive = write_archive(path, named("file"))
    directory = archive.read_bytes().index(b"PK\x01\x02")
    return corrupt_data(corrupt_data(archive, directory + 10, b"\x63\x00"), 8, b"\x63\x00")


FIRST_BYTE = 30 + len("file")  # after the entry's own header
UNREADABLE: dict[str, Callable[[Path], Path]] = {
    "an entry that is larger than it says": lambda path: write_claiming(path, 0),
    "data that do not match their checksum": lambda path: corrupt_data(
        write_archive(path, named("file"), compression=zipfile.ZIP_STORED), FIRST_BYTE, b"?"
    ),
    "data that nobody can inflate": lambda path: corrupt_data(
        write_archive(path, named("file"), content=b"x" * 100), FIRST_BYTE, b"\xff\xff\xff"
    ),
    "an encrypted entry": encrypted,
    "a compression that nobody knows": of_unknown_compression,
    "a file where a folder should be": lambda path: write_archive(path, named("file"), named("file/inside")),
}


@pytest.mark.parametrize("fault", UNREADABLE)
def test_an_archive_that_cannot_be_unpacked_raises_one_kind_of_error(tmp_path, fault):
    archive = UNREADABLE[fault](tmp_path / "workspace.zip")
    with pytest.raises(ArchiveError, match="workspace.zip cannot be unpacked"):
        unpack_archive(archive, tmp_path / "target")


def test_one_file_is_extracted_by_name_up_to_a_limit(tmp_path):
    archive = write_archive(tmp_path / "workspace.zip", named("file"))
    with zipfile.ZipFile(archive) as zipped:
        extract_file(zipped, "file", tmp_path / "file", 7)
        assert (tmp_path / "file").read_bytes() == b"content"
        with pytest.raises(ArchiveError, match="'other' is missing"):
            extract_file(zipped, "other", tmp_path / "other", 7)
        with pytest.raises(ArchiveError, match="'file' has 7 bytes, more than 6"):
            extract_file(zipped, "file", tmp_path / "again", 6)
    assert not (tmp_path / "again").exists()


def test_a_streamed_archive_is_made_as_it_is_sent_and_reads_like_any_other(tmp_path):
    asked: list[int] = []

    def pieces() -> Iterator[bytes]:
        for number in range(4):
            asked.append(number)
            yield bytes([number]) * 1000

    stream = stream_archive([("plan.json", [b"{}"]), ("empty", []), ("model", pieces())])
    made = [next(stream), next(stream)]
    assert asked == [0]  # no piece is made before the one before it was taken
    made += stream
    assert max(map(len, made)) < 1500  # nothing is collected
    (tmp_path / "archive").write_bytes(b"".join(made))
    with open_archive(tmp_path / "archive") as zipped:
        assert zipped.testzip() is None
        assert zipped.namelist() == ["plan.json", "empty", "model"]
        assert [zipped.read(name) for name in ("plan.json", "empty")] == [b"{}", b""]
        extract_file(zipped, "model", tmp_path / "model", 4000)
    assert (tmp_path / "model").read_bytes() == b"".join(bytes([n]) * 1000 for n in range(4))
