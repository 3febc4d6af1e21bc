#!/usr/bin/env bash
# Makes .venv with the project and its extras for demo, development, documentation, MLflow (whose export a test reads), privacy, simulation and search. Called by `make install`; PYTHON=... is tried first.
# `install.sh envoy`, called by `make install-envoy`, makes one with what an envoy needs, which is the extra of that name alone, and
# `install.sh envoy director`, called by `make install-director`, one with what a director needs as well.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

readonly VENV=.venv
readonly LOG=$VENV/install.log
readonly EXTRAS=demo,dev,docs,mlflow,privacy,simulation,tune
readonly LEAN=("$@") # extras

fail() {
    echo "error: $*" >&2
    exit 1
}

# Runs the candidate: a shim of pyenv is on PATH and fails, and Debian ships a python3 without ensurepip.
fits() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

can_make_venv() {
    "$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

find_python() {
    local candidate without_venv=""
    for candidate in ${PYTHON:+"$PYTHON"} python3.12 python3.11 python3.10 python3 python; do
        fits "$candidate" || continue
        if can_make_venv "$candidate"; then
            echo "$candidate"
            return
        fi
        without_venv=${without_venv:-$candidate}
    done
    if [[ -n $without_venv ]]; then
        fail "$without_venv cannot make virtual environments; install its venv module (on Debian and Ubuntu the package python3-venv)."
    fi
    fail "no working Python 3.10, 3.11 or 3.12 was found; install one, or name it with make PYTHON=/path/to/python."
}

has_gpu() { compgen -G "/dev/nvidia[0-9]*" >/dev/null || command -v nvidia-smi >/dev/null; }

# Prints the newest builds for CPUs, as torch==VERSION+cpu torchaudio==VERSION+cpu, if pip's indexes have both: neither loads
# beside one for GPUs of the other.
find_cpu_builds() {
    "$python" -c '
import re, subprocess, sys
project = open("pyproject.toml").read()
least, too_new = re.search(r"\"torch>=([0-9.]+),<([0-9.]+)\"", project).groups()
audio = re.search(r"\"torchaudio==([0-9.]+)\"", project)[1]
def number(version):
    return tuple(map(int, version.split(".")))
def builds(name):
    versions = subprocess.run([sys.executable, "-m", "pip", "index", "versions", name], capture_output=True, text=True)
    return re.findall(r"([0-9.]+)\+cpu", versions.stdout)
torch = [build for build in builds("torch") if number(least) <= number(build) < number(too_new)]
if torch and audio in builds("torchaudio"):
    print(f"torch=={max(torch, key=number)}+cpu torchaudio=={audio}+cpu")'
}

# Prints the requirements of extras. Python 3.10 has no tomllib of its own.
requirements_of() {
    "$python" -c '
import sys
from pip._vendor import tomli
extras = tomli.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]
print(*(requirement for name in sys.argv[1:] for requirement in extras[name]), sep="\n")' "$@"
}

is_installed() { "$python" -c 'import importlib.metadata, sys; importlib.metadata.version(sys.argv[1])' "$1" 2>/dev/null; }

# Passes on what pip begins to download, where that takes a while.
show_downloads() {
    local line
    while IFS= read -r line; do
        if [[ $line =~ Downloading\ ([^-\ ]+)-([^-\ ]+)-.*\(([0-9]{2,}(\.[0-9]+)?\ MB|[0-9.]+\ GB)\) ]]; then
            echo "  ${BASH_REMATCH[1]} ${BASH_REMATCH[2]}, ${BASH_REMATCH[3]}"
        elif [[ $line == "Installing collected packages"* ]]; then
            echo "  unpacking"
        fi
    done
}

kilobytes_free() { df -Pk "$1" | awk 'NR == 2 { print $4 }'; }
kilobytes_used() { du -sk "$1" 2>/dev/null | awk '{ print $1 }'; }

# The stamp holds the folder it was made in: an environment does not survive being copied or moved.
python=$VENV/bin/python
if ! { [[ -f $VENV/.folder && $(<"$VENV/.folder") == "$PWD" ]] && fits "$python"; }; then
    base=$(find_python)
    if [[ -n ${PYTHON:-} && $base != "$PYTHON" ]]; then
        echo "PYTHON=$PYTHON is not a working Python 3.10 to 3.12; taking $base."
    fi
    if [[ -e $VENV ]]; then
        echo "Removing $VENV: it was made in another folder, by something else, or for another Python."
        rm -rf "$VENV"
    fi
fi
rm -rf "$VENV/tmp" # wheels of an installation that was killed

if [[ -n ${base:-} ]]; then
    echo "Making $VENV with $("$base" --version 2>&1) ($base)"
    "$base" -m venv "$VENV" || fail "$base could not make $VENV."
    echo "$PWD" >"$VENV/.folder"
fi

# Measured with torch's CUDA libraries: 3.1 GB of wheels, 5.9 GB when done, and up to 7.7 GB while the wheels lie beside it.
size="3.1 GB, most of it PyTorch"
needed_gb=8
requirements=(-e ".[$EXTRAS]")
project=()
if ((${#LEAN[@]})); then
    mapfile -t requirements < <(requirements_of "${LEAN[@]}")
    project=(--no-deps -e .)
fi
# A torch that is there already stays, whatever it was built for.
if is_installed torch; then
    size="what is missing"
elif ! has_gpu; then
    read -ra cpu_builds < <(find_cpu_builds) || true
    if ((${#cpu_builds[@]})); then
        requirements+=("${cpu_builds[@]}")
        size="0.6 GB, with PyTorch for the CPU"
    elif [[ $(uname -sm) == "Linux x86_64" ]]; then
        echo "There is no GPU here, and pip's indexes have PyTorch with its libraries for GPUs only (2.7 GB). With the index of"
        echo "PyTorch's CPU builds in PIP_EXTRA_INDEX_URL, make install takes those (0.2 GB)."
    fi
fi
used=$(kilobytes_used "$VENV" || true)
needed=$((needed_gb * 1024 * 1024 - ${used:-0}))
free=$(kilobytes_free .)
if ((free < needed)); then
    fail "the installation needs $(((needed + 1048575) / 1048576)) GB in $PWD, and $((free / 1048576)) GB are free."
fi

echo "Installing the dependencies into $VENV; to download the first time: $size (pip's log is $LOG)"
started=$SECONDS
# Wheels are unpacked next to where they end up: /tmp is often small, and its room was not measured above.
mkdir -p "$VENV/tmp"
trap 'rm -rf "$VENV/tmp"' EXIT
install() { TMPDIR=$PWD/$VENV/tmp "$python" -m pip install --disable-pip-version-check --progress-bar off "$@" 2>&1; }
if ! { install "${requirements[@]}" && { ((!${#project[@]})) || install "${project[@]}"; }; } | tee "$LOG" | show_downloads; then
    # The log may have found no room for pip's last words.
    if grep -q "No space left on device" "$LOG" || (($(kilobytes_free .) < 1024)); then
        rm -rf "$VENV/tmp"
        fail "the disk became full during the installation; free $needed_gb GB and run make install again (details in $LOG)."
    fi
    tail -n 15 "$LOG" >&2 || true
    fail "pip failed; the lines above are the end of $LOG."
fi
touch "$VENV/.installed"
echo "Installed in $((SECONDS - started)) s."
