"""What the director may lack for a while: room on its disk, open files, memory. An experiment waits for it."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openfl_audio.errors import LackError

LACKS = {
    errno.ENOSPC: "disk full on the director",
    errno.EDQUOT: "disk quota used up on the director",
    errno.EIO: "input or output error on the director's disk",
    errno.EROFS: "the director's disk is read-only",
    errno.ESTALE: "the director's disk is away",
    errno.EMFILE: "too many open files in the director",
    errno.ENFILE: "too many open files on the director's machine",
    errno.ENOMEM: "no memory left on the director",
    errno.ENOBUFS: "no memory left on the director",
}


def describe_lack(error: BaseException, folder: Path) -> str | None:
    """Return what the director lacks, if `error` was raised for that; `folder` is on the disk that was written to."""
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    if not isinstance(error, OSError | MemoryError) or number not in LACKS:
        return None
    if number not in (errno.ENOSPC, errno.EDQUOT):
        return LACKS[number]
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return LACKS[number]
    return f"{LACKS[number]}, {free / 1e6:.0f} MB free"


@contextmanager
def telling_lack(folder: Path) -> Iterator[None]:
    """Errors of the block that say what the director lacks become LackError; others stay what they are."""
    try:
        yield
    except (OSError, MemoryError) as error:
        lack = describe_lack(error, folder)
        if lack is None:
            raise
        raise LackError(lack) from error
