"""Reference of the files of a run, from the docstrings of the modules that keep them."""

import inspect

from openfl_audio.director import run_folder
from openfl_audio.experiments import run


def run_files() -> str:
    """Return the list of the files in an experiment's folder at the director; it is indented, so it becomes code."""
    return inspect.cleandoc(str(run_folder.__doc__))


def train_files() -> str:
    """Return the list of the files in the folder of `openfl-audio train`; it is indented, so it becomes code."""
    return inspect.cleandoc(str(run.__doc__))
