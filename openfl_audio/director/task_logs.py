"""Output of tasks on the envoys whose sites let it leave: a file for each envoy, of which the end is kept."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

logger = logging.getLogger(__name__)

# A file that is larger begins anew; the one before it is kept.
MAX_BYTES = 1 << 20
FOLLOW_SECONDS = 0.5
CHUNK_BYTES = 64 << 10


class TaskLogs:
    """The logs of an experiment, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, envoy: str, text: str) -> None:
        """Add what the tasks of an envoy printed. What the disk does not take is lost: it is no part of the results."""
        path = self._path(envoy)
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            if path.exists() and path.stat().st_size > MAX_BYTES:
                path.replace(self._before(path))
            with path.open("ab") as file:
                file.write(text.encode())
        except OSError as error:
            logger.warning("the log of envoy '%s' is not kept: %s", envoy, error)

    async def read(self, envoy: str, has_ended: Callable[[], bool]) -> AsyncIterator[bytes]:
        """Yield what the tasks of an envoy printed, in chunks, until `has_ended` says that no more comes."""
        path = self._path(envoy)
        before = self._before(path)
        if before.exists():
            yield before.read_bytes()
        inode, position = 0, 0
        while True:
            ended = has_ended()
            if path.exists():
                if path.stat().st_ino != inode:
                    inode, position = path.stat().st_ino, 0
                with path.open("rb") as file:
                    file.seek(position)
                    while chunk := file.read(CHUNK_BYTES):
                        yield chunk
                    position = file.tell()
            if ended:
                return
            await asyncio.sleep(FOLLOW_SECONDS)

    def _path(self, envoy: str) -> Path:
        return self._folder / f"{envoy}.log"

    @staticmethod
    def _before(path: Path) -> Path:
        return path.with_name(f"{path.name}.1")
