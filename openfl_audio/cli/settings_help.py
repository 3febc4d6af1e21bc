"""The list of a settings file's keys, made from the descriptions of its fields."""

import textwrap
from collections.abc import Iterator
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from openfl_audio.cli.options import describe_option
from openfl_audio.config import groups_in

INDENT = 4


def settings_lines(model: type[BaseModel], width: int) -> list[str]:
    """Return a line for each key of `model`, with dots, and below it what it is: its values and its default."""
    lines: list[str] = []
    for key, text in describe_keys(model):
        lines += [key, *textwrap.wrap(text, width, initial_indent=" " * INDENT, subsequent_indent=" " * INDENT)]
    return lines


def describe_keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each key of `model`, with dots and with its value where it has only one, and the text about it."""
    # The key that says which group it is comes first.
    for name, field in sorted(model.model_fields.items(), key=lambda item: not _only_value(item[1])):
        groups = list(groups_in(field.annotation))
        value = _only_value(field)
        yield f"{prefix}{name}" + (f": {value}" if value else ""), _text(field, bool(groups or value))
        for group in groups:
            yield from describe_keys(group, f"{prefix}{name}.")


def _only_value(field: FieldInfo) -> str:
    """Return the value of a key that has only one, such as the name of a rule; "" of another key."""
    values = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return str(values[0]) if len(values) == 1 else ""


def _text(field: FieldInfo, is_fixed: bool) -> str:
    if is_fixed:
        return str(field.description)
    return describe_option(field) + ("; required" if field.is_required() else "")
