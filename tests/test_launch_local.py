"""Several processes on one machine, with programs that need no JAX: output, exit codes, signals, and an end for all."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from lm import launch_local
from lm.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[1]


def start(tmp_path, program, *flags):
    """A job of a program under the launcher."""
    (tmp_path / "program.py").write_text("import os, signal, sys, time\nme = int(os.environ['LM_PROCESS'])\n" + program)
    command = [sys.executable, "scripts/launch_local.py", *flags, "--", str(tmp_path / "program.py"), "--word=x"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_each_process_knows_its_place_and_output_is_marked(tmp_path):
    job = start(tmp_path, "names = ('LM_PROCESSES', 'JAX_NUM_CPU_DEVICES', 'JAX_PLATFORMS')\n"
                          "print('out', me, sys.argv[1], *(os.environ[name] for name in names), os.environ['LM_COORDINATOR'])\n"
                          "print('err', me, file=sys.stderr)\nprint('[Gloo] Rank 0 is connected')\n", "--processes=3", "--devices=4",
                "--coordinator-port=4321")
    out, err = job.communicate(timeout=30)
    assert job.returncode == 0
    assert out == "out 0 --word=x 3 4 cpu 127.0.0.1:4321\n"
    assert sorted(err.splitlines()) == ["[0] err 0", "[1] err 1", "[1] out 1 --word=x 3 4 cpu 127.0.0.1:4321", "[2] err 2",
                                        "[2] out 2 --word=x 3 4 cpu 127.0.0.1:4321"]


@pytest.mark.parametrize(("program", "code"), [("sys.exit(3 if me == 1 else 0)", 3), ("os.kill(os.getpid(), 9) if me else None", 137)])
def test_the_exit_code_is_that_of_the_one_that_failed(tmp_path, program, code):
    job = start(tmp_path, program)
    job.communicate(timeout=30)
    assert job.returncode == code


def test_after_a_failure_the_others_have_a_grace_and_are_then_ended(tmp_path):
    started = time.monotonic()
    job = start(tmp_path, "sys.exit(7) if me == 1 else None\nsignal.signal(15, lambda *_: sys.exit(0))\ntime.sleep(60)", "--grace=0.5")
    _, err = job.communicate(timeout=30)
    assert job.returncode == 7 and "0.5 s after one failed" in err and time.monotonic() - started < 15


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_process_once(tmp_path, number):
    job = start(tmp_path, "seen = []\nfor number in (2, 15):\n    signal.signal(number, lambda number, _: seen.append(number))\n"
                          "print('ready', file=sys.stderr, flush=True)\nwhile not seen:\n    time.sleep(0.05)\ntime.sleep(0.3)\n"
                          "print('saw', seen, file=sys.stderr)\n")
    for _ in range(2):
        assert job.stderr.readline().endswith("ready\n")
    job.send_signal(number)
    _, err = job.communicate(timeout=30)
    assert job.returncode == 0 and sorted(err.splitlines()) == [f"[0] saw [{number.value}]", f"[1] saw [{number.value}]"]


def test_a_wrong_number_is_an_error(tmp_path):
    job = start(tmp_path, "", "--processes=0")
    _, err = job.communicate(timeout=30)
    assert job.returncode == 2 and "--processes=0" in err


def test_a_plan_says_how_many_devices_and_reaches_the_program(tmp_path):
    (tmp_path / "plan.json").write_text('{"topology": "cpu:6", "chips": 6, "launch": {}, "fits": true}')
    program = "print(os.environ['JAX_NUM_CPU_DEVICES'], *sys.argv[1:])\n"
    out, _ = start(tmp_path, program, f"--plan={tmp_path}").communicate(timeout=30)
    assert out == f"3 --word=x --plan={tmp_path}\n"
    for word, expected in (("--devices=2", "--devices=3 for each of 2 processes, not 2"), ("--processes=4", "asked for are 4 processes")):
        job = start(tmp_path, program, f"--plan={tmp_path}", word)
        out, err = job.communicate(timeout=30)
        assert (job.returncode, out) == (2, "") and err.startswith("error: ") and expected in err


def test_devices_are_those_of_the_plan(tmp_path):
    values = {"launch": {}, "topology": "cpu:8", "chips": 8, "fits": True}
    for content, words in ((7, "is not the folder of a plan"), ([], "is not the folder of a plan"),
                           (values | {"fits": False}, "does not fit"),
                           (values | {"topology": "v5e:2x4"}, "is for v5e:2x4"), ({"topology": "cpu:8", "chips": 8}, "does not say")):
        (tmp_path / "plan.json").write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=words):
            launch_local.devices_of_plan(tmp_path, 2)
    (tmp_path / "plan.json").write_text(json.dumps(values))
    assert launch_local.devices_of_plan(tmp_path, 2) == launch_local.devices_of_plan(tmp_path, 2, 4) == 4
    for processes, asked in ((3, None), (2, 3), (0, None)):
        with pytest.raises(ConfigError, match="is for cpu:8"):
            launch_local.devices_of_plan(tmp_path, processes, asked)
