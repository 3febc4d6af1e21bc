"""Task code that crashes, hangs or takes all memory: the notebook is told why, and the envoy goes on."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from openfl_audio.experiments.local_federation import LocalFederation
from tests.integration.conftest import READY_SECONDS, USER, points

pytestmark = pytest.mark.integration

# A worker begins with 0.65 GB. What is left to fill takes a second, or some where the system is slow to hand it out.
MEMORY_LIMIT_GB = 1.5
TASK_TIMEOUT_SECONDS = 20.0
numbers = itertools.count()


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[LocalFederation]:
    """A director and one envoy that limits its workers."""
    with LocalFederation(tmp_path_factory.mktemp("faults"), certificates, USER) as processes:
        processes.start_director()
        limits = {"memory_limit_gb": MEMORY_LIMIT_GB, "task_timeout_seconds": TASK_TIMEOUT_SECONDS}
        processes.start_envoy("a", points(1), **limits)
        processes.wait_until_ready("a", READY_SECONDS)
        yield processes


@pytest.fixture
def run(federation: LocalFederation, connect: Callable) -> Callable:
    import toy
    from toy.experiment import PointsData, model_interface, task_interface

    from openfl_audio.notebook.interactive_api import FLExperiment

    def run(**tasks):
        experiment = FLExperiment(connect(federation), f"fault-{next(numbers)}", toy)
        experiment.start(
            model_provider=model_interface(),
            task_keeper=task_interface(**tasks),
            data_loader=PointsData(),
            rounds_to_train=1,
        )
        return experiment.watch()

    return run


def read_address_zero(model, points, device, optimizer):
    import ctypes

    ctypes.string_at(0)


def take_all_memory(model, points, device, optimizer):
    import numpy as np

    taken = []
    while True:
        taken.append(np.ones(25_000_000))


def leave_all_memory_to_a_session_of_its_own(model, points, device, optimizer):
    import subprocess
    import sys
    import time

    code = f"import time; taken = b'x' * {int(MEMORY_LIMIT_GB * 1e9)}; time.sleep(600)"
    subprocess.run(["sh", "-c", 'setsid "$0" -c "$1" &', sys.executable, code], check=True)
    time.sleep(600)


def hang_in_a_loop(model, points, device, optimizer):
    while True:
        pass


@pytest.mark.parametrize(
    ("train", "reasons"),
    [
        (take_all_memory, [f"more than memory_limit_gb: {MEMORY_LIMIT_GB}"]),
        (leave_all_memory_to_a_session_of_its_own, [f"more than memory_limit_gb: {MEMORY_LIMIT_GB}"]),
        pytest.param(hang_in_a_loop, ["Timeout (0:00:20)!", "in hang_in_a_loop"], marks=pytest.mark.slow),
    ],
)
def test_the_notebook_is_told_why_and_the_envoy_lives(federation, run, train, reasons):
    from openfl_audio.notebook.interactive_api import ExperimentFailedError

    with pytest.raises(ExperimentFailedError, match="envoy 'a'") as caught:
        run(train=train)
    for reason in reasons:
        assert reason in str(caught.value)
    assert federation.is_alive("a")


def test_the_envoy_takes_the_next_experiment_after_a_worker_crashed(federation, run):
    from openfl_audio.notebook.interactive_api import ExperimentFailedError

    with pytest.raises(ExperimentFailedError, match="envoy 'a'") as caught:
        run(train=read_address_zero)
    assert "killed by SIGSEGV" in str(caught.value)
    assert "in read_address_zero" in str(caught.value)
    assert federation.is_alive("a")
    assert run()["slope"].tolist() == [0, 1]
