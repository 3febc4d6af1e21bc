"""`openfl-audio train` on a small demo corpus: four modes, kills, and the same weights whatever runs the clients."""

import contextlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from openfl_audio.cli.main import main
from openfl_audio.experiments.run import run
from openfl_audio.protocol.tensors import TensorFile, Tensors
from openfl_audio.testing.corpora.speech_commands import make_speech_commands
from tests.integration.conftest import REPOSITORY, wait_for
from workspaces.keyword_spotting.workload import KeywordSpotting

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROUNDS = 3
# Small enough for seconds; the last model is kept as a file in each mode.
SETTINGS = ["--clients", "3", "--rounds", str(ROUNDS), "--set", "keep=1", "--set", "batch_size=8"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "corpus"
    make_speech_commands(folder, n_speakers=9)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Let this process compute as the command's own does: with more threads, sums may be in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def command(mode: str, corpus: Path, out: Path, *arguments: str) -> list[str]:
    beginning = ["train", "keyword_spotting", "--mode", mode]
    return [*beginning, "--data", str(corpus), "--out", str(out), *SETTINGS, *arguments]


def start(mode: str, corpus: Path, out: Path, *arguments: str) -> subprocess.Popen:
    """Start the command as a process of its own, which can be killed."""
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "openfl_audio.cli", *command(mode, corpus, out, *arguments)],
            cwd=REPOSITORY,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def train(mode: str, corpus: Path, out: Path, *arguments: str) -> dict[str, Any]:
    """Run the command in this process, which has loaded PyTorch, and return its result."""
    assert main(command(mode, corpus, out, *arguments)) == 0
    return json.loads((out / "result.json").read_text())


def history_of(out: Path) -> list[dict[str, Any]]:
    """Return a run's records without what a clock or the network says."""
    records = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return [{key: r[key] for key in r if key not in ("seconds", "bytes_up", "bytes_down", "timings")} for r in records]


def last_model(folder: Path) -> Tensors:
    with TensorFile(folder / f"round-{ROUNDS}.safetensors") as file:
        return file.load()


@pytest.fixture(scope="module")
def simulated(corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "run"
    train("simulated", corpus, out)
    return out


def test_a_simulated_run_leaves_its_result_and_all_that_belongs_to_it(simulated):
    result = json.loads((simulated / "result.json").read_text())
    assert (result["mode"], result["clients"], result["rounds"], result["seed"]) == ("simulated", 3, ROUNDS, 0)
    for model in ("best", "last"):
        for split in ("validation", "test"):
            assert 0 <= result["metrics"][model][split]["accuracy"] <= 1
    model_bytes = sum(tensor.nbytes for tensor in last_model(simulated).values())
    assert result["bytes"]["up"] == pytest.approx(3 * ROUNDS * model_bytes, rel=0.01)
    assert result["seconds"] > 0
    assert result["settings"]["batch_size"] == 8
    assert result["versions"]["torch"].startswith("2.")
    assert {"history.jsonl", "model", "accuracy.png", "clips_per_client.png"} <= {p.name for p in simulated.iterdir()}
    records = history_of(simulated)
    assert [record["round"] for record in records] == list(range(ROUNDS + 1))
    assert list(records[0]["envoys"]) == ["client-0", "client-1", "client-2", "evaluation"]
    assert records[0]["envoys"]["evaluation"].keys() == {"aggregated_model_validate"}
    best = max(range(ROUNDS + 1), key=lambda r: records[r]["metrics"]["aggregated_model_validate"]["accuracy"])
    assert result["metrics"]["best"]["validation"] == pytest.approx(
        records[best]["metrics"]["aggregated_model_validate"], abs=1e-6
    )


def test_all_that_a_run_leaves_is_in_the_list_of_its_files(simulated):
    listed = re.findall(r"[\w*.-]+(?:\.(?:jsonl?|png|safetensors)|/)", str(inspect.getmodule(run).__doc__))
    patterns = [name.rstrip("/").replace("round-N", "round-*") for name in listed]
    left = {path.name for path in simulated.iterdir()}
    assert {name for name in left if not any(fnmatch(name, pattern) for pattern in patterns)} == set()
    assert {"run.json", "per_client.json", "checkpoint.safetensors"} <= left


def test_whoever_comes_after_the_end_gets_all_rounds_all_the_same(simulated, corpus):
    """A search compares a trial that had ended when it was killed."""
    values = json.loads((simulated / "run.json").read_text())
    settings = KeywordSpotting.config_class.model_validate(values["settings"])
    seen: list[dict[str, Any]] = []
    result = run(KeywordSpotting(), settings, "simulated", corpus, simulated, on_round=seen.append)
    assert result == json.loads((simulated / "result.json").read_text())
    assert [record["round"] for record in seen] == list(range(ROUNDS + 1))


def test_a_federated_run_comes_to_the_weights_and_the_history_of_the_simulated_one(simulated, corpus, tmp_path):
    out = tmp_path / "federated"
    result = train("federated", corpus, out)
    assert history_of(out) == history_of(simulated)
    expected = last_model(simulated)
    found = last_model(out / "director" / "run")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, rtol=0, atol=1e-6, err_msg=name)
    assert result["metrics"] == json.loads((simulated / "result.json").read_text())["metrics"]
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if any(str(out) in word for word in p.info["cmdline"] or ())
    ]


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["keyword_spotting", "keyword_spotting_wav2vec2"])
def test_adapters_in_a_federation_come_to_the_bits_of_a_simulation(workload, corpus, tmp_path):
    """unit/workspaces/keyword_spotting/test_adapters.py simulates such a run, and loads its model."""
    for mode in ("simulated", "federated"):
        _, _, *options = command(mode, corpus, tmp_path / mode, "--set", "adapter.r=2")
        assert main(["train", workload, *options]) == 0
    assert history_of(tmp_path / "federated") == history_of(tmp_path / "simulated")
    expected, found = last_model(tmp_path / "simulated"), last_model(tmp_path / "federated" / "director" / "run")
    assert found.keys() == expected.keys()
    assert any(name.endswith(".lora_B.default.weight") and tensor.any() for name, tensor in found.items())
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
    weights = [tmp_path / mode / "model" / "model.safetensors" for mode in ("simulated", "federated")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_a_simulation_that_was_killed_goes_on_to_the_same_end(simulated, corpus, tmp_path):
    out = tmp_path / "killed"
    process = start("simulated", corpus, out)
    history = out / "history.jsonl"
    wait_for(lambda: history.exists() and history.read_text().endswith("\n"), seconds=200)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "result.json").exists()
    train("simulated", corpus, out)
    assert history_of(out) == history_of(simulated)
    for name, tensor in last_model(simulated).items():
        np.testing.assert_array_equal(last_model(out)[name], tensor, err_msg=name)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Director, envoys and whoever else has a path in `folder` among its arguments, with their workers."""
    found = {
        p for p in psutil.process_iter(["cmdline"]) if any(str(folder) in word for word in p.info["cmdline"] or ())
    }
    return list(found | {child for process in found for child in process.children(recursive=True)})


@pytest.mark.slow
def test_a_federation_of_which_every_process_was_killed_goes_on_to_the_same_bits(simulated, corpus, tmp_path):
    """Under CONTINUE_LOCAL, as keyword spotting has it: an envoy's optimizer outlives the envoy."""
    out = tmp_path / "killed-federation"
    process = start("federated", corpus, out)
    history = out / "director" / "run" / "history.jsonl"
    wait_for(lambda: history.exists() and history.read_text().endswith("\n"), seconds=200)
    # The director first: a worker that dies before it would end the experiment with an error.
    killed = sorted(processes_of(out), key=lambda process: "director" not in process.cmdline())
    for victim in killed:
        # One that ended of itself meanwhile is as good.
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    process.wait()
    wait_for(lambda: not processes_of(out))
    assert 1 <= len(history_of(history.parent)) < ROUNDS + 1, "it ended before it could be killed"
    train("federated", corpus, out)
    assert history_of(out) == history_of(simulated)
    for name, tensor in last_model(simulated).items():
        np.testing.assert_array_equal(last_model(out / "director" / "run")[name], tensor, err_msg=name)


def test_one_client_that_has_everything_and_clients_that_train_alone(corpus, tmp_path, capsys):
    central = train("centralized", corpus, tmp_path / "central")
    assert (central["mode"], central["clients"]) == ("centralized", 1)
    alone = train("individual", corpus, tmp_path / "alone", "--client-ids", "0", "-1")
    assert alone["clients"].keys() == {"client-0", "client-2"}
    records = {name: history_of(tmp_path / "alone" / name) for name in alone["clients"]}
    for name, history in records.items():
        assert list(history[0]["envoys"]) == [name, "evaluation"]
    sizes = [history[0]["envoys"][name]["train"]["size"] for name, history in records.items()]
    assert sum(sizes) < history_of(tmp_path / "central")[0]["envoys"]["client-0"]["train"]["size"]
    assert records["client-0"][-1]["metrics"] != records["client-2"][-1]["metrics"]
    said = refusal(command("individual", corpus, tmp_path / "alone", "--client-ids", "1"), capsys)
    assert "has a run with alone ['client-0', 'client-2'], now it is" in said


def test_a_run_starts_from_the_best_model_of_another(simulated, corpus, tmp_path):
    train("simulated", corpus, tmp_path / "run", "--init", str(simulated), "--rounds", "1")
    first = history_of(tmp_path / "run")[0]["metrics"]["aggregated_model_validate"]
    best = json.loads((simulated / "result.json").read_text())["metrics"]["best"]["validation"]
    assert first == pytest.approx(best, abs=1e-6)


FAULTS = {
    "an unknown key": (
        ["--set", "model.fozen=true"],
        "unknown key 'model.fozen' (known here: architecture, pretrained",
    ),
    "a wrong value": (["--set", "fraction=1.5"], "'fraction' is 1.5: input should be less than or equal to 1"),
    "a key by two ways": (["--set", "seed=1", "--seed", "2"], "--set seed=1 and --seed 2: give one of them"),
    "no value": (["--set", "seed"], "'seed' should be key=value"),
    "a run that is not there": (
        ["--init", "nowhere"],
        "'init' is 'nowhere': it has no model/model.safetensors",
    ),
    "a file that is not there": (["--config", "large.yaml"], "large.yaml: No such file or directory"),
    "a client that is not there": (["--client-ids", "7"], r"client ids [7] are not from -3 to 2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_the_settings_is_said_in_a_sentence(fault, corpus, tmp_path, capsys):
    arguments, sentence = FAULTS[fault]
    out = tmp_path / "run"
    assert sentence in refusal(command("individual", corpus, out, *arguments), capsys)
    assert not out.exists()


def test_weights_that_cannot_be_had_are_named(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments = ["--config", "whisper.yaml", "--set", "model.pretrained=nowhere/whisper", "--clients", "2"]
    said = refusal(command("simulated", corpus, tmp_path / "run", *arguments), capsys)
    assert "no weights for 'nowhere/whisper'" in said


def refusal(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the command says when it does not run."""
    capsys.readouterr()  # what runs before have said
    assert main(command) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("openfl-audio train: ")
    return printed


def test_a_folder_of_another_run_is_left_as_it_is(simulated, corpus, capsys):
    before = {path: path.stat().st_mtime_ns for path in simulated.rglob("*")}
    said = refusal(command("simulated", corpus, simulated, "--seed", "5"), capsys)
    assert "has a run with settings.seed 0, now it is 5: choose another --out" in said
    train("simulated", corpus, simulated)  # the same again: nothing is left to do
    assert {path: path.stat().st_mtime_ns for path in simulated.rglob("*")} == before
