"""Search for workloads: by name among those that are installed, or by the folder of a package."""

import os
import sys
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from openfl_audio.errors import SettingsError
from openfl_audio.training.workload import Workload

GROUP = "openfl_audio.workloads"


def workload_names() -> list[str]:
    """Return the names of the installed workloads: entry points of the group openfl_audio.workloads."""
    return sorted(entry_points(group=GROUP).names)


def find_workload(name: str) -> Workload[Any]:
    """Return the installed workload `name`, or that of the package in the folder `name`, in its module `workload`.

    Raises SettingsError if there is none, or the folder has not exactly one.
    """
    installed = entry_points(group=GROUP, name=name)
    if installed:
        return next(iter(installed)).load()()
    folder = Path(name).resolve()
    if not (folder / "workload.py").is_file():
        raise SettingsError(
            f"there is no workload {name!r}: it should be {', '.join(workload_names())}, or the folder of a package "
            "with a module workload.py"
        )
    # Envoys and workers that this process starts must find the package as well.
    sys.path.insert(0, str(folder.parent))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder.parent), os.environ.get("PYTHONPATH"))))
    module = import_module(f"{folder.name}.workload")
    kinds = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Workload) and kind.__module__ == module.__name__
    ]
    if len(kinds) != 1:
        found = f"{folder / 'workload.py'} has {len(kinds)} subclasses of Workload"
        raise SettingsError(f"{found}: it should have one")
    return kinds[0]()


def find_file(workload: Workload[Any], name: str) -> Path:
    """Return a file by its path, or in the `configs/` of the workload's package."""
    path = Path(name)
    return path if path.exists() else package_folder(workload) / "configs" / name


def package_folder(workload: Workload[Any]) -> Path:
    """Return the folder of a workload's package."""
    return Path(str(workload.package.__file__)).parent
