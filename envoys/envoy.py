"""The envoy: announces its shard, waits for experiments, and runs each in a process of its own. Imports no torch."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import grpc
from openfl.interface.interactive_api.shard_descriptor import ShardDescriptor
from openfl.protocols import director_pb2, director_pb2_grpc

from envoys.settings import EnvoySettings, connect
from federation.plan import NAME
from federation.wire import wait_for_connection

logger = logging.getLogger("envoy")

RETRY_SECONDS = 1.0
# How much of a failed worker's output goes to the notebook: a traceback, not a novel.
REPORTED_CHARACTERS = 6000
STOP_SECONDS = 10.0

Answer = TypeVar("Answer")


class ConnectionRefusedByDirectorError(RuntimeError):
    """The director cannot be reached, or does not want this envoy."""


class Envoy:
    def __init__(self, name: str, settings: EnvoySettings, shard_descriptor: ShardDescriptor, config: Path, tls: bool):
        self.name = name
        self.settings = settings
        self.shard_descriptor = shard_descriptor
        self.config = config
        self.tls = tls
        self._address = f"{settings.director_host}:{settings.director_port}"
        self._channel = connect(settings, name, tls, instance=uuid.uuid4().hex)
        self._stub = director_pb2_grpc.DirectorStub(self._channel)
        self._worker: subprocess.Popen | None = None

    def run(self) -> None:
        """Register and serve experiments until a signal ends the process.

        Raises ConnectionRefusedByDirectorError if the director cannot be reached within `connect_timeout` or refuses.
        """
        self._register(deadline=time.monotonic() + self.settings.connect_timeout)
        threading.Thread(target=self._send_signs_of_life, daemon=True).start()
        try:
            while True:
                self._serve_one_experiment()
        finally:
            self._stop_worker()

    def _register(self, deadline: float = float("inf")) -> None:
        info = director_pb2.ShardInfo(
            shard_description=self.shard_descriptor.dataset_description,
            sample_shape=self.shard_descriptor.sample_shape,
            target_shape=self.shard_descriptor.target_shape,
        )
        info.node_info.name = self.name
        request = director_pb2.UpdateShardInfoRequest(shard_info=info)
        self._call(lambda: self._stub.UpdateShardInfo(request, timeout=10), deadline)
        logger.info("envoy '%s' is registered at %s: %s", self.name, self._address, info.shard_description)

    def _call(self, call: Callable[[], Answer], deadline: float = float("inf")) -> Answer:
        """The answer to `call`, repeated while the director is out of reach."""
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise ConnectionRefusedByDirectorError(
                        f"the director at {self._address} refused: {error.details()}"
                    ) from error
                if time.monotonic() > deadline:
                    raise ConnectionRefusedByDirectorError(
                        f"cannot reach the director at {self._address} ({error.details()}): is it running there, "
                        f"and with TLS {'on' if self.tls else 'off'} like this envoy?"
                    ) from error
                logger.info("waiting for the director at %s: %s", self._address, error.details())
                wait_for_connection(self._channel, RETRY_SECONDS)

    def _send_signs_of_life(self) -> None:
        seconds = RETRY_SECONDS
        while True:
            status = director_pb2.UpdateEnvoyStatusRequest(
                name=self.name, is_experiment_running=self._worker is not None
            )
            try:
                seconds = self._stub.UpdateEnvoyStatus(status, timeout=10).health_check_period.seconds
            except grpc.RpcError as error:
                logger.warning("no sign of life got through: %s", error.details())
                seconds = RETRY_SECONDS
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    self._register()
            time.sleep(seconds)

    def _serve_one_experiment(self) -> None:
        try:
            request = director_pb2.WaitExperimentRequest(collaborator_name=self.name)
            experiment = self._stub.WaitExperiment(request).experiment_name
            folder = self._download(experiment)
        except grpc.RpcError as error:
            logger.warning("lost the director: %s", error.details())
            wait_for_connection(self._channel, RETRY_SECONDS)
            self._register()
            return
        reason = self._run_worker(experiment, folder)
        if reason:
            logger.error("experiment '%s' failed here: %s", experiment, reason)
            self._call(
                lambda: self._stub.SetExperimentFailed(
                    director_pb2.SetExperimentFailedRequest(
                        experiment_name=experiment, collaborator_name=self.name, error_code=1, error_description=reason
                    )
                )
            )
        else:
            logger.info("experiment '%s' is done", experiment)

    def _download(self, experiment: str) -> Path:
        """The folder into which the experiment's archive was unpacked."""
        if not NAME.fullmatch(experiment):
            raise ConnectionRefusedByDirectorError(f"the director sent the experiment name {experiment[:80]!r}")
        folder = self.settings.work_dir / self.name / experiment
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        archive = folder / "workspace.zip"
        request = director_pb2.GetExperimentDataRequest(experiment_name=experiment, collaborator_name=self.name)
        with archive.open("wb") as file:
            for piece in self._stub.GetExperimentData(request):
                file.write(piece.npbytes)
        with zipfile.ZipFile(archive) as zipped:
            zipped.extractall(folder)
        archive.unlink()
        return folder

    def _run_worker(self, experiment: str, folder: Path) -> str:
        """Run the experiment in a process of its own. Returns why it failed, or nothing."""
        command = [sys.executable, "-m", "envoys.worker", "-n", self.name, "-c", str(self.config)]
        command += ["--experiment", experiment, "--folder", str(folder)]
        command += [] if self.tls else ["--disable-tls"]
        log = folder / "worker.log"
        logger.info("experiment '%s' starts, its output goes to %s", experiment, log)
        with log.open("wb") as output:
            # A session of its own: Ctrl-C reaches the envoy, which stops the worker. The worker ends when its standard
            # input does, so it cannot outlive the envoy.
            self._worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            code = self._worker.wait()
        finally:
            self._stop_worker()
        if code == 0:
            return ""
        ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"the experiment's process ended ({ended})\n{log.read_text(errors='replace')[-REPORTED_CHARACTERS:]}"

    def _stop_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None or worker.poll() is not None:
            return
        worker.terminate()
        try:
            worker.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
