"""Options of a command, made from the fields of a pydantic model: names, types, defaults and help stand there once."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from openfl_audio.config import describe_fault


class Command(BaseModel):
    """Base of the commands: each field is an option, and the docstring is the help.

    Attributes:
        example: a call of the command, for the end of its help.
        resumes: whether the same command resumes what an earlier one began.
        passes_on: whether options that it does not know are for another command, in `passed_on`.
        reads_settings: whether it reads a settings file, which --help-settings describes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    example: ClassVar[str]
    resumes: ClassVar[bool] = False
    passes_on: ClassVar[bool] = False
    reads_settings: ClassVar[bool] = False

    passed_on: Sequence[str] = Field(default=(), exclude=True)

    def run(self) -> int | None:
        """Do what the command is for. Returns the exit status; None is 0."""
        raise NotImplementedError

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options of the command to its parser."""
        add_fields(parser, cls)

    @classmethod
    def settings_class(cls, given: Mapping[str, Any]) -> type[BaseModel]:
        """Return the class of the settings file that the command reads; `given` are arguments before --help-settings.

        Raises OpenFLAudioError if they do not say which.
        """
        raise NotImplementedError


def option(
    description: str | None = None,
    default: Any = ...,
    short: str | None = None,
    metavar: str | None = None,
    nargs: Literal["+", "*", 1] = "+",
    **limits: Any,
) -> Any:
    """Return a field that is an option --NAME; without a default it is required.

    Args:
        description: its help.
        default: its value where it is not given.
        short: a second name, such as -c.
        metavar: what its value is called in the help.
        nargs: values of a list after each --NAME: one or more, any number, or one.
        limits: those of pydantic, such as `ge`.
    """
    extra: dict[str, Any] = {"short": short, "metavar": metavar, "nargs": nargs}
    return Field(default, description=description, json_schema_extra=extra, **limits)


def changes_option(example: str) -> Any:
    """Return the field of the option --set, for changes of the settings in a file; `example` is one of them."""
    text = f"a setting by dotted key, in place of what the file says, such as {example}"
    return option(text, [], metavar="KEY=VALUE", nargs=1)


def argument(
    description: str,
    metavar: str | None = None,
    choices: Sequence[str] | None = None,
    nargs: Literal["*"] | None = None,
) -> Any:
    """Return a field that is an argument by its place, and required unless `nargs` allows any number of them.

    `choices` are those of a Literal by default.
    """
    extra: dict[str, Any] = {"metavar": metavar, "positional": True, "choices": choices, "nargs": nargs}
    return Field(description=description, json_schema_extra=extra)


def add_fields(
    parser: argparse.ArgumentParser, model: type[BaseModel], descriptions: Mapping[str, str | None] | None = None
) -> None:
    """Add an option for each field of `model`; `descriptions` are for fields that have none of their own."""
    for name, field in model.model_fields.items():
        if not field.exclude:
            _add_option(parser, name, field, field.description or (descriptions or {}).get(name))


def read_options(model: type[Command], values: Mapping[str, Any]) -> Command:
    """Return the command with the values of its options, as texts. Raises ValueError with a sentence."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = error.errors()
        for fault in faults:
            if fault["loc"]:
                name = str(fault["loc"][0])
                fault["loc"] = (name.upper() if _is_positional(model.model_fields[name]) else _flag(name),)
        raise ValueError("; ".join(describe_fault(fault, model) for fault in faults)) from None


def _add_option(parser: argparse.ArgumentParser, name: str, field: FieldInfo, description: str | None) -> None:
    extra: dict[str, Any] = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    kind, is_list = _kind(field.annotation)
    choices = _choices(field)
    # argparse replaces what follows a per cent sign.
    settings: dict[str, Any] = {"help": describe_option(field, description).replace("%", "%%")}
    if kind is bool:
        settings["action"] = "store_true"
    else:
        settings |= {"choices": choices, "metavar": extra.get("metavar") or _placeholder(name, kind)}
    if is_list:
        settings["nargs"] = extra.get("nargs") or "+"
    if _is_positional(field):
        action = parser.add_argument(name, **settings)
    else:
        # What is not given stays out of the values, so that the default is the model's.
        settings |= {"dest": name, "required": field.is_required(), "default": argparse.SUPPRESS}
        if is_list:
            settings["action"] = "extend"
        flags = [str(extra["short"])] if extra.get("short") else []
        action = parser.add_argument(*flags, _flag(name), **settings)
    action.is_path = kind is Path  # type: ignore[attr-defined]  # for completion


def _is_positional(field: FieldInfo) -> bool:
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("positional"))


def _flag(name: str) -> str:
    return f"--{name.rstrip('_').replace('_', '-')}"


def _kind(annotation: Any) -> tuple[Any, bool]:
    """Return the type of one value, and whether there may be several; of a union the first member counts."""
    if get_origin(annotation) is list:
        return get_args(annotation)[0], True
    members = [member for member in get_args(annotation) if member is not type(None)]
    if members and get_origin(annotation) is not Literal:
        return _kind(members[0])
    return annotation, False


def _placeholder(name: str, kind: Any) -> str:
    return {int: "N", float: "X", Path: "PATH"}.get(kind, name.strip("_").upper())


def _choices(field: FieldInfo) -> Sequence[str] | None:
    kind, _ = _kind(field.annotation)
    if get_origin(kind) is Literal:
        return get_args(kind)
    return field.json_schema_extra.get("choices") if isinstance(field.json_schema_extra, dict) else None  # type: ignore


def describe_option(field: FieldInfo, description: str | None = None) -> str:
    """Return the description of a field, by default its own, with its choices and its default."""
    text = description or field.description or ""
    if choices := _choices(field):
        text += f": {', '.join(map(str, choices))}"
    default = field.get_default()
    if field.default_factory or field.is_required() or default is None or default is False or default in ([], ()):
        return text
    shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
    return f"{text} ({shown})"
