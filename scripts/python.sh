# Sourced by the start scripts: sets PYTHON to one that has openfl-audio installed, the repository's own .venv first.
repository="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)"
if [ -z "${PYTHON:-}" ]; then
  PYTHON="$repository/.venv/bin/python"
  [ -x "$PYTHON" ] || PYTHON=python3
fi
if ! "$PYTHON" -c 'import openfl_audio.protocol.wire' 2>/dev/null; then
  echo "$(basename "$0"): openfl-audio is not installed for $PYTHON: run 'make install' in $repository" >&2
  exit 1
fi
