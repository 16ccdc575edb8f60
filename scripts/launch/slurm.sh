#!/usr/bin/env bash
# Submits a run to Slurm, as one job that queues itself again until the run has finished:
#   scripts/launch/slurm.sh --nodes=4 --per=gpu --gpus-per-node=8 --time=24:00:00 [FLAGS] -- scripts/train.py --config=... --workdir=...
# Submit from a clone, with its .venv, on a file system that all nodes see; the work directory must be on one too.
#   --nodes=N                number of nodes
#   --per=node|gpu           one process for each node, or for each GPU (then --gpus-per-node is needed)
#   --gpus-per-node=G        GPUs to ask for (default: 0)
#   --time=T                 time limit, as sbatch takes it (default: the partition's)
#   --partition=P --account=A --name=N    as of sbatch; the name (default: lm) also names the script
#   --save-seconds=S         how long before the time limit the run is told to save (default: 120)
#   --requeues=N             most times that the job queues itself again (default: 100)
#   --logs=DIR               where the script and the log of each job go (default: runs/slurm)
#   --setup='SHELL LINE'     run on the first node before srun, such as `module load cuda`
#   --plan=DIR               launch a plan of scripts/plan.py, on the file system that all nodes see: COMMAND gets it as --plan, and a
#                            plan for other devices is refused
#   --sbatch=FLAG            any other flag of sbatch, such as --sbatch=--constraint=h100; may be repeated
#   --dry-run                prints the script and the call of sbatch, submits nothing
# `scancel JOB` ends it for good and kills it: it loses what came after its last checkpoint. Submit the same again to go on.
set -euo pipefail
# shellcheck source=scripts/launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

nodes='' per='' gpus_per_node=0 time='' partition='' account='' name=lm save_seconds=120 requeues=100 logs=runs/slurm setup='' plan=''
command=() more=()
values="nodes per gpus-per-node time partition account name save-seconds requeues logs setup plan"
own_flag() {
    case "$1" in
        --sbatch=*) more+=("${1#*=}") ;;
        *) bad "unknown argument $1" ;;
    esac
}
parse "$@"
word='[A-Za-z0-9_.:,@/+-]+'
check --nodes "$nodes" '[1-9][0-9]*' "a number of nodes"
check --per "$per" 'node|gpu' "node or gpu"
check --gpus-per-node "$gpus_per_node" '[0-9]+' "a whole number"
check --save-seconds "$save_seconds" '[0-9]+' "a number of seconds"
check --requeues "$requeues" '[0-9]+' "a whole number"
check --name "$name" '[A-Za-z0-9_.-]+' "a name without spaces"
check --logs "$logs" "$word" "a path without spaces"
for flag in time partition account; do [ -z "${!flag}" ] || check "--$flag" "${!flag}" "$word" "a value as sbatch takes it"; done
[ "$per" = node ] || [ "$gpus_per_node" -gt 0 ] || bad "--per=gpu needs --gpus-per-node=G, above 0"
[ "${#command[@]}" -gt 0 ] || bad "there is no command: give -- scripts/train.py --config=..."
tasks=1
[ "$per" = node ] || tasks=$gpus_per_node
[ -z "$plan" ] || planned "$plan" slurm "$nodes" "$tasks" "$gpus_per_node"
[ -z "$plan" ] || command+=("--plan=$plan")
case "${command[0]}" in *.py) command=(.venv/bin/python "${command[@]}") ;; esac

directive() { echo "#SBATCH $*"; }

script() {
    cat <<END
#!/usr/bin/env bash
# Written by scripts/launch/slurm.sh, for sbatch from the root of the repository.
END
    directive "--job-name=$name"
    directive "--nodes=$nodes"
    if [ "$per" = node ]; then
        echo "# One process a node, which drives all accelerators of it."
    else
        echo "# One process a GPU. The processes of a node tell their GPUs apart by SLURM_LOCALID."
    fi
    directive "--ntasks-per-node=$tasks"
    [ "$gpus_per_node" = 0 ] || directive "--gpus-per-node=$gpus_per_node"
    echo "# Whole nodes: the data pipeline uses all cores, and a neighbour would slow down every step of all processes."
    directive --exclusive
    [ -z "$time" ] || directive "--time=$time"
    [ -z "$partition" ] || directive "--partition=$partition"
    [ -z "$account" ] || directive "--account=$account"
    local flag
    for flag in ${more[@]+"${more[@]}"}; do directive "$flag"; done
    cat <<END
# After a node failure or a preemption Slurm itself queues the job again, under the same id.
#SBATCH --requeue
# One log for a job, which each attempt goes on with instead of overwriting it.
#SBATCH --open-mode=append
#SBATCH --output=$logs/%j.log
# Before the time limit, SIGTERM. Without "B:" it goes to the processes of the steps, so to every train.py, which all save the same
# step and exit with 0; it does not go to this shell, which has to live on to queue the job again. (With "B:" it would go to this
# shell alone, and srun takes a SIGTERM of its own as the order to kill the step.) Slurm may send it up to 60 seconds early.
#SBATCH --signal=TERM@$save_seconds
set -euo pipefail
[ -x .venv/bin/python ] || { echo "error: there is no .venv in \$PWD on \$(hostname): run scripts/test.sh there once" >&2; exit 1; }
END
    [ -z "$setup" ] || echo "$setup"
    cat <<END
attempt="\${SLURM_RESTART_COUNT:-0}" # not set in the first one
out="$logs/\$SLURM_JOB_ID.out"
echo "--- attempt \$attempt of job \$SLURM_JOB_ID on \${SLURM_JOB_NODELIST:-}" >&2

# --kill-on-bad-exit: where one process fails, the others would wait for it for ever.
# --cpu-bind=none: Slurm would give a task that does not say what it needs a single core.
# --gpu-bind=none: each process sees all GPUs of its node, however the cluster is set up.
# Standard output is the result alone; progress goes to the log.
code=0
END
    echo "srun --kill-on-bad-exit=1 --cpu-bind=none$([ "$gpus_per_node" = 0 ] || echo " --gpu-bind=none") \\"
    echo "    $(quote "${command[@]}") >\"\$out\" || code=\$?"
    cat <<END
cat "\$out"
if [ "\$code" != 0 ]; then
    echo "error: the run failed with exit code \$code: its message is above; submit again to go on from the last checkpoint" >&2
    exit "\$code"
fi

# Exit code 0 is that of a finished run and of one that SIGTERM stopped. 75: it was stopped.
finished=0
.venv/bin/python scripts/launch/finished.py "\$out" || finished=\$?
[ "\$finished" = 75 ] || exit "\$finished"
if [ "\$attempt" -ge $requeues ]; then
    echo "error: not finished after $requeues requeues: submit again to go on, with a higher --requeues" >&2
    exit 1
fi
scontrol requeue "\$SLURM_JOB_ID" # ends this shell; the next attempt goes on from the step that was saved
END
}

if [ -n "$dry_run" ]; then
    script
    echo
    printf '# '
    call sbatch "$logs/$name.sbatch"
else
    mkdir -p "$logs" # sbatch does not make it, and a job without a log says nothing
    script >"$logs/$name.sbatch"
    call sbatch "$logs/$name.sbatch" || fail "sbatch refused the job: its message is above, the script is $logs/$name.sbatch"
fi
