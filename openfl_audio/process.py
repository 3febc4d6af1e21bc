"""Requests of director and envoys to the system when they start."""

import contextlib
import ctypes
import os
import resource

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


def prepare_process() -> int:
    """Open as many files as the system allows, and keep what is written to oneself. Returns the number of files.

    Linux lets a process raise its limit, 1024 as a rule, to the hard one by itself. Connections are files too.
    """
    os.umask(0o077)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems have an unlimited hard limit that cannot be reached.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 20


def share_one_heap() -> None:
    """Let all threads allocate from one heap that keeps what they free; to be called before they are started.

    Chunks of models pass through a director in several threads. By glibc's defaults each thread has a heap in which
    freed chunks pile up, and others are given back to the system and asked for again, which costs more than filling
    them. Other C libraries have no such parameters and stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_THRESHOLD, 4 << 20)
        mallopt(M_TRIM_THRESHOLD, 64 << 20)
