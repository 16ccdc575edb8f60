"""Real faults in real processes: each ends in one clear line, and the same command then ends as if nothing had happened, bit for bit."""

import contextlib
import re
import resource
import shutil
import signal
import subprocess
import time
import warnings

import numpy as np
import pytest

from tests.train.faulty import QUICK, Hold, Launcher, assert_same_run, config_of, rows, saved_steps, write_corpus

HELD = 23  # steps end before it, the checkpoint of step 20 is the latest


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where the runs of this file lie."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def corpus(folder):
    return write_corpus(folder / "corpus.txt")


@pytest.fixture(scope="session")
def launcher(folder):
    (folder / "launched").mkdir()
    with Launcher(folder / "launched") as launcher:
        yield launcher


@pytest.fixture(scope="session")
def twin(launcher, corpus, folder):
    """The run that nothing interrupts."""
    launcher.start(config_of(corpus), folder / "twin").finish()
    return folder / "twin"


@pytest.fixture
def held(launcher, corpus, tmp_path):
    """A function that starts a run which waits before step HELD, with the checkpoint of step 20 on disk: (process, its release)."""

    def make(workdir, variables=None, **overrides):
        hold = Hold(tmp_path, HELD)
        process = launcher.start(config_of(corpus, **overrides), workdir, **hold.variable, **(variables or {}))
        process.wait_until(hold.reached)
        # The save is over: 5 is wholly deleted, and 20 sealed.
        process.wait_until(lambda: saved_steps(workdir) == [10, 15, 20] and (workdir / "checkpoints/20/checksums.json").exists())
        return process, hold.release

    return make


def error_line(err):
    """The only line that is not of a run that goes well; it must be an error."""
    lines = [line for line in err.splitlines() if not re.match(r"step \d+/|resuming at step|layout: ", line)]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def kill_in_a_save(process, workdir):
    """SIGKILL while a checkpoint is half written; its step."""
    while True:
        process.wait_until(lambda: list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")))
        process.send(signal.SIGSTOP)
        for path in (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"):
            process.send(signal.SIGKILL)
            process.finish(-signal.SIGKILL)
            return int(path.name.partition(".")[0])
        process.send(signal.SIGCONT)


def test_a_second_job_is_refused_and_sigkill_between_steps_and_in_a_save_loses_nothing(launcher, corpus, held, twin, tmp_path):
    workdir, config = tmp_path / "run", config_of(corpus)
    process, _ = held(workdir)
    _, err = launcher.start(config, workdir).finish(2)
    assert error_line(err) == f"error: another process is training in {workdir}: wait for it, or use another --workdir"
    process.send(signal.SIGKILL)
    process.finish(-signal.SIGKILL)

    torn = kill_in_a_save(launcher.start(config, workdir, PACE="0.02"), workdir)
    saved = saved_steps(workdir)[-1]
    assert 20 <= saved < torn
    _, err = launcher.start(config, workdir).finish()
    assert f"resuming at step {saved} of 40" in err
    assert_same_run(corpus, workdir, twin)


def test_sigkill_while_data_is_prepared_loses_nothing(launcher, corpus, twin, tmp_path):
    workdir, cache = tmp_path / "run", tmp_path / "cache"
    config = config_of(corpus, data__cache_dir=cache)
    process = launcher.start(config, workdir, SLOW="0.02")
    process.wait_until(lambda: len(list(cache.rglob("shards/*.npz"))) > 2)
    process.send(signal.SIGKILL)
    process.finish(-signal.SIGKILL)
    made = {path: path.stat().st_mtime_ns for path in cache.rglob("shards/*.npz")}
    assert not rows(workdir) and not list(cache.rglob("manifest.json"))
    process = launcher.start(config, workdir, SLOW="0.005")
    process.wait_until(lambda: len(list(cache.rglob("shards/*.npz"))) > len(made))
    assert made.items() <= {path: path.stat().st_mtime_ns for path in cache.rglob("shards/*.npz")}.items(), "shards were made again"
    process.finish()
    assert_same_run(corpus, workdir, twin)


def test_sigterm_before_the_first_step_and_again_and_again_during_the_last_save_ends_well(launcher, corpus, held, twin, tmp_path):
    workdir, config = tmp_path / "run", config_of(corpus)
    process = launcher.start(config, workdir)
    process.wait_until((workdir / "config.json").exists)
    process.send(signal.SIGTERM)
    result, err = process.finish()
    assert "SIGTERM before the first step: there is nothing to save; start again with the same command" in err
    assert result["step"] == 0 and not rows(workdir)

    process, release = held(workdir)
    process.send(signal.SIGTERM)
    release()
    while process.poll() is None and "saved step" not in process.err:
        process.send(signal.SIGTERM)
        time.sleep(0.001)
    result, err = process.finish()
    assert "SIGTERM: saved step 24; the same command goes on from there" in err
    assert result["step"] == 24 == saved_steps(workdir)[-1] == rows(workdir)[-1]["step"]
    _, err = launcher.start(config, workdir).finish()
    assert "resuming at step 24 of 40" in err
    shutil.rmtree(workdir / "checkpoints" / "24", ignore_errors=True)
    assert_same_run(corpus, workdir, twin)


def test_torn_and_flipped_checkpoints_are_set_aside_and_the_one_before_them_is_used(launcher, corpus, twin, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(twin, workdir)
    assert saved_steps(workdir) == [30, 35, 40]
    for step, damage in ((40, lambda content: content[:-20]), (35, lambda content: bytes([content[0] ^ 1]) + content[1:])):
        files = [path for path in (workdir / "checkpoints" / str(step) / "opt_state").rglob("*") if path.is_file()]
        largest = max(files, key=lambda path: path.stat().st_size)
        largest.write_bytes(damage(largest.read_bytes()))
    _, err = launcher.start(config_of(corpus), workdir).finish()
    for step in (40, 35):
        assert re.search(rf"warning: checkpoint \S+/{step} is damaged \(opt_state/\S+ has changed\); falling back to the one before", err)
        assert (workdir / "checkpoints" / f"damaged-{step}" / "opt_state").is_dir()
    assert "resuming at step 30 of 40" in err
    assert_same_run(corpus, workdir, twin)


class SmallDisk:
    """A file system of 8 MB that can be filled while a run writes there."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        done = subprocess.run(["sh", "-c", 'mount -t tmpfs -o size=8m tmpfs "$0"', folder], capture_output=True, text=True)
        self.mounted = done.returncode == 0
        if not self.mounted:
            warnings.warn(f"nothing can be mounted here ({done.stderr.strip()}): a limit on the size of files stands for a full disk",
                          stacklevel=2)

    def fill(self, process):
        """Leaves no byte, or where nothing can be mounted lets no file of the process grow beyond 8 kB."""
        if not self.mounted:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (8_000, 8_000))
            return
        with open(self.folder / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self):
        """There is room again."""
        (self.folder / "ballast").unlink(missing_ok=True)

    def unmount(self):
        """The end."""
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


@pytest.fixture
def small_disk(tmp_path):
    disk = SmallDisk(tmp_path / "disk")
    yield disk
    disk.unmount()


def test_a_full_disk_fails_the_background_save_in_one_line_and_the_checkpoint_before_stays_good(launcher, corpus, held, twin, small_disk):
    workdir, config = small_disk.folder / "run", config_of(corpus)
    process, release = held(workdir, {"PACE": "0.05"})
    small_disk.fill(process)
    release()
    _, err = process.finish(1)
    line = error_line(err)
    assert "free space or mend the folder, then run the same command" in line
    assert "to go on from the checkpoint before" in line or "metrics.jsonl" in line
    assert saved_steps(workdir)[-1] == 20
    if small_disk.mounted:
        _, err = launcher.start(config, workdir).finish(1)
        assert re.search("(no space left on device|no space left to write).*: free space", error_line(err))
        assert saved_steps(workdir)[-1] == 20
    small_disk.free()
    _, err = launcher.start(config, workdir).finish()
    assert "resuming at step 20 of 40" in err
    assert_same_run(corpus, workdir, twin)


def test_a_work_directory_that_becomes_read_only_is_one_line_and_goes_on_when_it_is_not(launcher, corpus, held, twin, tmp_path):
    workdir, config = tmp_path / "run", config_of(corpus)
    process, release = held(workdir)
    folders = [workdir, *(path for path in workdir.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    release()
    _, err = process.finish(1)
    assert re.match(rf"error: (saving step 25 to|cannot write) {workdir}/checkpoints.*[Pp]ermission denied.*: free space or mend the "
                    "folder, then run the same command", error_line(err))
    (workdir / "lock").chmod(0o444)
    _, err = launcher.start(config, workdir).finish(1)
    assert error_line(err) == (f"error: cannot write {workdir} (permission denied): free space or mend the folder, then run the same "
                               "command again")
    for path in (*folders, workdir / "lock"):
        path.chmod(0o755)
    _, err = launcher.start(config, workdir).finish()
    assert "resuming at step 20 of 40" in err
    assert_same_run(corpus, workdir, twin)


def test_nan_in_a_batch_names_documents_and_the_next_command_and_goes_on_without_it(launcher, corpus, twin, tmp_path):
    workdir, config = tmp_path / "run", config_of(corpus)
    _, err = launcher.start(config, workdir, POISON=str(HELD)).finish(1)
    line = error_line(err)
    assert re.match(r"error: step 24: loss nan and gradient norm nan on documents corpus.txt:\d+, ", line)
    assert "; the checkpoint of step 20 is good. " in line
    assert line.endswith(f"look with: python scripts/replay.py --workdir={workdir} --step=24 --bisect")
    _, err = launcher.start(config, workdir).finish()
    assert "resuming at step 20 of 40" in err
    assert_same_run(corpus, workdir, twin)


def test_a_stuck_process_ends_with_its_stacks_and_goes_on(launcher, corpus, twin, tmp_path):
    workdir, config = tmp_path / "run", config_of(corpus, processes__step_timeout=4)
    _, err = launcher.start(config, workdir, STUCK=f"0:{HELD}").finish(1)
    assert re.search(r"error: nothing has ended for \d+ s \(processes.step_timeout=4\) since step \d+; the stacks of all threads follow; "
                     "start the same command again to go on from step 20\n", err)
    assert "in stuck_here" in err
    launcher.start(config, workdir).finish()
    assert_same_run(corpus, workdir, twin)


@pytest.fixture(scope="session")
def twin_of_two(launcher, corpus, folder):
    """The run of two processes that nothing interrupts."""
    for process in launcher.start_two(config_of(corpus), folder / "twin of two"):
        process.finish()
    return folder / "twin of two"


def test_of_two_processes_one_is_killed_or_gets_sigterm_and_both_end_and_go_on(launcher, corpus, twin_of_two, tmp_path):
    workdir, config, hold = tmp_path / "run", config_of(corpus), Hold(tmp_path, HELD)
    job = launcher.start_two(config, workdir, **hold.variable)
    for index, process in enumerate(job):
        process.wait_until(lambda index=index: hold.reached(index))
    job[0].wait_until(lambda: 20 in saved_steps(workdir))
    started = time.monotonic()
    job[1].send(signal.SIGKILL)
    job[1].finish(-signal.SIGKILL)
    _, err = job[0].finish(1)
    assert time.monotonic() - started < 15
    assert re.match(rf"error: process 1 \(.*, pid {job[1].pid}\) is gone: .*start the same command again to go on from step 20$",
                    error_line(err))

    job = launcher.start_two(config, workdir, PACE="0.05")
    job[0].wait_until(lambda: rows(workdir) and rows(workdir)[-1]["step"] >= 26)
    job[1].send(signal.SIGTERM)
    (result, err), (_, silent) = [process.finish() for process in job]
    step = saved_steps(workdir)[-1]
    assert re.search(rf"SIGTERM in process 1 \(.*, pid {job[1].pid}\): saved step {step}; the same command goes on from there", err)
    assert "resuming at step 20 of 40" in err and not silent
    assert result["step"] == step == rows(workdir)[-1]["step"] < 40

    for process in launcher.start_two(config, workdir):
        process.finish()
    assert_same_run(corpus, workdir, twin_of_two)


def test_eight_devices_four_and_eight_again_see_the_same_batches_and_losses(launcher, corpus, tmp_path):
    def go(name, steps, devices):
        (tmp_path / f"{name} batches").mkdir(exist_ok=True)
        config = config_of(corpus, train__steps=steps, optim__schedule="constant", optim__warmup=0, checkpoint__every=4, train__ema=0)
        flags = f"{QUICK} --xla_force_host_platform_device_count={devices}"
        launcher.start(config, tmp_path / name, XLA_FLAGS=flags, DUMP=str(tmp_path / f"{name} batches")).finish()
        return {int(path.name): path.read_text().split() for path in (tmp_path / f"{name} batches").iterdir()}

    straight = go("straight", 12, 8)
    shutil.copytree(tmp_path / "straight", tmp_path / "changing")
    for step in (8, 12):
        shutil.rmtree(tmp_path / "changing" / "checkpoints" / str(step))
    go("changing", 8, 4)
    changing = go("changing", 12, 8)
    assert {step: int(devices) for step, (devices, _) in changing.items()} == {4: 4, 5: 4, 6: 4, 7: 4, 8: 8, 9: 8, 10: 8, 11: 8}
    assert all(straight[step] == ["8", batch] for step, (_, batch) in changing.items())
    losses, others = rows(tmp_path / "changing"), rows(tmp_path / "straight")
    assert [row["step"] for row in losses] == list(range(1, 13))
    for name in ("loss", "grad_norm", "param_norm", "update_norm", "tokens"):
        np.testing.assert_allclose([row[name] for row in losses], [row[name] for row in others], rtol=1e-5)
