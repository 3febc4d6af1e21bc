"""Readiness of a machine for torch.compile."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from openfl_audio.errors import SettingsError


def prepare_compiler() -> None:
    """Check that torch.compile will find what it needs, and let it load setuptools.

    Raises SettingsError, saying what to install, without a C++ compiler or Python's headers.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise SettingsError(
            f"compile=true needs a C++ compiler, and there is no {compiler!r}: install g++, name another in CXX, or "
            "leave compile out"
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        raise SettingsError(
            f"compile=true needs Python's headers, and there is no {header}: install them (on Debian and Ubuntu the "
            "package python3-dev), or leave compile out"
        )
    # Below 3.12, pip, which OpenFL imports, takes setuptools' own distutils away, and setuptools, which torch's
    # compiler loads, ends in an AssertionError unless it is told to use Python's.
    if sys.version_info < (3, 12):
        os.environ.setdefault("SETUPTOOLS_USE_DISTUTILS", "stdlib")
