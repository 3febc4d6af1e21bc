import ast
import subprocess
import sys
from pathlib import Path

import pytest

import openfl_audio

pytestmark = pytest.mark.process

HEAVY = {"torch", "sklearn", "transformers", "pandas", "scipy"}


@pytest.mark.parametrize("name", openfl_audio.__all__)
def test_a_public_name_is_there(name):
    assert callable(getattr(openfl_audio, name))


def test_type_checkers_see_the_public_names_and_no_others():
    tree = ast.parse(Path(openfl_audio.__file__).read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    names = [alias.asname for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(names) == openfl_audio.__all__
    homes = {
        alias.name: node.module for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert homes == openfl_audio._MODULE_OF


def test_what_notebooks_and_readme_import_is_public():
    root = Path(openfl_audio.__file__).parents[1]
    for page in [root / "README.md", *(root / "notebooks").glob("*.ipynb")]:
        assert "from openfl_audio." not in page.read_text(), f"{page.name} imports from a module of the engine"


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Directer'"):
        openfl_audio.Directer  # noqa: B018


@pytest.mark.parametrize(
    "module",
    ["openfl_audio", "openfl_audio.director.server", "openfl_audio.envoy.envoy", "openfl_audio.cli.main"],
)
def test_director_envoy_and_commands_load_nothing_heavy(module):
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout == "[]\n"
