#!/usr/bin/env bash
# Runs the whole matrix, trainers x modes x launches x versions, and writes docs/matrix.md.
#   bash scripts/test_matrix.sh [lowest] [locked] [newest]      all three if none is named
# It goes on where an earlier run stopped. `lowest` has constraints-lowest.txt, `locked`
# constraints.txt, `newest` the newest releases that pyproject.toml allows. The first and
# the last are thin environments over .venv: torch and all that they don't change is its.
# MATRIX_ARGS go to pytest, for instance MATRIX_ARGS="-k sft".
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRAS="train,report,demo,dev,wandb,trackio,tensorboard"
source scripts/setup_env.sh
export PYTHONPATH="$PWD" HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# A venv that sees what .venv has, unless it has another version itself.
layer() {
  local folder=".matrix/$1" wants
  wants="$("$VENV_PYTHON" -c 'import hashlib,pathlib as p; print(hashlib.sha256(b"".join(
    p.Path(f).read_bytes() for f in ("pyproject.toml", "constraints.txt",
    "constraints-lowest.txt"))).hexdigest())')"
  grep -qsxF "$wants" "$folder/venv/stamp" && return
  rm -rf "$folder/venv"
  "$VENV_PYTHON" -m venv "$folder/venv"
  "$VENV_PYTHON" -c 'import sys; print(*(p for p in sys.path if "site-packages" in p), sep="\n")' \
    >"$(echo "$folder"/venv/lib/python*/site-packages)/base.pth"
  shift
  "$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check "$@"
  echo "$wants" >"$folder/venv/stamp"
}

failed=()
for name in "${@:-lowest locked newest}"; do
  for versions in $name; do
    python="$VENV_PYTHON"
    case "$versions" in
      locked) ;;
      lowest) layer lowest -r constraints-lowest.txt ;;
      newest) layer newest --upgrade trl transformers peft accelerate datasets ;;
      *) echo "Versions are lowest, locked or newest, not '$versions'" >&2 && exit 1 ;;
    esac
    [ "$versions" = locked ] || python=".matrix/$versions/venv/bin/python"
    # shellcheck disable=SC2086
    "$python" scripts/matrix.py run --versions "$versions" ${MATRIX_ARGS:-} ||
      failed+=("$versions")
  done
done
"$VENV_PYTHON" scripts/matrix.py table
if [ "${#failed[@]}" -gt 0 ]; then
  echo "Not passed: ${failed[*]}" >&2
  exit 1
fi
