"""Downloads subsets of LibriSpeech and the noise recordings of WHAM, checks them and unpacks them.

    python scripts/download.py --out data train-clean-100 dev-clean test-clean      # data/LibriSpeech/...
    python scripts/download.py --out data wham-noise                                # data/wham_noise

An archive is kept as data/<archive>.part while it comes; a download that was broken off goes on when the script is
started again. It is checked, unpacked to a temporary folder that then takes its place, and removed. Room for an archive
and its content is needed at a time: LibriSpeech's train-clean-360 has 23 GB, WHAM's noise 18 GB.
"""

import argparse
import hashlib
import http.client
import shutil
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn, wrap_file

BLOCK_BYTES = 1 << 20
TIMEOUT_S = 60


class Archive(NamedTuple):
    """Attributes:
    url: of a .tar.gz or .zip file.
    folder: what it unpacks to.
    sha256: as published; None where nothing is, and the checksums inside a zip file have to do.
    """

    url: str
    folder: str
    sha256: str | None

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


def _librispeech(subset: str, sha256: str) -> Archive:
    return Archive(f"https://www.openslr.org/resources/12/{subset}.tar.gz", f"LibriSpeech/{subset}", sha256)


# The sums of LibriSpeech are those of torchaudio.datasets.LIBRISPEECH.
ARCHIVES = {
    "dev-clean": _librispeech("dev-clean", "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
    "dev-other": _librispeech("dev-other", "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"),
    "test-clean": _librispeech("test-clean", "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
    "test-other": _librispeech("test-other", "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"),
    "train-clean-100": _librispeech(
        "train-clean-100", "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"
    ),
    "train-clean-360": _librispeech(
        "train-clean-360", "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"
    ),
    "train-other-500": _librispeech(
        "train-other-500", "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2"
    ),
    # Where wham.whisper.ai sends to. No checksum of it is published.
    "wham-noise": Archive(
        "https://my-bucket-a8b4b49c25c811ee9a7e8bba05fa24c7.s3.amazonaws.com/wham_noise.zip", "wham_noise", None
    ),
}


class DownloadError(Exception):
    """The message is one sentence for the user."""


def download(archive: Archive, out: Path) -> bool:
    """Put the folder of an archive into `out`; False if it is there already.

    Raises:
        DownloadError: it cannot be reached, broke off, or is not what was published. In the last case it is removed.
    """
    if (out / archive.folder).exists():
        return False
    out.mkdir(parents=True, exist_ok=True)
    path = out / archive.name
    if not path.exists():
        part = out / f"{archive.name}.part"
        try:
            _fetch(archive.url, part)
        except urllib.error.HTTPError as error:
            raise DownloadError(f"{archive.url}: the server answers {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are among them
            raise DownloadError(f"{archive.url}: {error}; what came is kept, the same command goes on") from error
        _check(part, archive)
        part.replace(path)
    _unpack(path, archive, out)
    path.unlink()
    return True


def _fetch(url: str, part: Path) -> None:
    """Download what `part` does not have yet."""
    begun = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={begun}-"} if begun else {}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range", "").endswith(f"/{begun}"):
            return  # all of it had come
        raise
    with response:
        if begun and response.status != 206:  # a server that does not know ranges sends everything
            begun = 0
        total = begun + int(response.headers["Content-Length"])
        with part.open("ab" if begun else "wb") as file, _progress() as progress:
            task = progress.add_task(f"Fetching {part.stem}", total=total, completed=begun)
            while block := response.read(BLOCK_BYTES):
                file.write(block)
                progress.advance(task, len(block))
    if part.stat().st_size != total:
        raise OSError(f"the connection ended after {part.stat().st_size:,} of {total:,} bytes")


def _check(part: Path, archive: Archive) -> None:
    if archive.sha256 is None:
        return
    with part.open("rb") as file, _progress() as progress:
        task = progress.add_task(f"Checking {archive.name}", total=part.stat().st_size)
        digest = hashlib.sha256()
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            progress.advance(task, len(block))
    if digest.hexdigest() != archive.sha256:
        part.unlink()
        raise DownloadError(
            f"{archive.name} has the SHA-256 {digest.hexdigest()}, and {archive.sha256} is published: it was damaged "
            f"on its way and is removed, the same command fetches it again"
        )


def _unpack(path: Path, archive: Archive, out: Path) -> None:
    partial = out / f".{archive.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _extract(path, partial)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        path.unlink()
        raise DownloadError(
            f"{archive.name} is broken ({error}) and is removed, the same command fetches it again"
        ) from error
    unpacked = partial / archive.folder
    if not unpacked.is_dir():
        raise DownloadError(f"{path} has no folder {archive.folder}: it is not the archive that was published")
    target = out / archive.folder
    target.parent.mkdir(parents=True, exist_ok=True)
    for beside in unpacked.parent.iterdir():  # SPEAKERS.TXT and the like
        if beside.is_file():
            beside.replace(target.parent / beside.name)
    unpacked.replace(target)  # last: it says that all is there
    shutil.rmtree(partial)


def _extract(path: Path, folder: Path) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as members, _progress() as progress:
            infos = members.infolist()
            task = progress.add_task(f"Unpacking {path.name}", total=sum(info.file_size for info in infos))
            for info in infos:
                members.extract(info, folder)  # compares the checksum of the file in it
                progress.advance(task, info.file_size)
        return
    with (
        path.open("rb") as file,
        wrap_file(
            file, path.stat().st_size, description=f"Unpacking {path.name}", console=Console(stderr=True)
        ) as counted,
        tarfile.open(fileobj=counted, mode="r:gz") as members,
    ):
        members.extractall(folder, filter="data")


def _progress() -> Progress:
    columns = (*Progress.get_default_columns()[:2], DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=ARCHIVES, metavar="NAME", help=", ".join(ARCHIVES))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the folders go")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        for name in options.names:
            made = download(ARCHIVES[name], options.out)
            print(f"{options.out / ARCHIVES[name].folder}: {'downloaded' if made else 'is there already'}")
    except DownloadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the same command goes on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
