"""Reference of the service `openfl_audio.Rounds`, from its handlers and its messages."""

import inspect
import re
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from openfl_audio.director.services.rounds import RoundsService
from openfl_audio.protocol import messages as definitions
from openfl_audio.protocol.wire import RoundsStub
from scripts.documentation.markdown import code, table

# An attribute in a Google-style docstring: a name, a colon, and lines that are indented further.
ATTRIBUTE = re.compile(r"^    (\w+): (.+(?:\n {6,}.+)*)", re.MULTILINE)


def calls() -> str:
    """Return a table of the calls of the service, in the order of its client."""
    names = re.findall(r"self\.(\w+) = channel\.(\w+)\(f\"/\{SERVICE\}/(\w+)", inspect.getsource(RoundsStub))
    rows = [
        (code(call), kind.replace("_", " to "), _summary(getattr(RoundsService, name))) for name, kind, call in names
    ]
    return table(["call", "messages", "what the director does"], rows)


def messages() -> str:
    """Return a section for each message with its fields."""
    return "\n\n".join(part for kind in _kinds() for part in _describe(kind))


def _kinds() -> Iterator[type[BaseModel]]:
    for kind in vars(definitions).values():
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind.__module__ == definitions.__name__:
            yield kind


def _describe(kind: type[BaseModel]) -> Iterator[str]:
    text, _, attributes = inspect.cleandoc(str(kind.__doc__)).partition("\n\nAttributes:\n")
    meanings = dict(ATTRIBUTE.findall(attributes))
    yield f"## {kind.__name__}"
    yield text
    if kind.model_fields:
        rows = [
            (code(name), code(_type(field)), _default(field), meanings.get(name, ""))
            for name, field in kind.model_fields.items()
        ]
        yield table(["field", "type", "default", "meaning"], rows)


def _type(field: FieldInfo) -> str:
    shown = (
        field.annotation.__name__
        if isinstance(field.annotation, type) and not hasattr(field.annotation, "__args__")
        else str(field.annotation)
    )
    return re.sub(r"(typing|openfl_audio\.[\w.]+|annotated_types)\.", "", shown)


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else code(repr(field.get_default(call_default_factory=True)))


def _summary(function: object) -> str:
    return str(inspect.getdoc(function)).split("\n\n")[0]
