"""Tolerances follow from seed spread: against SciPy, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.tolerance import ALPHA, Spread, pooled, prediction


def runs(values: np.ndarray) -> list[dict[str, float]]:
    """An array (rows, seeds) as rows by seed."""
    return [{str(seed): float(value) for seed, value in enumerate(row, 1)} for row in values]


def draw(rows: int, seeds: int, seed: int, *, shared: float = 0.0) -> np.ndarray:
    """Rows of unit spread; ``shared`` is the correlation between any two of them."""
    generator = np.random.default_rng(seed)
    common = generator.normal(size=(1, seeds))
    return 20 + math.sqrt(shared) * common + math.sqrt(1 - shared) * generator.normal(size=(rows, seeds))


def test_one_row_is_the_textbook_spread() -> None:
    values = np.array([[1.0, 2.0, 4.0, 7.0]])
    assert pooled(runs(values)) == Spread(pytest.approx(values.std(ddof=1)), 3)


def test_the_pooled_spread_is_the_mean_square_of_analysis_of_variance() -> None:
    """SciPy's F is the mean square between rows over the one within; the latter is ours squared."""
    scipy = pytest.importorskip("scipy.stats")
    values = draw(5, 4, seed=0)
    between = 4 * values.mean(axis=1).var(ddof=1)
    found = pooled(runs(values))
    assert found is not None
    assert scipy.f_oneway(*values).statistic == pytest.approx(between / found.sd**2)


def test_rows_that_move_together_count_once() -> None:
    base = np.array([1.0, 2.5, 3.0, 7.0, 5.0])
    together = pooled(runs(np.stack([base, base + 3, base - 1])))
    assert together is not None
    assert together.freedom == 4


@pytest.mark.parametrize(("shared", "low", "high"), [(0.0, 45, 72), (0.9, 8, 14)])
def test_degrees_of_freedom_follow_the_covariance(shared: float, low: float, high: float) -> None:
    """Eight rows of nine seeds: near 64 where rows are independent, near 8 / 0.83 at a correlation of 0.9."""
    found = [pooled(runs(draw(8, 9, seed=seed, shared=shared))) for seed in range(200)]
    assert low <= np.mean([spread.freedom for spread in found if spread]) <= high


@given(st.integers(1, 6), st.integers(2, 6), st.integers(0, 999), st.floats(0.01, 100), st.floats(-50, 50))
@settings(max_examples=40, deadline=None)
def test_the_spread_scales_and_does_not_shift(rows: int, seeds: int, seed: int, by: float, to: float) -> None:
    values = draw(rows, seeds, seed)
    plain, moved = pooled(runs(values)), pooled(runs(by * values + to))
    assert plain is not None and moved is not None
    assert moved.sd == pytest.approx(by * plain.sd, rel=1e-6)
    assert seeds - 1 <= plain.freedom <= rows * (seeds - 1)


def test_without_a_second_seed_there_is_no_spread() -> None:
    assert pooled([]) is None
    assert pooled([{"1": 3.0}, {"1": 4.0}]) is None
    assert prediction({"1": 3.0}, None, 1, 1) is None
    assert pooled([{"1": 3.0, "2": 3.0}]) == Spread(0.0, 1)


def test_rows_with_the_commonest_seeds_are_pooled() -> None:
    odd = {"1": 0.0, "9": 1000.0}
    found = pooled([*runs(draw(3, 4, seed=1)), odd, {"0": 5.0}])
    assert found == pooled(runs(draw(3, 4, seed=1)))


def test_a_tolerance_is_scipys_prediction_interval() -> None:
    scipy = pytest.importorskip("scipy.stats")
    row = {"1": 10.0, "2": 11.0, "3": 13.0}
    own = float(np.std([10, 11, 13], ddof=1))
    found = prediction(row, Spread(own, 2), 1, 7)
    assert found is not None
    expected = scipy.t.ppf(1 - ALPHA / 14, 2) * own * math.sqrt(1 + 1 / 3)
    assert found.half == pytest.approx(expected, rel=1e-6)
    assert "t(2)" in found.words and "sqrt(1/1 + 1/3)" in found.words
    wider = prediction(row, Spread(own / 10, 2), 1, 7)
    assert wider is not None
    assert wider.half == pytest.approx(found.half)  # a row's own spread, where it is the larger


@pytest.mark.parametrize("shared", [0.0, 0.95])
def test_an_unchanged_method_passes_as_often_as_is_said(shared: float) -> None:
    """Six rows of five seeds, two new runs each: anything at all counts as moved in about 1 % of checks."""
    generator = np.random.default_rng(3)
    alarms = 0
    for trial in range(600):
        values = draw(6, 7, seed=int(generator.integers(2**31)) + trial, shared=shared)
        before, after = values[:, :5], values[:, 5:]
        pool = pooled(runs(before))
        gaps = after.mean(axis=1) - before.mean(axis=1)
        limits = [prediction(row, pool, 2, 6) for row in runs(before)]
        alarms += any(abs(gap) > limit.half for gap, limit in zip(gaps, limits, strict=True) if limit)
    assert alarms <= 18  # 3 %; chance alone exceeds it once in a million


def test_a_change_of_many_spreads_is_seen() -> None:
    values = draw(6, 8, seed=1)
    limit = prediction(runs(values)[0], pooled(runs(values)), 2, 60)
    assert limit is not None
    assert limit.half < 5  # points, where the spread over seeds is one
