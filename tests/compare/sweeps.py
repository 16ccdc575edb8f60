"""Sweep directories made up for tests: the files that a sweep leaves, with scores that a formula says, and nothing trained."""

import json
import math

import numpy as np

PROMPT = "The state of the Union is"


def write(path, value):
    """A JSON file, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))


def score_of(arm: int, seed: int) -> float:
    """Bits per byte of an arm's seed: arms 0.05 apart, seeds a little, and a part that is an arm's and seed's own."""
    return 1.6 - 0.05 * arm + 0.01 * seed + 0.002 * math.sin(3 * arm + 5 * seed)


def make_sweep(path, arms=("transformer", "lstm", "gru"), references=(), seeds=(0, 1, 2), score=score_of, skip=(), failed=(), tuned=True,
               documents=4, budget=None, lines=40):
    """A sweep directory below `path`. `score(arm number, seed)` is a run's bits per byte, None for one that diverged; runs (arm, seed) in
    `skip` have not run, those in `failed` have failed."""
    entries = [{"name": name, "spec": f"configs/lineage/{name}.py", "overrides": {}} for name in (*arms, *references)]
    tune = {"factors": [0.25, 0.5, 1, 2, 4], "keys": "rates", "shares": [0.25, 0.5], "extensions": 2} if tuned else None
    write(path / "compare.json", {"version": 1, "configs": entries[:len(arms)], "references": entries[len(arms):],
                                  "budget": budget or {"kind": "flops", "amount": 1e13}, "tokens": 655360, "seeds": list(seeds),
                                  "tune": tune, "prompts": [PROMPT], "suites": []})
    for number, name in enumerate((*arms, *references)):
        root, reference = path / "arms" / name, name in references
        write(root / "sized.json", _sized(number, name, reference))
        if tuned and not reference:
            write(root / "tuned.json", _tuned(root, number, name))
        for seed in seeds:
            run = root / "seeds" / str(seed)
            if (name, seed) in failed:
                write(run / "failed.json", {"error": "out of memory <here> & there", "attempts": 2, "fatal": True})
            elif (name, seed) not in skip:
                _run(run, number, name, seed, score(number, seed), lines, reference)
                _documents(run, score(number, seed), documents)
    return path


def _sized(number, name, reference):
    return {"name": name, "spec": f"configs/lineage/{name}.py", "reference": reference,
            "overrides": {"model.width": str(208 + 16 * number)},
            "chosen": {} if reference else {"model.width": [256, 208 + 16 * number]}, "family": name, "parameters": 5_000_000 + number,
            "nonembedding": 3_000_000, "active": 4_000_000, "train_flops_per_token": 0.0 if reference else 1.5e7 + number,
            "inference_flops_per_token": 5e6, "memory_bytes": None, "tokens": 655360, "steps": 160, "flops": 1e13, "step_seconds": None,
            "budget": {"kind": "flops", "amount": 1e13, "met": 1.001e13, "error": 0.001},
            "text": f"width 256 -> {208 + 16 * number}: meets 1e13 training FLOPs within 0.1 %"}


def _tuned(root, number, name):
    rungs = []
    for rung, (share, factors) in enumerate(((0.25, (0.25, 0.5, 1.0, 2.0, 4.0)), (0.5, (0.5, 1.0, 2.0)))):
        trials = []
        for factor in factors:
            diverged = factor > 2
            found = None if diverged else 1.9 - 0.1 * rung - 0.05 * number + 0.03 * math.log2(factor * (1 + 0.2 * number)) ** 2
            run = root / "tune" / f"{rung}-{factor:g}"
            trials.append({"factor": factor, "values": {"optim.learning_rate": 0.02 * factor}, "score": found, "diverged": diverged,
                           "run": str(run.relative_to(root.parents[1]))})
            write(run / "score.json", {"bits_per_byte": found, "diverged": diverged, "seed": 1000,
                                       "train": {"tokens": 1000, "seconds": 10.0, "wall_seconds": 12.0, "flops": 1e11}})
        rungs.append({"share": share, "tokens": int(655360 * share), "trials": trials})
    return {"keys": ["optim.learning_rate"], "rungs": rungs, "best": {"factor": 1.0, "values": {"optim.learning_rate": 0.02}, "score": 1.8},
            "edge": None, "extended": 0, "curvature": 0.03, "text": f"learning rate 0.02 is best for {name}; half or double costs 0.03"}


def _run(run, number, name, seed, bits, lines, reference):
    diverged = bits is None
    width = 208 + 16 * number
    write(run / "config.json", {"hash": f"{number}{seed}ab" * 4, "data": "d" * 32, "given": {}, "config": {
        "seed": seed, "model": {"name": name, "width": width}, "data": {"source": ["sotu"]}, "eval": {"split": "validation"}}})
    write(run / "environment.json", {"time": "2026-11-22T00:00:00+00:00", "command": ["scripts/compare.py"], "python": "3.11.7",
                                     "machine": "Linux-x86_64", "processes": 1, "devices": ["cpu:cpu"], "packages": {"jax": "0.10.2"},
                                     "git": "97027ca" + "0" * 33})
    train = {"tokens": 655360, "seconds": 170.0 + 5 * number + seed, "wall_seconds": 200.0, "tokens_per_second": 3600.0 - 100 * number,
             "mfu": 0.45, "flops": 0.0 if reference else 1e13, "parameters": 5_000_000 + number}
    write(run / "score.json", {
        "step": 160, "bits_per_byte": bits, "nats_per_token": bits and 2.8 * bits, "perplexity": bits and math.exp(2.8 * bits),
        "stderr": 0.05, "tokens": 147353, "bytes": 598019, "documents": 13, "diverged": diverged, "seed": seed, "train": train,
        "memory_bytes": None if reference else 250_000_000 + 40_000_000 * number, "suites": {},
        "decode": None if reference else {"milliseconds_per_token": 2.5 + number, "prefill_tokens_per_second": 5000.0},
        "frequency": [{"decile": d, "tokens": 14735, "nats_per_token": 1 + 0.5 * d - 0.05 * number} for d in range(1, 11)],
        "position": [{"from": 2**i, "to": 2 ** (i + 1) - 1, "nats_per_token": 4.4 + 0.6 / 2**i - 0.05 * number} for i in range(8)],
        "recall": [{"target": name, "tokens": 1000, "nats_per_token": 6.0 - 2 * i - 0.1 * number}
                   for i, name in enumerate(("new", "seen token", "seen bigram"))],
        "copy": {"rows": 64, "tokens": 8128, "first": 4.5 - 0.1 * number, "second": 2.0 + number, "difference": 2.5 - 1.1 * number},
        "samples": [{"prompt": PROMPT, "text": f" of <{name}> & the Congress of seed {seed}, which has been asked for." * 3,
                     "temperature": temperature} for temperature in (0.0, 0.8)]})
    rows = []
    for step in range(1, 161, max(1, 160 // lines)):
        loss = None if diverged and step > 80 else 4.3 - 0.1 * number + 4 * math.exp(-step / 30) + 0.1 * math.sin(step + seed)
        rows.append({"step": step, "kind": "train", "tokens": 4096 * step, "seconds": 1.1 * step, "loss": loss, "tokens_per_second": 3600.0,
                     "time": {"step": (1.0 + 0.1 * number) * step}})
        if step % 40 == 1 and bits:
            rows.append({"step": step, "kind": "eval", "seconds": 2.0, "tokens": 147353, "bits_per_byte": bits + math.exp(-step / 30)})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 161, "ki')


def _documents(run, bits, documents):
    if bits and documents:
        sizes = 1000.0 * np.arange(1, documents + 1)
        (run / "scores").mkdir()
        np.savez(run / "scores" / "documents.npz", nats=bits * math.log(2) * sizes, bytes=sizes)
