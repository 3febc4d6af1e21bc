"""A notebook's objects as text: what a site that approves experiments is shown, and builds them from.

What the notebook defined in its own cells is sent as the source of a module, with the names that it uses.
"""

import ast
import base64
import copyreg
import dis
import inspect
import json
import linecache
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from pickle import whichmodule  # type: ignore[attr-defined]  # not in its stubs
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from openfl_audio.errors import DefinitionError
from openfl_audio.protocol.plan import NOTEBOOK_MODULE

# These decorators only register a task, which the objects do by themselves.
REGISTERING = frozenset({"register_fl_task", "add_kwargs", "set_aggregation_function"})
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
HEAD = '"""What the notebook defined in its own cells."""\n'


def write_objects(model_provider: Any, task_keeper: Any, data_loader: Any) -> tuple[str, str]:
    """Return the objects of an experiment as JSON, and the source of a module with what the notebook's cells define.

    Where they have no such form, the JSON says why; sites that approve experiments then refuse this one.
    """
    writer = Writer()
    try:
        tasks = [
            {
                "function": writer.write(registered_function(function), f"task '{name}'"),
                "contract": task_keeper.task_contract[name],
                "settings": writer.write(dict(task_keeper.task_settings.get(name, {})), f"settings of task '{name}'"),
            }
            for name, function in task_keeper.task_registry.items()
        ]
        objects = {
            "model": writer.write(model_provider, "the model's recipe"),
            "data": writer.write(data_loader, "the data interface"),
            "tasks": tasks,
        }
    except DefinitionError as error:
        return json.dumps({"missing": str(error)}), ""
    except RecursionError:
        return json.dumps({"missing": "its objects contain themselves"}), ""
    return json.dumps(objects, indent=1), writer.cells.source()


def registered_function(wrapper: Any) -> Any:
    """Return the function that OpenFL's TaskInterface has wrapped into one without a name."""
    return inspect.getclosurevars(wrapper).nonlocals.get("training_method", wrapper)


class Writer:
    """Writes objects as `openfl_audio.node.objects` builds them."""

    def __init__(self, cells: "Cells | None" = None) -> None:
        """Write into one text; what `__main__` defines goes to `cells`."""
        self.cells = cells or Cells()
        self._written: dict[int, tuple[Any, dict[str, Any]]] = {}

    def write(self, value: Any, what: str) -> Any:
        """Return `value` as JSON. Raises DefinitionError, saying `what` it belongs to, if it has no such form."""
        if value is None or isinstance(value, bool) or type(value) in (int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": str(value)}
        if type(value) is list:
            return [self.write(each, what) for each in value]
        if type(value) is dict:
            return {"dict": [[self.write(key, what), self.write(each, what)] for key, each in value.items()]}
        if type(value) in (tuple, set, frozenset):
            each = value if isinstance(value, tuple) else sorted(value, key=repr)
            return {type(value).__name__: [self.write(one, what) for one in each]}
        if isinstance(value, np.ndarray | np.generic) or type(value) is torch.Tensor:
            return self._write_array(value, what)
        if isinstance(value, type | FunctionType | BuiltinFunctionType):
            return {"name": self.name_of(value, what)}
        if isinstance(value, MethodType):
            return {"method": value.__name__, "of": self.write(value.__self__, what)}
        if type(value) is partial:
            kwargs = {key: self.write(each, what) for key, each in value.keywords.items()}
            args = [self.write(each, what) for each in value.args]
            return {"partial": self.write(value.func, what), "args": args, "kwargs": kwargs}
        return self._write_object(value, what)

    def name_of(self, value: Any, what: str) -> str:
        """Return the name of a function or class. Raises DefinitionError if a module has none of its name."""
        module, path = value.__module__ or whichmodule(value, value.__qualname__), value.__qualname__
        if "<" in path:
            raise DefinitionError(
                f"{what} uses '{path}', which is defined inside of a function, or a lambda: define it by a name in the "
                "notebook or in a module"
            )
        if module == "__main__":
            self.cells.add(value, what)
            return f"{NOTEBOOK_MODULE}:{path}"
        return f"{module}:{path}"

    @staticmethod
    def _write_array(value: Any, what: str) -> dict[str, Any]:
        is_tensor = isinstance(value, torch.Tensor)
        try:
            array = value.detach().cpu().numpy() if is_tensor else np.asarray(value)
        except (TypeError, RuntimeError) as error:
            raise DefinitionError(f"{what} has a tensor that cannot be written as text: {error}") from None
        if array.dtype.kind not in "biufc":
            raise DefinitionError(f"{what} has an array of {array.dtype}, which cannot be written as text")
        encoded = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
        kind = {"torch": True} if is_tensor else {"scalar": True} if isinstance(value, np.generic) else {}
        return {"array": array.dtype.str, "shape": list(array.shape), "base64": encoded, **kind}

    def _write_object(self, value: Any, what: str) -> dict[str, Any]:
        if id(value) in self._written:
            described = self._written[id(value)][1]
            described.setdefault("id", len(self._written))
            return {"same": described["id"]}
        if isinstance(value, bytes | bytearray | ModuleType):
            raise DefinitionError(
                f"{what} has {type(value).__name__}, which cannot be read: send it as a file or a list"
            )
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:  # objects raise what they like here
            raise DefinitionError(f"{what} has a {type(value).__name__}, which cannot be sent: {error}") from None
        if isinstance(reduced, str):
            return {"name": f"{whichmodule(value, reduced)}:{reduced}"}
        parts: list[Any] = [*reduced, None, None, None]
        function, args, state, items, pairs, *others = parts
        described = self._call(function, args or (), what)
        # Kept alive, so that no other object gets its id.
        self._written[id(value)] = value, described
        if any(other is not None for other in others):
            raise DefinitionError(f"{what} has a {type(value).__name__}, whose state cannot be written as text")
        if items is not None:
            described["items"] = [self.write(each, what) for each in items]
        if pairs is not None:
            described["pairs"] = [[self.write(key, what), self.write(each, what)] for key, each in pairs]
        if state is not None:
            described["state"] = self.write(state, what)
        return described

    def _call(self, function: Any, args: Sequence[Any], what: str) -> dict[str, Any]:
        kwargs: Mapping[str, Any] = {}
        kind = "call"
        if function is copyreg.__newobj__:  # type: ignore[attr-defined]  # not in its stubs
            kind, (function, *args) = "new", args
        elif function is copyreg.__newobj_ex__:  # type: ignore[attr-defined]
            kind, (function, args, kwargs) = "new", args
        described: dict[str, Any] = {kind: self.name_of(function, what)}
        if args:
            described["args"] = [self.write(each, what) for each in args]
        if kwargs:
            described["kwargs"] = {key: self.write(each, what) for key, each in kwargs.items()}
        return described


class Cells:
    """The module of what a notebook, or a script, defined itself."""

    def __init__(self) -> None:
        self._parts: dict[str, str] = {}

    def source(self) -> str:
        """Return the module's source, "" if the notebook defined nothing that is sent."""
        return HEAD + "\n".join(self._parts.values()) if self._parts else ""

    def add(self, value: Any, what: str) -> None:
        """Add a function or class, after all that it uses. Raises DefinitionError if its source is not known."""
        name = value.__qualname__.partition(".")[0]
        if name in self._parts:
            return
        self._parts[name] = ""  # under way: two functions may call each other
        node, names = _definition(value, name, what)
        for used in sorted(_names_used(node) - {name}):
            if used in names and not used.startswith("__"):
                self._add_name(used, names[used], what)
        # What it uses stands before it.
        del self._parts[name]
        self._parts[name] = ast.unparse(node) + "\n"

    def _add_name(self, name: str, value: Any, what: str) -> None:
        if name in self._parts:
            return
        if isinstance(value, ModuleType):
            self._parts[name] = f"import {value.__name__} as {name}\n"
        elif isinstance(value, type | FunctionType | BuiltinFunctionType) and "<" not in value.__qualname__:
            if value.__module__ == "__main__" and value.__name__ == name:
                self.add(value, what)
            elif value.__module__ == "__main__":
                self.add(value, what)
                self._parts[name] = f"{name} = {value.__qualname__}\n"
            else:
                self._parts[name] = _import(value, name)
        elif value is None or type(value) in (bool, int, str):
            self._parts[name] = f"{name} = {value!r}\n"
        else:
            text = json.dumps(Writer(self).write(value, f"{what} (its global '{name}')"))
            self._parts.setdefault("", "from openfl_audio.node.objects import value as _value\n")
            self._parts[name] = f"{name} = _value({text!r})\n"


def _names_used(node: ast.stmt) -> set[str]:
    """Return the global names that a definition uses, when it is made and when it is called."""
    codes, used = [compile(ast.Module([node], []), NOTEBOOK_MODULE, "exec")], set()
    while codes:
        code = codes.pop()
        codes += [each for each in code.co_consts if isinstance(each, CodeType)]
        used |= {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return used


def _import(value: Any, name: str) -> str:
    module = value.__module__ or whichmodule(value, value.__qualname__)
    first, _, rest = value.__qualname__.partition(".")
    if rest:
        return f"from {module} import {first} as _{name}\n{name} = _{name}.{rest}\n"
    return f"from {module} import {first} as {name}\n"


def _function_of(value: Any) -> FunctionType | None:
    """Return a function itself, or one of a class's methods; None for a class without any."""
    if isinstance(value, FunctionType):
        return inspect.unwrap(value)
    for member in vars(value).values():
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if isinstance(function, FunctionType) and function.__module__ == value.__module__:
            return inspect.unwrap(function)
    return None


def _definition(value: Any, name: str, what: str) -> tuple[ast.stmt, Mapping[str, Any]]:
    """Return the definition of a function or a class of the notebook, and the global names that there are.

    Decorators that register a task are left out.
    """
    function = _function_of(value)
    if function is not None:
        sources = [linecache.getlines(function.__code__.co_filename)]
    else:
        # A class without methods does not say in which cell it is.
        sources = [linecache.getlines(file) for file in linecache.cache if not Path(file).exists()]
        sources += [linecache.getlines(getattr(sys.modules["__main__"], "__file__", None) or "")]
    found = [node for lines in sources for node in _definitions(lines) if node.name == name]
    if not found:
        raise DefinitionError(f"{what} uses '{name}', whose source is not known: define it in a cell or a file")
    node = found[-1]
    node.decorator_list = [each for each in node.decorator_list if not _registers(each)]
    return node, function.__globals__ if function is not None else vars(sys.modules["__main__"])


def _definitions(lines: Sequence[str]) -> list[Definition]:
    """Return what a source defines at its top."""
    try:
        return [node for node in ast.parse("".join(lines)).body if isinstance(node, Definition)]
    except SyntaxError:
        return []


def _registers(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(called, ast.Attribute) and called.attr in REGISTERING
