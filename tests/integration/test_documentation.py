"""The commands of README and docs/, as they are printed there, in a copy of the repository."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from openfl_audio.experiments.local_federation import LocalFederation, free_port
from openfl_audio.testing.corpora.fsd50k import make_fsd50k
from openfl_audio.testing.corpora.librispeech import make_librispeech
from openfl_audio.testing.corpora.own_data import make_own_data
from openfl_audio.testing.corpora.speech_commands import make_speech_commands
from tests.integration.conftest import READY_SECONDS, REPOSITORY, USER

pytestmark = pytest.mark.integration
pytest.importorskip("espeakng_loader")

SESSION_SECONDS = 800
FIRST = "docs/tutorials/first-run.md"
MACHINES = "docs/tutorials/several-machines.md"
MODES = "docs/four-ways.md"
EVENTS, ENHANCEMENT, HUBERT, WHISPER = (
    f"docs/workloads/{name}.md" for name in ("sound-events", "speech-enhancement", "hubert", "keyword-spotting")
)


def environment_of(copy: Path) -> dict[str, str]:
    """Return variables with which the command imports the packages of `copy`, whose settings are made small."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy)}


def command(beginning: str, page: str) -> str:
    """The one command in a shell block of `page` that contains `beginning`."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    [found] = [line for line in lines if beginning in line]
    return found


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The repository with an environment at .venv, data where envoys/superb.yaml expects it, and a free port."""
    folder = tmp_path_factory.mktemp("readme") / "openfl-audio"
    left_out = shutil.ignore_patterns(".git", ".venv", "runs", "certificates", "data", "__pycache__", ".*_cache")
    shutil.copytree(REPOSITORY, folder, ignore=left_out)
    make_speech_commands(folder / "data" / "speech_commands", n_speakers=9)
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("python", "jupyter", "openfl-audio"):
        program = folder / ".venv" / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "{Path(sys.executable).with_name(name)}" "$@"\n')
        program.chmod(0o755)
    port = str(free_port())
    for settings in ("director/director_config.yaml", "envoys/superb.yaml"):
        path = folder / settings
        path.write_text(path.read_text().replace("50051", port))
    return folder


def test_certificates_director_and_envoy_start_as_the_page_says(copy, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHON"}
    subprocess.run(command("certificates make", MACHINES), shell=True, cwd=copy, env=environment, check=True)
    with LocalFederation(tmp_path, copy / "certificates", USER) as federation:
        federation.port = int(re.search(r"director_port: (\d+)", (copy / "envoys" / "superb.yaml").read_text())[1])
        for name, beginning in (("director", "start_director.sh"), ("envoy_1", "start_envoy.sh")):
            federation.run(name, ["sh", "-c", f"exec env {command(beginning, MACHINES)}"], cwd=copy, env=environment)
        federation.wait_until_ready(["envoy_1"], READY_SECONDS)
        status = command("openfl-audio envoys", MACHINES).replace("50051", str(federation.port))
        shown = subprocess.check_output(status, shell=True, cwd=copy, env=environment, text=True)
        assert "envoy_1" in shown
        assert b"CUDA_VISIBLE_DEVICES=0" in Path(f"/proc/{federation.pid('envoy_1')}/environ").read_bytes().split(b"\0")


def run_blocks(page: str, folder: Path, port: int) -> str:
    """Run the shell blocks of `page` one after the other in a shell in `folder`, and return what they print.

    Before Ada trains, the shell waits for the envoys that she looks for.
    """
    text = (REPOSITORY / page).read_text(encoding="utf-8").replace("50051", str(port))
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    [look] = [block for block in blocks if block.startswith("openfl-audio envoys")]
    wait = f"until [ $({look.strip()} --json | grep -c '\"online\": true') = 3 ]; do sleep 1; done\n"
    script = "".join(wait + block if block is look else block for block in blocks)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with (folder / "session.log").open("w") as log:
        shell = subprocess.Popen(
            ["bash", "-c", script], cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            assert shell.wait(SESSION_SECONDS) == 0, (folder / "session.log").read_text()[-3000:]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    return (folder / "session.log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_sites_train_from_empty_folders_as_the_page_says(tmp_path):
    make_own_data(tmp_path / "runs" / "demo-own_data-own-data")
    printed = run_blocks("docs/tutorials/three-sites.md", tmp_path, free_port())
    assert "clips of 'Yes' count as 'yes'" in printed
    assert (tmp_path / "federation" / "ada" / "model" / "model.safetensors").exists()
    assert re.search(r"voice0_0\.ogg.*\b(yes|no|stop|go)\b", printed)


def test_jupyter_and_the_notebook_are_where_the_page_says(copy):
    program, lab, notebook = command("jupyter", MACHINES).split()
    subprocess.run([copy / program, lab, "--version"], check=True)
    assert (copy / notebook).exists()


@pytest.mark.slow
def test_a_simulation_runs_as_the_page_says(copy):
    small = " --clients 4 --rounds 1 --set batch_size=4"  # of the same command
    environment = environment_of(copy)
    train = command("openfl-audio train keyword_spotting", MODES) + small
    subprocess.run(train, shell=True, cwd=copy, env=environment, check=True, stdout=subprocess.DEVNULL)
    names = {path.name for path in (copy / "runs" / "simulated").iterdir()}
    assert {"result.json", "history.jsonl", "model", "model-last", "accuracy.png"} <= names
    recordings = sorted((copy / "data" / "speech_commands" / "yes").iterdir())[:2]
    predict = command("openfl-audio predict", MODES).replace("yes.wav no.wav", " ".join(map(str, recordings)))
    heard = subprocess.check_output(predict, shell=True, cwd=copy, env=environment, text=True).splitlines()
    assert [line.partition(": ")[0] for line in heard] == [str(path) for path in recordings]
    assert all(line.count(",") == 2 for line in heard)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_modes_are_compared_as_the_page_says(copy):
    compare = command("openfl-audio compare keyword_spotting", MODES) + " --clients 3 --rounds 1 --set batch_size=8"
    output = subprocess.check_output(compare, shell=True, cwd=copy, env=environment_of(copy), text=True)
    rows = [line.split(" | ")[0] for line in output.splitlines() if line.startswith("| ")]
    assert rows == [
        "| run",
        "| ---",
        "| centralized",
        "| centralized, equal steps",
        "| individual",
        "| simulated",
        "| federated",
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_modes_are_measured_over_seeds_as_the_page_says(copy):
    # One row of five.
    (copy / "workspaces" / "keyword_spotting_wav2vec2" / "comparison.yaml").write_text(
        "centralized: --mode centralized\n"
    )
    measure = command("benchmarks/modes.py", "docs/design/benchmarks.md") + " --seeds 2 --rounds 1"
    subprocess.run(measure, shell=True, cwd=copy, env=environment_of(copy), check=True, stdout=subprocess.DEVNULL)
    kept = subprocess.check_output(f"{measure} --finished", shell=True, cwd=copy, env=environment_of(copy), text=True)
    [run] = json.loads(kept)["runs"].values()
    assert (run["seeds"], run["rounds"], len(run["scores"]["accuracy, test, best"])) == (2, 1, 2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sound_events_are_prepared_trained_and_searched_as_the_page_says(copy):
    make_fsd50k(copy / "data" / "FSD50K", n_dev_clips=40, n_eval_clips=18)
    # One row of seven.
    (copy / "workspaces" / "sound_events" / "comparison.yaml").write_text("centralized: --mode centralized\n")
    small = " --set rounds=1 --set clients=3 --set batch_size=64"
    for line in (
        command("data prepare fsd50k", EVENTS),
        command("openfl-audio train sound_events", EVENTS) + small,
        command("openfl-audio tune sound_events", EVENTS) + small + " --samples 1",
        command("openfl-audio compare sound_events", EVENTS) + small,
    ):
        subprocess.run(line, shell=True, cwd=copy, env=environment_of(copy), check=True, stdout=subprocess.DEVNULL)
    assert {"scores.png", "class_by_uploader.png"} <= {path.name for path in (copy / "runs" / "events").iterdir()}
    assert len((copy / "runs" / "grid" / "results.csv").read_text().splitlines()) == 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_speech_is_enhanced_and_a_hubert_pretrained_and_distilled_as_the_page_says(copy):
    make_fsd50k(copy / "data" / "FSD50K", n_dev_clips=40, n_eval_clips=18)
    make_librispeech(
        copy / "data" / "LibriSpeech", n_train_speakers=8, n_dev_speakers=1, n_test_speakers=1, n_utterances=4
    )
    for workspace in ("speech_enhancement", "hubert"):
        (copy / "workspaces" / workspace / "comparison.yaml").write_text("centralized: --mode centralized\n")
    upstream = copy / "workspaces" / "keyword_spotting" / "configs" / "upstream.yaml"
    upstream.write_text(upstream.read_text().replace("rounds: 20", "rounds: 1").replace("local_epochs: 5", ""))
    for line in (
        command("data prepare librifsd50k", ENHANCEMENT),
        command("openfl-audio train speech_enhancement", ENHANCEMENT) + " --clients 3 --rounds 1 --local-epochs 1",
        command("openfl-audio compare speech_enhancement", ENHANCEMENT) + " --rounds 1 --local-epochs 1",
        command("data prepare librispeech", HUBERT),
        command("data prepare hubert-targets", HUBERT) + " --clusters 50 --name federated-mfcc39-100",
        command("openfl-audio train hubert --mode simulated --data", HUBERT)
        + " --rounds 1 --local-epochs 1 --set model.clusters=50",
        command("openfl-audio train hubert_distillation", HUBERT) + " --rounds 1 --local-epochs 1",
        command("openfl-audio compare hubert", HUBERT) + " --rounds 1 --local-epochs 1 --set model.clusters=50",
        command("openfl-audio compare-codebooks", HUBERT) + " --rounds 1 --local-epochs 1 --clusters 50 --seeds 1",
        command("benchmarks/hubert_iterations.py", HUBERT) + " --rounds 1 --clusters 50 --seeds 1",
        command("benchmarks/hubert.py", HUBERT) + " --seconds 1 --clips 1 --repeats 1",
    ):
        subprocess.run(line, shell=True, cwd=copy, env=environment_of(copy), check=True, stdout=subprocess.DEVNULL)
    noisy = next((copy / "data" / "LibriSpeech").rglob("*.flac"))
    enhance = command("openfl-audio enhance", MODES).replace("noisy.wav", str(noisy))
    subprocess.run(enhance, shell=True, cwd=copy, env=environment_of(copy), check=True, stdout=subprocess.DEVNULL)
    assert (copy / "clean.wav").exists()
    for run in ("enhancement", "hubert", "student"):
        assert {"result.json", "history.jsonl", "model"} <= {path.name for path in (copy / "runs" / run).iterdir()}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_twelve_lines_of_the_readme_train_a_classifier(copy, tmp_path, monkeypatch):
    [lines] = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    certificates = copy / "certificates-of-two"
    made = ["certificates", "make", "--out", str(certificates), "--director", "--envoy", "a", "b", "--user", USER]
    subprocess.run([sys.executable, "-m", "openfl_audio.cli", *made], check=True)
    params = {"data_path": str(copy / "data" / "speech_commands"), "group_pattern": "/([^/_]+)_nohash"}
    shard = {"template": "shard_descriptors.folder.FolderShardDescriptor", "params": params}
    with LocalFederation(tmp_path, certificates, USER) as federation:
        federation.start_director()
        for name in ("a", "b"):
            federation.start_envoy(name, shard)
        federation.wait_until_ready(["a", "b"], READY_SECONDS)
        monkeypatch.chdir(certificates)
        small = {"50051": str(federation.port), "rounds_to_train=settings.rounds": "rounds_to_train=1"}
        for text, other in small.items():
            assert text in lines
            lines = lines.replace(text, other)
        exec(lines, {})
    assert (certificates / "model" / "config.json").exists()


def test_the_preparation_benchmark_runs_as_the_page_says(copy):
    benchmark = command("benchmarks/fsd50k.py", EVENTS) + " --repeats 1 --clips 10"
    result = json.loads(subprocess.check_output(benchmark, shell=True, cwd=copy))
    assert result["full_set"]["clips"] == 51_197


@pytest.mark.slow
def test_the_cache_benchmark_runs_as_the_page_says(copy):
    benchmark = command("benchmarks/encoder_cache.py", WHISPER) + " --form short --clips 8 --epochs 1"
    output = subprocess.check_output(benchmark, shell=True, cwd=copy, env=environment_of(copy))
    assert json.loads(output)["form"] == "short"


@pytest.mark.slow
def test_the_simulation_benchmark_runs_as_the_page_says(copy):
    benchmark = command("benchmarks/simulation.py", MODES) + " --rounds 2"
    result = json.loads(subprocess.check_output(benchmark, shell=True, cwd=copy))
    assert result["parameters"] == 781_964
    assert result["no_training"]["ours"]["median"] > 0


def test_the_two_commands_are_targets_of_make():
    targets = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test"):
        assert command(f"make {target}", FIRST).split("#")[0].strip() == f"make {target}"
        assert f"  {target} " in targets
