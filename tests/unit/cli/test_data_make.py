"""`openfl-audio data make`; what it makes is tested in tests/unit/testing/corpora."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

LAYOUTS = ("speech-commands", "librispeech", "fsd50k")


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "openfl_audio.cli", "data", "make", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_words_are_made_once(tmp_path):
    pytest.importorskip("espeakng_loader")
    made = run("speech-commands", "--out", str(tmp_path / "words"), "--speakers", "3", "--seed", "5")
    assert (made.returncode, made.stdout) == (0, f"{tmp_path / 'words'}: made.\n")
    assert json.loads((tmp_path / "words" / "corpus.json").read_text()) == {"version": 1, "n_speakers": 3, "seed": 5}
    assert (tmp_path / "words" / "testing_list.txt").exists()
    again = run("speech-commands", "--out", str(tmp_path / "words"), "--speakers", "3", "--seed", "5")
    assert (again.returncode, again.stdout) == (0, f"{tmp_path / 'words'}: is there already.\n")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_folder_is_refused_and_untouched(tmp_path, layout):
    (tmp_path / "thesis.txt").write_text("mine")
    refused = run(layout, "--out", str(tmp_path))
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert str(tmp_path) in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("layout", "size", "sentence"),
    [
        ("fsd50k", "--speakers", "openfl-audio data make fsd50k: unrecognized arguments: --speakers 3"),
        ("librispeech", "--seconds", "openfl-audio data make librispeech: unrecognized arguments: --seconds 3"),
    ],
)
def test_a_size_of_another_layout_is_refused(tmp_path, layout, size, sentence):
    refused = run(layout, "--out", str(tmp_path / "corpus"), size, "3")
    assert refused.returncode == 2
    assert sentence in refused.stderr
    assert not (tmp_path / "corpus").exists()


def test_a_median_length_that_no_clip_has_is_refused(tmp_path):
    refused = run("fsd50k", "--out", str(tmp_path / "sounds"), "--seconds", "30")
    assert refused.returncode == 1
    assert (
        refused.stderr
        == "openfl-audio data make fsd50k: The median length of a clip must be from 0.3 to 12.0 seconds, not 30.0.\n"
    )
    assert not (tmp_path / "sounds").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_torch_is_loaded_and_espeak_not_in_this_process(layout, tmp_path):
    code = (
        "import sys; from openfl_audio.cli.main import main\n"
        f"main(['data', 'make', {layout!r}, '--seed', '-1', '--out', 'nowhere'])\n"
        "print({'torch', 'torchaudio', 'espeakng_loader'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    assert "seed" in done.stderr
