"""L(N, D): published laws come back from points of theirs, another optimizer finds nothing better, intervals cover what is true."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.optimize

from lm.compare import laws, points
from lm.compare.power_sums import PowerSum
from lm.errors import ConfigError, DataError
from tests.compare.ladders import BESIROGLU, CHINCHILLA, HOFFMANN, best_size, joined, ladder, loss_of


@pytest.mark.parametrize("law, per_parameter", [(HOFFMANN, 92.6), (BESIROGLU, 18.4)], ids=["hoffmann", "besiroglu"])
def test_a_published_law_comes_back_from_its_points(law, per_parameter):
    """Hoffmann's constants say 93 tokens for a parameter of Chinchilla, Besiroglu's 18: what is known of both."""
    fitted = laws.fit(ladder(law), resamples=20)
    np.testing.assert_allclose([each.value for each in fitted.constants().values()], law, rtol=1e-6)
    np.testing.assert_allclose([(each.low, each.high) for each in fitted.constants().values()], np.transpose([law, law]), rtol=1e-4)
    best = fitted.best_for(CHINCHILLA)
    assert best["tokens_per_parameter"].value == pytest.approx(per_parameter, rel=0.01)
    assert best["parameters"].value == pytest.approx(best_size(law, CHINCHILLA), rel=1e-5)
    assert fitted.exponents()["parameters"].value == pytest.approx(law[4] / (law[2] + law[4]), rel=1e-6)
    assert not fitted.undetermined()


def test_the_best_size_is_that_of_a_search_over_sizes():
    fitted = laws.fit(ladder(noise=0.003), resamples=0)
    sizes = np.geomspace(1e7, 1e12, 200_001)
    losses = fitted.predict(sizes, 1e21 / 6 / sizes)
    best = fitted.best_for(1e21)
    assert best["parameters"].value == pytest.approx(sizes[losses.argmin()], rel=1e-3)
    assert best["loss"].value == pytest.approx(losses.min(), rel=1e-9) and best["loss"].low is None


@pytest.mark.parametrize("noise", [0.0005, 0.02])
def test_no_other_optimizer_finds_a_better_fit(noise):
    """SciPy's trust-region least squares has the Huber loss too."""
    made = ladder(noise=noise, seed=3, seeds=2)
    found = PowerSum(made.variables, made.loss)
    solution = found.fit()

    def residuals(theta):
        e, a, alpha, b, beta = theta
        size, length = np.log(made.variables).T
        return np.logaddexp(np.logaddexp(e, a - alpha * size), b - beta * length) - np.log(made.loss)

    for start in (solution, [0.5, 6, 0.3, 7, 0.3]):
        other = scipy.optimize.least_squares(residuals, start, loss="huber", f_scale=1e-3, x_scale=[1, 10, 0.5, 10, 0.5], max_nfev=2000,
                                             xtol=1e-14, ftol=1e-14, gtol=1e-14)
        assert found.objective(solution) <= other.cost * (1 + 1e-6)
    assert found.objective(solution) == pytest.approx(scipy.special.huber(1e-3, residuals(solution)).sum())


def test_one_wild_point_moves_nothing():
    made = ladder(noise=0.0)
    wild = dataclasses.replace(made, loss=np.where(np.arange(len(made)) == 7, 1.5 * made.loss, made.loss))
    np.testing.assert_allclose([each.value for each in laws.fit(wild, resamples=0).constants().values()], BESIROGLU, rtol=0.05)


def test_the_units_of_size_and_length_change_only_their_constants():
    made = ladder(noise=0.003)
    rows = [row | {"parameters": row["parameters"] / 1e9, "tokens": row["tokens"] / 1e6} for row in made.rows()]
    plain, scaled = (laws.fit(each, resamples=0).constants() for each in (made, points.of_rows(rows)))
    for name in ("E", "alpha", "beta"):
        assert scaled[name].value == pytest.approx(plain[name].value, rel=1e-3)


@pytest.mark.parametrize("count, resamples", [(6, 40), pytest.param(100, 200, marks=pytest.mark.slow)])
def test_intervals_cover_the_constants(count, resamples):
    """Of 25 sizes and lengths, resampled with their seeds, a little less often than they should."""
    hits = np.zeros(5)
    for seed in range(count):
        found = laws.fit(ladder(noise=0.005, seed=seed, seeds=2), resamples).constants()
        hits += [each.low <= true <= each.high for each, true in zip(found.values(), BESIROGLU, strict=True)]
        assert found["alpha"].high - found["alpha"].low < 0.2
    assert (hits / count >= (0.85 if count > 50 else 0.6)).all(), f"of {count} intervals of {laws.CONSTANTS} only {hits} cover the constant"


def test_a_law_predicts_the_largest_budget_held_out():
    made = ladder(noise=0.003, seed=1, seeds=2)
    rest, held = laws.hold_out(made)
    assert len(held) == 10 and held.flops.min() > rest.flops.max()
    rows = laws.fit(rest, resamples=100).predicted(held)
    assert len(rows) == 5 and all(row["runs"] == 2 and row["low"] < row["predicted"] < row["high"] for row in rows)
    for row in rows:
        assert row["error"] == pytest.approx(row["predicted"] / row["measured"] - 1) and abs(row["error"]) < 0.02
        assert row["inside"] == (row["low"] <= row["measured"] <= row["high"])
        assert row["measured"] == pytest.approx(held.loss[held.parameters == row["parameters"]].mean())
    assert sum(row["inside"] for row in rows) >= 4


def test_what_is_not_like_the_rest_is_found_out():
    made = ladder(noise=0.002, seed=1, seeds=2)
    worse = dataclasses.replace(made, loss=np.where(made.flops > 9e19, 1.1 * made.loss, made.loss))
    rest, held = laws.hold_out(worse)
    assert not any(row["inside"] for row in laws.fit(rest, resamples=50).predicted(held))


def test_what_is_held_out_can_be_said():
    made = ladder()
    assert laws.hold_out(made, "none") == (made, None)
    assert len(laws.hold_out(made, "2e19")[1]) == 10
    for wrong in ("1", "1e30"):
        with pytest.raises(ConfigError, match="points: they are of"):
            laws.hold_out(made, wrong)
    with pytest.raises(ConfigError, match="use largest, none, or FLOPs"):
        laws.hold_out(made, "most")


def test_too_few_points_are_refused_and_what_they_do_not_tell_is_named():
    with pytest.raises(DataError, match="5 distinct points"):
        laws.fit(ladder(budgets=(1e18,)))
    with pytest.raises(DataError, match="2 different numbers of parameters"):
        made = ladder(seeds=1)
        sizes = np.where(np.arange(len(made)) % 2, 1e8, 2e8)
        laws.fit(points.of_rows([row | {"parameters": size} for row, size in zip(made.rows(), sizes, strict=True)]))
    with pytest.raises(DataError, match="one family"):
        laws.fit(joined(ladder(), ladder(family="b")))
    endless = laws.fit(ladder((1e-9, *BESIROGLU[1:])), resamples=0)
    assert "E" in endless.undetermined() and math.isfinite(endless.best_for(1e20)["loss"].value)


def test_points_from_files_are_the_points(tmp_path):
    made = ladder(seeds=2)
    for name in ("points.csv", "points.json"):
        points.write(tmp_path / name, made)
        read = points.read(tmp_path / name)
        np.testing.assert_allclose(read.variables, made.variables)
        assert read.counted and read.rows()[3]["seed"] == "1" and read.families == ["a"]
    (tmp_path / "plain.csv").write_text("parameters, tokens, loss\n1e6, 2e7, 3.5\n2e6, 2e7, 3.25\n")
    plain = points.read(tmp_path / "plain.csv")
    assert not plain.counted and plain.flops.tolist() == [1.2e14, 2.4e14] and plain.flops_factor() == (6, 6, 6)
    assert plain.loss[0] == loss_of((3.5, 0, 1, 0, 1), 1, 1)
    (tmp_path / "marked.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "plain.csv").read_bytes())
    assert points.read(tmp_path / "marked.csv").rows() == plain.rows()


@pytest.mark.parametrize("text, message", [
    ("", "holds no point"), ("parameters,tokens\n1,2\n", "point 1 has no loss"), ("parameters,tokens,loss\n1,2,x\n", "a number"),
    ("parameters,tokens,loss\n1,2,nan\n", "leave out runs that diverged"), ("parameters,tokens,loss\n1,2\n", "a number is expected"),
    ("parameters,tokens,flops,loss\n1,2,12,3\n1,2,,3\n", "for all, or for none"),
    ("parameters,tokens,loss\n1,2,3\n1,000,2,3.5\n", "point 2 has more cells than the header has names")])
def test_a_bad_file_is_one_line(tmp_path, text, message):
    (tmp_path / "points.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        points.read(tmp_path / "points.csv")
    for wrong in ("{", "{}", "[3]"):
        (tmp_path / "points.json").write_text(wrong)
        with pytest.raises(DataError, match="write a CSV or JSON table"):
            points.read(tmp_path / "points.json")
    with pytest.raises(DataError, match="cannot be read"):
        points.read(tmp_path / "none.csv")


def test_budgets_are_groups_of_like_flops_and_cells_differ_in_seed_alone():
    made = ladder(seeds=2)
    budgets = made.budgets()
    assert [round(math.log10(flops), 2) for flops, _ in budgets] == [18, 18.48, 19, 19.48, 20]
    assert sorted(np.concatenate([chosen for _, chosen in budgets])) == list(range(50))
    assert np.bincount(made.cells()).tolist() == [2] * 25
    with pytest.raises(ConfigError, match=r"no point is of b: there are 'a'"):
        made.of("b")
