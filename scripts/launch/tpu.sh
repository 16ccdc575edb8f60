#!/usr/bin/env bash
# A Cloud TPU as a queued resource, from its creation to the end of a run:
#   scripts/launch/tpu.sh ACTION --name=NAME --project=PROJECT --zone=ZONE [FLAGS] [-- COMMAND...]
# Actions
#   create    requests the TPU or finds the one of that name, and waits until it is ACTIVE
#   copy      copies the working tree (what git tracks, and new files that it does not ignore) to ~/lm of all workers
#   install   makes .venv there with requirements.txt and the extra `tpu`, and runs --setup
#   run       starts COMMAND in ~/lm of all workers, in the background; refuses while one runs
#   up        create, copy, install and run
#   watch     up, then keeps the run alive until COMMAND has finished: after a preemption all of up again, after a failure at
#             most --restarts times. Leave it running (tmux); started again, it goes on from whatever it finds
#   status    the state of the TPU and of the run on each worker
#   logs      the log of worker 0, or of --worker=K and --slice=S; --follow goes on printing
#   stop      SIGTERM to the run, which saves and ends; watch then ends too
#   delete    deletes the TPU. Until then it costs money, with or without a run
# Flags
#   --type=T --version=V     accelerator type, such as v5litepod-16, and runtime version, such as v2-alpha-tpuv5-lite (v5e),
#                            v2-alpha-tpuv5 (v5p), v2-alpha-tpuv6e (v6e), tpu-ubuntu2204-base (v4): create, up, watch
#   --spot                   cheaper, and may be preempted
#   --slices=K               several slices of that type; give it to every action (default: 1, or the plan's)
#   --plan=DIR               launch a plan of scripts/plan.py: --type and --slices are the plan's (others are refused), copy brings
#                            the folder too, and COMMAND gets it as --plan; give it to every action
#   --wait=MINUTES           how long create and up wait for ACTIVE (default: 60)
#   --poll=SECONDS           between two looks (default: 60)
#   --restarts=N             how often watch restarts a run that failed on a healthy TPU (default: 3)
#   --setup='SHELL LINE'     run on every worker by install, such as the mount of the work directory
#   --create-flag=F --ssh-flag=F   passed on to `gcloud ... create` (such as --network=N), and to `gcloud ... ssh` and `scp`
#                            (such as --tunnel-through-iap); may be repeated
#   --dry-run                prints the calls of gcloud, makes none
# The work directory of COMMAND must be one that all workers see and that outlives the TPU: NFS, Filestore, a mounted bucket.
# Run `ssh-add ~/.ssh/google_compute_engine` once before: gcloud reaches several workers at once only with a key in the agent.
set -euo pipefail
# shellcheck source=scripts/launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

name='' project='' zone='' type='' version='' slices='' plan='' wait=60 poll=60 restarts=3 setup='' spot='' worker=0 slice=0 follow=''
command=() create_flags=() ssh_flags=() action="${1:-}"
case "$action" in
    -h | --help) help && exit ;;
    create | copy | install | run | up | watch | status | logs | stop | delete) shift ;;
    *) bad "'$action' is not an action" ;;
esac
values="name project zone type version slices plan wait poll restarts setup worker slice"
own_flag() {
    case "$1" in
        --create-flag=*) create_flags+=("${1#*=}") ;;
        --ssh-flag=*) ssh_flags+=("${1#*=}") ;;
        --spot) spot=1 ;;
        --follow) follow=--follow ;;
        *) bad "unknown argument $1" ;;
    esac
}
parse "$@"
check --name "$name" '[a-z][-a-z0-9]*' "the TPU's name: lower-case letters, digits and -"
check --project "$project" '[-a-z0-9.:]+' "the id of a Google Cloud project"
check --zone "$zone" '[-a-z0-9]+' "a zone with such TPUs, such as us-west4-a"
if [ -n "$plan" ]; then
    wanted=$(planned "$plan" tpu "$type" "$slices") && read -r type slices <<<"$wanted" || exit
    [ "${#command[@]}" = 0 ] || command+=("--plan=planned") # where copy puts it
fi
slices=${slices:-1}
for flag in slices worker slice wait restarts; do check "--$flag" "${!flag}" '[0-9]+' "a whole number"; done
check --poll "$poll" '[0-9]+(\.[0-9]+)?' "a number of seconds"
case "$action" in create | up | watch)
    check --type "$type" '[-a-z0-9]+' "an accelerator type, such as v5litepod-16"
    check --version "$version" '[-a-z0-9.]+' "a runtime version, such as v2-alpha-tpuv5-lite for v5litepod"
    ;;
esac
case "$action" in run | up | watch) [ "${#command[@]}" -gt 0 ] || bad "$action has no command: give -- scripts/train.py --config=..." ;; esac
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

tpus() { call gcloud compute tpus "$@" "--project=$project" "--zone=$zone"; }

# on WORKER SLICE ssh|scp WORDS...: a single slice is a TPU VM of the same name as its queued resource, several are its nodes.
on() {
    local kind=tpu-vm node=()
    [ "$slices" = 1 ] || { kind=queued-resources && node=("--node=$2"); }
    tpus "$kind" "${@:3}" ${node[@]+"${node[@]}"} "--worker=$1" ${ssh_flags[@]+"${ssh_flags[@]}"}
}
# workers SHELL-LINE: on all of them at once, in their home directory.
workers() { on all all ssh "$name" "--command=$1"; }
worker_line() { echo "cd lm && scripts/launch/worker.sh $1"; }
# Sets now to the state of the queued resource (NOT_FOUND where there is none, UNKNOWN where gcloud cannot tell), and there and
# why to its type and the reason of a failure. Under --dry-run there is none until one is requested.
now=NOT_FOUND there='' why=''
look() {
    local fields='state.state,tpu.nodeSpec[0].node.acceleratorType,state.stateInitiator,state.failedData.error.message' who='' answer
    if answer=$(tpus queued-resources describe "$name" "--format=value[separator='|']($fields)" 2>"$scratch/errors"); then
        [ -n "$dry_run" ] || IFS='|' read -r now there who why <<<"$answer"
        [ -n "$why" ] || why="by ${who:-nobody in particular}"
    elif grep -q NOT_FOUND "$scratch/errors"; then
        now=NOT_FOUND
    else
        now=UNKNOWN why=$(tail -n 1 "$scratch/errors")
    fi
}

request() {
    local shape=("--node-id=$name") flags=()
    [ "$slices" = 1 ] || shape=("--node-count=$slices" "--node-prefix=$name")
    [ -z "$spot" ] || flags=(--spot)
    flags+=(${create_flags[@]+"${create_flags[@]}"})
    say "requesting $slices x $type in $zone"
    tpus queued-resources create "$name" "${shape[@]}" "--accelerator-type=$type" "--runtime-version=$version" \
        ${flags[@]+"${flags[@]}"} || return
    [ -z "$dry_run" ] || now=ACTIVE
}

create() {
    local deadline=$((SECONDS + wait * 60)) before=''
    look
    [ "$now" != NOT_FOUND ] || { request || fail "gcloud refused the request: its message is above" && look; }
    until [ "$now" = ACTIVE ]; do
        [ "$now" = "$before" ] || say "$name is $now"
        before=$now
        case "$now" in
            FAILED | SUSPENDED | SUSPENDING | DELETING) fail "$name is $now ($why): delete it and create it again ($program delete, or watch)" ;;
            UNKNOWN) fail "gcloud cannot describe $name: $why" ;;
        esac
        [ "$SECONDS" -lt "$deadline" ] || fail "$name is still $now after $wait minutes. It stays in the queue and costs money once" \
            "it is ACTIVE: wait on with the same command and a longer --wait, or give up with $program delete"
        sleep "$poll"
        look
    done
    [ -z "$there" ] || [ "$there" = "$type" ] || fail "$name exists and is a $there, not a $type: give another --name, or delete it"
    say "$name is ACTIVE"
}

# What has become of the command on all workers together. "mixed" is common for a moment, as workers do not end at the same time.
verdict() {
    local answer states line
    # Where nothing was copied yet, there is no worker.sh to ask.
    line="if [ -e lm/scripts/launch/worker.sh ]; then $(worker_line "status -- $(quote ${command[@]+"${command[@]}"})"); else echo 'lm-worker: none'; fi"
    answer=$(workers "$line" 2>"$scratch/errors") || { echo unreachable && return; }
    states=$(sed -n 's/^lm-worker.*: \([a-z]*\).*/\1/p' <<<"$answer")
    # gcloud goes on without the workers that it cannot reach: fewer answers than before are none.
    [ "$(wc -l <<<"$states")" -ge "$(cat "$scratch/workers" 2>/dev/null || echo 0)" ] || { echo unreachable && return; }
    wc -l <<<"$states" >"$scratch/workers"
    states=$(sort -u <<<"$states" | tr '\n' ' ')
    case " $states" in
        "  ") echo none ;; # a dry run
        *" busy "*) echo busy ;;
        *" stopped "*) echo stopped ;;
        " finished " | " running " | " none ") echo "$states" | tr -d ' ' ;;
        *" running "*) echo mixed ;;
        *" failed "* | *" lost "*) echo failed ;;
        *" interrupted "*) echo interrupted ;;
        *) echo mixed ;;
    esac
}

refuse_when_running() {
    case "$(verdict)" in
        running | mixed | busy) fail "a run is going on on $name: wait for it, or end it with $program stop" ;;
        unreachable) fail "cannot reach the workers of $name: $(tail -n 1 "$scratch/errors")" ;;
    esac
}

copy() {
    local tar="lm.tar.gz"
    if [ -z "$dry_run" ]; then
        archive "$scratch/lm.tar" || return
        tar="$scratch/$tar"
    fi
    on all all scp "$tar" "$name:lm-new.tar.gz" || return
    # What the last copy brought goes first, so that a file deleted here is deleted there; .venv and runs stay.
    workers "set -e; mkdir -p lm; cd lm; if [ -e ../lm.tar.gz ]; then tar -tzf ../lm.tar.gz | tr '\\n' '\\0' | xargs -0 rm -f --; fi; tar -xzf ../lm-new.tar.gz; mv ../lm-new.tar.gz ../lm.tar.gz"
}

install() { workers "$(worker_line "install tpu")${setup:+ && $setup}"; }

run() { workers "$(worker_line "start -- $(quote "${command[@]}")")"; }

deploy() { say "copying" && copy && say "installing" && install && say "starting" && run; }

# One look of watch at an ACTIVE TPU. Failures of ssh are counted, not fatal: a preemption often shows there first.
tend() {
    local found
    found=$(verdict)
    [ "$found" = "$last" ] || say "$(date +%T) $name: $found"
    last=$found
    [ "$found" = mixed ] && mixed=$((mixed + 1)) || mixed=0
    [ "$mixed" -le 5 ] || found=failed # some workers ended and the others wait for them
    case "$found" in
        finished) done_=1 ;;
        none) deploy || found=unreachable ;;
        interrupted) run || found=unreachable ;;
        stopped) fail "the run was stopped by \`stop\`: $program run starts it again" ;;
        busy) fail "$name runs another command: end it with $program stop first" ;;
        failed)
            [ "$tries" -lt "$restarts" ] || fail "the run failed $((tries + 1)) times: see $program logs, and $program status"
            tries=$((tries + 1)) mixed=0
            say "restart $tries of $restarts"
            { workers "$(worker_line end)" && run; } || found=unreachable
            ;;
    esac
    [ "$found" = unreachable ] && misses=$((misses + 1)) || misses=0
}

watch() {
    local last='' before='' mixed=0 misses=0 tries=0 lost=0 done_=''
    while [ -z "$done_" ]; do
        look
        [ "$now" = "$before" ] || say "$(date +%T) $name is $now"
        before=$now
        case "$now" in
            ACTIVE) lost=0 && tend ;;
            NOT_FOUND) request || lost=$((lost + 1)) ;;
            SUSPENDED | FAILED) # preempted, or never granted
                say "$name: $why"
                lost=$((lost + 1))
                { delete && request; } || say "will try again"
                rm -f "$scratch/workers"
                ;;
            UNKNOWN) misses=$((misses + 1)) ;;
            *) misses=0 ;; # in the queue: no limit, whatever --wait says
        esac
        [ "$misses" -le 10 ] || fail "gcloud or the workers of $name did not answer, or not start, $misses times in a row: see $program status"
        [ "$lost" -le 5 ] || fail "gave up on $name, which is $now ($why) and was not ACTIVE in $lost tries: see gcloud's messages above"
        if [ -n "$dry_run" ]; then
            deploy
            echo "# then a look every $poll seconds, until the command has finished" >&3
            return
        fi
        [ -n "$done_" ] || sleep "$poll"
    done
    say "finished. $name is still there and costs money: $program delete"
}

delete() { tpus queued-resources delete "$name" --force --quiet; }

case "$action" in
    create) create ;;
    copy) refuse_when_running; copy || fail "cannot copy to the workers of $name: gcloud's message is above" ;;
    install) install || fail "the installation failed on a worker: its message is above" ;;
    run) refuse_when_running; run || fail "the run did not start on every worker: see $program status, then stop" ;;
    up) create; refuse_when_running; deploy || fail "gcloud or a worker failed, its message is above: mend that, then the same command again" ;;
    watch) watch ;;
    status)
        look
        echo "$name: $now${there:+, $slices x $there}"
        [ "$now" != ACTIVE ] && [ -z "$dry_run" ] || workers "$(worker_line status)" || fail "cannot reach all workers: has copy been done?"
        ;;
    logs) on "$worker" "$slice" ssh "$name" "--command=$(worker_line "logs $follow")" || fail "no log there: see $program status" ;;
    stop) workers "$(worker_line stop)" || fail "not every worker had a run to stop: see $program status" ;;
    delete) delete || fail "gcloud did not delete $name: its message is above" ;;
esac
