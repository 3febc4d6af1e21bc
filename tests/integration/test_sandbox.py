"""A task that wants what is not its own: key, files, network, other processes, and a life after the experiment."""

import contextlib
import itertools
import os
import pwd
import secrets
import shutil
import socket
import sys

import psutil
import pytest

from openfl_audio.experiments.local_federation import LocalFederation
from tests.integration.conftest import READY_SECONDS, USER, points, wait_for

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux" or not shutil.which("bwrap"), reason="bubblewrap is not installed"),
]

# A variable in the environment of the envoys, which no task may know.
SECRET = f"secret-{secrets.token_hex(8)}"
SURVIVOR_SECONDS = itertools.count(987_654)
# The toy's tasks, and what `tempt` finds open to it.
WANTED = ("key", "certificate", "settings", "record", "planted", "written", "director", "abstract", "environ", "memory")


@pytest.fixture(scope="module")
def listener():
    """An abstract socket, which has no file and belongs to a namespace of the network."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{SECRET}")
        listener.listen()
        yield listener


@pytest.fixture(scope="module")
def sites(tmp_path_factory, certificates, listener):
    """A director, and envoys 'a' with a sandbox and 'b' without one."""
    folder = tmp_path_factory.mktemp("sandbox")
    (folder / "planted.txt").write_text(SECRET)
    with pytest.MonkeyPatch.context() as patch, LocalFederation(folder, certificates, USER) as processes:
        patch.setenv("SITE_PASSWORD", SECRET)
        processes.start_director()
        processes.start_envoy("a", points(1), sandbox="require")
        processes.start_envoy("b", points(3), sandbox="off")
        processes.wait_until_ready("ab", READY_SECONDS)
        yield processes


@pytest.fixture(scope="module")
def run(sites, connect):
    import toy
    from toy.experiment import PointsData, model_interface, task_interface

    from openfl_audio.notebook.interactive_api import FLExperiment

    def start(name, train, envoy):
        experiment = FLExperiment(connect(sites), name, toy)
        parts = {"model_provider": model_interface(), "data_loader": PointsData()}
        experiment.start(task_keeper=task_interface(train=train), rounds_to_train=1, envoys=[envoy], **parts)
        return experiment

    return start


def wanted_of(sites, name):
    """Return what `tempt` tries to get of envoy `name`."""
    site = sites.folder / "envoys" / name
    files = {
        "key": sites.certificates / f"{name}.key",
        "certificate": sites.certificates / f"{name}.crt",
        "settings": sites.folder / "settings" / f"{name}.yaml",
        "record": next(site.glob("record*")),
        "planted": sites.folder / "planted.txt",
    }
    return {wanted: str(path) for wanted, path in files.items()}, str(site / "note")


@pytest.mark.parametrize(("envoy", "succeeds"), [("a", 0.0), ("b", 1.0)], ids=["in the sandbox", "without it"])
def test_a_task_gets_nothing_of_its_site_in_the_sandbox_and_all_of_it_without(sites, run, envoy, succeeds):
    from toy.attacks import tempt

    task = tempt(*wanted_of(sites, envoy), ("127.0.0.1", sites.port), SECRET, sites.pid(envoy))
    history = run(f"tempt-{envoy}", task, envoy).watch()
    assert {name: value_of(history, name) for name in WANTED} == {name: [succeeds] for name in WANTED}


@pytest.mark.parametrize("envoy", ["a", "b"], ids=["in the sandbox", "without it"])
def test_a_process_that_left_its_task_ends_with_the_experiment(sites, run, envoy):
    seconds = str(next(SURVIVOR_SECONDS))

    from toy.attacks import leave

    experiment = run(f"leave-{envoy}", leave(seconds), envoy)
    wait_for(lambda: running("sleep", seconds))
    experiment.watch()
    wait_for(lambda: not running("sleep", seconds))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs workers as another user")
def test_workers_of_an_envoy_under_root_are_another_user_who_owns_the_room(sites, run):
    def train(model, points, device, optimizer):
        import os
        from pathlib import Path

        from toy.experiment import add_points

        Path("/experiment/state").mkdir()
        own = Path("/experiment").owner() == "nobody"
        return add_points(model, points, device, optimizer) | {
            "user": os.getuid(),
            "groups": len(os.getgroups()),
            "own": own,
        }

    sites.start_envoy("c", points(1), sandbox="require", run_as="nobody")
    sites.wait_until_ready("c", READY_SECONDS)
    history = run("as-nobody", train, "c").watch()
    got = [value_of(history, name) for name in ("user", "groups", "own")]
    assert got == [[pwd.getpwnam("nobody").pw_uid], [1.0], [1.0]]


def value_of(history, name: str) -> list[float]:
    return history[f"train {name}" if f"train {name}" in history else name].dropna().tolist()


def running(*command: str) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return any(process.info["cmdline"] == [*command] for process in psutil.process_iter(["cmdline"]))
    return False


def test_an_envoy_says_how_its_workers_are_confined(sites):
    assert (
        "workers run in a sandbox of bubblewrap, without network, under the envoy's account"
        in sites.log("a").read_text()
    )
    assert (
        "workers run without a sandbox, under the envoy's account, as `sandbox: off` says" in sites.log("b").read_text()
    )
