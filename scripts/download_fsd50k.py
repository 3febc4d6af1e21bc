#!/usr/bin/env python3
"""Download FSD50K from Zenodo, check it and unpack it.

    python scripts/download_fsd50k.py --out data/FSD50K

25 GB to load, 34 GB of audio, and for a while 18 GB for an archive that is being joined: 77 GB of disk, until you
remove OUT/archives. A run that was stopped goes on where it was. Sizes and MD5 sums are those that Zenodo publishes for
record 4060432. The audio comes as archives in several parts, which Info-ZIP's `zip` joins: it must be installed. The
result is the layout that scripts/prepare_fsd50k.py reads.
"""

import argparse
import hashlib
import http.client
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
    track,
)

RECORD = "https://zenodo.org/records/4060432/files"
CHUNK_BYTES = 2**20
ATTEMPTS = 5  # in a row that load nothing
TIMEOUT_S = 60


class DownloadError(Exception):
    """The corpus cannot be had; the message is one sentence for the user."""


class Archive(NamedTuple):
    size_bytes: int
    md5: str


ARCHIVES = {
    "FSD50K.ground_truth.zip": Archive(334_701, "ca27382c195e37d2269c4c866dd73485"),
    "FSD50K.metadata.zip": Archive(6_700_838, "b9ea0c829a411c1d42adb9da539ed237"),
    "FSD50K.dev_audio.z01": Archive(3_221_225_472, "faa7cf4cc076fc34a44a479a5ed862a3"),
    "FSD50K.dev_audio.z02": Archive(3_221_225_472, "8f9b66153e68571164fb1315d00bc7bc"),
    "FSD50K.dev_audio.z03": Archive(3_221_225_472, "1196ef47d267a993d30fa98af54b7159"),
    "FSD50K.dev_audio.z04": Archive(3_221_225_472, "d088ac4e11ba53daf9f7574c11cccac9"),
    "FSD50K.dev_audio.z05": Archive(3_221_225_472, "81356521aa159accd3c35de22da28c7f"),
    "FSD50K.dev_audio.zip": Archive(2_306_663_327, "c480d119b8f7a7e32fdb58f3ea4d6c5a"),
    "FSD50K.eval_audio.z01": Archive(3_221_225_472, "3090670eaeecc013ca1ff84fe4442aeb"),
    "FSD50K.eval_audio.zip": Archive(3_037_675_767, "6fa47636c3a3ad5c7dfeba99f2637982"),
}


def download_corpus(out: Path, archives: Mapping[str, Archive] = ARCHIVES, record: str = RECORD) -> None:
    """Load what is not there yet, check it, and unpack it into `out`.

    Raises:
        DownloadError: no connection, another file than the published one, or nothing to join the parts with.
    """
    if shutil.which("zip") is None:
        raise DownloadError("zip is not installed, and joins archives in several parts: apt install zip")
    folder = out / "archives"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {name: archive for name, archive in archives.items() if not (out / Path(name).stem).is_dir()}
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        for name, archive in wanted.items():
            bar = progress.add_task(name, total=archive.size_bytes)
            download(f"{record}/{name}", folder / name, archive, partial(progress.update, bar))
            progress.update(bar, completed=archive.size_bytes)
    for name in wanted:
        if name.endswith(".zip"):
            unpack(folder / name, out, has_parts=name.removesuffix("zip") + "z01" in archives)


def download(url: str, path: Path, archive: Archive, show: Callable[..., object] = lambda completed: None) -> None:
    """Load one file, beginning where an earlier attempt ended. It gets its name when its sum is right."""
    if path.exists():
        return
    unfinished = path.with_name(f"{path.name}.partial")
    failures = 0
    while (loaded := _size(unfinished)) < archive.size_bytes:
        try:
            _load_rest(url, unfinished, show)
            reason = f"the server ended after {_size(unfinished):,} of {archive.size_bytes:,} bytes"
        except urllib.error.HTTPError as error:
            reason = f"the server answers {error.code} {error.reason}"
            if error.code < 500:
                raise DownloadError(f"{url}: {reason}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(error)
        failures = 0 if _size(unfinished) > loaded else failures + 1
        if failures == ATTEMPTS:
            raise DownloadError(f"{url}: {reason}; the same command goes on from here")
        time.sleep(failures)
    md5 = _md5(unfinished)
    if md5 != archive.md5:
        unfinished.unlink()
        raise DownloadError(f"{url}: its MD5 is {md5}, and {archive.md5} is published; what was loaded is removed")
    unfinished.rename(path)


def _load_rest(url: str, unfinished: Path, show: Callable[..., object]) -> None:
    request = urllib.request.Request(
        url, headers={"User-Agent": "openfl-audio", "Range": f"bytes={_size(unfinished)}-"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        # 206 is the rest that was asked for; with 200 it is the whole file once more.
        file = unfinished.open("ab" if response.status == http.HTTPStatus.PARTIAL_CONTENT else "wb")
        with file:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                show(completed=file.tell())


def unpack(archive: Path, out: Path, has_parts: bool) -> None:
    """Unpack an archive's one folder into `out`, where it appears when it is complete."""
    unfinished = out / f"{archive.stem}.partial"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    whole = unfinished / archive.name if has_parts else archive
    if has_parts:
        # Split size 0 means one file. Where a part lacks, zip asks for it on and on: q is to give up.
        command = ["zip", "-q", "-s", "0", str(archive), "--out", str(whole)]
        joined = subprocess.run(command, capture_output=True, text=True, check=False, input="q\n")
        if joined.returncode != 0:
            raise DownloadError(f"{archive}: zip cannot join its parts ({' '.join(joined.stdout.split())})")
    try:
        with zipfile.ZipFile(whole) as content:
            for member in track(content.namelist(), f"Unpacking {archive.name}", console=Console(stderr=True)):
                content.extract(member, unfinished)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise DownloadError(f"{archive}: cannot be unpacked ({error})") from error
    if not (unfinished / archive.stem).is_dir():
        raise DownloadError(f"{archive}: holds no folder {archive.stem}")
    (unfinished / archive.stem).rename(out / archive.stem)
    shutil.rmtree(unfinished)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.md5(usedforsecurity=False)
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    options = parser.parse_args(arguments)
    try:
        download_corpus(options.out)
    except DownloadError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{options.out}: stopped ({error}); the same command goes on from here", file=sys.stderr)
        return 1
    print(f"{options.out} is complete; {options.out / 'archives'} can be removed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
