#!/usr/bin/env bash
# Runs the whole matrix, trainers x modes x launches x versions; writes docs/matrix.md.
#   bash scripts/test_matrix.sh [lowest] [locked] [newest]      all three if none is named
# It goes on where an earlier run stopped. `lowest` has what constraints-lowest.txt says,
# `locked` constraints.txt, `newest` the newest releases that pyproject.toml allows (of the
# day when its environment was made: remove .matrix/newest for today's). MATRIX_ARGS go to
# pytest, for instance MATRIX_ARGS="-k sft".
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRAS="train,report,demo,dev,wandb,trackio,tensorboard,mlflow"
source scripts/setup_env.sh
install_unlisted deepspeed bitsandbytes
export PYTHONPATH="$PWD" HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# A thin environment over .venv: torch, and all that it has no other version of, is .venv's.
layer() {
  local venv=".matrix/$1/venv" wants
  wants="$(cat pyproject.toml constraints.txt constraints-lowest.txt | cksum)"
  grep -qsxF "$wants" "$venv/stamp" && return
  echo "Making $venv..."
  rm -rf "$venv"
  "$VENV_PYTHON" -m venv --without-pip "$venv" # pip is .venv's too
  "$VENV_PYTHON" -c 'import sys; print(*[p for p in sys.path if "site-" in p], sep="\n")' \
    >"$(echo "$venv"/lib/python*/site-packages)/base.pth"
  "$venv/bin/python" -m pip install -qq --no-compile --disable-pip-version-check "${@:2}"
  echo "$wants" >"$venv/stamp"
}

failed=()
[ $# -gt 0 ] || set -- lowest locked newest
for versions in "$@"; do
  python=".matrix/$versions/venv/bin/python"
  case "$versions" in
    lowest) layer lowest -r constraints-lowest.txt ;;
    locked) python="$VENV_PYTHON" ;;
    # shellcheck disable=SC2046
    newest) layer newest --upgrade $("$VENV_PYTHON" scripts/matrix.py ranges) ;;
    *) echo "Versions are lowest, locked or newest, not '$versions'" >&2 && exit 1 ;;
  esac
  # shellcheck disable=SC2086
  "$python" scripts/matrix.py run --versions "$versions" ${MATRIX_ARGS:-} ||
    failed+=("$versions")
done
"$VENV_PYTHON" scripts/matrix.py table
if [ "${#failed[@]}" -gt 0 ]; then
  echo "Not passed: ${failed[*]}" >&2
  exit 1
fi
