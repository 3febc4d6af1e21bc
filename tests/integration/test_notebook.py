"""Notebooks and terminals of users while experiments run on a real director and real envoys."""

import base64
import io
import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import matplotlib.image
import nbformat
import papermill
import pytest

from tests.integration.conftest import ENVOYS, READY_SECONDS, REPOSITORY, USER, wait_for

pytestmark = pytest.mark.integration

numbers = itertools.count()

# Starts an experiment and watches it, as a user's script does, and once more when that was interrupted.
SCRIPT = f"""
import sys
import time
from pathlib import Path

import toy
from toy.experiment import PointsData, add_points, model_interface, task_interface

from openfl_audio.notebook.interactive_api import Federation, FLExperiment

port, certificates, name, gate = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])


def train(model, points, device, optimizer, gate=gate):
    while model[0].weight.item() >= 5 and not gate.exists():
        time.sleep(0.02)
    return add_points(model, points, device, optimizer)


files = (certificates / file for file in ("ca.crt", "{USER}.crt", "{USER}.key"))
experiment = FLExperiment(Federation("{USER}", "127.0.0.1", port, True, *files), name, workspace=toy)
experiment.start(
    model_provider=model_interface(), task_keeper=task_interface(train), data_loader=PointsData(), rounds_to_train=6
)
try:
    experiment.watch()
except KeyboardInterrupt:
    experiment.watch()
"""


@pytest.fixture(scope="module")
def start(running, connect):
    """Start a toy experiment of its own name and return it."""
    import toy
    from toy.experiment import PointsData, model_interface, task_interface

    from openfl_audio.notebook.interactive_api import FLExperiment

    def start(train, envoy, rounds=6):
        experiment = FLExperiment(connect(running), f"notebook-{next(numbers)}", workspace=toy)
        experiment.start(
            model_provider=model_interface(),
            task_keeper=task_interface(train),
            data_loader=PointsData(),
            rounds_to_train=rounds,
            envoys=[envoy],
        )
        return experiment

    return start


def held_at(gate: Path, slope: float, then: str | None = None):
    """A training task that from this slope on waits for the file `gate`, and `then` fails with that error."""

    def train(model, points, device, optimizer):

        from toy.experiment import add_points

        while model[0].weight.item() >= slope:
            if gate.exists():
                if then is not None:
                    raise ValueError(then)
                break
            time.sleep(0.02)
        return add_points(model, points, device, optimizer)

    return train


def wait_for_rounds(experiment, count: int) -> None:
    wait_for(lambda: len(experiment.history) == count)


def rounds_in(printed: str) -> list[int]:
    """Numbers of the rounds that a printed table has, in its order."""
    return [int(line.split()[0]) for line in printed.splitlines() if re.match(r" +\d+  ", line)]


@pytest.fixture(scope="module")
def killed(running, certificates, tmp_path_factory) -> Iterator[tuple[str, Path, Path]]:
    """Name of an experiment whose process was interrupted, then killed; what it printed; and the gate to go on."""
    folder = tmp_path_factory.mktemp("killed")
    script, gate, printed = folder / "experiment.py", folder / "gate", folder / "printed"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(running.port), str(certificates), "killed", str(gate)]
    with printed.open("wb") as file:
        process = subprocess.Popen(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT)
    try:
        for rounds, end in (([0, 1], process.send_signal), ([0, 1, 0, 1], process.send_signal)):
            wait_for(lambda rounds=rounds: rounds_in(printed.read_text()) == rounds or process.poll() is not None)
            assert process.poll() is None, printed.read_text()
            end(signal.SIGINT if len(rounds) == 2 else signal.SIGKILL)
        process.wait()
        yield "killed", printed, gate
    finally:
        process.kill()
        process.wait()


def test_an_interrupt_says_how_to_go_on_and_watch_shows_all_rounds_again(killed):
    _, printed, _ = killed
    assert printed.read_text().count("experiment 'killed' continues: watch() shows it again") == 1
    assert rounds_in(printed.read_text()) == [0, 1, 0, 1]


def test_a_new_notebook_takes_the_experiment_up_and_keeps_one_display(running, certificates, killed, tmp_path, capfd):
    name, _, gate = killed
    executed = execute(
        tmp_path,
        f"""
        from pathlib import Path
        from toy.experiment import model_interface
        from openfl_audio.notebook.interactive_api import Federation, FLExperiment

        files = (Path("{certificates}") / file for file in ("ca.crt", "{USER}.crt", "{USER}.key"))
        federation = Federation("{USER}", "127.0.0.1", {running.port}, True, *files)
        experiment = FLExperiment(federation).attach("{name}", model_interface())
        experiment.get_experiment_status()
        """,
        f"""
        Path("{gate}").touch()
        history = experiment.watch()
        """,
        """
        import os
        os.environ["JPY_SESSION_NAME"] = "a notebook in front of somebody"
        history = experiment.watch()
        """,
        "type(history).__name__, experiment.history.equals(history), list(history['slope'])",
        "experiment.best_model()[0].weight.item(), experiment.last_model()[0].weight.item()",
    )
    printed = capfd.readouterr().out
    attached, alone, in_front, history, weights = (cell.outputs for cell in executed.cells)
    assert shown(attached) == ["'in_progress'"], "nobody had to be there for it to go on"
    assert rounds_in(printed) == list(range(7)), "papermill shows the rounds in its terminal"
    assert "".join(output.text for output in alone if output.get("name") == "stdout") == printed
    for outputs in (alone, in_front):
        [html] = [output.data["text/html"] for output in outputs if "data" in output]
        assert re.findall(r"<tr[^>]*>\s*<td>(\d)</td>", html) == list("0123456")
        [picture] = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
        assert matplotlib.image.imread(io.BytesIO(base64.b64decode(picture))).shape[:2] == (315, 630)
    assert [output.output_type for output in in_front] == ["display_data"], "Jupyter shows the display alone"
    # Each envoy adds its number of points, 1 and 3, and weighs as much: (1 * 1 + 3 * 3) / 4 a round.
    assert shown(history) == ["('DataFrame', True, [0.0, 2.5, 5.0, 7.5, 10.0, 12.5, 15.0])"]
    assert shown(weights) == ["(2.5, 15.0)"], "the best slope is the nearest to 2"


def shown(outputs: list[nbformat.NotebookNode]) -> list[str]:
    return [output.data["text/plain"] for output in outputs if output.output_type == "execute_result"]


def execute(folder: Path, *cells: str) -> nbformat.NotebookNode:
    """The notebook after it was executed, with what it left in each cell."""
    source = folder / "notebook.ipynb"
    code = [nbformat.v4.new_code_cell("\n".join(line.strip() for line in cell.splitlines())) for cell in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=code), source)
    return papermill.execute_notebook(
        str(source), None, kernel_name="python3", cwd=str(folder), progress_bar=False, stdout_file=sys.stdout
    )


def test_attach_needs_the_model_that_was_trained_and_a_name_that_there_is(running, connect, killed):
    from openfl_audio.notebook.interactive_api import DirectorError, FLExperiment

    attached = FLExperiment(connect(running)).attach("killed")
    with pytest.raises(ValueError, match=r"give attach\('killed', model_provider\) the model that was trained"):
        attached.best_model()
    with pytest.raises(DirectorError, match=f"user '{USER}' has no experiment 'nobodys'"):
        attached.attach("nobodys")
    with pytest.raises(DirectorError, match="user 'colleague' has no experiment 'killed'"):
        FLExperiment(connect(running, "colleague")).attach("killed")


@pytest.fixture(scope="module")
def held(start, tmp_path_factory):
    """An experiment on envoy 'a' whose third round does not end."""
    experiment = start(held_at(tmp_path_factory.mktemp("held") / "never", slope=2), "a")
    wait_for_rounds(experiment, 2)
    return experiment


def test_two_experiments_run_at_once_and_status_shows_both_and_why_one_failed(
    running, certificates, start, held, tmp_path
):
    from openfl_audio.notebook.interactive_api import ExperimentFailedError

    gate = tmp_path / "gate"
    bad = start(held_at(gate, slope=6, then="no such luck"), "b")
    wait_for_rounds(bad, 2)
    envoys = json.loads(ask("envoys", running, certificates, "--json"))
    assert [[envoy[key] for key in ("name", "corpus", "online", "experiment")] for envoy in envoys] == [
        ["a", "points", True, held.experiment_name],
        ["b", "points", True, bad.experiment_name],
    ]
    assert all(envoy["versions"]["openfl-audio"] == version("openfl-audio") for envoy in envoys)
    assert all(envoy["certificate_expires"] > time.time() > envoy["since"] for envoy in envoys)
    keys = ("owner", "status", "round", "rounds", "waiting_for", "error")
    experiments = json.loads(ask("experiments", running, certificates, "--json"))
    found = {each["name"]: [each[key] for key in keys] for each in experiments}
    assert found[held.experiment_name] == [USER, "in_progress", 2, 6, ["a"], ""]
    assert found[bad.experiment_name] == [USER, "in_progress", 2, 6, ["b"], ""]

    gate.touch()
    with pytest.raises(ExperimentFailedError, match="no such luck"):
        bad.watch()
    table = ask("experiments", running, certificates)
    assert re.search(rf"{held.experiment_name} +{USER} +- +in_progress +2 of 6 +\d+\.\d +a +-", table)
    assert re.search(rf"{bad.experiment_name} .* failed +2 of 6 .* envoy 'b': the experiment's process ended", table)
    assert re.search(r"^ +ValueError: no such luck *$", table, re.M)
    assert "\x1b" not in table, "no colours in a pipe"
    assert [held.history["slope"].tolist(), bad.history["slope"].tolist()] == [[0, 1], [0, 3]]


def test_stop_ends_an_experiment_in_the_middle_of_a_task_and_frees_its_envoy(held, start, tmp_path, capsys):
    held.stop()
    history = held.watch()
    assert capsys.readouterr().out.splitlines()[-1].endswith("was stopped; rounds completed: 2")
    assert held.get_experiment_status() == "stopped"
    assert history["slope"].tolist() == [0, 1]
    assert held.last_model()[0].weight.item() == 2
    assert held.best_model()[0].weight.item() == 1  # that of 2 was not validated

    following = start(held_at(tmp_path / "never", slope=3), "a", rounds=2)
    assert following.watch()["slope"].tolist() == [0, 1, 2]


def test_status_refuses_in_one_sentence(running, certificates):
    sentence = ask("envoys", running, certificates, user="b", code=1)
    assert sentence == (
        f"openfl-audio envoys: the director at 127.0.0.1:{running.port} refused: "
        "the certificate is that of envoy 'b', this call is for notebook users, operators and monitors\n"
    )


def ask(command: str, running, certificates: Path, *arguments: str, user: str = USER, code: int = 0) -> str:
    """Return what the command prints about the running federation, or its error with `code`."""
    line = [sys.executable, "-m", "openfl_audio.cli", command, "--director", f"127.0.0.1:{running.port}"]
    line += ["--certificates", str(certificates), "--user", user, *arguments]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == code, done
    return done.stderr if code else done.stdout


def test_watch_goes_on_where_it_was_when_the_director_comes_back(running, start, tmp_path, capsys, caplog):
    gate = tmp_path / "gate"
    experiment = start(held_at(gate, slope=6), "b")
    histories = []
    with caplog.at_level(logging.WARNING, "openfl_audio"):
        watch = threading.Thread(target=lambda: histories.append(experiment.watch()), daemon=True)
        watch.start()
        printed = wait_for_lines(capsys, [0, 1])
        os.kill(running.pid("director"), signal.SIGKILL)
        running.stop("director")
        wait_for(lambda: caplog.messages)
        running.start_director()
        gate.touch()
        watch.join(READY_SECONDS)
    assert rounds_in(printed + capsys.readouterr().out) == list(range(7))
    assert histories[0]["slope"].tolist() == [3 * number for number in range(7)]
    [message] = caplog.messages
    assert message.startswith(f"lost the director at 127.0.0.1:{running.port}")
    running.wait_until_ready(ENVOYS, READY_SECONDS)


def wait_for_lines(capsys, rounds: list[int]) -> str:
    """Return what was printed, as soon as it has these rounds."""
    printed = []

    def has_rounds() -> bool:
        printed.append(capsys.readouterr().out)
        return rounds_in("".join(printed)) == rounds

    wait_for(has_rounds)
    return "".join(printed)
