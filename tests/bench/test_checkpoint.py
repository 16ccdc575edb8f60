"""What a save costs, by hand; and the sides themselves on a tiny model."""

import json
import pathlib

import jax
import numpy as np
import pytest

from lm.bench import checkpoint
from lm.bench.saving import Saving
from lm.bench.shapes import shape_of

TURNS = [{"quiet": [1.0, 1.2, 1.1], "held": held, "during": [2.0, 1.5], "durable": 3.0, "restore": 0.5, "bytes": 5e6}
         for held in (0.1, 0.3, 0.2)]


def test_a_save_costs_what_it_holds_and_what_it_slows_down():
    row = checkpoint.row("ours", TURNS)
    assert row["step_ms"] == pytest.approx(1100) and row["held_ms"] == pytest.approx(200) and row["held_share"] == pytest.approx(2 / 11)
    assert row["slowed_ms"] == pytest.approx(1300) and row["slowed_share"] == pytest.approx(13 / 11) and row["steps_during"] == 2
    assert (row["durable_s"], row["restore_s"], row["megabytes"]) == (3.0, 0.5, 5.0)


def test_the_ratio_is_of_both_together():
    ours, peer = checkpoint.row("ours", TURNS), checkpoint.row("torch", [turn | {"during": [], "held": 3.0} for turn in TURNS])
    found = checkpoint.compare("torch", [ours, peer])
    assert found["ours"] == pytest.approx(1500) and found["peer"] == pytest.approx(3000) and found["ratio"] == pytest.approx(2.0)
    assert found["ratios"] == {"held": pytest.approx(15.0), "durable": 1.0, "restore": 1.0, "bytes": 1.0}


def test_our_side_saves_between_steps_and_goes_on_from_it():
    side = Saving(shape_of("tiny", batch=8, layers=1))  # a row for each device of the tests
    before = jax.device_get(side._state.params)
    turn = json.loads(json.dumps(side.turn(2)))
    assert len(turn["quiet"]) == 2 and len(turn["during"]) >= 1 and 0 < turn["held"] <= turn["durable"]
    folder = pathlib.Path(side._folder.name) / "1"
    assert turn["bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) > 4 * 3 * 60_000
    assert side.restore() > 0
    saved = side._checkpoints.restore(side._items(side._abstract)).items["params"]
    leaves = [jax.tree.leaves(tree)[0] for tree in (before, saved, side._state.params)]
    assert not np.array_equal(leaves[0], leaves[1]) and not np.array_equal(leaves[1], leaves[2]), "of the step of the save"
    side._checkpoints.close()


def test_the_side_of_pytorch_goes_on_from_what_it_saved():
    torch = pytest.importorskip("torch")
    from lm.bench.peers.saving import Saving as Peer

    side = Peer(list(shape_of("tiny", layers=1)))
    before = side._model.tokens.weight.detach().clone()
    turn = json.loads(json.dumps(side.turn(1)))
    saved = side._model.tokens.weight.detach().clone()
    side.steps(1)
    assert side.restore() > 0 and torch.equal(side._model.tokens.weight, saved) and not torch.equal(before, saved)
    assert turn["during"] == [] and 0 < turn["held"] <= turn["durable"] and turn["bytes"] > 4 * 3 * saved.numel()
