#!/usr/bin/env bash
# Installs everything into .venv and runs all checks; further arguments go to pytest.
# Every check runs even when an earlier one failed; the exit status tells of any.
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRAS="train,report,demo,dev,wandb,trackio,tensorboard,mlflow"
source scripts/setup_env.sh

# Its ZeRO-3 is tried in two processes on the CPU, for which nothing is compiled here.
if ! "$VENV_PYTHON" -m pip show -qq deepspeed 2>/dev/null; then
  echo "Installing DeepSpeed for the two-process tests..."
  DS_BUILD_OPS=0 DS_ACCELERATOR=cpu pip_install --no-build-isolation \
    "$(grep -E '^deepspeed==' constraints.txt)" ||
    echo "DeepSpeed could not be installed: its tests are skipped" >&2
fi

failed=()
check() {
  local name="$1"
  shift
  echo "== $name"
  "$@" || failed+=("$name")
}

check "ruff check" .venv/bin/ruff check .
check "ruff format" .venv/bin/ruff format --check .
check "pyright" .venv/bin/pyright --pythonpath .venv/bin/python
check "pytest, fast" .venv/bin/python -m pytest -q -n auto --maxprocesses 8 -m "not slow" "$@"
check "pytest, slow" .venv/bin/python -m pytest -q -n auto --maxprocesses 2 --dist loadgroup -m slow "$@"

if [ "${#failed[@]}" -gt 0 ]; then
  printf 'Not passed: %s\n' "${failed[@]}" >&2
  exit 1
fi
