"""Shortages of the director: room on its disk, open files, memory. An experiment waits until they are over."""

import asyncio
import errno
import logging
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openfl_audio.errors import EndedError, LackError

logger = logging.getLogger(__name__)

# Between two attempts at what the director lacked something for.
RETRY_SECONDS = 1.0

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
    """Raise errors of the block that say what the director lacks as LackError; others stay what they are."""
    try:
        yield
    except (OSError, MemoryError) as error:
        lack = describe_lack(error, folder)
        if lack is None:
            raise
        raise LackError(lack) from error


class Lacks:
    """Shortages of the director that hold up one experiment: its round, or the updates of envoys."""

    def __init__(
        self, folder: Path, experiment: str, has_ended: Callable[[], bool], on_change: Callable[[], None]
    ) -> None:
        """Watch over writes to the disk of `folder`.

        `experiment` is what log messages call it; once it has ended, it lacks nothing any more. `on_change` is called
        when it begins to wait for what is lacking, when it resumes, and when its round begins to lack something.
        """
        self._folder, self._experiment, self._has_ended, self._on_change = folder, experiment, has_ended, on_change
        self.of_round = ""
        self._of_updates: dict[str, str] = {}

    @property
    def first(self) -> str:
        """Return the name of something that is lacking, or "" if nothing is."""
        return "" if self._has_ended() else self.of_round or next(iter(self._of_updates.values()), "")

    def note_round(self, lack: str) -> None:
        """Note what the director lacks for the round, or "" if it has all that it needs."""
        before, begins = self.first, bool(lack and not self.of_round)
        self.of_round = lack
        self._announce(before, lack, begins)

    def note_update(self, envoy: str, lack: str) -> None:
        """Note what the director lacks for the update of `envoy`, or "" if it has all that it needs."""
        before = self.first
        self._of_updates.pop(envoy, None)
        if lack:
            self._of_updates[envoy] = lack
        self._announce(before, lack)

    def forget(self) -> None:
        """Forget what was lacking for a round that is over."""
        self.of_round = ""
        self._of_updates.clear()

    async def retry(self, action: Callable[[], Any]) -> None:
        """Do `action`, which may be a coroutine function, again and again while the director lacks something for it.

        Raises EndedError if the experiment has ended meanwhile.
        """
        while True:
            try:
                with telling_lack(self._folder):
                    doing = action()
                    if isinstance(doing, Awaitable):
                        await doing
                self.note_round("")
                return
            except LackError as error:
                self.note_round(str(error))
            await asyncio.sleep(RETRY_SECONDS)
            if self._has_ended():
                raise EndedError(f"{self._experiment} has ended")

    def _announce(self, before: str, lack: str, begins: bool = False) -> None:
        changed = bool(before) != bool(self.first)
        if changed:
            logger.warning("%s %s", self._experiment, f"waits: {lack}" if lack else "resumes")
        if changed or begins:
            self._on_change()
