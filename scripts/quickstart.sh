#!/usr/bin/env bash
# From a bare machine to a trained language model: installs into .venv, trains configs/quickstart.py on the embedded corpus
# (a few minutes on 2 cores), samples from it and evaluates it. WORKDIR names the work directory (default: runs/quickstart).
# The last line of standard output is the evaluation as JSON. Run it again to go on where it was stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
workdir="${WORKDIR:-runs/quickstart}"
.venv/bin/python scripts/train.py --config=configs/quickstart.py --workdir="$workdir" "$@"
.venv/bin/python scripts/generate.py --workdir="$workdir" --prompt="The state of the Union is" --temperature=0.7 --max_tokens=100
.venv/bin/python scripts/eval.py --workdir="$workdir" --split=validation
