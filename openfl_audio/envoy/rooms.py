"""The room of a worker: the folder into which it may write, and all that a sandbox lets it write into.

    work_dir/NAME/.rooms/ID              while it has no experiment
    work_dir/NAME/EXPERIMENT/room        afterwards
        workspace/                       the experiment's archive, unpacked
        state/                           of its clients, if it keeps any; afterwards it is in work_dir/NAME/EXPERIMENT
        home/, tmp/                      for libraries

A sandbox is made before the experiment is known. What is put into the room later, and a room that gets another name, it
shows as well.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from pwd import struct_passwd

# No name of an experiment begins with a dot.
ROOMS = ".rooms"
ROOM, WORKSPACE, STATE, HOME, TEMPORARY = "room", "workspace", "state", "home", "tmp"


def make_room(folder: Path, owner: struct_passwd | None) -> Path:
    """Make a room in the folder of an envoy, for a worker that becomes the user `owner`."""
    room = folder / ROOMS / uuid.uuid4().hex
    for each in (room, room / HOME, room / TEMPORARY):
        each.mkdir(parents=True)
    give(room, owner)
    return room


def enter(room: Path, experiment: Path, owner: struct_passwd | None) -> Path:
    """Make a room that of an experiment, with its workspace and its state, and return where it is now."""
    entered = experiment / ROOM
    leave(experiment)
    room.rename(entered)
    (experiment / WORKSPACE).rename(entered / WORKSPACE)
    give(entered / WORKSPACE, owner)
    state = experiment / STATE
    if state.exists():
        # In what is the user's already, a task may have made links to other files.
        if owner is not None and state.stat().st_uid != owner.pw_uid:
            give(state, owner)
        state.rename(entered / STATE)
    return entered


def leave(experiment: Path) -> None:
    """Remove the room of an experiment whose worker has ended, or was killed with its envoy, and keep the state.

    A task may have put a link to other files in the place of the state: that is no state.
    """
    state = experiment / ROOM / STATE
    if state.is_dir() and not state.is_symlink():
        state.rename(experiment / STATE)
    shutil.rmtree(experiment / ROOM, ignore_errors=True)


def open_way(*folders: Path) -> None:
    """Let all users of the machine pass through folders, without a look at what is in them."""
    for folder in folders:
        folder.chmod(0o711)


def give(folder: Path, owner: struct_passwd | None) -> None:
    """Give a folder, and what is in it, to a user. Links are not followed."""
    if owner is not None:
        for path in _tree(folder):
            os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)


def _tree(folder: Path) -> Iterator[Path]:
    yield folder
    for parent, folders, files in os.walk(folder):
        yield from (Path(parent, name) for name in (*folders, *files))
