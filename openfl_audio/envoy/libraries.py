"""A worker's libraries, without what it does not use: two seconds of its start, and 200 MB of its memory.

OpenFL's compression brings scikit-learn and SciPy along, and its packing of workspaces brings pip. torch's optimizers
load torch's compiler, only to tell it that they are not to be compiled. Whoever imports or uses one of these finds it
as it is. To be imported before anything else of OpenFL.
"""

import functools
import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

LATER = ("sklearn.cluster", "pip._internal.operations.freeze")
COMPILER = "torch._dynamo"


class _Later(ModuleType):
    """A module that is imported when somebody looks into it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def imported_later(*names: str) -> Iterator[None]:
    """Let `from package import module` give a `_Later` inside of the block; what is imported already stays as it is."""
    packages = []
    for name in names:
        package, _, module = name.rpartition(".")
        if package not in sys.modules:
            sys.modules[package] = ModuleType(package)
            setattr(sys.modules[package], module, _Later(name))
            packages.append(package)
    try:
        yield
    finally:
        for package in packages:
            del sys.modules[package]


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Importing makes a million objects that stay: looking for garbage among them takes a sixth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def load_compiler_later() -> None:
    """Let torch's optimizers run without the compiler until somebody else has loaded it.

    Some of their methods are wrapped to keep the compiler out, and each wrapper loads it. Before it is loaded nothing
    can be compiling, and what the wrapper wraps does the same.
    """
    not_compiled = _disable_dynamo(load_compiler_later).__code__
    not_traced = _use_grad_for_differentiable(load_compiler_later).__code__
    for kind in (torch.optim.Optimizer, *torch.optim.Optimizer.__subclasses__()):
        for name, method in list(vars(kind).items()):
            code = getattr(method, "__code__", None)
            if code is not_compiled:
                setattr(kind, name, _until_compiler_is_loaded(method.__wrapped__, method))
            elif code is not_traced:
                setattr(kind, name, _until_compiler_is_loaded(_step_with(method.__wrapped__), method))


def _until_compiler_is_loaded(plain: Callable, wrapped: Callable) -> Callable:
    @functools.wraps(wrapped)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (wrapped if COMPILER in sys.modules else plain)(*args, **kwargs)

    return call


def _step_with(plain: Callable) -> Callable:
    """What is left of the wrapper around `step`: gradients only for a step that is to be differentiated itself."""

    def step(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(optimizer.defaults["differentiable"]):
            return plain(optimizer, *args, **kwargs)

    return step


with without_garbage_collection():
    # First, to see all modules as they are.
    import torch
    from torch._compile import _disable_dynamo
    from torch.optim.optimizer import _use_grad_for_differentiable

    with imported_later(*LATER):
        import openfl.pipelines
        import openfl.utilities.workspace  # noqa: F401

    # What an experiment's pickles refer to.
    from openfl_audio.node import model_interface  # noqa: F401

load_compiler_later()
