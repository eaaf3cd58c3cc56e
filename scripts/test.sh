#!/usr/bin/env bash
# Installs everything into .venv and runs all checks; further arguments go to pytest.
# Every check runs even when an earlier one failed; the exit status tells of any.
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRAS="train,report,demo,dev,wandb,trackio,tensorboard,mlflow,stories,lm-eval"
source scripts/setup_env.sh

install_unlisted deepspeed bitsandbytes

failed=()
check() {
  local name="$1"
  shift
  echo "== $name"
  "$@" || failed+=("$name")
}

# Tests of one file share what takes long to make: with several workers, one takes a file.
# (Groups by mark don't work: pytest 9.2 with pytest-xdist 3.8 gives them to all.)
share="--dist loadfile -n auto"

check "ruff check" .venv/bin/ruff check .
check "ruff format" .venv/bin/ruff format --check .
check "pyright" .venv/bin/pyright --pythonpath .venv/bin/python
check "pytest, fast" .venv/bin/python -m pytest -q $share --maxprocesses 8 --durations=15 -m "not slow" "$@"
check "pytest, slow" .venv/bin/python -m pytest -q $share --maxprocesses 2 --durations=25 -m "slow and not matrix" "$@"

if [ "${#failed[@]}" -gt 0 ]; then
  printf 'Not passed: %s\n' "${failed[@]}" >&2
  exit 1
fi
