"""Preparation that is killed, damaged, run twice at once or short of disk: the same store in the end, or one clear line."""

import errno
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from lm.data import files, shards, sources
from lm.data.prepare import prepare, prepare_into
from lm.errors import DataError, DiskError
from tests.data.text_stores import TEXTS, contents, options, write_texts

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def corpus(tmp_path):
    """TEXTS in files, in a folder of its own."""
    write_texts(tmp_path)
    return tmp_path


def test_finished_shards_are_used_again(corpus, monkeypatch):
    monkeypatch.setattr(sources, "SHARD_BYTES", 700)
    prepare_into(options(corpus), 0, corpus / "whole")
    made = []
    original = shards.Job.run

    def run(self, shard, path):
        made.append(path)
        if len(made) == 6:
            raise KeyboardInterrupt
        return original(self, shard, path)

    monkeypatch.setattr(shards.Job, "run", run)
    with pytest.raises(KeyboardInterrupt):
        prepare_into(options(corpus), 0, corpus / "out")
    assert not (corpus / "out" / "manifest.json").exists()
    made[0].write_bytes(made[0].read_bytes()[:-30])
    made[1].unlink()
    (corpus / "out" / ".x.1.tmp").write_text("left by a killed job")
    first = list(made)
    prepare_into(options(corpus), 0, corpus / "out")
    assert set(made[6:]) & set(first) == {first[0], first[1], first[5]}
    assert contents(corpus / "out") == contents(corpus / "whole")


def test_a_shard_damaged_inside_is_found_and_made_again(corpus, monkeypatch):
    prepare_into(options(corpus), 0, corpus / "whole")
    original = shards.Job.run

    def run(self, shard, path):
        tokens = original(self, shard, path)
        value = bytearray(path.read_bytes())
        value[300] ^= 255
        path.write_bytes(value)
        return tokens

    with monkeypatch.context() as patch:
        patch.setattr(shards.Job, "run", run)
        with pytest.raises(DataError, match="was damaged and has been deleted: run the same command again"):
            prepare_into(options(corpus), 0, corpus / "out")
    prepare_into(options(corpus), 0, corpus / "out")
    assert contents(corpus / "out") == contents(corpus / "whole")


SLOW = """
import sys, time
open(sys.argv[4], 'a').write('x')  # a worker that imported this script would write again
from lm import config
from lm.data import prepare, sources, tokenizers
sources.SHARD_BYTES = 700
class Slow(tokenizers.ByteTokenizer):
    def encode(self, text):
        time.sleep(0.01)
        return super().encode(text)
if sys.argv[3] == '1':
    prepare.ByteTokenizer = Slow
data = config.default().data
root = sys.argv[1]
data.update(source=(f'text:{root}/in/*.txt',), documents='line', tokenizer='bytes', cache_dir=f'{root}/cache',
            validation_fraction=0.2, test_fraction=0.1, workers=int(sys.argv[3]))
prepare.prepare_into(data, 0, sys.argv[2])
assert 'jax' not in sys.modules
"""


def start_slow(corpus, name, workers):
    script = corpus / "job.py"
    script.write_text(SLOW)
    return subprocess.Popen([sys.executable, script, corpus, corpus / name, str(workers), corpus / f"{name}.starts"],
                            env=os.environ | {"PYTHONPATH": str(ROOT)})


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited 30 s in vain"
        time.sleep(0.01)


def test_a_killed_job_goes_on_to_the_same_result(corpus, monkeypatch):
    monkeypatch.setattr(sources, "SHARD_BYTES", 700)
    prepare_into(options(corpus), 0, corpus / "whole")
    for _ in range(2):
        job = start_slow(corpus, "out", 1)
        before = len(list((corpus / "out" / "shards").glob("*.npz"))) if (corpus / "out").exists() else 0
        wait_for(lambda before=before: len(list((corpus / "out" / "shards").glob("*.npz"))) > before + 1)
        job.send_signal(signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL and not (corpus / "out" / "manifest.json").exists()
    prepare_into(options(corpus), 0, corpus / "out")
    assert contents(corpus / "out") == contents(corpus / "whole")


def test_workers_end_with_a_killed_parent_and_do_not_import_its_script(corpus):
    for i in range(3, 60):
        (corpus / "in" / f"{i}.txt").write_text("\n".join(TEXTS * 20))
    job = start_slow(corpus, "out", 2)
    wait_for(lambda: len(list((corpus / "out" / "shards").glob("*.npz"))) > 2)
    workers = [child for child in psutil.Process(job.pid).children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    job.kill()
    job.wait()
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    assert (corpus / "out.starts").read_text() == "x"


def test_a_job_waits_for_the_one_that_makes_the_same_store(corpus, capfd):
    name = f"out-{files.digest(str(corpus / 'out').encode())[:8]}"
    path = corpus / "cache" / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True)
    with open(path, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        job = start_slow(corpus, "out", 2)
        wait_for(lambda: f"waiting for another process that prepares {name}" in capfd.readouterr().err)
        assert job.poll() is None and not (corpus / "out").exists()
    assert job.wait() == 0 and (corpus / "out" / "manifest.json").exists()


def test_a_file_that_changes_meanwhile_is_noticed(corpus, monkeypatch):
    original = shards.Job.run

    def run(self, shard, path):
        tokens = original(self, shard, path)
        (corpus / "in" / "0.txt").write_text("other")
        return tokens

    monkeypatch.setattr(shards.Job, "run", run)
    with pytest.raises(DataError, match=r"0\.txt changed while it was being prepared: run it again"):
        prepare(options(corpus), 0)


@pytest.mark.parametrize("code, message", [(errno.ENOSPC, "no space left to write .*: free space there.* data.cache_dir"),
                                           (errno.EROFS, "cannot write .*read-only.* data.cache_dir")])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(corpus, monkeypatch, code, message):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(DiskError, match=message):
        prepare_into(options(corpus), 0, corpus / "out")
    assert [path for path in (corpus / "out").rglob("*") if path.is_file()] == []
