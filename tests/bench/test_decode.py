"""What the benchmark of decoding makes of its sides' seconds, by hand; that ours decodes greedily; that transformers decodes our model."""

import importlib.util
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.bench import decode, ours_decode
from lm.bench.command import options_of
from lm.bench.shapes import Shape, shape_of
from lm.errors import BenchError

NEEDS = {"weights": 8e9, "cache": 1e9, "flops": 4e9}


def test_prompts_begin_with_the_start_and_fit_the_vocabulary():
    prompts = decode.prompts_of(shape_of("tiny"), 3, 16)
    assert np.shape(prompts) == (3, 16) and {row[0] for row in prompts} == {decode.START}
    assert np.max(prompts) < 256 and prompts[0] != prompts[1]


def test_the_limit_is_reading_the_weights_once_and_each_cache_or_the_products_of_all_rows():
    assert decode.limit(NEEDS, 1, bandwidth=9e9, flops=16e9) == {"seconds": 1.0, "bound": "memory"}
    assert decode.limit(NEEDS, 8, bandwidth=16e9, flops=16e9) == {"seconds": 2.0, "bound": "products"}


def test_a_row_counts_a_later_token_apart_from_the_first():
    turns = [{"first": [0.5, 0.5], "all": [2.0]}, {"first": [0.5], "all": [4.0, 2.0]}]
    found = decode.row("ours", 8, 16, turns, {"seconds": 0.05, "bound": "memory"})
    assert found == pytest.approx({
        "side": "ours", "batch": 8, "tokens_per_s": 64.0, "low_tokens_per_s": 128 / 3, "high_tokens_per_s": 64.0,
        "prefill_tokens_per_s": 256.0, "first_token_ms": 500.0, "token_ms": 100.0, "limit_ms": 50.0, "bound": "memory",
        "share_of_limit": 0.5})


def test_sides_must_give_as_many_tokens_and_next_to_all_of_them_alike():
    ours = [[1, 2, 3, 4, 5]] * 4
    assert decode.check_same({"ours": ours}) == 1.0
    assert decode.check_same({"ours": ours, "peer": [*ours[:3], [1, 2, 3, 9, 9]]}) == 0.9
    with pytest.raises(BenchError, match="peer agrees with ours on 85% of the new tokens"):
        decode.check_same({"ours": ours, "peer": [*ours[:3], [1, 2, 9, 9, 9]]})
    with pytest.raises(BenchError, match="peer gave 19 new tokens and ours 20"):
        decode.check_same({"ours": ours, "peer": [*ours[:3], [1, 2, 3, 4]]})


class FakeSide:
    """A side that takes 1 s for a token and 8 for all when it is ours, 2 and 32 (or 16, compiled) when not; `log` has its timed turns."""

    log: ClassVar[list] = []

    def __init__(self, target, options, environment=None):
        self.options, self.kind = options, target.split(":")[1] + {True: " compiled", False: " eager"}.get(options.get("compiled"), "")
        self.info = NEEDS

    def __call__(self, method, prompts=(), new=0, count=0, file=None):
        if method == "turn":
            return {"read": 1e9 * (1 + len(self.log))} if self.kind == "Bandwidth" else [{"flops": 2e9}, {"flops": 16e9}]
        if method != "seconds":
            return {"tokens": [[1] * new] * len(prompts), "save": None}[method]
        self.log.append((self.kind, len(prompts), new, count))
        return [{"Decoding": (1.0, 8.0), "Decoding eager": (2.0, 32.0), "Decoding compiled": (2.0, 16.0)}[self.kind][new > 1]] * count

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_sides_take_turns_on_each_batch_with_the_same_work_and_the_faster_setting_is_the_peer(monkeypatch):
    monkeypatch.setattr(decode, "Side", FakeSide)
    monkeypatch.setattr(decode.matmul, "Side", FakeSide)
    monkeypatch.setattr(FakeSide, "log", [])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # PyTorch need not be here
    result = decode.run(options_of("M", against="transformers", rounds=2, seconds=16.0))
    kinds = ("Decoding", "Decoding eager", "Decoding compiled")
    turns = [[(kind, batch, 1, 1 + (4 if kind == "Decoding" else 2)), (kind, batch, 128, count)] for batch in decode.BATCHES
             for kind, count in zip(kinds, (2, 1, 1), strict=True)]
    # Nine pairs choose how often, then there is a round forward and one backward.
    assert FakeSide.log[18:] == [call for turn in turns + turns[::-1] for call in turn]
    assert (result["prompt"], result["new"], result["same_tokens"]) == (128, 128, {1: 1.0, 8: 1.0, 64: 1.0})
    assert [(row["batch"], row["side"], row["tokens_per_s"]) for row in result["rows"][:3]] == [
        (1, "ours", 16.0), (1, "transformers", 4.0), (1, "transformers compiled", 8.0)]
    assert (result["setting"], result["ratio"], result["ratio_by_batch"]) == ("transformers compiled", 2.0, {1: 2.0, 8: 2.0, 64: 2.0})
    assert result["ratios"][8]["transformers"] == pytest.approx(
        {"speed": 4.0, "speed_low": 4.0, "speed_high": 4.0, "first_token": 2.0, "token": 30 / 7})
    assert (result["peak_flops"], result["bandwidth"]) == (16e9, 37e9)  # the best of the rounds


SMALL = Shape("gpt2", 1, 64, 16, 2, 256)


def noisy(params):
    """Weights of which a greedy continuation says more than that its last token is likely."""
    return jax.tree.map(lambda p: p + 0.3 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)


def test_ours_decodes_greedily_from_the_start_without_ever_choosing_it():
    side = ours_decode.Decoding(list(SMALL), start=0, tokens=12)
    size = {name: leaf.size for name, leaf in ours_decode.named(side.params).items()}
    assert side.info["weights"] == 4 * (sum(size.values()) - size["inputs/positions/embedding"])
    assert side.info["cache"] == pytest.approx(4 * 2 * 12 * 64, abs=8)  # and how long the row is
    assert side.info["flops"] == 2 * (12 * 64 * 64 + 2 * 12 * 64 + 64 * 256)
    side._generator.params = params = noisy(side.params)
    prompts = decode.prompts_of(SMALL, 2, 8)
    model, rows, ones = side._generator.model, np.zeros((2, 16), np.int32), np.ones((2, 16), np.int32)
    apply = jax.jit(lambda rows: model.apply(params, {"tokens": rows, "segments": ones, "positions": np.cumsum(ones, 1) - 1})
                    @ model.unembedding(params))
    rows[:, :8] = prompts
    for place in range(8, 13):  # without a cache; what comes after a place does not change it
        rows[:, place] = 1 + np.argmax(apply(rows)[:, place - 1, 1:], axis=-1)
    assert side.tokens(prompts, 5) == rows[:, 8:13].tolist()
    assert len(side.seconds(prompts, 5, 3)) == 3


@pytest.mark.skipif(not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
                    reason="PyTorch is not installed: pip install -e '.[bench]'")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_transformers_decodes_our_model(family, tmp_path):
    from lm.bench.peers import hf

    shape = shape_of("tiny", family=family, width=128)  # two heads
    side = ours_decode.Decoding(list(shape), start=0, tokens=16)
    side.params = side._generator.params = noisy(side.params)
    side.save(f"{tmp_path}/weights.npz")
    prompts = decode.prompts_of(shape, 3, 16)
    ours, theirs = side.tokens(prompts, 16), hf.Decoding(list(shape), 0, f"{tmp_path}/weights.npz", compiled=False).tokens(prompts, 16)
    assert ours == theirs and len({token for row in ours for token in row}) > 3
