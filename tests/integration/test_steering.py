"""A notebook that is run twice, and experiments that people stop, resume, change and delete."""

import contextlib
import itertools
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import pytest
from safetensors.numpy import load_file

from openfl_audio.cli.main import main
from openfl_audio.errors import DefinitionError, DirectorError, ExperimentExistsError, ExperimentFailedError
from openfl_audio.protocol.messages import LiveRound
from openfl_audio.testing.fault_proxy import Proxy
from tests.integration.conftest import MONITOR, OPERATOR, READY_SECONDS, USER, points, wait_for
from tests.integration.test_notebook import held_at, rounds_in, wait_for_rounds

pytestmark = pytest.mark.integration

numbers = itertools.count()
# A fault is seen in `watch`, in the frame and on the command line within this time.
SIGHT_SECONDS = 5.0


class Watching:
    """`openfl-audio watch NAME` in a terminal of its own: what it has written so far."""

    def __init__(self, name: str, *options: str) -> None:
        own, terminal = pty.openpty()
        command = [sys.executable, "-m", "openfl_audio.cli", "watch", name, *options]
        environment = os.environ | {"COLUMNS": "160"}
        self._process = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment)
        os.close(terminal)
        self._written = b""
        self._thread = threading.Thread(target=self._read, args=(own,))
        self._thread.start()

    def _read(self, own: int) -> None:
        with (
            os.fdopen(own, "rb", buffering=0) as file,
            contextlib.suppress(OSError),
        ):  # at the end a terminal has an error
            while new := file.read(1 << 16):
                self._written += new

    def has(self, pattern: str) -> re.Match[str] | None:
        return re.search(pattern, self._written.decode(errors="replace"))

    def wait_for(self, pattern: str) -> re.Match[str]:
        try:
            return wait_for(lambda: self.has(pattern))
        except TimeoutError as error:
            raise AssertionError(f"no {pattern!r} in {self._written.decode(errors='replace')[-5000:]!r}") from error

    def __enter__(self) -> "Watching":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._thread.join()


@pytest.fixture
def look(running, certificates, capsys):
    """Return what a command prints, asked of the director by its operator."""

    def look(*words: str) -> str:
        where = ["--director", f"127.0.0.1:{running.port}", "--certificates", str(certificates), "--user", OPERATOR]
        assert main([*words, *where]) == 0, capsys.readouterr()
        return capsys.readouterr().out

    return look


@pytest.fixture
def seen(record_property):
    """Return a function that begins with a fault, and returns one that waits until the fault is seen somewhere."""

    def begin(fault: str):
        began = time.monotonic()

        def wait(where: str, look: Callable[[], Any]) -> None:
            wait_for(look)
            lag = time.monotonic() - began
            record_property(f"seconds until {fault} is seen: {where}", round(lag, 1))
            assert lag < SIGHT_SECONDS, f"{fault} is seen in {where} after {lag:.1f} s"

        return wait

    return begin


def states(experiment) -> dict[str, str]:
    """Return what each envoy does, by the last round of the frame."""
    return experiment.per_envoy().groupby("envoy")["state"].last().to_dict()


@pytest.fixture
def watch(running, certificates):
    """Start watching an experiment as its owner."""
    return lambda name: Watching(
        name, "--director", f"127.0.0.1:{running.port}", "--certificates", str(certificates), "--user", USER
    )


@pytest.fixture
def make(running, connect):
    """Return an experiment of its own name, and a function that starts it with the toy's model, tasks and data."""
    import toy
    from toy.experiment import PointsData, model_interface, task_interface

    from openfl_audio.notebook.interactive_api import DirectorError, FLExperiment

    made = []

    def make(name=None, train=None, rounds=3, envoys=("b",), user=USER, **changes):
        tasks = {"train": train, "validate": changes.pop("validate", None)}
        experiment = FLExperiment(connect(running, user), name or f"steered-{next(numbers)}", workspace=toy)
        start = partial(
            experiment.start,
            model_provider=model_interface(),
            task_keeper=task_interface(**{kind: task for kind, task in tasks.items() if task}),
            data_loader=PointsData(),
            rounds_to_train=rounds,
            envoys=envoys,
            **changes,
        )
        made.append(experiment)
        return experiment, start

    yield make
    # After a failure it would keep the envoys from the next test.
    for experiment in made:
        with contextlib.suppress(DirectorError, grpc.RpcError):  # it was not started, or is deleted
            if experiment.get_experiment_status() in ("pending", "in_progress"):
                experiment.stop()


def test_an_experiment_that_failed_in_a_task_continues_after_its_last_whole_round(make, tmp_path):
    mended = tmp_path / "mended"

    def train(model, points, device, optimizer, mended=mended):
        from toy.experiment import add_points

        if model[0].weight.item() >= 6 and not mended.exists():
            raise ValueError("no such luck")
        return add_points(model, points, device, optimizer)

    experiment, start = make(train=train)
    start()
    with pytest.raises(ExperimentFailedError, match="no such luck"):
        experiment.watch()
    assert experiment.history["slope"].tolist() == [0, 3]
    mended.touch()
    experiment.resume()
    assert experiment.watch()["slope"].tolist() == [0, 3, 6, 9]
    assert experiment.last_model()[0].weight.item() == 9
    with pytest.raises(DirectorError, match="has finished: start another one from its model"):
        experiment.resume()


def test_a_notebook_that_is_run_again_attaches_or_starts_another_or_refuses(make, tmp_path):
    gate = tmp_path / "gate"
    train = held_at(gate, slope=3)
    experiment, start = make("run-twice", train)
    start()
    wait_for_rounds(experiment, 1)
    again, start_again = make("run-twice", train)
    with pytest.raises(DirectorError, match="an experiment named 'run-twice' exists already"):
        start_again()
    start_again(if_exists="attach")
    assert again.history["slope"].tolist() == [0]
    assert again.last_model()[0].weight.item() == 3

    with pytest.raises(ExperimentExistsError, match="'run-twice' exists already, with rounds 3 and not 5: if_exists="):
        make("run-twice", train, rounds=5)[1](if_exists="attach")
    with pytest.raises(DefinitionError, match=r"if_exists is 'replace': use one of \('attach', 'new', 'error'\)"):
        start_again(if_exists="replace")

    # They wait for the envoy, which is at work.
    for number in (2, 3):
        other, start_other = make("run-twice", train)
        start_other(if_exists="new", start_from=again.last_model())
        assert other.experiment_name == f"run-twice-{number}"
        assert other.initial_model()[0].weight.item() == 3
        other.stop()
        other.delete()
        start_other()
        other.stop()

    gate.touch()
    assert again.watch()["slope"].tolist() == [0, 3, 6, 9]
    again.delete()
    with pytest.raises(DirectorError, match=f"user '{USER}' has no experiment 'run-twice'"):
        experiment.watch()
    with pytest.raises(DirectorError, match="no experiment 'run-twice'"):
        experiment.delete()


def test_an_operator_drops_an_envoy_stops_and_deletes_what_others_started(make, running, connect, tmp_path):
    from openfl_audio.notebook.interactive_api import FLExperiment

    gate = tmp_path / "gate"
    experiment, start = make(train=held_at(gate, slope=2.5), envoys=("a", "b"))
    start()
    wait_for_rounds(experiment, 1)
    operator = FLExperiment(connect(running, OPERATOR)).attach(experiment.experiment_name)
    operator.drop("a")
    waiting, start = make()
    start()
    operator.attach(waiting.experiment_name).stop()
    assert waiting.get_experiment_status() == "stopped"
    operator.delete()
    assert waiting.experiment_name not in [each.name for each in waiting.federation.dir_client.get_status().experiments]
    gate.touch()
    history = experiment.watch()
    assert history["left out"].dropna().tolist() == [f"a: left the experiment: was dropped by operator '{OPERATOR}'"]
    # From 2.5 on envoy 'b' alone adds its three points a round.
    assert history["slope"].tolist() == [0, 2.5, 5.5, 8.5]

    by_envoy = experiment.per_envoy().set_index(["round", "envoy"])
    assert by_envoy.loc[(1, "a"), ["state", "why"]].tolist() == [
        "refused",
        f"left the experiment: was dropped by operator '{OPERATOR}'",
    ]
    assert by_envoy.loc[(1, "b"), ["state", "size", "slope", "train loss"]].tolist() == ["counted", 3, 2.5, 3]
    assert by_envoy.loc[(1, "b"), ["download", "tasks", "upload"]].between(0, 60, inclusive="right").all()

    monitor = FLExperiment(connect(running, MONITOR)).attach(experiment.experiment_name)
    assert monitor.history.equals(experiment.history)
    with pytest.raises(DirectorError, match=f"that of monitor '{MONITOR}', this call is for notebook users and oper"):
        monitor.delete()
    with pytest.raises(DirectorError, match=f"that of operator '{OPERATOR}', this call is for notebook users"):
        make(user=OPERATOR)[1]()


def test_the_command_line_shows_and_steers(make, running, certificates, tmp_path, capsys):
    def ask(*words: str, user: str = USER, code: int = 0) -> str:
        where = ["--director", f"127.0.0.1:{running.port}", "--certificates", str(certificates), "--user", user]
        assert main([*words, *where]) == code, capsys.readouterr()
        printed = capsys.readouterr()
        return printed.err if code == 1 else printed.out

    gate, model = tmp_path / "gate", tmp_path / "best.safetensors"
    experiment, start = make("at-work", held_at(gate, slope=3))
    start()
    wait_for_rounds(experiment, 1)
    make("queued")[1]()
    assert re.search(r"waiting for +b works on 'at-work' *\n", ask("show", "queued"))
    assert "b works on 'at-work'" in ask("experiments", user=MONITOR)
    assert ask("stop", "queued", user=OPERATOR) == "experiment 'queued' is stopped\n"
    assert ask("watch", "queued", code=3).endswith("experiment 'queued' was stopped; rounds completed: 0\n")
    assert ask("resume", "queued") == "experiment 'queued' is pending, from round 0 on: b works on 'at-work'\n"
    assert "experiment 'queued' is pending: stop it first" in ask("delete", "queued", code=1)
    ask("stop", "queued")
    assert ask("delete", "queued") == "experiment 'queued' is deleted\n"
    assert f"user '{USER}' has no experiment 'queued'" in ask("show", "queued", code=1)
    assert "envoy 'a' is no member of experiment 'at-work'" in ask("drop", "at-work", "a", user=OPERATOR, code=1)

    gate.touch()
    assert rounds_in(ask("watch", "at-work")) == [0, 1, 2, 3]
    lines = [json.loads(line) for line in ask("watch", "at-work", "--json").splitlines()]
    assert [line.get("round") for line in lines] == [0, 1, 2, 3, None]
    assert lines[-1] == {"status": "finished", "error": ""}
    assert json.loads(ask("show", "at-work", "--json"))["plan"]["rounds"] == 3
    shown = ask("show", "at-work", user=OPERATOR)
    assert re.search(r"status +finished since \d{4}-\d\d-\d\d", shown)
    assert re.search(r"^ +2 +-4\.000 +3\.000 +1 of 1 ", shown, re.M)

    fetch = "fetch", "at-work", "--model", "best", "--out", str(model)
    printed = ask(*fetch)
    assert printed == f"wrote {model}: 2 tensors, {model.stat().st_size} B\n"
    assert load_file(model)["0.weight"].item() == 3  # the nearest to 2
    assert f"{model} exists already" in ask(*fetch, code=1)
    assert "this call is for envoys, notebook users and operators" in ask(
        "fetch", "at-work", "--out", str(tmp_path / "new"), user=MONITOR, code=1
    )
    assert not (tmp_path / "new").exists()

    assert "give either names of experiments or --older-than" in ask("delete", code=1)
    assert "--older-than 3: give a number of hours" in ask("delete", "--older-than", "3", code=1)
    assert ask("delete", "--older-than", "1h", user="colleague").startswith("no experiment of yours ended more than")
    assert ask("delete", "--older-than", "0h", user="colleague").startswith("no experiment of yours ended more than")
    assert "experiment 'at-work' is deleted\n" in ask("delete", "--older-than", "0h", user=OPERATOR)
    assert json.loads(ask("experiments", "--json")) == []


def test_jupyter_shows_of_an_error_its_sentence_and_no_traceback(connect, running, capsys):
    from IPython.core.interactiveshell import InteractiveShell

    from openfl_audio.notebook.interactive_api import FLExperiment

    shell = InteractiveShell.instance()
    shell.user_ns["experiment"] = FLExperiment(connect(running))
    try:
        shell.run_cell("experiment.attach('nobodys')")
    finally:
        InteractiveShell.clear_instance()
    assert capsys.readouterr().out.strip() == (
        f"DirectorError: the director at 127.0.0.1:{running.port} refused: user '{USER}' has no experiment 'nobodys'"
    )


def test_while_a_task_runs_its_steps_are_seen_and_what_a_site_keeps_is_not(
    make, running, certificates, tmp_path, capsys
):
    """An envoy that is killed is seen as well."""

    gate = tmp_path / "gate"

    def train(model, points, device, optimizer, gate=gate):
        import time

        import torch
        from toy.experiment import add_points

        from openfl_audio import report

        print("of nobody's business")
        report(120, 400, clips=480, loss=torch.tensor(0.5, requires_grad=True), accuracy=float("nan"))
        while not gate.exists():
            time.sleep(0.02)
        return add_points(model, points, device, optimizer)

    running.start_envoy("c", points(2), reports="steps")
    running.stop("b")
    running.start_envoy("b", points(3), reports="logs")
    running.wait_until_ready(["b", "c"], READY_SECONDS)
    experiment, start = make(train=train, envoys=("b", "c"), rounds=1)
    start()
    client = experiment.federation.dir_client

    def states() -> dict[str, tuple]:
        now = next(each for each in client.stream_history(experiment.experiment_name) if isinstance(each, LiveRound))
        return {each.name: (each.state, each.task, each.step, each.total, each.values) for each in now.envoys}

    at_work = {
        "b": ("works", "train", 120, 400, {"loss": 0.5}),
        "c": ("works", "train", 120, 400, {}),
    }
    wait_for(lambda: states() == at_work)
    where = ["--director", f"127.0.0.1:{running.port}", "--certificates", str(certificates), "--user"]
    assert main(["envoys", *where, USER]) == 0
    at_pace = r" train 120/400 \(loss 0\.500\) at [\d.]+ clips/s, .* left +\d+ MB"
    assert re.search(f"^ +b .*{at_pace}", capsys.readouterr().out, re.M)
    assert main(["show", experiment.experiment_name, *where, USER]) == 0
    assert re.search(r"^ +c +train 120/400 +[\d.]+ +\d.* s +\d+ MB *$", capsys.readouterr().out, re.M)
    of_b, of_c = (experiment.per_envoy().set_index("envoy").loc[envoy] for envoy in "bc")
    assert of_b[["round", "state", "task", "step", "total"]].tolist() == [0, "works", "train", 120, 400]
    assert of_c["clips_per_second"] > 0
    assert of_c["memory_bytes"] > 1e7
    assert main(["envoys", *where, "colleague"]) == 0
    assert "120/400" not in capsys.readouterr().out

    wait_for(lambda: "of nobody's business\n" in experiment.logs("b"))
    assert experiment.logs("c") == ""
    with pytest.raises(DirectorError, match="envoy 'a' is no member of experiment"):
        experiment.logs("a")

    os.killpg(running.pid("c"), signal.SIGKILL)
    running.stop("c")
    wait_for(lambda: states()["c"][0] == "offline")
    assert main(["envoys", *where, OPERATOR]) == 0
    assert re.search(r"^ +c +points +no since .* offline since \d\d:\d\d:\d\d", capsys.readouterr().out, re.M)
    gate.touch()
    wait_for(lambda: states()["b"][0] == "done")
    experiment.drop("c")
    assert experiment.watch()["slope"].tolist() == [0, 3]
    assert main(["logs", experiment.experiment_name, "b", "-f", *where, USER]) == 0
    assert "of nobody's business\n" in capsys.readouterr().out
    assert main(["logs", experiment.experiment_name, "-f", *where, USER]) == 1
    assert "--follow follows the log of one envoy: name it" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cut_link_is_seen_while_the_experiment_waits_and_so_is_its_end(
    make, running, tmp_path, watch, look, record_property
):
    gate = tmp_path / "gate"
    with Proxy(running.port) as line:
        running.start_envoy("d", points(2), director_port=line.port)
        try:
            running.wait_until_ready(["d"], READY_SECONDS)
            experiment, start = make(train=held_at(gate, slope=2), envoys=("b", "d"), rounds=2)
            start()
            name = experiment.experiment_name
            with watch(name) as watching:
                watching.wait_for(r"round 1 of 2, .*d train")
                line.pull()
                pulled = time.time()
                silent = watching.wait_for(r"d train, no word for (\d\.\d) s")
                record_property("seconds until a silent link is seen", round(time.time() - pulled, 1))
                assert re.search(r"^ +d .* train, no word for \d.* s ", look("envoys"), re.M)
                assert re.search(r"^ +d +train, no word for \d.* s ", look("show", name), re.M)
                last = experiment.per_envoy().set_index("envoy").loc["d"].iloc[-1]
                assert last["silent_seconds"] >= float(silent[1]) - 0.05  # what is shown is rounded
                line.hang_up()
                watching.wait_for(r"d offline since \d\d:\d\d:\d\d")
                line.plug()
                watching.wait_for(r"d offline since(.|\n)*d train([ ;]|\r|\x1b)")
                gate.touch()
                assert experiment.watch()["slope"].tolist() == pytest.approx([0, 2.6, 5.2])
        finally:
            running.stop("d")


def test_a_killed_envoy_is_seen_within_seconds(make, running, tmp_path, watch, look, seen):
    gate = tmp_path / "gate"
    running.start_envoy("d", points(2))
    try:
        running.wait_until_ready(["d"], READY_SECONDS)
        experiment, start = make(train=held_at(gate, slope=0), envoys=("b", "d"), rounds=1)
        start()
        name = experiment.experiment_name
        with watch(name) as watching:
            watching.wait_for(r"round 0 of 1, .*d train")
            os.killpg(running.pid("d"), signal.SIGKILL)
            fault = seen("a killed envoy")
            fault("watch", lambda: watching.has(r"d offline since \d\d:\d\d:\d\d"))
            fault("frame", lambda: states(experiment)["d"] == "offline")
            fault("command line", lambda: re.search(r"^ +d +points +no since .* offline since", look("envoys"), re.M))
            gate.touch()
            experiment.drop("d")
        assert experiment.watch()["slope"].tolist() == [0, 3]
    finally:
        running.stop("d")


@pytest.mark.slow
def test_for_whom_a_queued_experiment_waits_is_seen_within_seconds(make, tmp_path, watch, look, seen):
    gate = tmp_path / "gate"
    experiments = [make(train=held_at(gate, slope=0), rounds=1) for _ in range(3)]
    first, second, third = (experiment for experiment, _ in experiments)
    try:
        for _, start in experiments:
            start()
        with watch(third.experiment_name) as watching:
            watching.wait_for(f"'{third.experiment_name}' waits: .*b works on '{first.experiment_name}'")
            row = third.per_envoy().set_index("envoy").loc["b"]
            assert row[["round", "state"]].tolist() == [0, "waits"]
            first.stop()
            fault, waits = seen("a queue behind another experiment"), f"b works on '{second.experiment_name}'"
            fault("watch", lambda: watching.has(f"'{third.experiment_name}' waits: .*{waits}"))
            fault("frame", lambda: waits in third.per_envoy()["why"][0])
            fault("command line", lambda: re.search(f"waiting for +{waits}", look("show", third.experiment_name)))
            gate.touch()
        assert third.watch()["slope"].tolist() == [0, 3]
    finally:
        for experiment in (first, second, third):
            experiment.stop()


def test_weights_that_are_no_numbers_and_an_undefined_metric_are_seen_in_their_round(
    make, running, tmp_path, watch, look, seen
):
    gate = tmp_path / "gate"

    def train(model, points, device, optimizer, gate=gate):
        import time

        from toy.experiment import add_points

        while len(points) == 3 and not gate.exists():  # envoy 'b'
            time.sleep(0.02)
        add_points(model, points, device, optimizer)
        if len(points) == 1:
            model[0].bias.data.fill_(float("nan"))
        return {"loss": 0.0}

    def validate(model, points, device):
        return {"accuracy": None if len(points) == 1 else 0.5, "slope": model[0].weight.item()}

    experiment, start = make(train=train, validate=validate, envoys=("a", "b"), rounds=1)
    start()
    name = experiment.experiment_name
    refused = "tensor '0.bias' holds NaN or infinity"
    with watch(name) as watching:
        watching.wait_for(f"round 0 of 1, .*a refused: {refused}, b train")
        assert re.search(f"^ +a +refused: {refused}", look("show", name), re.M)
        row = experiment.per_envoy().set_index("envoy").loc["a"]
        assert row["state"] == "refused"
        assert re.search(refused, row["why"])
        gate.touch()
        fault = seen("an undefined metric")
        undefined = (
            "a: metric 'accuracy' of task 'aggregated_model_validate' is nan: undefined, and left out of the mean"
        )
        fault("watch", lambda: watching.has(undefined))
        assert watching.has(f"a: {refused}")
        fault("frame", lambda: experiment.history["left out"][1] == undefined)
        fault("command line", lambda: f"round 1: {undefined}\n" in look("show", name))
    assert re.search(refused, experiment.watch()["left out"][0])
