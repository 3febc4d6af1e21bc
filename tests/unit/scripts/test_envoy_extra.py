"""The extra `envoy` has all that an envoy and its worker import, and with `director` all that a director does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

PYPROJECT = (Path(__file__).parents[3] / "pyproject.toml").read_text()
DIRECTOR = ("prometheus-client", "starlette", "tensorboard", "uvicorn")
LEFT_OUT = ("ipython", "jupyterlab", "matplotlib", "papermill", "shtab", *DIRECTOR)
# Modules of what is left out, and of the other extras.
BLOCKED = "IPython ipykernel jupyterlab jupyter_client matplotlib papermill nbformat nbconvert shtab tensorboard ray "
BLOCKED += "prometheus_client starlette uvicorn espeakng_loader trackio pytest hypothesis mypy opacus peft"
CODE = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split()))  # as if they were not installed
import openfl_audio.envoy.envoy, openfl_audio.envoy.worker, openfl_audio.envoy.check
from openfl.federated import Plan
from openfl_audio.cli.main import parse
for words in ("envoy -n a -c a.yaml", "review -n a -c a.yaml", "audit show a"):
    parse(words.split())
"""
DIRECTOR_CODE = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split()))
import openfl_audio.director.server, openfl_audio.director.report
from openfl_audio.cli.main import parse
for words in ("director -c a.yaml", "check director -c a.yaml", "audit report a --runs b --out c"):
    parse(words.split())
"""


def listed(name: str) -> list[str]:
    block = re.search(rf"^{name} = \[\n(.*?)^\]", PYPROJECT, re.M | re.S)
    return re.findall(r'^ +"([^"]+)"', block[1], re.M)


def test_the_extra_is_the_dependencies_without_what_no_node_needs():
    names = {re.split(r"[=<>]", each)[0]: each for each in listed("dependencies")}
    assert sorted(listed("envoy")) == sorted(each for name, each in names.items() if name not in LEFT_OUT)


def run_without(blocked: str, code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, blocked], capture_output=True, text=True, timeout=280)
    return "" if done.returncode == 0 else done.stderr[-2000:]


def test_an_envoy_and_its_worker_import_nothing_else():
    assert run_without(BLOCKED, CODE) == ""


def test_a_director_imports_nothing_but_what_the_extra_director_has_besides():
    listing = re.search(r"^director = \[(.*?)\]", PYPROJECT, re.M)
    assert [re.split(r"[=<>]", each)[0] for each in re.findall(r'"([^"]+)"', listing[1])] == [*DIRECTOR]
    blocked = " ".join({*BLOCKED.split()} - {name.replace("-", "_") for name in DIRECTOR})
    assert run_without(blocked, DIRECTOR_CODE) == ""
    assert "tensorboard" in run_without(BLOCKED, DIRECTOR_CODE)
