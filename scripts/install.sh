# Sourced by the other scripts: makes .venv in the repository and installs requirements.txt into it, once per content of
# the files that say what to install. PYTHON names another interpreter than python3 (3.11 or later).
cd "$(dirname "${BASH_SOURCE[0]}")/.."

_stamp="$(cat requirements.txt pyproject.toml | sha256sum | cut -d ' ' -f 1) $PWD"
if [ "$(cat .venv/installed 2>/dev/null)" != "$_stamp" ]; then
    _python="${PYTHON:-python3}"
    if ! "$_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "error: $_python is older than Python 3.11 or missing: install one and name it with PYTHON=python3.12 $0" >&2
        exit 1
    fi
    echo "installing into .venv (once; a minute or two)" >&2
    "$_python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
    echo "$_stamp" > .venv/installed
fi
# With libtpu installed on a machine without a TPU, JAX would look for one.
[ -e /dev/accel0 ] || [ -e /dev/vfio/0 ] || [ -e /dev/nvidia0 ] || export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
