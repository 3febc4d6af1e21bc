"""An envoy's YAML file, and the shard descriptor it names. Envoy and worker both read it."""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

import grpc
import psutil
from openfl.interface.interactive_api.shard_descriptor import ShardDescriptor
from pydantic import Field

from openfl_audio.address import DEFAULT_PORT, join_address
from openfl_audio.config import Host, Retention, Settings
from openfl_audio.envoy.channel import RenewedChannel
from openfl_audio.errors import SettingsError
from openfl_audio.protocol.certificates import ENVOY
from openfl_audio.protocol.record import RECORD, Record
from openfl_audio.protocol.wire import open_channel

GROUP = "openfl_audio.shard_descriptors"


class EnvoySettings(Settings):
    """The `params` of an envoy's YAML file."""

    director_host: Host
    director_port: int = Field(default=DEFAULT_PORT, ge=1, le=65_535)
    # Seconds to try at the start before giving up. Later, an envoy waits for its director without a limit.
    connect_timeout: float = 60.0
    # Only TLS needs them.
    certificates: Path | None = None
    work_dir: Path
    # A worker that holds more is ended, before the system ends something else.
    memory_limit_gb: float = Field(default_factory=lambda: 0.8 * psutil.virtual_memory().total / 1e9, gt=0)
    # A task that takes longer counts as hung, and its worker is ended. Without a value there is no limit.
    task_timeout_seconds: float | None = Field(default=None, gt=0)
    # What leaves the site while a task runs, besides the update that it ends with: nothing; its steps and the memory
    # that it holds; or also losses that it reports; or also what it prints.
    reports: Literal["nothing", "steps", "losses", "logs"] = "losses"
    # Which experiments run here: any; those that a list names, by their hash or their author; or those that somebody at
    # this site has approved with `openfl-audio approve`. With the last two, code is sent as source, and what runs is
    # what was shown.
    approval: Literal["any", "listed", "ask"] = "any"
    # The file of what is listed.
    approved: Path | None = None
    # Of experiments that run here no more, logs and what tasks keep from round to round.
    retention: Retention = Retention()


class ShardDescriptorSettings(Settings):
    """The `shard_descriptor` of an envoy's YAML file: what to make, and with which parameters."""

    template: str
    params: dict[str, Any] = Field(default_factory=dict)


class EnvoyFile(Settings):
    """The content of an envoy's YAML file."""

    params: EnvoySettings
    shard_descriptor: ShardDescriptorSettings


def build_shard_descriptor(settings: ShardDescriptorSettings, folder: Path) -> ShardDescriptor:
    """Make the shard descriptor; paths in its parameters are relative to `folder`, which becomes the current one.

    Its template is an entry point of the group openfl_audio.shard_descriptors, or MODULE.CLASS of a module that is
    installed or lies in `folder`, beside the settings.
    """
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    factory = _load(settings.template)
    os.chdir(folder)
    try:
        return factory(**settings.params)
    except TypeError as error:
        raise SettingsError(f"shard_descriptor.params do not fit {settings.template}: {error}") from error


def _load(template: str) -> Callable[..., ShardDescriptor]:
    installed = entry_points(group=GROUP)
    module, _, name = template.rpartition(".")
    try:
        if template in installed.names:
            return installed[template].load()
        if not module:
            names = ", ".join(sorted(installed.names)) or "there is none"
            raise ImportError(f"it should be MODULE.CLASS, or an installed shard descriptor ({names})")
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(f"shard_descriptor.template '{template}' cannot be imported: {error}") from error


def connect(settings: EnvoySettings, name: str, tls: bool, **headers: str) -> grpc.Channel:
    """Open a channel to the director: a RenewedChannel with TLS.

    Raises CertificateError if envoy `name` has no certificate that is good for TLS.
    """
    address = join_address(settings.director_host, settings.director_port)
    if tls:
        return RenewedChannel(address, settings.certificates, name, **headers)
    return open_channel(address, None, **headers)


def open_record(settings: EnvoySettings, name: str) -> Record:
    """Open the record of envoy `name`, to which its process and the site's commands add. Raises RecordError."""
    return Record(settings.work_dir / name / RECORD, f"{ENVOY} '{name}'")
