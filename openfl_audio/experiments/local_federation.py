"""Start a director and envoys on this machine, each in a process of its own, wait for them, and stop them all."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import grpc
import psutil
import yaml
from openfl.protocols import director_pb2, director_pb2_grpc

from openfl_audio.errors import StartError
from openfl_audio.protocol.certificates import load_credentials
from openfl_audio.protocol.wire import channel_credentials, open_channel

STOP_SECONDS = 15.0


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that no process listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stop_left_over(folder: Path) -> int:
    """End the director and the envoys of an earlier federation in `folder`, and return how many processes there were.

    Such are left by a process that was killed itself, and by `LocalFederation.leave`.
    """
    settings = str(folder / "settings") + os.sep
    left = [p for p in psutil.process_iter(["cmdline"]) if any(a.startswith(settings) for a in p.info["cmdline"] or ())]
    for process in left:
        process.terminate()
    _, alive = psutil.wait_procs(left, timeout=STOP_SECONDS)
    for process in alive:
        process.kill()
    return len(left)


class LocalFederation:
    """A context manager; `folder` gets settings, logs and what director and envoys write.

    `certificates` None means that TLS is off; otherwise it has those of the director, the envoys and `user`. With
    `page` the director serves the page in the browser, on a free port.
    """

    def __init__(self, folder: Path, certificates: Path | None, user: str, page: bool = False) -> None:
        self.folder = folder
        self.certificates = certificates
        self.user = user
        self._page = page
        self.port = free_port()
        self._processes: dict[str, subprocess.Popen] = {}
        for name in ("settings", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    @property
    def _certificates(self) -> dict[str, str]:
        return {"certificates": str(self.certificates)} if self.certificates else {}

    def __enter__(self) -> "LocalFederation":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(*reversed(self._processes))

    def leave(self) -> None:
        """Let director and envoys run on when the block ends; `stop_left_over` ends them."""
        self._processes.clear()

    def start_director(self) -> None:
        """Start the director, which keeps its runs in `folder`."""
        settings = {
            "listen_host": "127.0.0.1",
            "listen_port": self.port,
            "runs": str(self.folder / "director"),
            "page": {"port": 0},
            **self._certificates,
        }
        self._start("director", ["director", *([] if self._page else ["--no-page"])], {"settings": settings})

    def start_envoy(self, name: str, shard_descriptor: dict, **changes: object) -> None:
        """`changes` go into the `params` of the envoy's settings."""
        params = {
            "director_host": "127.0.0.1",
            "director_port": self.port,
            "work_dir": str(self.folder / "envoys"),
            # The sites are those of whoever uses this class.
            "policy": {"tracebacks": "values"},
            **self._certificates,
            **changes,
        }
        command = ["envoy", "-n", name]
        self._start(name, command, {"params": params, "shard_descriptor": shard_descriptor})

    def wait_until_ready(self, envoys: Iterable[str], seconds: float) -> None:
        """Raises StartError if an envoy is not online after `seconds`, or if a process has ended."""
        credentials = None
        if self.certificates:
            credentials = channel_credentials(load_credentials(self.certificates, self.user))
        missing = set(envoys)
        deadline = time.monotonic() + seconds
        with open_channel(f"127.0.0.1:{self.port}", credentials, client_id=self.user) as channel:
            stub = director_pb2_grpc.DirectorStub(channel)
            while missing:
                self._check_alive()
                if time.monotonic() > deadline:
                    raise StartError(f"after {seconds:.0f} s still not online: {sorted(missing)}")
                try:
                    answer = stub.GetEnvoys(director_pb2.GetEnvoysRequest(), timeout=1, wait_for_ready=True)
                except grpc.RpcError:
                    continue
                missing -= {envoy.shard_info.node_info.name for envoy in answer.envoy_infos if envoy.is_online}
                if missing:
                    time.sleep(0.1)

    def stop(self, *names: str) -> None:
        """Ask the processes to end, all at once; kill those that do not."""
        processes = [self._processes.pop(name) for name in names]
        for process in processes:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def wait_for_exit(self, name: str, seconds: float) -> int:
        """The exit code of a process that is expected to end by itself, and then is none of those that have to live."""
        code = self._processes[name].wait(seconds)
        del self._processes[name]
        return code

    def is_alive(self, name: str) -> bool:
        """Tell whether a process that was started runs."""
        return self._processes[name].poll() is None

    def pid(self, name: str) -> int:
        """Return the id of a process that was started."""
        return self._processes[name].pid

    def log(self, name: str) -> Path:
        """Return the file with what a process prints."""
        return self.folder / "logs" / f"{name}.log"

    def _start(self, name: str, command: list[str], settings: dict) -> None:
        config = self.folder / "settings" / f"{name}.yaml"
        config.write_text(yaml.safe_dump(settings, sort_keys=False))
        command = [sys.executable, "-m", "openfl_audio.cli", *command, "-c", str(config)]
        self.run(name, command if self.certificates else [*command, "--disable-tls"], cwd=self.folder, env=os.environ)

    def run(self, name: str, command: list[str], cwd: Path, env: Mapping[str, str]) -> None:
        """Run `command` as the process `name`, with its output in that process's log."""
        with self.log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal is for whoever uses this class, who then stops these.
                start_new_session=True,
            )

    def _check_alive(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                end = self.log(name).read_text(errors="replace").strip()[-2000:]
                raise StartError(f"{name} ended with exit code {process.returncode}:\n{end}")
