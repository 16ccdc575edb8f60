"""Start-up: commands are timed and must end as they should, and a warm first step finds what the cold one before it compiled."""

import pytest

from lm.bench import startup
from lm.bench.command import options_of
from lm.errors import BenchError


def test_a_command_is_timed_and_must_end_with_its_code():
    assert 0.1 < startup._command(["-c", "import time; time.sleep(0.1)"], 0) < 10
    with pytest.raises(BenchError, match=r"ended with exit code 3, not 2: so it is$"):
        startup._command(["-c", "import sys; print('so\\nit is', file=sys.stderr); sys.exit(3)"], 2)


@pytest.mark.parametrize("name", ["--help", "config error"])
def test_the_commands_are_what_they_say(name):
    assert startup._command(*startup.COMMANDS[name]) < 10


class Process:
    """A side that tells what it was given and gives a loss that may depend on whether something was kept before it."""

    started, losses = [], [2.0]

    def __init__(self, target, options, variables):
        self.started.append((target, options, variables))
        self._folder = variables["JAX_COMPILATION_CACHE_DIR"]

    def __call__(self, method):
        assert method == "first"
        with open(f"{self._folder}/program", "a") as file:
            file.write("12345")
        return {"loss": self.losses[len(self.started) % len(self.losses)], "after_import": 0.25}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def started(monkeypatch):
    """The processes that were started."""
    monkeypatch.setattr(startup, "Side", Process)
    monkeypatch.setattr(startup, "_command", lambda *_: 0.5)
    monkeypatch.setattr(Process, "started", [])
    return Process.started


def test_every_round_starts_a_cold_process_and_a_warm_one_with_a_folder_of_their_own(started):
    result = startup.run(options_of("tiny", rounds=2))
    folders = [variables["JAX_COMPILATION_CACHE_DIR"] for _, _, variables in started]
    assert folders[0] == folders[1] != folders[2] == folders[3] and result["kept_bytes"] == {"ours": 10}
    assert all(variables["JAX_ENABLE_COMPILATION_CACHE"] == "true" for *_, variables in started)
    rows = {row["what"]: row for row in result["rows"]}
    assert list(rows) == [*startup.COMMANDS, "ours: first step, cold", "ours: first step, cold, after import jax",
                          "ours: first step, warm", "ours: first step, warm, after import jax"]
    assert rows["--help"] == {"what": "--help", "seconds": 0.5, "low_s": 0.5, "high_s": 0.5, "target_s": 0.5}
    assert rows["ours: first step, warm"]["target_s"] == 5.0 and rows["ours: first step, warm, after import jax"]["seconds"] == 0.25
    assert "ratio" not in result


def test_a_loss_that_depends_on_what_was_kept_is_an_error(started, monkeypatch):
    monkeypatch.setattr(Process, "losses", [2.0, 2.0000001])
    with pytest.raises(BenchError, match=r"first loss is 2.0000001 cold and 2.0 warm"):
        startup.run(options_of("tiny", rounds=1))


def test_the_ratio_is_of_cold_first_steps_to_the_compiled_peer():
    seconds = {f"{side}: first step, {kind}": values for side, kind, values in (
        ("ours", "cold", [2.0, 4.0, 3.0]), ("ours", "warm", [1.0] * 3), ("torch eager", "cold", [1.5] * 3),
        ("torch compiled", "cold", [30.0, 20.0, 30.0]), ("torch compiled", "warm", [4.0] * 3))}
    found = startup._compare("torch", seconds)
    assert (found["ours"], found["peer"], found["ratio"], found["unit"]) == (3.0, 30.0, 10.0, "s")
    assert found["ratios"]["torch eager, cold"]["ratio"] == 0.5 and found["ratios"]["torch compiled, warm"]["ratio"] == 4.0
    assert found["ratios"]["torch compiled, cold"]["ratio_low"] == 5.0
