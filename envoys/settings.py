"""An envoy's YAML file, and the shard descriptor it names. Envoy and worker both read it."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
import psutil
from openfl.interface.interactive_api.shard_descriptor import ShardDescriptor
from pydantic import Field

from federation.certificates import load_credentials
from federation.settings import Settings, SettingsError
from federation.wire import open_channel


class EnvoySettings(Settings):
    """The `params` of an envoy's YAML file."""

    director_host: str
    director_port: int = 50051
    # Seconds to try at the start before giving up. Later, an envoy waits for its director for ever.
    connect_timeout: float = 60.0
    certificates: Path
    work_dir: Path
    # A worker that holds more is ended, before the system ends something else.
    memory_limit_gb: float = Field(default_factory=lambda: 0.8 * psutil.virtual_memory().total / 1e9, gt=0)
    # A task that takes longer is taken for hung, and its worker ended. Without a value there is no limit.
    task_timeout_seconds: float | None = Field(default=None, gt=0)


class ShardDescriptorSettings(Settings):
    template: str
    params: dict[str, Any] = Field(default_factory=dict)


class EnvoyFile(Settings):
    params: EnvoySettings
    shard_descriptor: ShardDescriptorSettings


def build_shard_descriptor(settings: ShardDescriptorSettings, folder: Path) -> ShardDescriptor:
    """Make the shard descriptor; paths in its parameters are relative to `folder`, which becomes the current one."""
    module, _, name = settings.template.rpartition(".")
    try:
        factory = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(f"shard_descriptor.template '{settings.template}' cannot be imported: {error}") from error
    os.chdir(folder)
    try:
        return factory(**settings.params)
    except TypeError as error:
        raise SettingsError(f"shard_descriptor.params do not fit {settings.template}: {error}") from error


def connect(settings: EnvoySettings, name: str, tls: bool, **headers: str) -> grpc.Channel:
    """A channel to the director. Raises CertificateError if envoy `name` has no certificate that is good for TLS."""
    credentials = None
    if tls:
        own = load_credentials(settings.certificates, name)
        credentials = grpc.ssl_channel_credentials(own.root, own.private_key, own.certificate)
    return open_channel(f"{settings.director_host}:{settings.director_port}", credentials, **headers)
