"""Lines of code and of settings are counted alike for both frameworks."""

import json

from benchmarks.own_data import lines_of_code, notebook_code, settings_lines

CODE = '''"""A docstring
of two lines."""

import os  # a remark


def join(
    one: str,
) -> str:
    """Another docstring."""
    # A comment.
    return """a
text""" + os.sep
'''


def test_blank_lines_comments_and_docstrings_are_no_code():
    assert lines_of_code(CODE) == 6  # the import, three lines of the head, two of the text that is returned


def test_comments_and_blank_lines_are_no_settings():
    assert settings_lines("# about\n\na: 1\n  # more\n  b: 2  # why\n") == 2


def test_code_of_a_notebook_is_that_of_its_code_cells(tmp_path):
    path = tmp_path / "one.ipynb"
    cells = [{"cell_type": kind, "source": [f"{kind}\n", "x = 1"]} for kind in ("markdown", "code", "code")]
    path.write_text(json.dumps({"cells": cells}))
    assert notebook_code(path) == "code\nx = 1\ncode\nx = 1"
