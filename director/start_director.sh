#!/usr/bin/env bash
# Start the director: director/start_director.sh [-c director_config.yaml] [--disable-tls]
set -euo pipefail
# The script may be called by a link in another folder.
folder="$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
source "$folder/../scripts/python.sh"
exec "$PYTHON" -m openfl_audio.cli director -c "$folder/director_config.yaml" "$@"  # a later -c counts
