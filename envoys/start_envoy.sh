#!/usr/bin/env bash
# Start an envoy: envoys/start_envoy.sh -n NAME -c CONFIG.yaml [--disable-tls]
# CUDA_VISIBLE_DEVICES is passed on as it is: experiments see those GPUs and no others.
set -euo pipefail
# The script may be called by a link in another folder.
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../scripts/python.sh"
exec "$PYTHON" -m openfl_audio.cli envoy "$@"
