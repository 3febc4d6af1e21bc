"""The sandbox of a worker: bubblewrap (bwrap(1)), which shows it the system, the libraries, the recordings and no more.

A worker runs code of others. In the sandbox it has namespaces of its own (processes, network, users, mounts, IPC): it
reaches no network and sees no process but those it starts. Of the machine's files it sees those that are named here; it
may write into its room only, see `rooms`. The envoy finds out at its start what this machine allows.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from openfl_audio.envoy.rooms import HOME, TEMPORARY

# Where a worker finds its room.
INSIDE = Path("/experiment")
PROBE_SECONDS = 60.0
# Folders of the system; on most of today's systems all but the first are links into it.
SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
# Of /etc what libraries read, and nothing that is a secret.
ETC = (
    *("alternatives", "fonts", "group", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "nsswitch.conf"),
    *("OpenCL", "passwd", "ssl/openssl.cnf"),
)
# Devices of GPUs by NVIDIA and AMD, and of the Linux in Windows.
DEVICES = ("nvidia*", "dri", "kfd", "dxg")
# Variables of the environment that a worker gets: all others may be secrets.
VARIABLES = frozenset({"HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "TZ", "USER"})
PREFIXES = (
    "ACCELERATE_", "CUBLAS_", "CUDA_", "CUDNN_", "GOMP_", "GPU_", "HIP_", "HSA_", "KMP_", "LC_", "MALLOC_", "MIOPEN_",
    "MKL_", "NCCL_", "NUMBA_", "NUMEXPR_", "NVIDIA_", "OMP_", "OPENBLAS_", "OPENFL_AUDIO_", "PYTHON", "PYTORCH_",
    "ROCM_", "ROCR_", "TORCH", "TRANSFORMERS_", "TRITON_", "VECLIB_",
)  # fmt: skip
# The sandbox has no network: libraries are told, as they would try again and again.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
# Without the first, a task could make namespaces of its own, in which the kernel has had holes. Older versions of
# bubblewrap do not know it; the last is for root where the kernel allows no user namespaces.
USER_NAMESPACES = (("--unshare-user", "--disable-userns"), ("--unshare-user",), ())
NAMESPACES = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")


@dataclass(frozen=True)
class Sandbox:
    """A way of starting workers that was found to work on this machine.

    Attributes:
        bwrap: the program.
        users: its options for a namespace of users, none where it runs as root.
        folder: the folder of the envoy's settings, in which a worker starts.
        shown: what a worker may read besides the system.
        becomes: whether a worker becomes another user.
        shared_bytes: how much a worker may keep in shared memory.
    """

    bwrap: str
    users: tuple[str, ...]
    folder: Path
    shown: tuple[Path, ...]
    becomes: bool
    shared_bytes: int

    def command(self, room: Path, command: Sequence[str]) -> list[str]:
        """Return the command line that runs `command` in the sandbox, which may write into `room` only."""
        # Becoming another user ends them; until then that user's folders are searched.
        rights = ("CAP_SETUID", "CAP_SETGID", "CAP_DAC_READ_SEARCH") if self.becomes else ()
        kept = [word for right in rights for word in ("--cap-add", right)]
        ends = ("--die-with-parent", "--new-session", "--cap-drop", "ALL", *kept)
        places = [word for mount in self._mounts(room) for word in map(str, mount)]
        # What is written there would be memory that nobody counts.
        inside = ("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", str(self.folder))
        return [self.bwrap, *self.users, *NAMESPACES, *ends, *places, *inside, "--", *command]

    def _mounts(self, room: Path) -> Iterator[tuple[object, ...]]:
        yield from _system()
        places: dict[Path, tuple[object, ...]] = {home_of(os.environ): ("--bind", room / HOME)}
        places |= {path: ("--ro-bind", path) for path in self.shown}
        places |= {INSIDE: ("--bind", room), Path("/tmp"): ("--bind", room / TEMPORARY)}
        places |= {path: () for each in (*places, self.folder) for path in each.parents if path not in places}
        places.setdefault(self.folder, ())
        # A folder comes before what is put into it; one that only leads there can be searched by a user of `run_as`.
        for path in sorted(places, key=lambda path: len(path.parts)):
            yield (*places[path], path) if places[path] else ("--perms", "0755", "--dir", path)
        yield "--perms", "1777", "--size", self.shared_bytes, "--tmpfs", "/dev/shm"


def _system() -> Iterator[tuple[object, ...]]:
    for name in SYSTEM:
        path = Path("/", name)
        if path.is_symlink():
            yield "--symlink", path.readlink(), path
        elif path.is_dir():
            yield "--ro-bind", path, path
    for name in ("/etc", "/etc/ssl"):
        yield "--perms", "0755", "--dir", name
    for name in ETC:
        yield "--ro-bind-try", Path("/etc", name), Path("/etc", name)
    yield "--proc", "/proc"
    yield "--ro-bind-try", "/sys", "/sys"  # of GPUs and processors
    yield "--dev", "/dev"
    for pattern in DEVICES:
        for path in sorted(Path("/dev").glob(pattern)):
            yield "--dev-bind", path, path


def find_sandbox(
    folder: Path, shown: Sequence[Path], room: Path, become: Sequence[str], shared_bytes: int
) -> Sandbox | str:
    """Return a sandbox that works on this machine, or why there is none.

    `room` is an empty room of a worker. `become` is the command by which a worker becomes another user, which root can
    do outside of a namespace of users only.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "bubblewrap (the program bwrap) is not installed"
    reasons = []
    for users in ((),) if become else USER_NAMESPACES if os.geteuid() == 0 else USER_NAMESPACES[:-1]:
        sandbox = Sandbox(bwrap, users, folder, tuple(shown), bool(become), shared_bytes)
        fault = fault_of(sandbox.command(room, [*become, *probe(Path("/tmp"))]))
        if not fault:
            return sandbox
        reasons.append(fault)
    return "; ".join(dict.fromkeys(reasons))


def probe(folder: Path) -> list[str]:
    """Return a command that needs what each worker does: Python, this project, libraries, and a folder to write to."""
    code = "import sys, openfl_audio.errors, psutil; open(sys.argv[1] + '/probe', 'w')"
    return [sys.executable, "-c", code, str(folder)]


def fault_of(command: Sequence[str]) -> str:
    """Run a command, and return the last line of its errors; "" if it ends well."""
    try:
        ended = subprocess.run(
            command, env=environment(os.environ), capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]} cannot be run: {error}"
    said = ended.stderr.strip().splitlines()
    return "" if ended.returncode == 0 else said[-1] if said else f"{command[0]} ended with {ended.returncode}"


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker in the sandbox: of `variables` those that are known to be no secrets."""
    kept = {name: each for name, each in variables.items() if name in VARIABLES or name.startswith(PREFIXES)}
    kept = {name: each for name, each in kept.items() if not name.endswith(("_TOKEN", "_KEY", "_SECRET", "_PASSWORD"))}
    caches = {name: str(path) for name, path in cache_folders(variables).items()}
    return {**kept, "HOME": str(home_of(variables)), **caches, **OFFLINE}


def home_of(variables: Mapping[str, str]) -> Path:
    """Return the folder that is a worker's home, and is empty when it starts."""
    home = Path(variables.get("HOME") or "/")
    return home if home.is_absolute() and len(home.parts) > 1 else Path("/tmp/home")


def cache_folders(variables: Mapping[str, str]) -> dict[str, Path]:
    """Return the folders of models that were downloaded, by the variables that Hugging Face and torch read."""
    caches = Path(variables.get("XDG_CACHE_HOME") or home_of(variables) / ".cache")
    hugging_face = Path(variables.get("HF_HOME") or caches / "huggingface")
    return {
        "HF_HUB_CACHE": Path(variables.get("HF_HUB_CACHE") or hugging_face / "hub").expanduser(),
        "TORCH_HOME": Path(variables.get("TORCH_HOME") or caches / "torch").expanduser(),
    }


def shown_to_workers(parameters: Any, reads: Iterable[Path], folder: Path, secret: Iterable[Path]) -> list[Path]:
    """Return the files and folders that a worker may read besides the system.

    They are Python and its libraries, models in caches, the site's own modules beside its settings in `folder`, what
    the shard descriptor `reads`, and every path among its `parameters`. Of a folder with something `secret` in it,
    the rest is shown.
    """
    named = {*_python(), *cache_folders(os.environ).values(), *reads, *_paths_in(parameters, folder)}
    named |= {path.resolve() for path in named}
    named |= {*folder.glob("*.py"), *(each.parent for each in folder.glob("*/__init__.py"))}
    hidden = {path.resolve() for path in secret}
    found = {path: None for each in named if each.exists() for path in without(each, hidden)}
    system = tuple(Path("/", name) for name in SYSTEM)
    return sorted(path for path in found if not path.is_relative_to(system[0]) or path in system)


def without(path: Path, hidden: set[Path], is_named: bool = True) -> Iterator[Path]:
    """Yield a path, or, of a folder with something hidden below it, all the rest.

    Links in such a folder that lead to what has something hidden are left out, as they may lead back.
    """
    real = path.resolve()
    if real in hidden:
        return
    if not any(each.is_relative_to(real) for each in hidden):
        yield path
    elif is_named or not path.is_symlink():
        for each in path.iterdir():
            yield from without(each, hidden, is_named=False)


def _python() -> Iterator[Path]:
    """Yield the folders of Python, of its libraries, and of projects that are installed in place."""
    for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix):
        if prefix not in ("/", "/usr"):
            yield Path(prefix)
    yield from map(Path, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    yield from map(Path, filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)))
    for distribution in distributions():
        if '"editable": true' in (distribution.read_text("direct_url.json") or ""):
            for name in (distribution.read_text("top_level.txt") or "").split():
                yield from _folders_of(name)


def _folders_of(package: str) -> Iterator[Path]:
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.submodule_search_locations is not None:
        yield from map(Path, spec.submodule_search_locations)
    elif spec is not None and spec.origin is not None:
        yield Path(spec.origin)


def _paths_in(parameters: Any, folder: Path) -> Iterator[Path]:
    """Yield the paths among the values of parameters that are there."""
    if isinstance(parameters, str | Path) and str(parameters):
        path = folder / Path(parameters).expanduser()
        try:
            if path.exists():
                yield Path(os.path.normpath(path))
        except (OSError, ValueError):  # a text that is no path
            return
    elif isinstance(parameters, Mapping):
        for each in parameters.values():
            yield from _paths_in(each, folder)
    elif isinstance(parameters, Sequence) and not isinstance(parameters, str | bytes):
        for each in parameters:
            yield from _paths_in(each, folder)
