#!/usr/bin/env bash
# Start the director: director/start_director.sh [-c director_config.yaml] [--disable-tls]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/python.sh"
exec "$PYTHON" -m director "$@"
