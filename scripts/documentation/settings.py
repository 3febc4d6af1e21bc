"""Reference of the settings, from the descriptions of their fields."""

from collections.abc import Iterator

from pydantic import BaseModel

from openfl_audio.cli.settings_help import describe_keys
from openfl_audio.director.server import DirectorFile
from openfl_audio.envoy.settings import EnvoyFile
from openfl_audio.experiments.workloads import find_workload, workload_names
from scripts.documentation.markdown import code, table


def settings() -> str:
    """Return a section with a table of keys for each settings file of the project."""
    return "\n\n".join(f"## {heading}\n\n{_table(model)}" for heading, model in _files())


def _files() -> Iterator[tuple[str, type[BaseModel]]]:
    yield "Director", DirectorFile
    yield "Envoy", EnvoyFile
    for name in workload_names():
        yield f"Workload `{name}`", find_workload(name).config_class


def _table(model: type[BaseModel]) -> str:
    return table(["key", "meaning"], [(code(key), text) for key, text in describe_keys(model)])
