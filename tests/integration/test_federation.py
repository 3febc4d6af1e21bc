"""Experiments on a real director and real envoys."""

import itertools
import os
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from openfl_audio.notebook.interactive_api import DirectorError
from openfl_audio.protocol.audit import entries_of, verify
from tests.integration.conftest import ENVOYS, wait_for

pytestmark = pytest.mark.integration

numbers = itertools.count()


@pytest.fixture(scope="module")
def start(running, connect):
    """Start a toy experiment of its own name and return it."""
    import toy
    from toy.experiment import PointsData, model_interface, task_interface

    from openfl_audio.notebook.interactive_api import FLExperiment

    def start(name=None, tasks=None, model=None, rounds=2, **changes):
        experiment = FLExperiment(connect(running), name or f"toy-{next(numbers)}", workspace=toy)
        experiment.start(
            model_provider=model or model_interface(),
            task_keeper=tasks or task_interface(),
            data_loader=PointsData(),
            rounds_to_train=rounds,
            **changes,
        )
        return experiment

    return start


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory):
    """An experiment of three rounds on both envoys, its history, and the folder that its notebook ran in."""
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experiment = start(name="finished", rounds=3)
        return experiment, experiment.watch(), folder


@pytest.mark.slow
def test_each_site_is_judged_by_training_alone_and_by_the_models_of_the_others(running, connect):
    import toy
    from toy.experiment import PointsData, model_interface, task_interface

    from openfl_audio import cross_validate, scores_alone, train_alone

    arguments = {
        "model_provider": model_interface(), "task_keeper": task_interface(), "data_loader": PointsData(),
        "rounds_to_train": 2, "best": ("slope", "max"),
    }  # fmt: skip
    federation = connect(running)
    alone = train_alone(federation, "judged", toy, ENVOYS, **arguments)
    # Each adds its number of points in each of two rounds.
    assert scores_alone(alone, ("slope", "max")) == {"a": 2, "b": 6}
    models = {envoy: experiment.last_model() for envoy, experiment in alone.items()}
    matrix = cross_validate(federation, "judged", toy, models, **arguments)
    assert matrix == {"a": {"a": 2, "b": 2}, "b": {"a": 6, "b": 6}}
    # Run again, it takes up what is there, and nothing trained in it.
    assert cross_validate(federation, "judged", toy, models, **arguments) == matrix
    assert not any("train" in record["metrics"] for record in federation.dir_client.read_history("judged-of-a"))


def test_two_envoys_train_one_model(finished):
    experiment, history, folder = finished
    # Each envoy adds its number of points, 1 and 3, and weighs as much: (1 * 1 + 3 * 3) / 4 a round.
    assert history["slope"].tolist() == [0, 2.5, 5, 7.5]
    assert history["train loss"].tolist()[:3] == [2.5, 2.5, 2.5]
    assert experiment.initial_model()[0].weight.item() == 0
    assert experiment.best_model()[0].weight.item() == 2.5  # the nearest to 2
    assert experiment.last_model()[0].bias.item() == 7.5
    assert experiment.last_model()[1].weight.item() == 1  # frozen: it never travelled
    assert experiment.get_experiment_status() == "finished"
    assert list(folder.iterdir()) == [], "the notebook's folder must stay as it was"


def test_director_and_envoys_hold_each_others_records(finished, running):
    _, records, _ = finished
    director = running.folder / "director" / "record.jsonl"
    root = (running.certificates / "ca.crt").read_bytes()
    for name in ENVOYS:
        envoy = running.folder / "envoys" / name / "record.jsonl"
        # The last exchange is that after the end.
        wait_for(lambda: '"event": "ended"' in envoy.read_text())  # noqa: B023
        wait_for(lambda: not verify(director, envoy, root).faults and not verify(envoy, director, root).faults)  # noqa: B023
        sent = [entry for entry in entries_of(envoy, "finished") if entry["event"] == "sent"]
        assert [(entry["round"], entry["tensors"] > 0) for entry in sent] == [
            (0, True),
            (1, True),
            (2, True),
            (3, False),
        ]
        lines = director.read_bytes().splitlines(keepends=True)
        cut = running.folder / f"cut-{name}.jsonl"
        cut.write_bytes(b"".join(lines[: len(lines) // 2]))
        assert "the end is cut off" in "\n".join(verify(cut, envoy, root).faults)
    (submitted,) = [entry for entry in entries_of(director, "finished") if entry["event"] == "submitted"]
    (downloaded,) = [entry for entry in entries_of(envoy, "finished") if entry["event"] == "downloaded"]
    assert submitted["archive_sha256"] == downloaded["archive_sha256"]
    assert len(records) == 4


def test_when_an_experiment_has_ended_its_code_and_pickles_are_gone_and_the_rest_is_private(finished, running):
    envoys, director = running.folder / "envoys", running.folder / "director"
    for envoy in ENVOYS:
        folder = envoys / envoy / "finished"
        wait_for(lambda folder=folder: [path.name for path in folder.iterdir()] == ["worker.log"])
    assert not (director / "finished/workspace.zip").exists()
    assert (director / "finished/last.safetensors").exists()
    written = [path for folder in (envoys, director) for path in (folder, *folder.rglob("*"))]
    assert [path for path in written if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_the_director_refuses_a_used_name_and_an_unknown_envoy(start, finished):
    with pytest.raises(DirectorError, match="'finished' exists already"):
        start(name="finished")
    with pytest.raises(DirectorError, match=r"envoys \['nobody'\] are not online \(online: \['a', 'b'\]\)"):
        start(envoys=["a", "nobody"])


def test_metrics_also_come_as_openfl_streams_them(finished):
    experiment, history, _ = finished
    metrics = list(experiment.federation.dir_client.stream_metrics("finished"))
    slopes = [m["metric_value"] for m in metrics if (m["metric_origin"], m["metric_name"]) == ("aggregator", "slope")]
    assert slopes == history["slope"].tolist()
    sizes = {(m["metric_origin"], m["metric_value"]) for m in metrics if m["metric_name"] == "size"}
    assert sizes == {("a", 1), ("b", 3)}


def test_experiments_of_others_cannot_be_seen(finished, running, connect):
    client = connect(running, "colleague").dir_client
    with pytest.raises(DirectorError, match="user 'colleague' has no experiment 'finished'"):
        client.get_model("finished", "best")
    with pytest.raises(DirectorError, match="user 'colleague' has no experiment 'finished'"):
        next(client.stream_history("finished"))


def test_after_an_error_in_a_task_which_reaches_the_notebook_named_envoys_run_an_experiment_with_two_best_models(start):
    from toy.experiment import task_interface

    from openfl_audio.notebook.interactive_api import ExperimentFailedError

    def fail(model, points, device, optimizer):
        raise ValueError("no such luck")

    with pytest.raises(ExperimentFailedError, match=r"envoy '[ab]'") as caught:
        start(tasks=task_interface(train=fail)).watch()
    assert "ValueError: no such luck" in str(caught.value)
    assert "in fail" in str(caught.value), "the traceback names the function"

    experiment = start(envoys=["a"], best=("slope", "min"), also_best={"slope": "max"})
    assert experiment.watch()["slope"].tolist() == [0, 1, 2]
    assert experiment.best_model()[0].weight.item() == 0
    assert experiment.best_model("slope")[0].weight.item() == 2
    with pytest.raises(DirectorError, match="there is no model 'best-loss'"):
        experiment.best_model("loss")


@pytest.mark.slow
def test_a_task_that_ends_its_process_does_not_end_the_envoy(start, running):
    from toy.experiment import task_interface

    from openfl_audio.notebook.interactive_api import ExperimentFailedError

    def leave(model, points, device, optimizer):
        import sys

        sys.exit(3)

    with pytest.raises(ExperimentFailedError, match="exit code 3"):
        start(tasks=task_interface(train=leave), envoys=["a"]).watch()
    assert running.is_alive("a")


@pytest.mark.parametrize("name", ["../outside", "a/b", "x" * 65, ".hidden", "spaß"])
def test_a_name_that_is_no_folder_is_refused_before_anything_is_sent(start, name):
    with pytest.raises(ValueError, match=r"use 1 to 64 letters, digits, '\.', '_' or '-'"):
        start(name=name)


def test_a_node_with_other_versions_refuses_and_says_which(start, monkeypatch):
    from openfl_audio.notebook import interactive_api

    older = {"python": "2.7", "torch": "0.4"}  # an experiment of 0.1.0 does not say that it is one
    monkeypatch.setattr(interactive_api, "describe_environment", lambda: older)
    sentence = r"has openfl-audio .* instead of 0\.1\.0, python 3\.\d+ instead of 2\.7, torch .* instead of 0\.4"
    with pytest.raises(interactive_api.ExperimentFailedError, match=sentence):
        start(envoys=["a"]).watch()


def test_a_model_object_is_refused_with_a_hint():
    import torch

    from openfl_audio.notebook.interactive_api import ModelInterface

    with pytest.raises(TypeError, match="model is a Linear: give a recipe"):
        ModelInterface(torch.nn.Linear(1, 1), torch.optim.SGD)


def test_idle_director_and_envoy_load_no_torch():
    modules = "openfl_audio.director.server, openfl_audio.envoy.envoy, shard_descriptors.superb"
    command = f"import sys, {modules}; print(sorted({{'torch', 'transformers', 'pandas'}} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout.strip()
        == "[]"
    )


def test_a_worker_ends_when_its_envoy_is_killed(running, start):
    """Last in this file: envoy 'b' is gone afterwards."""
    from toy.experiment import task_interface

    def hang(model, points, device, optimizer):
        import signal

        print("the worker hangs", flush=True)
        signal.pause()

    start(name="hang", tasks=task_interface(train=hang), envoys=["b"])
    wait_for(lambda: "the worker hangs" in read(running.folder / "envoys/b/hang/worker.log"))
    below = psutil.Process(running.pid("b")).children(recursive=True)
    assert any("openfl_audio.envoy.worker" in process.cmdline() for process in below)
    os.kill(running.pid("b"), 9)
    wait_for(lambda: not any(is_running(process.pid) for process in below))


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
