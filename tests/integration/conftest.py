"""A federation of real processes on this machine, over TLS, with the toy experiment beside it."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from federation.certificates import write_certificates
from scripts.local_federation import LocalFederation

HERE = str(Path(__file__).parent)
ENVOYS = {"a": 1, "b": 3}  # points each
USER = "scientist"
READY_SECONDS = 60


def wait_for(condition: Callable, seconds: float = 60):
    """What `condition` gives as soon as that is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s in vain")
        time.sleep(0.05)
    return value


def points(n_points: int) -> dict:
    return {"template": "toy.shard.PointsShardDescriptor", "params": {"n_points": n_points}}


@pytest.fixture(scope="session", autouse=True)
def toy_is_importable() -> Iterator[None]:
    """For this process, and for the director and the envoys that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", HERE)
        patch.setattr(sys, "path", [HERE, *sys.path])
        yield


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    write_certificates(folder, director_hosts=["127.0.0.1"], envoys=[*ENVOYS, "c"], users=[USER, "colleague"])
    return folder


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[LocalFederation]:
    """A director and the envoys 'a' and 'b', ready."""
    with LocalFederation(tmp_path_factory.mktemp("federation"), certificates, USER) as processes:
        processes.start_director()
        for name, n_points in ENVOYS.items():
            processes.start_envoy(name, points(n_points))
        processes.wait_until_ready(ENVOYS, READY_SECONDS)
        yield processes


@pytest.fixture(scope="session")
def connect(certificates: Path) -> Callable:
    """Connect a notebook to a running federation with the certificate of `user`."""

    def connect(processes: LocalFederation, user: str = USER):
        from federation.interactive_api import Federation

        files = {"cert_chain": "ca.crt", "api_cert": f"{user}.crt", "api_private_key": f"{user}.key"}
        paths = {key: certificates / file for key, file in files.items()}
        return Federation(user, "127.0.0.1", processes.port, tls=True, **paths)

    return connect
