"""The workers of an envoy: started as confined as the site wants and its machine allows, with a spare one."""

import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from openfl.interface.interactive_api.shard_descriptor import ShardDescriptor

from openfl_audio.envoy.cgroups import Cgroups
from openfl_audio.envoy.rooms import ROOMS, TEMPORARY, make_room, open_way
from openfl_audio.envoy.run_as import find_user
from openfl_audio.envoy.sandbox import Sandbox, environment, fault_of, find_sandbox, probe, shown_to_workers
from openfl_audio.envoy.settings import EnvoyFile, EnvoySettings
from openfl_audio.envoy.worker_process import Worker
from openfl_audio.errors import SettingsError

logger = logging.getLogger("envoy")

# Of the folder with certificates: a site may have its settings and its recordings there, too.
SECRET_FILES = ("*.key", "*.crt", "*.csr", "*.pem")


class Workers:
    """Starts workers in what was found to work when the envoy was started."""

    def __init__(self, name: str, file: EnvoyFile, config: Path, shard_descriptor: ShardDescriptor) -> None:
        """Find out what confines the workers of envoy `name`, and log it in a sentence.

        Raises SettingsError if that is not what the settings, read from `config`, require.
        """
        self._settings = settings = file.params
        self.folder = settings.work_dir / name
        self.owner = find_user(settings.run_as) if settings.run_as else None
        self._become = [sys.executable, "-m", "openfl_audio.envoy.run_as", settings.run_as] if self.owner else []
        self._cgroups = Cgroups()
        self._spare: Worker | None = None
        # An experiment takes it from a thread of its own.
        self._spare_lock = threading.Lock()
        room = make_room(self.folder, self.owner)
        try:
            self._sandbox = self._find_sandbox(file, config, shard_descriptor, room)
            self._check_user(room)
        finally:
            shutil.rmtree(room, ignore_errors=True)
        logger.info(self._cgroups.keeps())

    def _find_sandbox(self, file: EnvoyFile, config: Path, shard: ShardDescriptor, room: Path) -> Sandbox | None:
        settings = self._settings
        account = f"as user '{settings.run_as}'" if self.owner else "under the envoy's account"
        if settings.sandbox == "off":
            logger.warning("workers run without a sandbox, %s, as `sandbox: off` says", account)
            return None
        found = self._try_sandbox(file, config, shard, room)
        if isinstance(found, Sandbox):
            logger.info("workers run in a sandbox of bubblewrap, without network, %s", account)
            return found
        if settings.sandbox == "require":
            raise SettingsError(f"sandbox is 'require', and workers cannot run in one here: {found}")
        logger.warning("workers run without a sandbox, %s: %s", account, found)
        return None

    def _try_sandbox(self, file: EnvoyFile, config: Path, shard: ShardDescriptor, room: Path) -> Sandbox | str:
        settings = self._settings
        if getattr(shard, "needs_network", False):
            return "the shard descriptor needs the network"
        shown = shown_to_workers(
            [file.shard_descriptor.params, *readable(settings, config.parent)],
            getattr(shard, "reads", ()),
            config.parent,
            secrets_of(settings, config),
        )
        return find_sandbox(config.parent, shown, room, self._become, int(settings.memory_limit_gb * 1e9))

    def _check_user(self, room: Path) -> None:
        """Raise SettingsError if a worker without a sandbox cannot be another user."""
        if self.owner is None or self._sandbox is not None:
            return
        self.open_way(self.folder, room.parent)
        if fault := fault_of([*self._become, *probe(room / TEMPORARY)]):
            raise SettingsError(f"run_as is '{self._settings.run_as}', and a worker cannot start as that user: {fault}")

    def open_way(self, *folders: Path) -> None:
        """Let another user pass through folders to the room of a worker, where no sandbox leads there."""
        if self.owner is not None and self._sandbox is None:
            open_way(*folders)

    def tidy_up(self) -> None:
        """Remove what an envoy that was killed has left; no other one of this name is at work here."""
        shutil.rmtree(self.folder / ROOMS, ignore_errors=True)
        self.folder.chmod(0o700)
        self.open_way(self.folder)

    def prepare(self) -> None:
        """Start a spare worker, if there is none: it loads its libraries, and then waits for a job."""
        with self._spare_lock:
            if self._spare is None:
                self._spare = self._start()

    def take(self) -> Worker:
        """Return a worker: the spare one, or a new one. Raises OSError."""
        with self._spare_lock:
            worker, self._spare = self._spare, None
        if worker is not None and worker.poll() is None:
            return worker
        if worker is not None:
            worker.end()
        return self._start()

    def end_spare(self) -> None:
        """End the spare worker, if there is one."""
        with self._spare_lock:
            spare, self._spare = self._spare, None
        if spare is not None:
            spare.end()

    def close(self) -> None:
        """End the spare worker, and leave the control groups as they were."""
        self.end_spare()
        self._cgroups.close()

    def _start(self) -> Worker:
        room = make_room(self.folder, self.owner)
        self.open_way(room.parent)
        command = [*self._become, sys.executable, "-m", "openfl_audio.envoy.worker"]
        variables = dict(os.environ)
        if self._sandbox is not None:
            command, variables = self._sandbox.command(room, command), environment(os.environ)
        group = self._cgroups.make(int(self._settings.memory_limit_gb * 1e9)) if self._cgroups else None
        return Worker(command, variables, room, group, self._sandbox is not None)


def readable(settings: EnvoySettings, folder: Path) -> Iterator[str]:
    """Yield the paths of the setting `readable`. Raises SettingsError, naming it, for one that is not there."""
    for each in settings.readable:
        if not (folder / Path(each).expanduser()).exists():
            raise SettingsError(f"readable: there is no file or folder {folder / Path(each).expanduser()}")
        yield each


def secrets_of(settings: EnvoySettings, config: Path) -> Iterator[Path]:
    """Yield what a worker must not see, also where it is in a folder that it reads."""
    yield from (config, settings.work_dir)
    if settings.approved is not None:
        yield settings.approved
    if settings.certificates is not None:
        for pattern in SECRET_FILES:
            yield from settings.certificates.glob(pattern)
