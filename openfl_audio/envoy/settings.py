"""An envoy's YAML file, and the shard descriptor it names. Envoy and worker both read it."""

import json
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
from pydantic import Field, model_validator

from openfl_audio.address import DEFAULT_PORT, join_address
from openfl_audio.config import Host, Retention, Settings
from openfl_audio.envoy.budget import PrivacySettings
from openfl_audio.envoy.channel import RenewedChannel
from openfl_audio.envoy.policy import Policy
from openfl_audio.errors import SettingsError
from openfl_audio.files import make_folder, write_json
from openfl_audio.formats import check_format, stamp
from openfl_audio.protocol.certificates import ENVOY
from openfl_audio.protocol.record import RECORD, Record
from openfl_audio.protocol.wire import open_channel

# In the envoy's folder: how many bytes have left today.
SENT_FILE = ".sent.json"
# Says the format of an envoy's folder: decisions, what was sent, what clients keep. A folder of a later one is refused.
FOLDER_FORMAT_FILE, FOLDER_FORMAT = ".format.json", 1
GROUP = "openfl_audio.shard_descriptors"


class EnvoySettings(Settings):
    """The `params` of an envoy's YAML file."""

    director_host: Host = Field(description="name or address of the director, which is in its certificate")
    director_port: int = Field(default=DEFAULT_PORT, ge=1, le=65_535, description="port of the director")
    connect_timeout: float = Field(
        default=60.0,
        description="seconds to try at the start before giving up; later an envoy waits without a limit",
    )
    certificates: Path | None = Field(
        default=None, description="folder with ca.crt, NAME.crt and NAME.key of this envoy; only TLS needs it"
    )
    work_dir: Path = Field(description="folder where experiments are unpacked while they run, and leave their logs")
    memory_limit_gb: float = Field(
        default_factory=lambda: 0.8 * psutil.virtual_memory().total / 1e9,
        gt=0,
        description="GB of memory above which a worker is ended; by default four fifths of the machine's",
    )
    task_timeout_seconds: float | None = Field(
        default=None,
        gt=0,
        description="seconds after which a task counts as hung, and its worker is ended; without it there is no limit",
    )
    round_cpu_seconds: float | None = Field(
        default=None,
        gt=0,
        description="seconds of CPU time, of all cores, that a worker and all that it starts may take in a round",
    )
    sandbox: Literal["require", "use", "off"] = Field(
        default="use",
        description="workers run in bubblewrap: required, or the envoy does not start; where it works; or not at all",
    )
    run_as: str = Field(default="", description="the user that workers run as, where root starts the envoy")
    readable: list[str] = Field(
        default_factory=list,
        description="files and folders that a worker in the sandbox may read besides those of the shard descriptor",
    )
    reports: Literal["nothing", "steps", "losses", "logs"] = Field(
        default="losses",
        description="reports that leave while a task runs: none; steps and memory; losses too; or all that it prints",
    )
    # With the last two, code is sent as source, and what runs is what was shown.
    approval: Literal["any", "listed", "ask"] = Field(
        default="any",
        description="experiments that run here: any; those of a list; or those approved with openfl-audio approve",
    )
    approved: Path | None = Field(default=None, description="file of what is listed: hashes, and authors")
    policy: Policy = Field(default=Policy(), description="limits of an experiment here, whatever its notebook says")
    privacy: PrivacySettings | None = Field(
        default=None, description="budget of differential privacy; with one, only private experiments run here"
    )
    retention: Retention = Field(
        default=Retention(), description="experiments that have ended here, and whose logs and local state are kept"
    )

    @model_validator(mode="after")
    def check_budget(self) -> "EnvoySettings":
        """Raise ValueError if a traceback would tell values that a budget protects."""
        if self.privacy is not None and self.policy.tracebacks == "values":
            raise ValueError("policy.tracebacks 'values' tells what a budget of privacy protects: use 'code'")
        return self

    @property
    def shows_code(self) -> bool:
        """Tell whether experiments are sent as source, which is shown or compared: then nothing is unpickled."""
        return self.approval != "any" or self.privacy is not None


class ShardDescriptorSettings(Settings):
    """The `shard_descriptor` of an envoy's YAML file: what to make, and with which parameters."""

    template: str = Field(description="class that reads the recordings: MODULE.CLASS, or the name of an installed one")
    params: dict[str, Any] = Field(default_factory=dict, description="arguments of that class")


class EnvoyFile(Settings):
    """The content of an envoy's YAML file."""

    params: EnvoySettings = Field(description="settings of the envoy")
    shard_descriptor: ShardDescriptorSettings = Field(description="the recordings of this site")


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


def folder_of(settings: EnvoySettings, name: str) -> Path:
    """Return the folder of envoy `name`, which may not be there yet. Raises FormatError if a later version wrote it."""
    folder = settings.work_dir / name
    path = folder / FOLDER_FORMAT_FILE
    if path.exists():
        check_format(path, json.loads(path.read_text(encoding="utf-8")), FOLDER_FORMAT)
    return folder


def mark_folder(folder: Path) -> None:
    """Note which version writes the folder of an envoy from now on."""
    make_folder(folder)
    write_json(folder / FOLDER_FORMAT_FILE, stamp(FOLDER_FORMAT))


def open_record(settings: EnvoySettings, name: str) -> Record:
    """Open the record of envoy `name`, to which its process and the site's commands add.

    Raises RecordError, and FormatError if a later version wrote it or its folder.
    """
    return Record(folder_of(settings, name) / RECORD, f"{ENVOY} '{name}'")
