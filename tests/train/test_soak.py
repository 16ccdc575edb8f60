"""SIGKILL, again and again, at random moments of one run: at the end nothing shows it.

    scripts/test.sh -m slow tests/train/test_soak.py        $LM_SOAK_ROUNDS (20) kills, drawn from $LM_SOAK_SEED (0)
"""

import os
import random
import signal
import time

import pytest

from tests.train.faulty import Launcher, assert_same_run, config_of, rows, saved_steps, write_corpus

STEPS = 800


def trains(process):
    """Whether a process has made a step."""
    return "  loss " in process.err


def kill_at_random(process, rng):
    """SIGKILL at any time of a start (one in five), or of the second after its first step."""
    if rng.random() > 0.2:
        process.wait_until(lambda: trains(process))
    time.sleep(rng.random())
    assert process.poll() is None, f"it ended before it was killed: the soak needs more steps, or {process.err}"
    process.send(signal.SIGKILL)
    process.finish(-signal.SIGKILL)


def half_saved(workdir):
    """Saves that are not finished."""
    return set((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_is_the_run_that_was_not(tmp_path, capsys):
    rounds, rng = int(os.environ.get("LM_SOAK_ROUNDS", "20")), random.Random(os.environ.get("LM_SOAK_SEED", "0"))
    corpus, workdir, twin = write_corpus(tmp_path / "corpus.txt"), tmp_path / "run", tmp_path / "twin"
    config = config_of(corpus, train__steps=STEPS, checkpoint__every=5)
    in_a_save, early, again, differ = 0, 0, 0, set()
    with Launcher(tmp_path) as launcher:
        launcher.start(config, twin).finish()
        expected = {row["step"]: row for row in rows(twin)}
        for _ in range(rounds):
            before, process = half_saved(workdir), launcher.start(config, workdir, PACE="0.005")
            kill_at_random(process, rng)
            recorded = rows(workdir)
            in_a_save += bool(half_saved(workdir) - before)
            early += not trains(process)
            again += len(recorded) - max(saved_steps(workdir), default=0)
            differ |= {row["step"] for row in recorded if row != expected[row["step"]]}
            assert [row["step"] for row in recorded] == list(range(1, len(recorded) + 1))
        launcher.start(config, workdir).finish()
    differ |= {row["step"] for row in rows(workdir) if row != expected[row["step"]]}
    with capsys.disabled():
        print(f"\nsoak: {rounds} rounds, {rounds} kills by SIGKILL, {in_a_save} of them during a save and {early} before a step; "
              f"{STEPS} steps, {again} made twice; steps lost: {len(differ)}")
    assert not differ
    assert_same_run(corpus, workdir, twin)
