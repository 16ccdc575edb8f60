"""The plan of batches by length, against brute force: every example once an epoch, whatever step is asked for first."""

import numpy as np
import pytest

from lm.data.buckets import Plan, assign, bucket_lengths
from lm.errors import ConfigError


def test_default_lengths_halve_the_context():
    assert bucket_lengths((), 128) == (16, 32, 64, 128)
    assert bucket_lengths((), 100) == (25, 50, 100)
    assert bucket_lengths((), 31) == (31,)
    assert bucket_lengths((), 5) == (5,)
    assert bucket_lengths((4.0, 24.0), 32) == (4, 24, 32) == bucket_lengths((4, 24, 32), 32)


@pytest.mark.parametrize("buckets", [(8, 4), (4, 4), (0, 4), (4.5,), (64,), (float("nan"),)])
def test_lengths_that_make_no_sense_are_refused(buckets):
    with pytest.raises(ConfigError, match=r"data.buckets=.*: give rising whole numbers from 1 to data.context=32"):
        bucket_lengths(buckets, 32)


def test_an_example_goes_to_the_shortest_bucket_that_holds_it():
    lengths = (3, 5, 8)
    expected = [next((i for i, length in enumerate(lengths) if size <= length), 3) for size in range(1, 12)]
    assert assign(np.arange(1, 12), lengths).tolist() == expected


def plan_of(seed=0, count=200, lengths=(4, 8, 13, 16), global_batch=3, longest=20):
    sizes = np.random.default_rng(seed).integers(1, longest + 1, count)
    return Plan(sizes, lengths, global_batch, seed)


@pytest.mark.parametrize("seed", range(6))
def test_every_example_that_fits_comes_once_an_epoch_beside_others_of_its_bucket(seed):
    plan = plan_of(seed, count=(7, 200, 50, 1, 3, 64)[seed], longest=16 if seed else 20)
    fits = np.flatnonzero(plan.sizes <= 16)
    assert plan.left_out == len(plan.sizes) - len(fits)
    neighbours, turns = [], []
    for epoch in range(3):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        batches = [plan.examples(step) for step in steps]
        for step, batch in zip(steps, batches, strict=True):
            bucket = plan.bucket(step)
            assert len(batch) == plan.rows_of(bucket) == 3 * (16 // plan.lengths[bucket])
            found = batch[batch >= 0]
            assert len(found) and (plan.sizes[found] <= plan.lengths[bucket]).all()
            assert bucket == 0 or (plan.sizes[found] > plan.lengths[bucket - 1]).all()
            assert (batch[: len(found)] >= 0).all()  # padding comes last
        seen = np.concatenate(batches)
        assert sorted(seen[seen >= 0]) == fits.tolist()
        neighbours.append({frozenset(batch.tolist()) for batch in batches})
        turns.append([plan.bucket(step) for step in steps])
    if len(fits) > 20:
        assert neighbours[0] != neighbours[1] != neighbours[2] != neighbours[0]
        assert turns[0] != turns[1] != turns[2] != turns[0] and turns[0] != sorted(turns[0])


def test_only_the_last_batch_of_a_bucket_is_padded():
    plan = plan_of()
    padded = [plan.bucket(step) for step in range(plan.steps_per_epoch) if (plan.examples(step) < 0).any()]
    assert len(padded) == len(set(padded))
    full = sum(len(members) // plan.rows_of(bucket) for bucket, members in enumerate(plan.members))
    assert plan.steps_per_epoch - full == len(padded)


def test_a_step_depends_on_nothing_but_itself_and_the_seed():
    plan, again = plan_of(), plan_of()
    forward = [plan.examples(step).tolist() for step in range(40)]
    assert {step: again.examples(step).tolist() for step in (39, 3, 17, 3, 0)} == {step: forward[step] for step in (39, 3, 17, 0)}
    other = Plan(plan.sizes, plan.lengths, plan.global_batch, seed=5)
    assert [other.examples(step).tolist() for step in range(40)] != forward


def test_first_steps_are_the_first():
    plan = plan_of()
    buckets = [plan.bucket(step) for step in range(plan.steps_per_epoch)]
    assert plan.first_steps() == {bucket: buckets.index(bucket) for bucket in set(buckets)} and len(plan.first_steps()) == 4
    assert plan_of(count=30, longest=4).first_steps().keys() == {0}


def test_the_order_within_a_bucket_is_uniform():
    """Chi-square over which of four examples comes first, at the 99.99 % point of 3 degrees of freedom."""
    first = [int(Plan(np.ones(4, int), (1,), 1, seed).examples(0)[0]) for seed in range(800)]
    counts = np.bincount(first, minlength=4)
    assert np.sum((counts - 200) ** 2 / 200) < 21.1
