#!/usr/bin/env bash
# Start the director: director/start_director.sh [-c director_config.yaml] [--disable-tls]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/python.sh"
# Models pass through in pieces, in several threads. With a heap for each thread (glibc's default) freed pieces pile up.
export MALLOC_ARENA_MAX=1
exec "$PYTHON" -m director "$@"
