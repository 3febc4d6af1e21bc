"""The wheel, installed into an environment that sees the dependencies of this one and no source of the project."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.experiments.workloads import workload_names
from openfl_audio.protocol.authority import write_certificates
from openfl_audio.testing.corpora.fsd50k import make_fsd50k
from openfl_audio.testing.corpora.librispeech import make_librispeech
from openfl_audio.testing.corpora.speech_commands import make_speech_commands
from tests.integration.conftest import READY_SECONDS, REPOSITORY, USER

PACKAGES = ("openfl_audio", "shard_descriptors", "workspaces")
PAGE = (REPOSITORY / "docs" / "tutorials" / "your-own-workload.md").read_text()
# A file's name in backquotes and a colon, then the file.
FILES = dict(re.findall(r"`([\w./]+\.\w+)`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL))
PARAMETERS = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "DIRECTOR_PORT, " in block)
WORDS_PER_SPEAKER = 6
CLASSIFIER = ("AutoModelForAudioClassification", "logits")
# By workload: its corpus and further arguments of train; the command that uses its model, or none; the Auto
# class that loads it, and the attribute of its output or the method that is called.
MODELS = {
    "sound_events": ("store --set clients=3 --set batch_size=64", "predict", *CLASSIFIER),
    "keyword_spotting": ("speech_commands", "predict", *CLASSIFIER),
    "keyword_spotting_wav2vec2": ("speech_commands", "predict", *CLASSIFIER),
    "audio_classification": (
        "speech_commands --set \"corpus={group_pattern: '/([^/_]+)_nohash'}\"",
        "predict",
        *CLASSIFIER,
    ),
    "speech_recognition": ("clients --config numbers.yaml --clients 2", "predict", "AutoModelForCTC", "logits"),
    "speech_enhancement": ("librifsd50k --clients 2 --local-epochs 0.2", "enhance", "AutoModel", "enhance"),
    "hubert": ("clients --set data.targets=targets --set model.clusters=20", "", "AutoModel", "last_hidden_state"),
    "hubert_distillation": (
        "clients --set distillation.teacher=runs/hubert/model",
        "",
        "AutoModel",
        "last_hidden_state",
    ),
}
# A model by Transformers alone: its Auto class, its folder, a recording, and what is shown of its output.
BY_AUTO_CLASS = """
import sys, soundfile, torch, torchaudio, transformers
kind, folder, recording, part = sys.argv[1:]
model = getattr(transformers, kind).from_pretrained(folder, trust_remote_code=True).eval()
waveform = torch.from_numpy(soundfile.read(recording, dtype="float32")[0])[None]
with torch.no_grad():
    if part == "enhance":
        output = model.enhance(waveform)
    else:
        try:
            extractor = transformers.AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
        except OSError:
            inputs = {"input_values": waveform}
        else:
            rate = extractor.sampling_rate
            waveform = torchaudio.functional.resample(waveform[0], 16000, rate).numpy()
            inputs = extractor(waveform, sampling_rate=rate, return_tensors="pt")
        output = getattr(model(**inputs), part)
assert torch.isfinite(output).all() and output.std() > 0
print(type(model).__name__, tuple(output.shape))
"""

# A merged model by Transformers' pipeline, which decodes no files here, as torchcodec may be missing.
BY_PIPELINE = """
import sys, soundfile, transformers
task, folder, recording = sys.argv[1:]
waveform, rate = soundfile.read(recording, dtype="float32")
heard = transformers.pipeline(task, model=folder)({"raw": waveform, "sampling_rate": rate})
print(heard["text"] if "text" in heard else max(heard, key=lambda each: each["score"])["label"])
"""

Run = Callable[..., str]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as a build leaves files beside the sources."""
    copy = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "notebooks"):
        shutil.copytree(REPOSITORY / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(copy))
    shutil.rmtree(copy)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_environment(tmp_path_factory.mktemp("environment"), wheel)


def make_environment(folder: Path, *packages: Path) -> Path:
    """Make a virtual environment in `folder` with `packages`, which sees the dependencies of this one."""
    venv.create(folder, with_pip=False)
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "installed_base": str(folder)}))
    # Folders of dependencies, but not what these add themselves, such as the sources of an editable installation.
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (own / "dependencies.pth").write_text("\n".join(others))
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed")
    for package in packages:
        pip("--python", str(folder / "bin" / "python"), "install", *options, str(package))
    return folder


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True, timeout=240)


@pytest.fixture
def run(environment: Path, tmp_path: Path) -> Run:
    return run_in(environment, tmp_path)


def run_in(environment: Path, folder: Path) -> Run:
    """Return what runs a command of the environment in `folder` and returns what it printed."""

    def run(*command: str, seconds: float = 280) -> str:
        done = subprocess.run(
            [str(environment / "bin" / command[0]), *command[1:]],
            cwd=folder,
            env=without_sources(environment),
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout

    return run


def without_sources(environment: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHON", "VIRTUAL_ENV")}
    path = os.pathsep.join([str(environment / "bin"), os.environ["PATH"]])
    return kept | {"PATH": path, "OMP_NUM_THREADS": "1"}


def read_result(out: Path) -> dict[str, Any]:
    return json.loads((out / "result.json").read_text())


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_packages_and_the_notebooks(wheel):
    built = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {
        path.relative_to(REPOSITORY).as_posix()
        for package in PACKAGES
        for path in (REPOSITORY / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    notebooks = {f"openfl_audio/testing/notebooks/{path.name}" for path in (REPOSITORY / "notebooks").glob("*.ipynb")}
    assert notebooks
    assert built == files | notebooks


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel(run, environment, tmp_path):
    pytest.importorskip("espeakng_loader")
    imported = run("python", "-c", "import openfl_audio; print(openfl_audio.__file__)")
    assert imported.startswith(str(environment))
    printed = run("openfl-audio", "demo", seconds=580)
    assert "best global model" in printed
    assert read_result(tmp_path / "runs" / "demo")["accuracy"]["best"] > 0.5
    assert (tmp_path / "runs" / "demo" / "model" / "config.json").exists()


@pytest.mark.slow
def test_sound_events_are_trained_from_the_wheel(run, tmp_path):
    run("openfl-audio", "data", "make", "fsd50k", "--out", "data/FSD50K")
    run("openfl-audio", "data", "prepare", "fsd50k", "--data", "data/FSD50K", "--out", "data/store")
    small = ("--rounds", "2", "--fraction", "0.3")
    run(
        "openfl-audio",
        "train",
        "sound_events",
        "--mode",
        "simulated",
        "--data",
        "data/store",
        "--out",
        "runs/a",
        *small,
    )
    result = json.loads((tmp_path / "runs" / "a" / "result.json").read_text())
    assert result["rounds"] == 2
    assert {"model", "history.jsonl"} <= {path.name for path in (tmp_path / "runs" / "a").iterdir()}


@pytest.fixture
def my_words(tmp_path: Path) -> Path:
    """The package of the page, and a corpus for it, in which the words are tones of 300 to 400 and 600 to 800 Hz."""
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "my_words" / "__init__.py").touch()
    lines = ["file,word,speaker,split"]
    generator = np.random.default_rng(0)
    for speaker, split in (("ann", "train"), ("bob", "train"), ("cem", "train"), ("dot", "validation")):
        for number in range(WORDS_PER_SPEAKER):
            word = ("high", "low")[number % 2]
            frequency_hz = generator.uniform(300, 400) * (2 if word == "high" else 1)
            waveform = 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(4_000) / 8_000)
            (tmp_path / "words").mkdir(exist_ok=True)
            soundfile.write(tmp_path / "words" / f"{speaker}_{number}.wav", waveform, 8_000)
            lines.append(f"{speaker}_{number}.wav,{word},{speaker},{split}")
    (tmp_path / "words" / "words.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "my_words"


def test_the_package_of_the_page_is_short():
    code = [FILES[name] for name in FILES if name.startswith("my_words/") or name == "notebook.py"]
    assert len(code) == 4
    assert sum(content.count("\n") for content in (*code, PARAMETERS)) <= 120


@pytest.mark.slow
def test_the_package_of_the_page_trains_in_three_modes_with_the_wheel(run, my_words):
    commands = [command.split() for command in re.findall(r"^openfl-audio train \./my_words .*$", PAGE, re.MULTILINE)]
    weights = {}
    for command in commands:
        run(*command)
        out = my_words.parent / command[-1]
        assert read_result(out)["metrics"]["best"]["validation"]["accuracy"] == 1.0
        weights[out.name] = (out / "model" / "model.pt").read_bytes()
    assert set(weights) == {"centralized", "simulated", "federated"}
    assert weights["simulated"] == weights["federated"]


@pytest.mark.slow
def test_the_page_s_settings_of_an_envoy_are_checked_with_the_wheel(run, my_words):
    command = next(re.finditer(r"^openfl-audio check envoy .*$", PAGE, re.MULTILINE))[0]
    printed = run(*command.split())
    assert "train: 12 items" in printed  # ann and cem
    assert "0.50 s at 8,000 Hz" in printed


@pytest.mark.slow
def test_the_page_s_notebook_trains_with_the_wheel(run, environment, my_words, monkeypatch):
    folder = my_words.parent
    write_certificates(folder / "certificates", director_hosts=["127.0.0.1"], envoys=["a", "b"], users=[USER])
    monkeypatch.setattr(sys, "executable", str(environment / "bin" / "python"))
    monkeypatch.setattr(os, "environ", without_sources(environment))
    with LocalFederation(folder, folder / "certificates", USER) as federation:
        federation.start_director()
        for rank, name in enumerate(("a", "b"), start=1):
            params = {"data": str(folder / "words"), "rank": rank, "world_size": 2}
            # The package lies beside the settings, as on the page.
            shutil.copytree(my_words, folder / "settings" / "my_words", dirs_exist_ok=True)
            federation.start_envoy(name, {"template": "my_words.shard.CsvShard", "params": params})
        federation.wait_until_ready(["a", "b"], READY_SECONDS)
        own = f"DIRECTOR_HOST, DIRECTOR_PORT = '127.0.0.1', {federation.port}\n"
        after = "print('accuracy', history['accuracy'].max(), type(model).__name__)\n"
        (folder / "notebook.py").write_text(PARAMETERS + own + FILES["notebook.py"] + after)
        assert "accuracy 1.0 Sequential" in run("python", "notebook.py")


@pytest.mark.slow
def test_an_installed_package_is_found_by_the_names_of_its_parts(wheel, tmp_path, my_words):
    package = tmp_path / "package"
    package.mkdir()
    my_words.rename(package / "my_words")
    (package / "pyproject.toml").write_text(FILES["pyproject.toml"])
    run = run_in(make_environment(tmp_path / "environment", wheel, package), tmp_path)
    shutil.rmtree(package)
    settings = tmp_path / "envoy_1.yaml"
    settings.write_text(settings.read_text().replace("template: my_words.shard.CsvShard", "template: my_words"))
    assert "shard descriptor: my_words\n" in run("openfl-audio", "check", "envoy", "-c", str(settings))
    run("openfl-audio", "train", "my_words", "--mode", "simulated", "--data", "words", "--out", "run")
    assert (
        json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]["best"]["validation"]["accuracy"] == 1.0
    )


@pytest.fixture(scope="module")
def corpora(environment, tmp_path_factory) -> Path:
    """A folder with the smallest corpora of all workloads, prepared by the commands of the wheel."""
    pytest.importorskip("espeakng_loader")
    folder = tmp_path_factory.mktemp("corpora")
    make_speech_commands(folder / "speech_commands", n_speakers=9)
    make_fsd50k(folder / "FSD50K", n_dev_clips=40, n_eval_clips=18)
    few = {"n_train_speakers": 4, "n_dev_speakers": 1, "n_test_speakers": 1, "n_utterances": 3}
    make_librispeech(folder / "LibriSpeech", **few, numbers=True)
    run = run_in(environment, folder)
    for line in (
        "fsd50k --data FSD50K --out store",
        "librispeech --data LibriSpeech --out clients --clients 2",
        "hubert-targets --data clients --codebook client --clusters 20 --name targets",
        "librifsd50k --librispeech LibriSpeech --fsd50k FSD50K --out librifsd50k",
    ):
        run("openfl-audio", "data", "prepare", *line.split())
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """An environment with the dependencies, and nothing of this project."""
    return make_environment(tmp_path_factory.mktemp("bare"))


def train_small(run: Run, workload: str, *changes: str) -> str:
    """Train for a round in the folder of `run`, and return the folder of the model in it."""
    data, *others = [*shlex.split(MODELS[workload][0]), *changes]
    out = f"runs/{'-'.join([workload, *changes])}"
    run(
        "openfl-audio", "train", workload, "--data", data, "--out", out, "--mode", "simulated", "--rounds", "1", *others
    )
    return f"{out}/model"


def test_the_models_are_those_of_all_workloads():
    assert MODELS.keys() == set(workload_names())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workload", MODELS)
def test_an_exported_model_is_used_by_its_command_and_by_transformers_alone(
    workload, environment, bare, corpora, tmp_path, monkeypatch
):
    # Where Transformers copies the code of a folder to.
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    _, command, kind, part = MODELS[workload]
    run = run_in(environment, corpora)
    if workload == "hubert_distillation":
        train_small(run, "hubert")
    model, recording = tmp_path / "model", tmp_path / "recording.wav"
    shutil.copytree(corpora / train_small(run, workload), model)
    shutil.copy(min((corpora / "speech_commands" / "yes").iterdir()), recording)
    elsewhere = run_in(environment, tmp_path)
    if command == "enhance":
        elsewhere("openfl-audio", "enhance", "model", "recording.wav", "clean.wav")
        assert soundfile.info(tmp_path / "clean.wav").frames == soundfile.info(recording).frames
    elif command:
        heard = json.loads(elsewhere("openfl-audio", "predict", "model", "recording.wav", "--json"))
        config = json.loads((model / "config.json").read_text())
        assert (
            isinstance(heard["text"], str) if "text" in heard else heard["scores"].keys() == config["label2id"].keys()
        )
    alone = run_in(bare, tmp_path)
    assert alone("python", "-c", "import importlib.util; print(importlib.util.find_spec('workspaces'))") == "None\n"
    loaded = alone("python", "-c", BY_AUTO_CLASS, kind, "model", "recording.wav", part)
    assert re.fullmatch(r"\w+ \(1, \d+(, \d+)?\)\n", loaded), loaded


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("workload", "task"),
    [("speech_recognition", "automatic-speech-recognition"), ("keyword_spotting_wav2vec2", "audio-classification")],
)
def test_a_model_of_adapters_is_used_by_its_command_and_by_a_pipeline_alone(
    workload, task, environment, bare, corpora, tmp_path
):
    model, recording = tmp_path / "model", tmp_path / "recording.wav"
    shutil.copytree(corpora / train_small(run_in(environment, corpora), workload, "--set", "adapter.r=4"), model)
    assert json.loads((model / "adapter" / "adapter_config.json").read_text())["r"] == 4
    shutil.copy(min((corpora / "speech_commands" / "yes").iterdir()), recording)
    heard = json.loads(run_in(environment, tmp_path)("openfl-audio", "predict", "model", "recording.wav", "--json"))
    alone = run_in(bare, tmp_path)("python", "-c", BY_PIPELINE, task, "model", "recording.wav").removesuffix("\n")
    assert alone == (heard["text"] if "text" in heard else max(heard["scores"], key=heard["scores"].get))
