"""Simulations on a Ray cluster of two nodes with a token: the bits of one process, also when a node is lost."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import openfl_audio.simulation.virtual_clients
from openfl_audio.errors import SimulationError
from openfl_audio.files import read_json_lines
from openfl_audio.simulation.virtual_clients import start_ray

pytest.importorskip("ray")
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).parents[2]
TOKEN = "0123456789abcdef" * 2
SIMULATE = """
import sys, time
from pathlib import Path
import torch
from openfl_audio.simulation.simulation import Simulation
from tests.unit import toy

torch.set_num_threads(1)
folder, workers, address, slow = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] or None, float(sys.argv[4])

def train(model, points, device, optimizer, round_number):
    (folder / "trains").touch()
    time.sleep(slow)
    return toy.fit_noisily(model, points, device, optimizer, round_number)

simulation = Simulation([f"c-{i}" for i in range(6)], toy.Points, folder, workers=workers, ray_address=address)
simulation.start("toy", **toy.arguments(rounds=3, train=train))
list(simulation.run())
print({name: tensor.numpy().tobytes().hex() for name, tensor in simulation.last_model().state_dict().items()})
"""


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.fixture
def cluster(tmp_path) -> Iterator[tuple[str, dict[str, str], Callable[[], None]]]:
    """Its address, an environment with its token, and what kills its second node."""
    token, temporary = tmp_path / "token", Path("/tmp") / f"ray-{os.getpid()}"
    token.write_text(TOKEN)
    address = f"127.0.0.1:{free_port()}"
    environment = os.environ | {"RAY_AUTH_TOKEN_PATH": str(token), "PYTHONPATH": str(REPOSITORY)}
    environment |= {"OMP_NUM_THREADS": "1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    ray_command = [
        str(Path(sys.executable).parent / "ray"),
        "start",
        "--num-cpus=1",
        "--disable-usage-stats",
        "--block",
    ]
    head = [f"--port={address.rpartition(':')[2]}", f"--ray-client-server-port={free_port()}", "--head"]
    head += [f"--temp-dir={temporary}", "--include-dashboard=false", "--node-ip-address=127.0.0.1"]
    nodes = []

    def start(*arguments: str) -> None:
        with (tmp_path / "ray.log").open("ab") as log:
            nodes.append(
                subprocess.Popen(
                    [*ray_command, *arguments],
                    env=environment | {"RAY_AUTH_MODE": "token"},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )

    def kill(node: subprocess.Popen) -> None:
        processes = psutil.Process(node.pid).children(recursive=True) if node.poll() is None else []
        for process in [node, *processes]:
            process.kill()
        node.wait()

    try:
        start(*head)
        wait_for_cpus(address, environment, 1)
        start(f"--address={address}", "--node-ip-address=127.0.0.2")
        wait_for_cpus(address, environment, 2)
        yield address, environment, lambda: kill(nodes[1])
    finally:
        for node in reversed(nodes):
            kill(node)


def wait_for_cpus(address: str, environment: dict[str, str], number: int) -> None:
    code = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); print(ray.cluster_resources().get('CPU'))"
    deadline = time.monotonic() + 150
    while True:
        command = [sys.executable, "-c", code, address]
        try:
            done = subprocess.run(
                command, env=environment | {"RAY_AUTH_MODE": "token"}, capture_output=True, text=True, timeout=40
            )
            said = done.stdout + done.stderr
        except subprocess.TimeoutExpired as error:
            said = str(error)
        if said.startswith(f"{number}.0"):
            return
        assert time.monotonic() < deadline, said[-2000:]


def start_simulation(
    folder: Path, environment: dict[str, str], address: str = "", slow: float = 0.0
) -> subprocess.Popen:
    folder.mkdir()
    workers = "2" if address else "1"
    command = [sys.executable, "-c", SIMULATE, str(folder), workers, address, str(slow)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_nodes_with_a_token_come_to_the_bits_of_one_process_also_when_one_is_lost(cluster, tmp_path):
    address, environment, kill_second_node = cluster
    one, errors = start_simulation(tmp_path / "one", environment).communicate(timeout=120)
    assert one, errors
    two, errors = start_simulation(tmp_path / "two", environment, address).communicate(timeout=200)
    assert (two, errors) == (one, "")
    simulation = start_simulation(tmp_path / "lost", environment, address, slow=1.0)
    try:
        deadline = time.monotonic() + 150
        while not (tmp_path / "lost" / "trains").exists():
            assert time.monotonic() < deadline
            assert simulation.poll() is None, simulation.communicate()
            time.sleep(0.1)
        kill_second_node()
        lost, errors = simulation.communicate(timeout=200)
    finally:
        simulation.kill()
    # Ray itself says before it that a node is lost.
    assert lost.splitlines()[-1:] == one.splitlines(), errors
    assert len(read_json_lines(tmp_path / "lost" / "history.jsonl")) == 4


def test_a_token_that_is_wrong_and_a_cluster_too_small_are_said_in_a_sentence(cluster):
    address, environment, _ = cluster
    code = (
        "import sys; from openfl_audio.simulation.virtual_clients import start_ray\n"
        "with start_ray(int(sys.argv[2]), sys.argv[1]): pass"
    )
    for change, workers, sentence in (
        (
            {"RAY_AUTH_TOKEN": "f" * 32},
            "2",
            f"SimulationError: the Ray cluster at {address} wants its token, and the one here is another: set RAY_AUTH",
        ),
        ({}, "3", f"SimulationError: the Ray cluster at {address} has 2 CPUs, and each of 3 workers needs one"),
    ):
        command = [sys.executable, "-c", code, address, workers]
        done = subprocess.run(command, env=environment | change, capture_output=True, text=True, timeout=120)
        assert sentence in done.stderr.splitlines()[-1]


def test_an_address_where_no_cluster_answers_is_named_after_the_time_there_is(monkeypatch):
    monkeypatch.setattr(openfl_audio.simulation.virtual_clients, "CLUSTER_SECONDS", 4.0)
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(SimulationError, match=f"no Ray cluster answers at {address}"), start_ray(2, address):
        pass
