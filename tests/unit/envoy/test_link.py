"""The link between envoy and worker: messages, memory that both have, and an end that closes."""

import errno
import fcntl
import mmap
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from openfl.protocols import aggregator_pb2

from openfl_audio.envoy.limits import RoundClock
from openfl_audio.envoy.link import Link, SharedMemory, make_pair
from openfl_audio.envoy.relay import Relay
from openfl_audio.envoy.worker_client import WorkerClient
from openfl_audio.errors import DirectorRefusedError, EndedError, PolicyError, WireError
from openfl_audio.protocol.messages import TaskResult
from openfl_audio.protocol.tensors import describe, tensors_in


class Rounds:
    """Stand-in for the director: it has a model of ones, and keeps the updates that come."""

    def __init__(self, dtype="<f4", error=None):
        self.model = describe({"weight": np.zeros(6, dtype), "bias": np.zeros(1, dtype)}, {"round": 3})
        self.error, self.updates, self.progress = error, [], []

    def get_tasks(self):
        task = aggregator_pb2.Task(name="train", function_name="f", task_type="train", apply_local=False)
        return SimpleNamespace(tasks=[task], round_number=3, quit=False)

    def get_model(self, allocate):
        buffer = allocate(self.model.data_bytes)
        for tensor in tensors_in(buffer, self.model).values():
            tensor[...] = 1
        return self.model

    def bounded(self, n_bytes):
        return n_bytes

    def send_update(self, round_number, results, header, buffer):
        if self.error:
            raise self.error
        self.updates.append({name: tensor.copy() for name, tensor in tensors_in(buffer, header).items()})

    def report(self, progress):
        self.progress.append(progress)
        return 2.0


@pytest.fixture
def connected():
    """Return a function that connects a worker's client with a relay to `rounds`."""
    links = []

    def connect(rounds, precision="float32"):
        ours, theirs = make_pair()
        relay, worker = Relay(ours, rounds, RoundClock()), Link(theirs)
        relay.start()
        links.append((relay, worker))
        return WorkerClient(worker, precision)

    yield connect
    for relay, worker in links:
        worker.close()
        relay.join(30)
        assert not relay.is_alive(), "a relay ends with its worker"


def test_a_worker_gets_tasks_and_model_and_sends_updates_through_memory_that_is_used_again(connected):
    rounds = Rounds()
    client = connected(rounds)
    tasks, round_number, _, has_ended = client.get_tasks("a")
    assert ([task.name for task in tasks], round_number, has_ended) == (["train"], 3, False)
    for number in range(2):
        model, told = client.get_model()
        assert told.round == 3
        assert {name: tensor.tolist() for name, tensor in model.items()} == {"weight": [1.0] * 6, "bias": [1.0]}
        first = first if number else client._memory  # noqa: F821
        assert client._memory is first
        client.send_update(3, {"train": TaskResult(size=1, metrics={})}, {n: t + 1.0 for n, t in model.items()})
        assert client._memory is first
    assert [update["weight"].tolist() for update in rounds.updates] == [[2.0] * 6] * 2
    client.send_update(3, {}, {"more": np.arange(4, dtype=np.int64)})
    assert rounds.updates[-1]["more"].tolist() == [0, 1, 2, 3]
    client.send_update(3, {}, {})
    assert rounds.updates[-1] == {}


def test_half_precision_is_made_before_it_is_shared(connected):
    rounds = Rounds("<f2")
    client = connected(rounds, "float16")
    client.send_update(0, {}, {"weight": np.array([0.5, 1e6], np.float32), "steps": np.array([7])})
    assert rounds.updates[0]["weight"].dtype == np.float16
    assert rounds.updates[0]["weight"].tolist() == [0.5, np.inf]
    assert rounds.updates[0]["steps"].tolist() == [7]


@pytest.mark.parametrize("error", [DirectorRefusedError("not you"), PolicyError("not today"), WireError("what")])
def test_a_refusal_reaches_the_worker_as_itself(connected, error):
    with pytest.raises(type(error), match=str(error)):
        connected(Rounds(error=error)).send_update(0, {}, {})


def test_a_worker_is_told_what_the_envoy_lacks_and_no_name_of_a_file(connected):
    client = connected(Rounds(error=OSError(errno.ENOSPC, "No space left on device", "/site/ada/sent.json")))
    with pytest.raises(WireError, match=r"^the envoy cannot read or write: No space left on device$"):
        client.send_update(0, {}, {})
    assert client.get_tasks("a")[1] == 3


def test_a_worker_is_not_left_waiting_when_its_relay_ends(connected):
    client = connected(Rounds(error=EndedError("the envoy stops")))
    with pytest.raises((EOFError, OSError)):
        client.send_update(0, {}, {})


def test_a_worker_that_says_something_else_is_answered_or_cut_off(connected):
    client = connected(Rounds())
    client._link.send({"call": "steal"})
    assert "failed" in client._link.receive()[0]
    client._link._socket.sendall(b"\xff" * 9)
    with pytest.raises((EOFError, OSError)):
        client._link.receive()


def test_who_waits_hears_that_the_link_is_closed():
    ours, theirs = make_pair()
    with theirs:
        heard = []

        def wait():
            with pytest.raises((EOFError, OSError)):
                ours.receive()
            heard.append(True)

        waiting = threading.Thread(target=wait)
        waiting.start()
        ours.close()
        waiting.join(30)
        assert heard


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no files in memory")
def test_a_worker_cannot_shrink_the_memory_that_its_envoy_reads():
    memory = SharedMemory()
    memory.allocate(4096)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.file, 0)
    assert fcntl.fcntl(memory.file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    with mmap.mmap(memory.file, 4096) as other:
        other[:2] = b"ab"
    assert memory.buffer[:2] == b"ab"
    memory.close()


@pytest.mark.process
def test_neither_envoy_nor_link_loads_torch():
    code = "import sys, openfl_audio.envoy.envoy, openfl_audio.envoy.review; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
