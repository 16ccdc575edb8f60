#!/usr/bin/env bash
# Lints and tests on a fresh machine: makes .venv, installs, then runs ruff and pytest. Arguments go to pytest.
#   scripts/test.sh                            everything but the slow tests, on all cores up to four
#   scripts/test.sh tests/test_run.py -k name  some tests, on one: few end before a second process has imported everything
#   scripts/test.sh -m slow                    the slow ones
#   scripts/test.sh --parity                   installs what we compare with (PyTorch, transformers, KenLM, ...) and the TPU compiler, and
#                                              runs those tests
#   scripts/test.sh --notebooks                installs what notebooks need, and executes each of notebooks/ from its first cell to its last
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
.venv/bin/ruff check .
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.pytest_cache/xla}"
# Tests share programs that compile in less than the second that is JAX's default for keeping one.
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.1}"
cores="$(nproc)"
# Neighbours run in one process, for they share what they have compiled; a process needs up to 4 GB.
workers=(--numprocesses="$((cores < 4 ? cores : 4))" --dist=worksteal)
if [ "${1:-}" = --parity ]; then
    shift
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[parity,plan]'
    # Of g2p-en the weights alone are read; what it would bring along downloads data when it is imported.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps g2p-en==2.1.0
    mapfile -t comparing < <(grep --recursive --files-with-matches importorskip --include='test_*.py' tests)
    set -- "${workers[@]}" "${comparing[@]}" "$@"
fi
if [ "${1:-}" = --notebooks ]; then
    shift
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[notebooks]'
    set -- "${workers[@]}" tests/notebooks "$@"
fi
[ $# -gt 0 ] || set -- "${workers[@]}"
exec .venv/bin/python -m pytest "$@"
