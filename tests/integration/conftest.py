"""A federation of real processes on this machine, over TLS, with the toy experiment beside it."""

import contextlib
import hashlib
import io
import json
import os
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from openfl.protocols import aggregator_pb2, aggregator_pb2_grpc, director_pb2, director_pb2_grpc
from safetensors.numpy import save

from openfl_audio.experiments.local_federation import LocalFederation
from openfl_audio.protocol.authority import write_certificates
from openfl_audio.protocol.certificates import load_credentials
from openfl_audio.protocol.codec import encode
from openfl_audio.protocol.messages import AttendRequest, ModelRequest, StatusRequest
from openfl_audio.protocol.plan import ARCHIVE, EXPERIMENT_PLAN, INITIAL_MODEL
from openfl_audio.protocol.record import RECORD
from openfl_audio.protocol.tensors import Tensors, receive
from openfl_audio.protocol.wire import RoundsStub, open_channel, send_chunks

REPOSITORY = Path(__file__).resolve().parents[2]
HERE = str(Path(__file__).parent)
ENVOYS = {"a": 1, "b": 3}  # points each
USER, OPERATOR, MONITOR = "scientist", "operator", "monitor"
READY_SECONDS = 120


def wait_for(condition: Callable, seconds: float = 120, interval: float = 0.05):
    """Return what `condition` gives as soon as that is true, asked every `interval`; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s in vain")
        time.sleep(interval)
    return value


def points(n_points: int) -> dict:
    return {"template": "toy.shard.PointsShardDescriptor", "params": {"n_points": n_points}}


@pytest.fixture(scope="session", autouse=True)
def processes_can_be_interrupted() -> None:
    """A shell that runs the tests in the background ignores Ctrl-C for all that they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def toy_is_importable() -> Iterator[None]:
    """For this process, and for the director and the envoys that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", HERE)
        patch.setattr(sys, "path", [HERE, *sys.path])
        yield


@pytest.fixture(scope="session", autouse=True)
def tasks_see_files_of_their_test() -> Iterator[None]:
    """Let envoys run without a sandbox, unless a test says otherwise: most tasks here wait for a file of their test."""
    start = LocalFederation.start_envoy

    def start_envoy(self: LocalFederation, name: str, shard_descriptor: dict, **changes: object) -> None:
        start(self, name, shard_descriptor, **{"sandbox": "off", **changes})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalFederation, "start_envoy", start_envoy)
        yield


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    write_certificates(
        folder,
        director_hosts=["127.0.0.1"],
        envoys=[*ENVOYS, "c", "d"],
        users=[USER, "colleague"],
        operators=[OPERATOR],
        monitors=[MONITOR],
    )
    return folder


@contextlib.contextmanager
def federation_of(envoys: Mapping[str, int], folder: Path, certificates: Path) -> Iterator[LocalFederation]:
    """Run a director and envoys with so many points each, ready."""
    with LocalFederation(folder, certificates, USER) as processes:
        processes.start_director()
        for name, n_points in envoys.items():
            processes.start_envoy(name, points(n_points))
        processes.wait_until_ready(envoys, READY_SECONDS)
        yield processes


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[LocalFederation]:
    """A director and the envoys 'a' and 'b', ready."""
    with federation_of(ENVOYS, tmp_path_factory.mktemp("federation"), certificates) as processes:
        yield processes


@pytest.fixture(scope="session")
def connect(certificates: Path) -> Callable:
    """Connect a notebook to a running federation with the certificate of `user`."""

    def connect(processes: LocalFederation, user: str = USER):
        from openfl_audio.notebook.interactive_api import Federation

        files = {"cert_chain": "ca.crt", "api_cert": f"{user}.crt", "api_private_key": f"{user}.key"}
        paths = {key: certificates / file for key, file in files.items()}
        return Federation(user, "127.0.0.1", processes.port, tls=True, **paths)

    return connect


def open_as(processes: LocalFederation, name: str, **headers: str) -> grpc.Channel:
    """A channel to the director with the certificate of `name`; without TLS, a plain one."""
    credentials = None
    if processes.certificates:
        own = load_credentials(processes.certificates, name)
        credentials = grpc.ssl_channel_credentials(own.root, own.private_key, own.certificate)
    return open_channel(f"127.0.0.1:{processes.port}", credentials, **headers)


def listing(folder: Path) -> dict[str, str]:
    """Everything under `folder`, and a hash of what is in it, but what is written now and then (logs, the record)."""
    found = {}
    # os.walk passes over a folder that a node removes meanwhile, where Path.rglob raises.
    for path in (Path(parent, name) for parent, folders, files in os.walk(folder) for name in folders + files):
        if path.suffix == ".log" or "tensorboard" in path.parts or path.name == RECORD:
            continue
        try:
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[str(path.relative_to(folder))] = f"{oct(path.lstat().st_mode)} {content}"
        except FileNotFoundError:  # on its way out
            found[str(path.relative_to(folder))] = "gone"
    return found


def status_of(processes: LocalFederation) -> dict[str, Any]:
    """Return the director's status of all envoys and experiments."""
    with open_as(processes, USER, client_id=USER) as channel:
        return json.loads(RoundsStub(channel).get_status(encode(StatusRequest()), timeout=60, wait_for_ready=True))


def plan_of(name: str, **changes: Any) -> dict[str, Any]:
    """The plan of an experiment that trains for one round, on envoy 'b' unless `changes` say otherwise."""
    task = {"name": "train", "function_name": "train", "task_type": "train"}
    best = {"metric": "accuracy", "direction": "max"}
    plan = {
        "name": name,
        "federation_uuid": f"uuid-{name}",
        "envoys": ["b"],
        "rounds": 1,
        "tasks": [task],
        "best": best,
    }
    return plan | changes


def workspace_with(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return buffer.getvalue()


def submission_of(plan: Any, workspace: bytes | None = None, model: bytes | None = None) -> bytes:
    """Return what a notebook submits. A `plan` that is bytes goes in as it is; `model` is a safetensors file."""
    files = {
        EXPERIMENT_PLAN: plan if isinstance(plan, bytes) else json.dumps(plan).encode(),
        ARCHIVE: workspace_with({"plan/plan.yaml": b"{}"}) if workspace is None else workspace,
        INITIAL_MODEL: save({"weight": np.zeros(3, np.float32)}) if model is None else model,
    }
    return workspace_with(files)


def submit(channel: grpc.Channel, submission: bytes, piece_bytes: int = 1 << 20) -> None:
    """Past all checks of a notebook. Raises grpc.RpcError."""
    pieces = (submission[at : at + piece_bytes] for at in range(0, len(submission), piece_bytes))
    send_chunks(partial(RoundsStub(channel).submit, timeout=60), pieces)


@contextlib.contextmanager
def grows_by_less_than(n_bytes: float, pid: int) -> Iterator[None]:
    """The process's memory at its peak in this block, beyond that at its beginning."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak from here on
    before = peak_bytes(pid)
    yield
    assert peak_bytes(pid) - before < n_bytes


def peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class FakeEnvoy:
    """An envoy that says what a test makes it say: registered and attending for as long as the block lasts."""

    def __init__(self, processes: LocalFederation, name: str) -> None:
        self.name = name
        self._channel = open_as(processes, name, instance=f"fake-{name}", corpus="points")
        self.director = director_pb2_grpc.DirectorStub(self._channel)
        self.aggregator = aggregator_pb2_grpc.AggregatorStub(self._channel)
        self.rounds = RoundsStub(self._channel)

    def __enter__(self) -> "FakeEnvoy":
        info = director_pb2.ShardInfo(node_info=director_pb2.NodeInfo(name=self.name), shard_description="none")
        self.director.UpdateShardInfo(director_pb2.UpdateShardInfoRequest(shard_info=info), timeout=60)
        self._attending = self.rounds.attend(encode(AttendRequest(envoy=self.name, instance=f"fake-{self.name}")))
        next(self._attending)
        self._thread = threading.Thread(target=self._attend)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._attending.cancel()
        self._thread.join()
        self._channel.close()

    def get_tasks(self, federation_uuid: str) -> aggregator_pb2.GetTasksResponse:
        header = aggregator_pb2.MessageHeader(sender=self.name, federation_uuid=federation_uuid)
        return self.aggregator.GetTasks(aggregator_pb2.GetTasksRequest(header=header), timeout=60)

    def get_model(self, experiment: str) -> tuple[Tensors, dict[str, Any]]:
        request = encode(ModelRequest(experiment=experiment, envoy=self.name))
        return receive(self.rounds.get_model(request, timeout=60))

    def _attend(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            for _ in self._attending:
                continue
