"""lm.compare.tuning against loss surfaces whose best rate is known."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm import config as configs
from lm.compare import tuning
from lm.compare.tuning import DIVERGED, Found, Grid, Trial
from lm.errors import ConfigError

GRID = Grid()


def parabola(optimum, sharpness=0.1, least=1.5, diverges=math.inf):
    """A loss of a factor: a parabola in its log2, infinite from `diverges` on."""
    return lambda trial: DIVERGED if trial.factor >= diverges else least + sharpness * (math.log2(trial.factor) - optimum) ** 2


def search(grid, loss, order=None):
    """(what was found, trials in the order in which they were made), one trial at a time, chosen by `order`."""
    scores, made = {}, []
    while not isinstance(now := tuning.due_trials(grid, scores), Found):
        trial = (order or random.Random(0)).choice(now)
        assert trial not in scores
        scores[trial] = loss(trial)
        made.append(trial)
    return now, made


@given(st.floats(-2, 2), st.floats(0.01, 3))
def test_the_best_is_the_factor_nearest_to_the_optimum(optimum, sharpness):
    found, made = search(GRID, parabola(optimum, sharpness))
    assert abs(math.log2(found.best) - optimum) <= 0.5 + 1e-9
    nearest_is_inside = abs(optimum) < 1.5
    if nearest_is_inside:
        assert (found.edge, found.extended) == (None, 0)
        assert [len(rung) for rung in found.rungs] == [5, 3, 2] == tuning.counted(GRID)
    assert len(made) == sum(map(len, found.rungs)) == len(set(made))


@pytest.mark.parametrize(("optimum", "best", "edge", "extended"), [
    (2.0, 4.0, None, 1), (3.0, 8.0, None, 2), (4.0, 16.0, "high", 2), (9.0, 16.0, "high", 2),
    (-2.0, 0.25, None, 1), (-3.2, 0.125, None, 2), (-9.0, 0.0625, "low", 2)])
def test_an_optimum_at_or_beyond_the_edge_extends_the_grid_there_and_what_stays_at_an_edge_is_said(optimum, best, edge, extended):
    found, _ = search(GRID, parabola(optimum))
    assert found[1:4] == (best, edge, extended)
    assert len(found.rungs[0]) == 5 + extended


def test_without_extensions_the_edge_is_said():
    found, made = search(Grid(extensions=0), parabola(9))
    assert found[1:4] == (4.0, "high", 0) and len(made) == 10


@given(st.floats(-3, 3), st.floats(0.02, 0.5), st.integers(0, 1000))
def test_noise_below_what_a_grid_step_costs_moves_the_best_by_no_more_than_one_step(optimum, sharpness, seed):
    exact = parabola(optimum, sharpness)

    def noisy(trial):
        # Half of what the second-nearest factor is worse than the one beyond it: ranks of neighbours may swap, no others.
        return exact(trial) + sharpness * random.Random(f"{seed} {trial}").uniform(-0.45, 0.45)

    found, _ = search(GRID, noisy)
    assert abs(math.log2(found.best) - optimum) <= 1.5


@given(st.floats(-4, 4), st.integers(0, 10**6))
def test_what_is_found_does_not_depend_on_the_order_in_which_trials_finish(optimum, seed):
    assert search(GRID, parabola(optimum), random.Random(seed))[0] == search(GRID, parabola(optimum), random.Random(seed + 1))[0]


def test_rates_that_diverge_are_left_and_are_no_edge():
    found, _ = search(GRID, parabola(5, diverges=2.0))
    assert found[1:4] == (1.0, None, 0)
    scores = {Trial(0, factor): parabola(5, diverges=2.0)(Trial(0, factor)) for factor in GRID.factors}
    assert tuning.due_trials(GRID, scores) == [Trial(1, 0.25), Trial(1, 0.5), Trial(1, 1.0)]


def test_where_everything_diverges_lower_factors_are_tried_and_then_nothing_is_found():
    found, made = search(GRID, parabola(0, diverges=0.1))
    assert found.best == 0.0625 and found.extended == 2
    found, made = search(GRID, lambda trial: DIVERGED)
    assert found[1:4] == (None, None, 2) and sorted(trial.factor for trial in made) == [0.0625, 0.125, *GRID.factors]


def test_a_longer_run_that_diverges_falls_back_to_the_other_survivors():
    found, _ = search(GRID, lambda trial: DIVERGED if trial.rung == 2 and trial.factor >= 1 else parabola(0)(trial))
    assert found.best in (0.5, 0.25) and found.rungs[2][-1] == 1.0


def test_survivors_that_diverge_make_room_for_those_that_were_left_behind_before_the_grid_grows():
    """The optimum is at 1 and 2 in short runs, and of a whole run only rates below them are stable."""
    def loss(stable):
        return lambda trial: DIVERGED if trial.rung == 2 and trial.factor > stable else parabola(0.6)(trial)

    found, made = search(GRID, loss(0.5))
    assert [trial.factor for trial in made if trial.rung == 2] in ([1.0, 2.0, 0.5], [2.0, 1.0, 0.5])
    assert found[1:] == (0.5, None, 0, 2) and found.rungs[2] == (0.5, 1.0, 2.0)
    found, made = search(GRID, loss(0.25))
    assert [trial.factor for trial in made if trial.rung == 2][2:] == [0.5, 0.25, 0.125]  # the last since 0.25 was the lowest
    assert found[1:] == (0.25, None, 1, 2) and found.rungs[0] == GRID.factors
    found, made = search(GRID, loss(0.1))
    assert [trial.factor for trial in made if trial.rung == 2][2:] == [0.5, 0.25, 0.125, 0.0625]
    assert found[1:] == (0.0625, "low", 2, 2)


def test_of_those_left_behind_the_best_of_the_last_rung_comes_first_and_none_above_what_diverged():
    def loss(trial):
        return DIVERGED if trial.rung == 2 and trial.factor >= 0.5 else parabola(-0.6)(trial)

    found, made = search(GRID, loss)  # rung 1 has 0.25, 0.5 and 1, of which 0.5 and 1 survive
    assert found.rungs[1] == (0.25, 0.5, 1.0) and [trial.factor for trial in made if trial.rung == 2][2:] == [0.25, 0.125]
    found, made = search(Grid(extensions=0), lambda trial: DIVERGED if trial.rung else parabola(-3)(trial))
    assert found.rungs == (GRID.factors, (0.25, 0.5, 1.0)) and found.best is None


def test_where_the_longest_trials_fail_the_shorter_ones_decide():
    found, made = search(GRID, lambda trial: None if trial.rung == 2 else parabola(0.2)(trial))
    assert found[1:] == (1.0, None, 0, 1) and len(made) == 10
    found, _ = search(GRID, lambda trial: None if trial.rung else parabola(9)(trial))
    assert found[1:] == (16.0, "high", 2, 0)


def test_a_rate_that_diverged_in_longer_runs_is_not_what_shorter_ones_decide():
    """Of a whole run 1 and 2 diverge, and all below them fail for another reason."""
    def loss(trial):
        return parabola(0.6)(trial) if trial.rung < 2 else DIVERGED if trial.factor >= 1 else None

    found, _ = search(GRID, loss)
    assert (found.best, found.rung) == (0.5, 0)  # rung 1 has none below 1
    found, _ = search(GRID, lambda trial: parabola(0.6)(trial) if trial.rung < 2 else DIVERGED)
    assert found[1:] == (None, None, 2, 2)


def test_failures_say_nothing_of_a_factor():
    assert search(GRID, lambda trial: None)[0][1:4] == (None, None, 0)
    found, _ = search(GRID, lambda trial: None if trial.factor == 1 else parabola(0)(trial))
    assert found.best in (0.5, 2.0) and found.edge is None


def test_next_to_a_factor_that_failed_is_still_an_edge():
    found, _ = search(GRID, lambda trial: None if trial.factor >= 4 else parabola(9)(trial))
    assert found[1:4] == (2.0, "high", 2)
    found, _ = search(GRID, lambda trial: None if trial.factor == 4 else parabola(3)(trial))
    assert found.best == 8.0


@pytest.mark.parametrize("factors", [(1.0,), (1.0, 3.0), tuple(2.0**k for k in range(-4, 5))])
@pytest.mark.parametrize("shares", [(1.0,), (0.1, 0.3, 0.6, 1.0)])
def test_as_many_runs_as_predicted(factors, shares):
    grid = Grid(factors, shares, 0)
    found, made = search(grid, parabola(0.2))
    assert [len(rung) for rung in found.rungs] == tuning.counted(grid) and len(made) == sum(tuning.counted(grid))


def test_the_grid_goes_on_at_its_own_ratio():
    assert tuning.beyond([0.1, 0.3, 1.0], "high") == tuning.rounded(1 / 0.3)
    assert tuning.beyond([0.1, 0.3, 1.0], "low") == tuning.rounded(0.1 / 3)
    assert (tuning.beyond([1.0], "high"), tuning.beyond([1.0], "low")) == (2.0, 0.5)
    name = Trial(1, tuning.beyond([0.1, 0.3, 1.0], "high")).name
    assert float(name.partition("-")[2]) == tuning.beyond([0.1, 0.3, 1.0], "high")


@given(st.floats(-2, 2), st.floats(0.01, 3))
def test_the_curvature_and_the_rises_are_those_of_the_parabola(optimum, sharpness):
    loss = parabola(optimum, sharpness)
    scores = {factor: loss(Trial(0, factor)) for factor in GRID.factors}
    assert tuning.curvature(scores) == pytest.approx(sharpness, rel=1e-6)
    rises = tuning.rises(1.0, [scores, {1.0: 9.0}])
    assert rises["half"] == pytest.approx(loss(Trial(0, 0.5)) - loss(Trial(0, 1.0)))
    assert rises["double"] == pytest.approx(loss(Trial(0, 2.0)) - loss(Trial(0, 1.0)))
    assert tuning.curvature(dict(itertools.islice(scores.items(), 2))) is None
    assert tuning.curvature(scores | {4.0: DIVERGED, 2.0: None, 1.0: None}) is None


def config_of(**overrides):
    return configs.override(configs.default(), {key.replace("__", "."): value for key, value in overrides.items()})


def test_the_rates_of_an_optimizer_are_tuned_together():
    assert tuning.keys_of(config_of(), "rates") == ("optim.learning_rate",)
    muon = config_of(optim__name="muon", optim__learning_rate="0.02", optim__muon_learning_rate="0.03")
    keys = tuning.keys_of(muon, "rates")
    assert tuning.values_of(muon, keys, 0.5) == {"optim.learning_rate": 0.01, "optim.muon_learning_rate": 0.015}
    assert tuning.keys_of(config_of(model__name="hmm", optim__name="em"), "rates") == ()
    assert tuning.keys_of(config_of(model__name="ngram"), "rates") == ()
    assert tuning.keys_of(config_of(), ("optim.weight_decay",)) == ("optim.weight_decay",)


@pytest.mark.parametrize(("fails", "text"), [
    (lambda: tuning.check(Grid(factors=())), "--factors="), (lambda: tuning.check(Grid(factors=(1.0, 1.0))), "different numbers"),
    (lambda: tuning.check(Grid(factors=(0.0, 1.0))), "above 0"), (lambda: tuning.check(Grid(shares=(1.0, 0.5))), "rising"),
    (lambda: tuning.check(Grid(shares=(0.5, 1.5))), "at most 1"),
    (lambda: tuning.check_keys(("optim.learning_rat",)), "learning_rate"),
    (lambda: tuning.check_keys(("model.width",)), "decimal"),
    (lambda: tuning.values_of(config_of(), ("optim.weight_decay",), 2.0), "above 0")])
def test_what_cannot_be_tuned_is_said(fails, text):
    with pytest.raises(ConfigError, match=text):
        fails()


def test_a_grid_is_sorted():
    assert tuning.check(Grid(factors=(4.0, 1.0, 0.5))).factors == (0.5, 1.0, 4.0)
