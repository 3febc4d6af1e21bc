"""Completion, in the shell itself."""

import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The script for bash, in a file."""
    command = [sys.executable, "-m", "openfl_audio.cli", "--print-completion", "bash"]
    path = tmp_path_factory.mktemp("completion") / "openfl-audio.bash"
    path.write_text(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("da", {"data"}),
        ("data make ", {"speech-commands", "librispeech", "fsd50k"}),
        ("train keyword_spotting --local", {"--local-epochs"}),
        ("train keyword_spotting --mode ", {"centralized", "individual", "simulated", "federated"}),
        ("train keyword_spotting --data cor", {"corpus"}),
        ("data download wham", {"wham-noise"}),
    ],
)
def test_bash_completes(script, tmp_path, line, completions):
    (tmp_path / "corpus").mkdir()
    call = (
        'source "$1"; shift; function=$(complete -p openfl-audio | sed "s/.*-F \\([^ ]*\\).*/\\1/")\n'
        'COMP_WORDS=(openfl-audio "$@"); COMP_CWORD=$#; "$function" openfl-audio "${@: -1}"\n'
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    command = ["bash", "-c", call, "bash", str(script), *line.split(" ")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert set(done.stdout.split()) == completions


def test_there_is_a_script_for_zsh():
    command = [sys.executable, "-m", "openfl_audio.cli", "--print-completion", "zsh"]
    script = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert script.startswith("#compdef openfl-audio")
    assert "--local-epochs" in script
