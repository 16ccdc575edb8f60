#!/usr/bin/env bash
# Lints and tests on a fresh machine: makes .venv, installs, then runs ruff and pytest. Arguments go to pytest.
#   scripts/test.sh                 everything but the slow tests
#   scripts/test.sh -m slow         the slow ones
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
.venv/bin/ruff check .
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.pytest_cache/xla}"
exec .venv/bin/python -m pytest "$@"
