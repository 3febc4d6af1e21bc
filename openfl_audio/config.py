"""YAML settings files: read, checked key by key, and refused with a sentence that names what is wrong."""

from pathlib import Path
from typing import Annotated, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from openfl_audio.address import check_host
from openfl_audio.errors import SettingsError, TextError
from openfl_audio.text import read_text

# A host name or an IP address, which may stand in brackets.
Host = Annotated[str, AfterValidator(check_host)]


class Settings(BaseModel):
    """Base of all settings: unknown keys and wrong types are errors; paths are relative to the file they stand in."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def resolve_path(cls, value: object, info: ValidationInfo) -> object:
        field = cls.model_fields[str(info.field_name)]
        if field.annotation in (Path, Path | None) and isinstance(value, str):
            return ((info.context or {})["folder"] / Path(value).expanduser()).resolve()
        return value


Model = TypeVar("Model", bound=Settings)


def load_settings(path: Path, model: type[Model]) -> Model:
    """Read the YAML file at `path` as a `model`. Raises SettingsError with one sentence per fault."""
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
    try:
        return model.model_validate(content, context={"folder": path.parent.resolve()})
    except ValidationError as error:
        faults = "; ".join(_describe(fault, model) for fault in error.errors())
        raise SettingsError(f"{path}: {faults}") from error


def _describe(fault: ErrorDetails, model: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{key}' (known here: {', '.join(_keys_beside(fault['loc'], model))})"
    if fault["type"] == "missing":
        return f"'{key}' is missing"
    return f"'{key}' is {fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}"


def _keys_beside(location: tuple, model: type[BaseModel]) -> list[str]:
    for part in location[:-1]:
        annotation = model.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)
