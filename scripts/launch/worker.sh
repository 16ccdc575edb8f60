#!/usr/bin/env bash
# The end of a launcher that runs on a worker (a TPU VM, a pod of GKE), from the copy of the repository that it lies in.
#   scripts/launch/worker.sh install [EXTRA]      .venv with requirements.txt and an extra of pyproject.toml (default: tpu)
#   scripts/launch/worker.sh start -- COMMAND...  the command in the background, its output in ~/lm-run/log; refuses a second
#   scripts/launch/worker.sh run -- COMMAND...    the same in the foreground, as the entry point of a container
#   scripts/launch/worker.sh status [-- COMMAND...]  one line; with a command, what has become of that one
#   scripts/launch/worker.sh stop                 SIGTERM: the run saves and ends, and is not to be started again
#   scripts/launch/worker.sh end [SECONDS]        the same for a run whose peers have failed: killed after that long (60)
#   scripts/launch/worker.sh logs [--follow]
# A command whose first word ends in .py is run by .venv/bin/python, or python3 where there is no .venv.
# Exit code of run: 0 finished, 75 stopped by SIGTERM before its last step (start it again), else that of the command.
# States: none, running, busy (with another command), finished, interrupted (75), stopped (by stop), failed, lost (rebooted).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/launch/common.sh
source scripts/launch/common.sh
# LM_STATE: where the lock, pid, log, output and exit code of the one run of this machine are.
state="${LM_STATE:-$HOME/lm-run}"

# A run holds a lock for as long as any process of it lives: unlike a pid, it cannot belong to someone else after a reboot.
running() { [ -e "$state/lock" ] && ! flock -n "$state/lock" true; }

start() {
    mkdir -p "$state"
    exec 9>>"$state/lock"
    flock -n 9 || fail "a run is going on on $(hostname): $program stop ends it, logs shows it"
    rm -f "$state/exit" "$state/stop" "$state/pid"
    quote "$@" >"$state/command"
    echo "--- $(date -u +%Y-%m-%dT%H:%M:%SZ) $(cat "$state/command")" >>"$state/log"
    # A session of its own, so that it outlives the ssh that starts it, and that `end` can kill all of it.
    setsid nohup scripts/launch/worker.sh run -- "$@" </dev/null >>"$state/log" 2>&1 &
    until [ -s "$state/pid" ]; do sleep 0.05; done
    echo "lm-worker $(hostname): started"
}

child='' signalled='' passed=''
# Only the first SIGTERM is passed on: a run that is busy with its last save needs no second one.
pass_on() {
    signalled=1
    if [ -n "$child" ] && [ -z "$passed" ]; then
        passed=1
        kill -TERM "$child" 2>/dev/null || true
    fi
}

run() {
    local code=0 again
    mkdir -p "$state"
    echo $$ >"$state/pid"
    case "$1" in
        *.py) if [ -x .venv/bin/python ]; then set -- .venv/bin/python "$@"; else set -- python3 "$@"; fi ;;
    esac
    # The scripts print progress on standard error and their result on standard output, which is kept to tell whether the run
    # has finished. In the background, because bash runs a trap only between commands or while it waits.
    trap pass_on TERM
    "$@" >"$state/out" &
    child=$!
    [ -z "$signalled" ] || pass_on # it came before there was a command
    wait "$child" || code=$?
    while [ -n "$signalled" ]; do # it was the trap that ended the wait, not the command
        signalled=''
        again=0
        wait "$child" || again=$?
        [ "$again" = 127 ] || code=$again # 127: the command had ended as well, and code is its
    done
    cat "$state/out"
    [ "$code" != 143 ] || [ -z "$passed" ] || code=75 # before train.py could catch it: nothing saved, nothing wrong
    if [ "$code" = 0 ]; then
        "$(command -v python3 || echo .venv/bin/python)" scripts/launch/finished.py "$state/out" || code=$?
    fi
    echo "$code" >"$state/exit"
    echo "--- exit code $code" >&2
    return "$code"
}

report() {
    local code
    if running; then
        if [ $# -gt 0 ] && [ "$(quote "$@")" != "$(cat "$state/command")" ]; then echo busy; else echo running; fi
    elif [ ! -e "$state/command" ]; then
        echo none
    elif [ $# -gt 0 ] && [ "$(quote "$@")" != "$(cat "$state/command")" ]; then
        echo none
    elif [ ! -e "$state/exit" ]; then
        echo lost
    else
        code=$(cat "$state/exit")
        if [ -e "$state/stop" ]; then
            echo stopped # even with 0: only process 0 prints a result that tells more
        elif [ "$code" = 0 ]; then
            echo finished
        elif [ "$code" = 75 ]; then
            echo interrupted
        else
            echo "failed with exit code $code"
        fi
    fi
}

end() {
    local left=$(($1 * 10)) pid
    running || return 0
    pid=$(cat "$state/pid")
    kill -TERM "$pid" 2>/dev/null || true
    while running && [ "$left" -gt 0 ]; do sleep 0.1; left=$((left - 1)); done
    ! running || kill -KILL -- "-$pid" 2>/dev/null || true
    while running; do sleep 0.1; done
}

# A Python that can make a .venv for this project. Ubuntu 22.04, which the TPU runtimes are made from, has 3.10: then uv, from
# PyPI, brings one of its own.
find_python() {
    local python
    for python in python3.13 python3.12 python3.11 python3; do
        if "$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
    python3 -m pip install --quiet --user uv >&2
    "$HOME/.local/bin/uv" python install --quiet 3.12 >&2
    "$HOME/.local/bin/uv" python find 3.12
}

install() {
    PYTHON=$(find_python)
    export PYTHON
    # shellcheck source=scripts/install.sh
    source scripts/install.sh
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$1]"
    echo "lm-worker $(hostname): installed"
}

action="${1:-}"
[ $# = 0 ] || shift
[ "${1:-}" != -- ] || shift
case "$action" in
    install) install "${1:-tpu}" ;;
    start | run)
        [ $# -gt 0 ] || bad "$action has no command: give -- COMMAND"
        "$action" "$@"
        ;;
    status) echo "lm-worker $(hostname): $(report "$@")" ;;
    stop)
        running || fail "nothing is running on $(hostname)"
        touch "$state/stop"
        kill -TERM "$(cat "$state/pid")"
        echo "lm-worker $(hostname): asked to save and end"
        ;;
    end) end "${1:-60}" ;;
    logs)
        [ -e "$state/log" ] || fail "no run was started on $(hostname) yet"
        if [ "${1:-}" = --follow ]; then tail -n 100 -F "$state/log"; else tail -n 1000 "$state/log"; fi
        ;;
    -h | --help) help ;;
    *) bad "unknown action '$action'" ;;
esac
