"""Settings in YAML files: read, changed by dotted keys, checked, or refused in a sentence that names what is wrong."""

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from openfl_audio.address import check_host
from openfl_audio.errors import SettingsError, TextError
from openfl_audio.text import read_text

# A host name or an IP address, which may stand in brackets.
Host = Annotated[str, AfterValidator(check_host)]
# More faults than these are told after they are mended.
MAX_FAULTS = 5
SECONDS_PER_DAY = 86_400


class Settings(BaseModel):
    """Base of all settings: unknown keys and wrong types are errors; paths are relative to the file they stand in."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def resolve_path(cls, value: object, info: ValidationInfo) -> object:
        """Return a path as an absolute one, relative to the folder of the settings file."""
        field = cls.model_fields[str(info.field_name)]
        if field.annotation in (Path, Path | None) and isinstance(value, str):
            return ((info.context or {})["folder"] / Path(value).expanduser()).resolve()
        return value


class Retention(Settings):
    """Number of ended experiments that are kept, and of days that they are; without a number, all of them."""

    experiments: int | None = Field(
        default=None, ge=0, description="number of ended experiments that are kept; without it all of them"
    )
    days: float | None = Field(
        default=None, ge=0, description="days that an ended experiment is kept; without it for ever"
    )

    def outdated(self, ended: Mapping[str, float], now: float) -> list[str]:
        """Return the names of experiments that are not to be kept, of those that `ended` at these times (seconds)."""
        newest_first = sorted(ended, key=lambda name: ended[name], reverse=True)
        too_many = newest_first[self.experiments :] if self.experiments is not None else []
        oldest = float("-inf") if self.days is None else now - self.days * SECONDS_PER_DAY
        return [name for name in newest_first if name in too_many or ended[name] < oldest]


def find_function(name: str) -> Callable[..., Any]:
    """Return the function with this dotted name, such as "numpy.flipud". Raises ValueError if there is none."""
    module, _, function = name.rpartition(".")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"there is no function {name!r}: {error}") from None
    if not callable(found):
        raise ValueError(f"{name!r} is no function")
    return found


Model = TypeVar("Model", bound=BaseModel)


def load_settings(path: Path, model: type[Model], changes: Mapping[str, Any] | None = None) -> Model:
    """Read the YAML file at `path` as a `model`, with `changes` by dotted key in place of what the file says.

    Raises SettingsError with one sentence per fault, which names the key and its value.
    """
    try:
        content = yaml.safe_load(read_text(path))
    except TextError as error:
        raise SettingsError(str(error)) from error
    except OSError as error:
        raise SettingsError(f"cannot read the settings file {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold keys and values ({', '.join(model.model_fields)})")
    for key, value in (changes or {}).items():
        _put(content, key, value)
    try:
        return model.model_validate(content, context={"folder": path.parent.resolve()})
    except ValidationError as error:
        faults = "; ".join(describe_fault(fault, model) for fault in error.errors()[:MAX_FAULTS])
        raise SettingsError(f"{path}: {faults}") from error


def parse_change(text: str) -> tuple[str, Any]:
    """Return key and value of "key=value", whose value is YAML. Raises SettingsError.

    >>> parse_change("model.frozen=false")
    ('model.frozen', False)
    """
    key, equals, value = text.partition("=")
    wrong = SettingsError(f"{text!r} should be key=value, such as optimizer.learning_rate=0.01")
    if not equals or not key.strip():
        raise wrong
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise wrong from None


def describe_fault(fault: ErrorDetails, model: type[BaseModel]) -> str:
    """Return what pydantic finds wrong with a key of `model`, as a part of a sentence."""
    key = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        known = ", ".join(_keys_beside(fault["loc"], model))
        return f"unknown key '{key}'" + (f" (known here: {known})" if known else "")
    if fault["type"] == "missing":
        return f"'{key}' is missing"
    reason = fault["msg"].removeprefix("Value error, ")
    if not key:  # a check of the whole model
        return reason
    return f"'{key}' is {fault['input']!r:.80}: {reason[0].lower()}{reason[1:]}"


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    *groups, last = key.split(".")
    for group in groups:
        content = content.setdefault(group, {})
        if not isinstance(content, dict):
            raise SettingsError(f"{key}: '{group}' is a value, not a group of keys")
    content[last] = value


def _keys_beside(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """Return the keys of the group that a key is in; none where it may be one of several kinds of group."""
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        groups = list(groups_in(field.annotation)) if field else []
        if len(groups) != 1:
            return []
        model = groups[0]
    return list(model.model_fields)


def groups_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the groups of settings that a field of this type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from groups_in(part)
