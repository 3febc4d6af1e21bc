"""Reference of the files of a run, from the docstring of the module that keeps them."""

import inspect

from openfl_audio.director import run_folder


def run_files() -> str:
    """Return the list of the files in an experiment's folder at the director; it is indented, so it becomes code."""
    return inspect.cleandoc(str(run_folder.__doc__))
