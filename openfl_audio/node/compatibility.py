"""Compatibility of versions: an experiment is pickled Python, and runs only with the same Python and libraries."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
from packaging.requirements import InvalidRequirement, Requirement
from pydantic import BaseModel, ConfigDict, Field, field_validator

from openfl_audio.protocol.part import ToldInASentence

REQUIREMENTS = "requirements"
# Pickled functions need the very same Python; these libraries define the models and how they are trained.
LIBRARIES = ("openfl-audio", "torch", "transformers")


class EnvironmentMismatchError(RuntimeError):
    """A node cannot run an experiment that was made with other versions, or lacks what the experiment requires."""


class Requirements(BaseModel, metaclass=ToldInASentence):
    """Requirements of an experiment on each envoy, besides versions that are its own. No envoy installs anything.

    Raises DefinitionError for values that it does not take.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    packages: list[str] = Field(default=[], description="packages as pip names them, such as 'pystoi>=0.4'")
    memory_gb: float | None = Field(default=None, gt=0, description="least memory of the machine, in 10^9 bytes")
    gpu_memory_gb: float | None = Field(default=None, gt=0, description="least memory of its GPU, in 10^9 bytes")

    @field_validator("packages")
    @classmethod
    def check_packages(cls, packages: list[str]) -> list[str]:
        """Raise ValueError, naming it, for a package that pip would not understand."""
        for package in packages:
            try:
                Requirement(package)
            except InvalidRequirement:
                raise ValueError(f"{package!r} is no package as pip names it, such as 'pystoi>=0.4'") from None
        return packages


def describe_environment() -> dict[str, str]:
    """Return versions by name, as far as they must agree: "3.11" for Python, the release for libraries."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python} | {library: version(library).split("+")[0] for library in LIBRARIES}


def check_environment(environment: dict[str, Any], where: str) -> None:
    """Raise EnvironmentMismatchError, naming every version that differs, and what of the requirements is not there.

    `environment` has versions by name, and requirements under `REQUIREMENTS`. Nothing is ever installed.
    """
    check_requirements(Requirements(**environment.get(REQUIREMENTS, {})), where)
    wanted = {name: each for name, each in environment.items() if name != REQUIREMENTS}
    wanted = {"openfl-audio": "0.1.0"} | wanted  # experiments of the first version do not say theirs
    here = describe_environment()
    wrong = [
        f"{name} {here.get(name, 'none')} instead of {wanted[name]}"
        for name in wanted
        if here.get(name) != wanted[name]
    ]
    if wrong:
        raise EnvironmentMismatchError(f"{where} has {', '.join(wrong)}: install the same versions as the notebook's")


def check_requirements(wanted: Requirements, where: str) -> None:
    """Raise EnvironmentMismatchError, naming all that lacks, unless this machine has what is `wanted`."""
    lacks = [lack for lack in map(_lack_of_package, wanted.packages) if lack]
    memory_gb = psutil.virtual_memory().total / 1e9
    if wanted.memory_gb is not None and memory_gb < wanted.memory_gb:
        lacks.append(f"{memory_gb:.1f} GB of memory, and {wanted.memory_gb:g} are wanted")
    gpu_memory_gb = _gpu_memory_gb() if wanted.gpu_memory_gb is not None else 0.0
    if wanted.gpu_memory_gb is not None and gpu_memory_gb < wanted.gpu_memory_gb:
        found = f"{gpu_memory_gb:.1f} GB of GPU memory" if gpu_memory_gb else "no GPU"
        lacks.append(f"{found}, and {wanted.gpu_memory_gb:g} GB are wanted")
    if lacks:
        raise EnvironmentMismatchError(f"{where} has {'; '.join(lacks)}: no envoy installs anything by itself")


def _lack_of_package(package: str) -> str:
    requirement = Requirement(package)
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"no {requirement.name}, and {package} is wanted"
    return (
        ""
        if requirement.specifier.contains(found, prereleases=True)
        else f"{requirement.name} {found}, and {package} is wanted"
    )


def _gpu_memory_gb() -> float:
    import torch

    return torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else 0.0
