"""Tasks that want what is not theirs: what they get of a site is in their metrics."""

import contextlib
import os
import socket
import time
from pathlib import Path

from toy.experiment import add_points


def tempt(files: dict[str, str], note: str, director: tuple[str, int], secret: str, pid: int):
    """Return a task whose metrics are 1 for what it got: one for each of `files`, and the others below.

    written: the file `note`; director: a connection; abstract: one to the abstract socket with the name `secret`;
    environ: `secret` in the environment of a process; memory: some of that of process `pid`.
    """

    def train(model, points, device, optimizer):
        wanted = {name: Path(path).read_bytes for name, path in files.items()}
        wanted |= {
            "written": lambda: Path(note).write_text("note"),
            "director": lambda: dial(socket.AF_INET, director),
            "abstract": lambda: dial(socket.AF_UNIX, f"\0{secret}"),
            "environ": lambda: is_in_an_environment(secret),
            "memory": lambda: memory_of(pid),
        }
        got = {}
        for name, attempt in wanted.items():
            try:
                got[name] = float(bool(attempt()))
            except OSError as error:
                print(f"{name}: {error.strerror}")
                got[name] = 0.0
        return add_points(model, points, device, optimizer) | got

    return train


def dial(family: int, address) -> bool:
    with socket.socket(family) as dialled:
        dialled.settimeout(5)
        dialled.connect(tuple(address) if family == socket.AF_INET else address)
    return True


def is_in_an_environment(secret: str) -> bool:
    found = b""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            found += path.read_bytes()
    return secret.encode() in found


def memory_of(pid: int) -> bytes:
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb") as memory:
        memory.seek(int(maps.readline().split("-")[0], 16))
        return memory.read(16)


def leave(seconds: str):
    """Return a task that leaves a process of a session and a parent of its own, which sleeps for so many seconds."""

    def train(model, points, device, optimizer):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execvpe("sleep", ["sleep", seconds], {})
            os._exit(0)
        time.sleep(1)
        return add_points(model, points, device, optimizer)

    return train
