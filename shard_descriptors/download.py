"""Download FSD50K, subsets of LibriSpeech, the noise of WHAM and Speech Commands, check them and unpack them.

A file is kept as <out>/<file>.part while it comes; a download that broke off is resumed, also by a later call. A
complete one is checked, its archive unpacked to a temporary folder that then takes its place, and removed. FSD50K is
25 GB to load and 34 GB of audio; its larger half comes as six files, which Info-ZIP's `zip` joins.
"""

import hashlib
import http.client
import shutil
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import rich.progress
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from shard_descriptors.common.errors import CorpusError

BLOCK_BYTES = 1 << 20
TIMEOUT_S = 60
ATTEMPTS = 5  # in a row that bring nothing
CONSOLE = Console(stderr=True)


class Archive(NamedTuple):
    """A published archive: one .tar.gz or .zip file, or the parts of a split zip archive.

    Attributes:
        files: checksum as published ("md5:..." or "sha256:...") by the address of the file, the .zip of a split archive
            last; None where nothing is published, and the checksums inside a zip file have to do.
        folder: the folder that it becomes, below the folder of all corpora.
        root: the folder that its members are relative to.
    """

    files: Mapping[str, str | None]
    folder: str
    root: str = ""


def _fsd50k(name: str, **md5: str) -> Archive:
    url = f"https://zenodo.org/records/4060432/files/{name}"
    return Archive({f"{url}.{ending}": f"md5:{md5[ending]}" for ending in md5}, f"FSD50K/{name}", root="FSD50K")


# The sums of LibriSpeech and Speech Commands are those of torchaudio.datasets, FSD50K's those of its Zenodo record.
LIBRISPEECH_SHA256 = {
    "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "dev-other": "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
    "test-clean": "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    "test-other": "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
    "train-clean-100": "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    "train-clean-360": "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    "train-other-500": "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
}
SPEECH_COMMANDS_SHA256 = "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
CORPORA: dict[str, tuple[Archive, ...]] = {
    **{
        subset: (
            Archive(
                {f"https://www.openslr.org/resources/12/{subset}.tar.gz": f"sha256:{sha256}"}, f"LibriSpeech/{subset}"
            ),
        )
        for subset, sha256 in LIBRISPEECH_SHA256.items()
    },
    "fsd50k": (
        _fsd50k(  # first, as it needs `zip`: without it nothing is loaded
            "FSD50K.dev_audio",
            z01="faa7cf4cc076fc34a44a479a5ed862a3",
            z02="8f9b66153e68571164fb1315d00bc7bc",
            z03="1196ef47d267a993d30fa98af54b7159",
            z04="d088ac4e11ba53daf9f7574c11cccac9",
            z05="81356521aa159accd3c35de22da28c7f",
            zip="c480d119b8f7a7e32fdb58f3ea4d6c5a",
        ),
        _fsd50k("FSD50K.eval_audio", z01="3090670eaeecc013ca1ff84fe4442aeb", zip="6fa47636c3a3ad5c7dfeba99f2637982"),
        _fsd50k("FSD50K.ground_truth", zip="ca27382c195e37d2269c4c866dd73485"),
        _fsd50k("FSD50K.metadata", zip="b9ea0c829a411c1d42adb9da539ed237"),
    ),
    "speech-commands": (
        Archive(
            {"http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz": f"sha256:{SPEECH_COMMANDS_SHA256}"},
            folder="speech_commands",
            root="speech_commands",
        ),
    ),
    # Where wham.whisper.ai sends to. No checksum of it is published.
    "wham-noise": (
        Archive(
            {"https://my-bucket-a8b4b49c25c811ee9a7e8bba05fa24c7.s3.amazonaws.com/wham_noise.zip": None}, "wham_noise"
        ),
    ),
}


class DownloadError(CorpusError):
    """A corpus cannot be downloaded; the message says why, and how to go on."""


def download(archive: Archive, out: Path) -> bool:
    """Put the folder of an archive into `out`; False if it is there already.

    Raises:
        DownloadError: it cannot be reached, broke off, or is not what was published (then it is removed), or nothing is
            installed to join its parts with.
    """
    if (out / archive.folder).exists():
        return False
    if len(archive.files) > 1 and shutil.which("zip") is None:
        raise DownloadError(f"zip is not installed, and joins the parts of {archive.folder}: apt install zip")
    out.mkdir(parents=True, exist_ok=True)
    paths = [_fetch(url, checksum, out) for url, checksum in archive.files.items()]
    _unpack(paths, archive, out)
    for path in paths:
        path.unlink()
    return True


def _fetch(url: str, checksum: str | None, out: Path) -> Path:
    """One file, which has its name when it is complete and right."""
    path = out / url.rsplit("/", 1)[-1]
    if path.exists():
        return path
    part = path.with_name(f"{path.name}.part")
    failures, most_bytes = 0, _size_bytes(part)
    while True:
        try:
            _fetch_rest(url, part)
            break
        except urllib.error.HTTPError as error:
            reason = f"the server answers {error.code} {error.reason}"
            if error.code < http.HTTPStatus.INTERNAL_SERVER_ERROR:
                raise DownloadError(f"{url}: {reason}") from error
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are among them
            reason = str(error)
        came_bytes = _size_bytes(part)
        failures, most_bytes = (0, came_bytes) if came_bytes > most_bytes else (failures + 1, most_bytes)
        if failures == ATTEMPTS:
            raise DownloadError(f"{url}: {reason}; what came is kept, the same command resumes it")
        time.sleep(failures)
    if checksum is not None:
        _check(url, checksum, part)
    return part.replace(path)


def _fetch_rest(url: str, part: Path) -> None:
    """Download what `part` does not have yet."""
    begun = _size_bytes(part)
    headers = {"User-Agent": "openfl-audio"} | ({"Range": f"bytes={begun}-"} if begun else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # all of it had come; if more had, the checksum tells
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:  # a server that does not know ranges sends everything
            begun = 0
        total = None if response.length is None else begun + response.length
        columns = (*Progress.get_default_columns()[:2], DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with part.open("ab" if begun else "wb") as file, Progress(*columns, console=CONSOLE) as progress:
            task = progress.add_task(f"Fetching {part.stem}", total=total, completed=begun)
            while block := response.read(BLOCK_BYTES):
                file.write(block)
                progress.advance(task, len(block))
    if total is not None and _size_bytes(part) != total:
        raise OSError(f"the connection ended after {_size_bytes(part):,} of {total:,} bytes")


def _check(url: str, checksum: str, part: Path) -> None:
    algorithm, published = checksum.split(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with rich.progress.open(part, "rb", description=f"Checking {part.stem}", console=CONSOLE) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    if digest.hexdigest() != published:
        part.unlink()
        raise DownloadError(
            f"{url}: its {algorithm.upper()} is {digest.hexdigest()}, and {published} is published: it was damaged on "
            f"its way and is removed, the same command fetches it again"
        )


def _unpack(paths: Sequence[Path], archive: Archive, out: Path) -> None:
    path = paths[-1]
    partial = out / f".{path.name}.partial"
    content = partial / "content"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _extract(_join(path, partial) if len(paths) > 1 else path, content / archive.root)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        for broken in paths:
            broken.unlink()
        raise DownloadError(f"{path} is broken ({error}) and is removed, the same command fetches it again") from error
    unpacked = content / archive.folder
    if not unpacked.is_dir():
        raise DownloadError(f"{path} has no folder {unpacked.name}: it is not the archive that was published")
    target = out / archive.folder
    target.parent.mkdir(parents=True, exist_ok=True)
    for beside in unpacked.parent.iterdir():  # SPEAKERS.TXT and the like
        if beside.is_file():
            beside.replace(target.parent / beside.name)
    unpacked.replace(target)  # last: it says that all is there
    shutil.rmtree(partial)


def _join(path: Path, folder: Path) -> Path:
    """One archive in `folder` of the split one that ends with `path`."""
    whole = folder / path.name
    # Split size 0 means one file. Where a part lacks, zip asks for it on and on: q is to give up.
    command = ["zip", "-q", "-s", "0", str(path), "--out", str(whole)]
    with CONSOLE.status(f"Joining {path.name}"):
        joined = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, input="q\n"
        )
    if joined.returncode != 0:
        raise DownloadError(f"{path}: zip cannot join its parts ({' '.join(joined.stdout.split())})")
    return whole


def _extract(path: Path, folder: Path) -> None:
    what = f"Unpacking {path.name}"
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as members:
            for name in rich.progress.track(members.namelist(), what, console=CONSOLE):
                members.extract(name, folder)  # compares the checksum of the file in it
        return
    with (
        rich.progress.open(path, "rb", description=what, console=CONSOLE) as file,
        tarfile.open(fileobj=file, mode="r:gz") as members,
    ):
        members.extractall(folder, filter="data")


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
