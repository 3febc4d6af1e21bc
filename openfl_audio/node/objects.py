"""An experiment's objects, built from a text that people can read: names, arguments, numbers, and no code.

A pickle may carry code that nobody sees. Here a JSON value is itself, and an object with one of these keys is

    {"name": "package.module:function"}                    a function or a class of the sources, or an installed one
    {"call": NAME, "args": [...], "state": ...}            what a call returns, with its state, items and pairs
    {"new": CLASS, "args": [...], "state": ...}            an object that is made without its constructor
    {"partial": FUNCTION, "args": [...], "kwargs": {...}}  functools.partial
    {"tuple": [...]}, {"set": [...]}, {"frozenset": [...]}, {"dict": [[key, value], ...]}, {"float": "nan"}
    {"array": DTYPE, "shape": [...], "base64": ...}        a NumPy array; with "torch": true a tensor
    {"method": NAME, "of": OBJECT}                         a bound method
    {"same": ID}                                           the object before with that "id"

All that is called stands there by its name, with its arguments.
"""

import base64
import json
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import BuiltinFunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from openfl.interface.interactive_api.experiment import DataInterface, TaskInterface

from openfl_audio.errors import ArchiveError
from openfl_audio.node.model_interface import ModelInterface
from openfl_audio.protocol.plan import OBJECTS_FILE

# What makes code of data, or reaches the system, is no part of an object. Sources may use it, where it is seen.
FORBIDDEN = frozenset(  # of installed modules
    """_ctypes _frozen_importlib _frozen_importlib_external _io _operator _pickle _posixsubprocess bdb cProfile
    cloudpickle code codeop ctypes dill importlib inspect io joblib marshal multiprocessing nt operator os pdb
    pickle pkgutil posix profile pty runpy shutil signal site socket subprocess sys tempfile threading timeit
    trace types webbrowser zipimport""".split()  # noqa: SIM905
)
BUILTINS = frozenset(
    """bool bytearray complex dict enumerate filter float frozenset int len list map max min object range reversed set
    slice sorted str sum tuple zip abs any all round""".split()  # noqa: SIM905
)
NO_PART = "may not be part of an experiment's objects"


def build_objects(workspace: Path) -> tuple[ModelInterface, TaskInterface, DataInterface]:
    """Build model, tasks and data interface of the experiment in a folder, whose modules can be imported.

    Raises ArchiveError, naming what it is, for what is no object of this form or may not be part of one.
    """
    content = json.loads((workspace / OBJECTS_FILE).read_text(encoding="utf-8"))
    builder = Builder()
    try:
        model, data = builder.build(content["model"]), builder.build(content["data"])
        keeper = TaskInterface()
        for task in content["tasks"]:
            function = builder.build(task["function"])
            keeper.register_fl_task(**task["contract"])(function)
            keeper.add_kwargs(**builder.build(task["settings"]))(function)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ArchiveError(f"{OBJECTS_FILE} cannot be built: {type(error).__name__}: {error}") from error
    return model, keeper, data


def value(text: str) -> Any:
    """Return the object that a JSON text describes, as modules made of a notebook's cells call it."""
    return Builder().build(json.loads(text))


def resolve(name: str) -> Any:
    """Return the function, class or constant called "package.module:qualified.name".

    Raises ArchiveError for a name that leads elsewhere, or may not be part of an object.
    """
    module_name, _, path = name.partition(":")
    if module_name.partition(".")[0] in FORBIDDEN or (module_name == "builtins" and path not in BUILTINS):
        raise ArchiveError(
            f"'{name}' may not be part of an experiment's objects: call it in a source, where it is seen"
        )
    try:
        found: Any = import_module(module_name)
        for part in path.split("."):
            if isinstance(found, ModuleType) and found.__name__ != module_name:
                raise AttributeError(f"'{found.__name__}' is a module of its own")
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ArchiveError(f"'{name}' is neither in the experiment's sources nor installed: {error}") from error
    home = getattr(found, "__module__", None)
    if isinstance(found, ModuleType) or (isinstance(home, str) and home.partition(".")[0] in FORBIDDEN):
        raise ArchiveError(f"'{name}' is '{home or found.__name__}', which {NO_PART}")
    if home == "builtins" and isinstance(found, type | BuiltinFunctionType) and found.__name__ not in BUILTINS:
        raise ArchiveError(
            f"'{name}' is the built-in '{found.__name__}', which may not be part of an experiment's objects"
        )
    return found


class Builder:
    """Builds objects, and remembers those that are used again."""

    def __init__(self) -> None:
        self._known: dict[int, Any] = {}
        self._kinds: dict[str, Callable[[dict[str, Any]], Any]] = {
            "name": lambda described: resolve(described["name"]),
            "same": lambda described: self._known[described["same"]],
            "float": lambda described: float(described["float"]),
            "tuple": lambda described: tuple(map(self.build, described["tuple"])),
            "set": lambda described: set(map(self.build, described["set"])),
            "frozenset": lambda described: frozenset(map(self.build, described["frozenset"])),
            "dict": lambda described: {self.build(key): self.build(each) for key, each in described["dict"]},
            "array": _array,
            "method": lambda described: getattr(self.build(described["of"]), str(described["method"])),
            "partial": self._partial,
            "call": self._object,
            "new": self._object,
        }

    def build(self, described: Any) -> Any:
        """Return the object that is described."""
        if isinstance(described, list):
            return [self.build(each) for each in described]
        if not isinstance(described, dict):
            return described
        kind = next((key for key in self._kinds if key in described), None)
        if kind is None:
            raise ArchiveError(f"{json.dumps(described)[:200]} describes no object")
        return self._kinds[kind](described)

    def _partial(self, described: dict[str, Any]) -> Any:
        kwargs = {key: self.build(each) for key, each in described.get("kwargs", {}).items()}
        return partial(self.build(described["partial"]), *map(self.build, described.get("args", ())), **kwargs)

    def _object(self, described: dict[str, Any]) -> Any:
        args = [self.build(each) for each in described.get("args", ())]
        kwargs = {key: self.build(each) for key, each in described.get("kwargs", {}).items()}
        if "new" in described:
            kind = resolve(described["new"])
            made = kind.__new__(kind, *args, **kwargs)
        else:
            made = resolve(described["call"])(*args, **kwargs)
        if "id" in described:
            self._known[described["id"]] = made
        for item in described.get("items", ()):
            made.append(self.build(item))
        for key, each in described.get("pairs", ()):
            made[self.build(key)] = self.build(each)
        if "state" in described:
            _set_state(made, self.build(described["state"]))
        return made


def _set_state(made: Any, state: Any) -> None:
    """Give an object its state, as the pickle module does (PEP 307)."""
    if hasattr(made, "__setstate__"):
        made.__setstate__(state)
        return
    slots = None
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    if state:
        made.__dict__.update({sys.intern(key): each for key, each in state.items()})
    for key, each in (slots or {}).items():
        setattr(made, key, each)


def _array(described: dict[str, Any]) -> Any:
    dtype = np.dtype(described["array"])
    if dtype.kind not in "biufc":
        raise ArchiveError(f"an array of {dtype} {NO_PART}")
    flat = np.frombuffer(base64.b64decode(described["base64"]), dtype).copy()
    array = flat.reshape(described["shape"])
    if described.get("torch"):
        return torch.from_numpy(array)
    return array[()] if described.get("scalar") else array
