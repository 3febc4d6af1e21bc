"""The command line; what it makes is tested in demo_corpus/."""

import json
import subprocess
import sys

import pytest

from scripts import make_demo_corpus


def run(*arguments: str) -> subprocess.CompletedProcess:
    script = [sys.executable, make_demo_corpus.__file__, *arguments]
    return subprocess.run(script, capture_output=True, text=True, check=False)


def test_words_are_made_unless_another_layout_is_asked_for(tmp_path):
    pytest.importorskip("espeakng_loader")
    made = run("--out", str(tmp_path / "words"), "--speakers", "3", "--seed", "5")
    assert (made.returncode, made.stdout) == (0, f"{tmp_path / 'words'}: made.\n")
    assert json.loads((tmp_path / "words" / "corpus.json").read_text()) == {"version": 1, "n_speakers": 3, "seed": 5}
    assert (tmp_path / "words" / "testing_list.txt").exists()
    again = run("--out", str(tmp_path / "words"), "--speakers", "3", "--seed", "5")
    assert (again.returncode, again.stdout) == (0, f"{tmp_path / 'words'}: is there already.\n")


@pytest.mark.parametrize("layout", make_demo_corpus.LAYOUTS)
def test_another_folder_is_refused_and_untouched(tmp_path, layout):
    (tmp_path / "thesis.txt").write_text("mine")
    refused = run("--layout", layout, "--out", str(tmp_path))
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert str(tmp_path) in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("layout", "size", "sentence"),
    [
        ("fsd50k", "--speakers", "--speakers is the number of voices of speech_commands, and --layout is fsd50k"),
        ("librispeech", "--seconds", "--seconds is the median length of a clip of fsd50k, and --layout is librispeech"),
    ],
)
def test_a_size_of_another_layout_is_refused(tmp_path, layout, size, sentence):
    refused = run("--layout", layout, "--out", str(tmp_path / "corpus"), size, "3")
    assert refused.returncode == 2
    assert sentence in refused.stderr
    assert not (tmp_path / "corpus").exists()


def test_a_median_length_that_no_clip_has_is_refused(tmp_path):
    refused = run("--layout", "fsd50k", "--out", str(tmp_path / "sounds"), "--seconds", "30")
    assert refused.returncode == 1
    assert refused.stderr == "The median length of a clip must be from 0.3 to 12.0 seconds, not 30.0.\n"
    assert not (tmp_path / "sounds").exists()


def test_no_torch_is_loaded_and_espeak_not_in_this_process():
    code = "import sys, scripts.make_demo_corpus; print({'torch', 'torchaudio', 'espeakng_loader'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout == "set()\n"
