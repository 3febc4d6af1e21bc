#!/usr/bin/env bash
# Makes .venv with the project and its extras for demo, development, simulation and search. Called by `make install`; PYTHON=... is tried first.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

readonly VENV=.venv
readonly LOG=$VENV/install.log
readonly EXTRAS=demo,dev,simulation,tune
# Measured with torch's CUDA libraries: 5.9 GB when done, and up to 7.7 GB while the wheels lie beside it.
readonly NEEDED_GB=8

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

used=$(kilobytes_used "$VENV" || true)
needed=$((NEEDED_GB * 1024 * 1024 - ${used:-0}))
free=$(kilobytes_free .)
if ((free < needed)); then
    fail "the installation needs $(((needed + 1048575) / 1048576)) GB in $PWD, and $((free / 1048576)) GB are free."
fi

if [[ -n ${base:-} ]]; then
    echo "Making $VENV with $("$base" --version 2>&1) ($base)"
    "$base" -m venv "$VENV" || fail "$base could not make $VENV."
    echo "$PWD" >"$VENV/.folder"
fi

echo "Installing the dependencies into $VENV: some minutes and 6 GB the first time (to watch: tail -f $LOG)"
started=$SECONDS
# Wheels are unpacked next to where they end up: /tmp is often small, and its room was not measured above.
mkdir -p "$VENV/tmp"
trap 'rm -rf "$VENV/tmp"' EXIT
if ! TMPDIR=$PWD/$VENV/tmp "$python" -m pip install --disable-pip-version-check --progress-bar off -e ".[$EXTRAS]" >"$LOG" 2>&1; then
    # The log may have found no room for pip's last words.
    if grep -q "No space left on device" "$LOG" || (($(kilobytes_free .) < 1024)); then
        rm -rf "$VENV/tmp"
        fail "the disk became full during the installation; free $NEEDED_GB GB and run make install again (details in $LOG)."
    fi
    tail -n 15 "$LOG" >&2 || true
    fail "pip failed; the lines above are the end of $LOG."
fi
touch "$VENV/.installed"
echo "Installed in $((SECONDS - started)) s."
