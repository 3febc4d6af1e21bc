"""Files of an experiment in the envoy's folder: archive and unpacked code, log, and its clients' state."""

import logging
import shutil
import time
from collections.abc import Container
from pathlib import Path

from openfl_audio.config import Retention
from openfl_audio.envoy.rooms import WORKSPACE, leave
from openfl_audio.protocol.plan import ARCHIVE

logger = logging.getLogger("envoy")


def remove_download(folder: Path) -> None:
    """Remove an experiment's code and pickles from its folder: they are downloaded whenever it is run."""
    leave(folder)
    shutil.rmtree(folder / WORKSPACE, ignore_errors=True)
    (folder / ARCHIVE).unlink(missing_ok=True)


def remove_outdated(folder: Path, retention: Retention, kept: Container[str]) -> None:
    """Remove logs and state of experiments that are not to be kept, save for those of `kept`."""
    folders = [path for path in folder.glob("[!.]*") if path.is_dir() and path.name not in kept]
    ended = {path.name: path.stat().st_mtime for path in folders}
    for name in retention.outdated(ended, time.time()):
        logger.info("experiment '%s' is not kept any longer", name)
        shutil.rmtree(folder / name, ignore_errors=True)
