#!/usr/bin/env bash
# Start the director: director/start_director.sh [-c director_config.yaml] [--disable-tls]
set -euo pipefail
# The script may be called by a link in another folder.
folder="$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
source "$folder/../scripts/python.sh"
# Models pass through in pieces of a megabyte, in several threads. By glibc's defaults each thread has a heap in which
# freed pieces pile up, and others are given back to the system and asked for again, which costs more than filling them.
export MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=4194304 MALLOC_TRIM_THRESHOLD_=67108864
exec "$PYTHON" -m openfl_audio.director -c "$folder/director_config.yaml" "$@"  # a later -c counts
