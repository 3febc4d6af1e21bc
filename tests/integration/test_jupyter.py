"""Notebooks in JupyterLab itself, in Chromium: interrupted, restarted, closed, run again, and run to the end."""

import itertools
import re

import pytest

from openfl_audio.experiments.local_federation import free_port
from tests.integration.conftest import USER
from tests.integration.jupyter import Notebook, browser, browser_or_skip, jupyter, write_notebook

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

numbers = itertools.count()

START = """
import time
from pathlib import Path

import toy
from toy.experiment import PointsData, add_points, model_interface, task_interface

from openfl_audio import Federation, FLExperiment, report

gate = Path({gate!r})


def train(model, points, device, optimizer, gate=gate):
    report(3, 10, clips=30, loss=0.5)
    while model[0].weight.item() >= 3 and not gate.exists():
        time.sleep(0.02)
    return add_points(model, points, device, optimizer)


files = [f"{certificates}/{{name}}" for name in ("ca.crt", "{user}.crt", "{user}.key")]
experiment = FLExperiment(Federation("{user}", "127.0.0.1", {port}, True, *files), {name!r}, workspace=toy)
experiment.start(
    model_provider=model_interface(), task_keeper=task_interface(train), data_loader=PointsData(),
    rounds_to_train=3, envoys=["b"], if_exists="attach",
)
"""
WATCH, END = "history = experiment.watch()", 'print("slopes", history["slope"].tolist())'
SLOPES = "slopes [0.0, 3.0, 6.0, 9.0]"
OPEN_ROUND = r"round 1 of 3, .*\n(.*\n)*b\s+train 3/10 \(loss 0\.500\)\s+\d"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Folder and address of a JupyterLab, and a browser."""
    browser_or_skip()
    folder = tmp_path_factory.mktemp("lab")
    with jupyter(folder, folder / "jupyter.log") as address, browser() as context:
        yield folder, address, context


@pytest.fixture
def open_notebook(lab, running, certificates, tmp_path):
    """Open a notebook of an experiment whose second round waits for a gate; the gate comes with it."""
    folder, address, context = lab
    gate, name = tmp_path / "gate", f"notebook-{next(numbers)}"
    values = {"certificates": certificates, "user": USER, "port": running.port, "gate": str(gate), "name": name}
    write_notebook(folder / f"{name}.ipynb", START.format(**values), WATCH, END)
    tabs = []

    def open_notebook() -> Notebook:
        tabs.append(Notebook(context, address, f"{name}.ipynb"))
        return tabs[-1]

    yield open_notebook, gate
    for tab in tabs:
        tab.close()


@pytest.mark.slow
def test_a_notebook_is_interrupted_and_run_again_to_the_end(open_notebook):
    open_tab, gate = open_notebook
    notebook = open_tab()
    notebook.run_all()
    notebook.wait_for(OPEN_ROUND, cell=1)
    width, room = notebook.widths()
    assert width <= room
    notebook.interrupt()
    said = notebook.wait_for(r"experiment 'notebook-\d+' continues: watch\(\) shows it again", cell=1)
    assert "Traceback" not in said
    gate.touch()
    notebook.run_all()
    assert notebook.wait_for("slopes") == SLOPES
    shown = notebook.output(1)
    assert "round 1 of 3" not in shown
    assert re.search(r"\n2\s+-4\.000\s+3\.000\s+1 of 1\s", shown)


ERRORS = {
    # What a cell says, and the whole of what is shown below it.
    'Federation("{user}", "127.0.0.1", {nobody}, True, *files).get_shard_registry()': (
        r"DirectorError: cannot reach the director at 127\.0\.0\.1:{nobody} \(.*\): is it running there, .*\?"
    ),
    'FLExperiment(Federation("{user}", "127.0.0.1", {port}, True, *files)).attach("nobodys")': (
        r"DirectorError: the director at 127\.0\.0\.1:{port} refused: user '{user}' has no experiment 'nobodys'"
    ),
    'Federation("{user}", "127.0.0.1", {port}, True, "no.crt", "no.crt", "no.key")': (
        r"CertificateError: no\.crt does not exist: .*"
    ),
    "Participation(fraction=3)": "DefinitionError: Participation: fraction is 3: Input should be less than or .*",
}
CONNECT = """
from openfl_audio import Federation, FLExperiment, Participation
files = [f"{certificates}/{{name}}" for name in ("ca.crt", "{user}.crt", "{user}.key")]
"""


def test_errors_are_one_sentence_below_their_cell(lab, running, certificates):
    folder, address, context = lab
    values = {"certificates": certificates, "user": USER, "port": running.port, "nobody": free_port()}
    # Jupyter runs no cell after one that failed, unless its tag says that it may.
    cells = [CONNECT.format(**values), *(cell.format(**values) for cell in ERRORS), "print('end')"]
    write_notebook(folder / "errors.ipynb", *cells, may_fail=True)
    notebook = Notebook(context, address, "errors.ipynb")
    try:
        notebook.run_all()
        notebook.wait_for("^end$")
        for number, sentence in enumerate(ERRORS.values(), start=1):
            assert re.fullmatch(sentence.format(**values), notebook.output(number)), notebook.output(number)
    finally:
        notebook.close()


def run_to_the_open_round(notebook: Notebook) -> Notebook:
    notebook.run_all()
    notebook.wait_for(OPEN_ROUND, cell=1)
    return notebook


@pytest.mark.slow
def test_after_a_restart_of_the_kernel_the_notebook_takes_up_its_experiment(open_notebook):
    open_tab, gate = open_notebook
    notebook = run_to_the_open_round(open_tab())
    notebook.restart_and_clear()
    assert notebook.output(1) == ""
    run_to_the_open_round(notebook)
    gate.touch()
    assert notebook.wait_for("slopes") == SLOPES


@pytest.mark.slow
def test_a_tab_that_was_closed_is_opened_again_and_takes_up_its_experiment(open_notebook):
    open_tab, gate = open_notebook
    run_to_the_open_round(open_tab()).close()
    notebook = open_tab()
    assert not re.search(OPEN_ROUND, notebook.output(1))
    notebook.interrupt()  # the kernel watches on, for a tab that is gone
    run_to_the_open_round(notebook)
    gate.touch()
    assert notebook.wait_for("slopes") == SLOPES
