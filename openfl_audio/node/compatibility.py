"""Compatibility of versions: an experiment is pickled Python, and runs only with the same Python and libraries."""

import platform
from importlib.metadata import version

# Pickled functions need the very same Python; these libraries define the models and how they are trained.
LIBRARIES = ("openfl-audio", "torch", "transformers")


class EnvironmentMismatchError(RuntimeError):
    """A node cannot run an experiment that was made with other versions."""


def describe_environment() -> dict[str, str]:
    """Return versions by name, as far as they must agree: "3.11" for Python, the release for libraries."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python} | {library: version(library).split("+")[0] for library in LIBRARIES}


def check_environment(wanted: dict[str, str], where: str) -> None:
    """Raise EnvironmentMismatchError, naming every version that differs from `wanted`. Nothing is ever installed."""
    wanted = {"openfl-audio": "0.1.0"} | wanted  # experiments of the first version do not say theirs
    here = describe_environment()
    wrong = [
        f"{name} {here.get(name, 'none')} instead of {wanted[name]}"
        for name in wanted
        if here.get(name) != wanted[name]
    ]
    if wrong:
        raise EnvironmentMismatchError(f"{where} has {', '.join(wrong)}: install the same versions as the notebook's")
