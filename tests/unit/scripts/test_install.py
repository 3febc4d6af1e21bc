"""Requests of scripts/install.sh to pip: a pip that answers as it is told stands in for the indexes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

REPOSITORY = Path(__file__).resolve().parents[3]
# In place of the environment's Python: notes what pip is to install, and prints as pip does; this one does all else.
PYTHON = """#!/bin/sh
case "$*" in
"-m pip index versions torch") echo "Available versions: {torch}" ;;
"-m pip index versions torchaudio") echo "Available versions: {torchaudio}" ;;
"-m pip install"*)
    echo "$@" > asked
    echo "  Downloading torch-2.14.1-cp311-cp311-manylinux_2_28_x86_64.whl (530.6 MB)"
    echo "  Downloading idna-3.1-py3-none-any.whl (70 kB)"
    echo "  Downloading openfl-1.7.1-py3-none-any.whl (8.4 MB)"
    echo "  Downloading ray-2.60.0-cp311-cp311-manylinux2014_x86_64.whl (1.2 GB)"
    echo "Installing collected packages: idna, torch"
    exit {status} ;;
*"importlib.metadata"*) exit {missing} ;;
"-c "*"subprocess"*) exec {python} -c "$(echo "$2" | sed "s#sys.executable#\\"$0\\"#")" ;;
*) exec {python} "$@" ;;
esac
"""
GPU_ONLY = "2.14.1, 2.11.0"


@pytest.fixture
def install(tmp_path):
    """Run the script where pip's indexes have these versions; returns what it printed and what pip was asked for."""

    def install(torch=GPU_ONLY, torchaudio="2.11.0", gpu=False, missing=1, status=0) -> tuple[str, list[str]]:
        folder = tmp_path / "project"
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / "scripts").mkdir()
        (folder / ".venv" / ".folder").write_text(f"{folder}\n")
        shutil.copy(REPOSITORY / "scripts" / "install.sh", folder / "scripts")
        shutil.copy(REPOSITORY / "pyproject.toml", folder)
        python = folder / ".venv" / "bin" / "python"
        python.write_text(
            PYTHON.format(torch=torch, torchaudio=torchaudio, status=status, missing=missing, python=sys.executable)
        )
        python.chmod(0o755)
        programs = tmp_path / "programs"
        programs.mkdir()
        if gpu:
            (programs / "nvidia-smi").write_text("#!/bin/sh\n")
            (programs / "nvidia-smi").chmod(0o755)
        environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
        command = ["bash", str(folder / "scripts" / "install.sh")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == (1 if status else 0), done.stderr
        return done.stdout + done.stderr, (folder / "asked").read_text().split()

    return install


@pytest.fixture(autouse=True)
def without_gpu():
    if shutil.which("nvidia-smi") or list(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a GPU")


CPU = "2.15.0+cpu, 2.14.1, 2.13.0+cpu, 2.9.1+cpu"


def test_without_a_gpu_the_newest_builds_for_cpus_that_the_project_takes_are_installed(install):
    printed, asked = install(CPU, "2.11.0+cpu, 2.11.0")
    assert asked[-2:] == ["torch==2.13.0+cpu", "torchaudio==2.11.0+cpu"]
    assert "0.6 GB, with PyTorch for the CPU" in printed


@pytest.mark.parametrize(
    "indexes",
    [
        {},
        {"torch": CPU},
        {"torchaudio": "2.11.0+cpu"},
        {"torch": "2.15.0+cpu, 2.10.1+cpu", "torchaudio": "2.11.0+cpu"},
        {"torch": CPU, "torchaudio": "2.10.0+cpu"},
    ],
)
def test_without_both_builds_for_cpus_the_size_of_those_for_gpus_is_said(install, indexes):
    printed, asked = install(**indexes)
    assert not any("torch" in requirement for requirement in asked)
    assert "libraries for GPUs only (2.7 GB)" in printed
    assert "3.1 GB, most of it PyTorch" in printed


def test_on_a_machine_with_a_gpu_no_build_for_cpus_is_taken(install):
    printed, asked = install(CPU, "2.11.0+cpu", gpu=True)
    assert not any("torch" in requirement for requirement in asked)
    assert "GPUs only" not in printed


def test_a_torch_that_is_there_stays(install):
    printed, asked = install(CPU, "2.11.0+cpu", missing=0)
    assert not any("torch" in requirement for requirement in asked)
    assert "what is missing" in printed


def test_large_downloads_are_named_as_they_begin(install):
    printed, _ = install()
    assert "  torch 2.14.1, 530.6 MB\n  ray 2.60.0, 1.2 GB\n  unpacking\nInstalled in " in printed


def test_a_pip_that_fails_ends_the_installation_with_the_end_of_its_log(install):
    printed, _ = install(status=1)
    assert "Installing collected packages: idna, torch" in printed
    assert "error: pip failed; the lines above are the end of .venv/install.log." in printed
