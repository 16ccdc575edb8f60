"""scripts/launch/slurm.sh: its job script is run for real, with an srun that runs the tasks here."""

import json

import pytest

SIZE = ["--nodes=2", "--per=node"]
AWKWARD = ["--config.train.steps=2e6 tokens", "it's", '"$HOME" `id` $(id) \\ &', "", "a  b\nc", "*"]


def submit(cloud, *words):
    """Runs slurm.sh."""
    return cloud.call("scripts/launch/slurm.sh", *words)


def train(cloud, **options):
    return ["--", "scripts/train.py", f"--workdir={cloud.folder / 'run'}", *(f"--{name}={value}" for name, value in options.items())]


def job(cloud, attempt=0, tasks=2):
    """Runs the script that was submitted, as slurmd does."""
    (cloud.repository / ".venv/bin").mkdir(parents=True, exist_ok=True)
    link = cloud.repository / ".venv/bin/python"
    if not link.exists():
        link.symlink_to(cloud.folder / "bin/python")
    restarts = {"SLURM_RESTART_COUNT": str(attempt)} if attempt else {}
    return cloud.call("bash", "runs/slurm/lm.sbatch", SLURM_JOB_ID="7", SLURM_NTASKS=str(tasks), **restarts)


def called(cloud, name):
    return [call for call in cloud.calls if call[0] == name]


def directives(cloud):
    """The #SBATCH lines, which sbatch reads up to the first command."""
    lines = (cloud.repository / "runs/slurm/lm.sbatch").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert not [line for line in lines[first:] if line.startswith("#SBATCH")]
    return [line.removeprefix("#SBATCH ") for line in lines[:first] if line.startswith("#SBATCH ")]


def test_it_submits_its_script_with_the_options_of_the_job(cloud):
    done = submit(cloud, *SIZE, "--time=1:00:00", "--partition=p", "--account=a", "--sbatch=--constraint=x y", *train(cloud))
    assert (done.returncode, cloud.calls) == (0, [["sbatch", "runs/slurm/lm.sbatch"]])
    assert {"--nodes=2", "--ntasks-per-node=1", "--time=1:00:00", "--partition=p", "--account=a", "--constraint=x y", "--requeue",
            "--signal=TERM@120", "--open-mode=append", "--output=runs/slurm/%j.log"} <= set(directives(cloud))
    assert not [line for line in directives(cloud) if "gpu" in line]


def test_one_process_a_gpu(cloud):
    submit(cloud, "--nodes=2", "--per=gpu", "--gpus-per-node=4", *train(cloud))
    assert {"--ntasks-per-node=4", "--gpus-per-node=4"} <= set(directives(cloud))
    assert job(cloud, tasks=4).returncode == 0
    assert called(cloud, "srun")[0][1:4] == ["--kill-on-bad-exit=1", "--cpu-bind=none", "--gpu-bind=none"]
    environments = [json.loads((cloud.folder / f"run/environment-{i}").read_text()) for i in range(4)]
    assert [environment["SLURM_LOCALID"] for environment in environments] == ["0", "1", "2", "3"]


def test_arguments_arrive_as_given_and_a_finished_run_is_not_queued_again(cloud):
    submit(cloud, *SIZE, *train(cloud), *AWKWARD)
    done = job(cloud)
    assert done.returncode == 0 and '{"step": 3,' in done.stdout
    assert [json.loads((cloud.folder / f"run/argv-{i}").read_text())[1:] for i in (0, 1)] == [AWKWARD, AWKWARD]
    assert called(cloud, "scontrol") == []


def test_a_run_that_saved_before_the_time_limit_is_queued_again_until_it_has_finished(cloud):
    submit(cloud, *SIZE, *train(cloud, steps=5, term_at=2))
    assert job(cloud).returncode == 0
    assert called(cloud, "scontrol") == [["scontrol", "requeue", "7"]]
    done = job(cloud, attempt=1)
    assert done.returncode == 0 and "0 from step 2" in done.stderr and "attempt 1 " in done.stderr
    assert len(called(cloud, "scontrol")) == 1


def test_requeues_are_bounded(cloud):
    submit(cloud, *SIZE, "--requeues=1", *train(cloud, steps=9, term_at=2))
    assert job(cloud).returncode == 0
    (cloud.folder / "run/step-0").unlink()
    (cloud.folder / "run/step-1").unlink()
    done = job(cloud, attempt=1)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: not finished after 1 requeues")
    assert len(called(cloud, "scontrol")) == 1


def test_a_failure_ends_the_job_with_its_exit_code(cloud):
    submit(cloud, *SIZE, "--setup=echo set up", *train(cloud, fail=3))
    done = job(cloud)
    assert done.returncode == 3 and done.stdout.startswith("set up") and done.stderr.splitlines()[-1].startswith("error: the run failed")
    assert called(cloud, "scontrol") == []


def test_a_missing_venv_is_named(cloud):
    submit(cloud, *SIZE, *train(cloud))
    done = cloud.call("bash", "runs/slurm/lm.sbatch", SLURM_JOB_ID="7", SLURM_NTASKS="1")
    assert done.returncode == 1 and "there is no .venv" in done.stderr and "scripts/test.sh" in done.stderr


def test_a_refusal_of_sbatch_is_reported(cloud):
    (cloud.folder / "exit").write_text("1")
    done = submit(cloud, *SIZE, *train(cloud))
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: sbatch refused the job")


@pytest.mark.parametrize(("words", "expected"), [
    ([], "--nodes is missing"), (["--nodes=0"], "--nodes=0"), (["--nodes=1", "--per=core"], "--per=core"), (SIZE, "no command"),
    (["--nodes=1", "--per=gpu", "--", "x"], "needs --gpus-per-node"), ([*SIZE, "--tiem=1"], "unknown argument --tiem"),
    ([*SIZE, "--time=1\n#SBATCH --x", "--", "x"], "--time")])
def test_a_wrong_command_line_exits_2_and_submits_nothing(cloud, words, expected):
    done = submit(cloud, *words)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("error: ") and expected in done.stderr
    assert cloud.calls == []
