"""What director and envoys ask of the system when they start."""

import contextlib
import os
import resource


def prepare_process() -> int:
    """Open as many files as the system allows, and keep what is written to oneself. Returns the number of files.

    Linux lets a process raise its limit, 1024 as a rule, to the hard one by itself. Connections are files too.
    """
    os.umask(0o077)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems have an unlimited hard limit that nobody can reach.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 20
