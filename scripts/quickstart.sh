#!/usr/bin/env bash
# Installs emoreg into .venv and runs the guided example on the demo model.
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRAS="train,report,demo"
source scripts/setup_env.sh
exec .venv/bin/emoreg quickstart "$@"
