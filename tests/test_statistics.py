from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import statistics
from harness.statistics import (
    Sample,
    StatisticsError,
    difference,
    estimate,
    mean_of,
    of_teacher,
    recovered,
    retained,
    sample,
    t_cdf,
    t_quantile,
)


def row(
    scores: Any, *, trained: bool = True, suite: str = "dolly", seeds: tuple[int, ...] | None = None
) -> Sample:
    """A one-suite sample from an array (S, D, I)."""
    array = np.asarray(scores, dtype=float)
    return Sample({suite: array}, {suite: "h"}, seeds or tuple(range(1, len(array) + 1)), trained)


def record(seed: int, scores: list[list[float]], items: str = "h", suite: str = "dolly") -> dict[str, Any]:
    seeds = {str(10 * (d + 1)): {"per_item": values} for d, values in enumerate(scores)}
    spec = {"seed": seed, "decoding": {"temperature": 1.0}}
    return {"cell": "c", "spec": spec, "scores": {suite: {"items_sha256": items, "seeds": seeds}}}


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(20, 5, shape)


ARRAYS = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 12), st.integers(0, 999)).map(
    lambda shape: draw(*shape[:3], seed=shape[3])
)


@given(ARRAYS)
@settings(max_examples=40, deadline=None)
def test_the_mean_is_the_mean_and_lies_in_its_interval(scores: np.ndarray) -> None:
    result = estimate(row(scores))
    assert result.mean == pytest.approx(scores.mean())
    assert result.low - 1e-5 <= result.mean <= result.high + 1e-5
    assert result.single == (len(scores) == 1)


@given(ARRAYS, st.floats(-50, 50))
@settings(max_examples=30, deadline=None)
def test_a_shift_moves_the_interval_and_nothing_else(scores: np.ndarray, shift: float) -> None:
    a, b = estimate(row(scores)), estimate(row(scores + shift))
    assert (b.low - a.low, b.high - a.high) == pytest.approx((shift, shift), abs=1e-4)
    assert (b.training_spread is None) == (a.training_spread is None)
    gain = difference(row(scores + shift), row(scores))  # paired: a constant gain has no spread
    assert (gain.low, gain.mean, gain.high) == pytest.approx((shift, shift, shift), abs=1e-4)


@given(ARRAYS, st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_differences_are_antisymmetric(scores: np.ndarray, seed: int) -> None:
    a, b = row(scores), row(draw(*scores.shape, seed=seed))
    forth, back = difference(a, b), difference(b, a)
    assert forth.mean == pytest.approx(-back.mean)
    assert forth.low == pytest.approx(-back.high, abs=0.3 + 0.1 * (forth.high - forth.low))
    zero = difference(a, a)
    assert (zero.low, zero.mean, zero.high) == pytest.approx((0, 0, 0), abs=1e-9)


def test_the_same_numbers_every_time() -> None:
    statistics._resampler.cache_clear()
    first = estimate(row(draw(3, 2, 50)))
    statistics._resampler.cache_clear()
    assert estimate(row(draw(3, 2, 50))) == first


def test_suites_weigh_alike_whatever_their_size() -> None:
    both = Sample(
        {"a": np.full((1, 1, 2), 10.0), "b": np.full((1, 1, 98), 20.0)}, {"a": "", "b": ""}, (1,), True
    )
    assert estimate(both).mean == pytest.approx(15)
    assert estimate(both.only("a")).mean == pytest.approx(10)
    assert estimate(both).items == 100


def test_training_and_decoding_spread_are_kept_apart() -> None:
    seeds = np.array([1.0, 2.0, 3.0])[:, None, None] + np.zeros((3, 2, 5))
    only_training = estimate(row(seeds))
    assert (only_training.training_spread, only_training.decoding_spread) == pytest.approx((1.0, 0.0))
    decodings = np.array([1.0, 3.0])[None, :, None] + np.zeros((3, 2, 5))
    only_decoding = estimate(row(decodings))
    assert (only_decoding.training_spread, only_decoding.decoding_spread) == pytest.approx((0.0, 2**0.5))
    one = estimate(row(draw(1, 1, 5)))
    assert (one.training_spread, one.decoding_spread, one.run_low) == (None, None, None)
    untrained = estimate(row(decodings[:1], trained=False))
    assert (untrained.training_spread, untrained.runs, untrained.single) == (None, 2, False)


def test_t_against_scipy() -> None:
    scipy = pytest.importorskip("scipy.stats")
    probabilities = np.linspace(0.001, 0.999, 51)
    for freedom in (1, 2, 3, 4, 5, 8, 9, 30):
        assert t_quantile(probabilities, freedom) == pytest.approx(
            scipy.t.ppf(probabilities, freedom), abs=1e-7
        )
        points = np.linspace(-6, 6, 25)
        assert t_cdf(points, freedom) == pytest.approx(scipy.t.cdf(points, freedom), abs=1e-12)


def test_the_interval_over_runs_is_the_t_interval() -> None:
    scipy = pytest.importorskip("scipy.stats")
    runs = np.array([17.2, 17.9, 18.1])
    result = estimate(row(np.repeat(runs, 4).reshape(3, 1, 4)))  # examples do not vary
    low, high = scipy.t.interval(0.95, 2, runs.mean(), scipy.sem(runs))
    assert (result.run_low, result.run_high) == pytest.approx((low, high))
    assert (result.low, result.high) == pytest.approx((low, high), rel=0.01)


def test_the_interval_over_examples_is_scipys_bootstrap() -> None:
    scipy = pytest.importorskip("scipy.stats")
    scores, other = draw(1, 1, 80), draw(1, 1, 80, seed=1)
    ours = estimate(row(scores))
    theirs = scipy.bootstrap((scores[0, 0],), np.mean, method="percentile", n_resamples=5000, rng=0)
    interval = theirs.confidence_interval
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), abs=0.15)
    paired = scipy.bootstrap(
        (scores[0, 0], other[0, 0]), lambda a, b, axis: (a - b).mean(axis=axis), paired=True, vectorized=True,
        method="percentile", n_resamples=5000, rng=0,
    ).confidence_interval  # fmt: skip
    gain = difference(row(scores), row(other))
    assert (gain.low, gain.high) == pytest.approx((paired.low, paired.high), abs=0.2)


@pytest.mark.parametrize("count", [1, 20, 164])
def test_all_failures_and_all_successes_have_the_exact_interval(count: int) -> None:
    scipy = pytest.importorskip("scipy.stats")
    for score, successes in ((0.0, 0), (100.0, count)):
        exact = scipy.binomtest(successes, count).proportion_ci(0.95, method="exact")
        ours = estimate(row(np.full((3, 1, count), score)))
        assert (ours.mean, ours.low, ours.high) == pytest.approx((score, 100 * exact.low, 100 * exact.high))
    half = Sample({"a": np.zeros((1, 1, 20)), "b": np.full((1, 1, 20), 30.0)}, {"a": "", "b": ""}, (1,), True)
    assert (estimate(half).low, estimate(half).high) == pytest.approx((15, 15 + 16.84 / 2), abs=0.01)


def test_intervals_cover_as_often_as_they_say() -> None:
    """Three seeds, sixty items, two hundred experiments: the truth is inside 90 to 100 % of the time."""
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        items = generator.normal(0, 4, 60)
        runs = generator.normal(0, 1, (3, 1, 1))
        scores = 20 + items + runs + generator.normal(0, 1, (3, 1, 60))
        result = estimate(row(scores))
        covered += result.low <= 20 <= result.high
    assert 180 <= covered <= 200


def test_pairing_uses_common_seeds_and_refuses_other_items() -> None:
    a, b = row(draw(3, 1, 9), seeds=(1, 2, 3)), row(draw(2, 1, 9), seeds=(2, 3))
    assert difference(a, b).runs == 2
    with pytest.raises(StatisticsError, match="share no training seed"):
        difference(a, row(draw(1, 1, 9), seeds=(7,)))
    other = Sample(b.scores, {"dolly": "other"}, b.seeds, True)
    with pytest.raises(StatisticsError, match="same items"):
        difference(a, other)
    teacher = row(draw(1, 1, 9), trained=False, seeds=(0,))
    assert difference(teacher, a).runs == 3
    assert difference(teacher, a).trained


def test_share_of_the_gap() -> None:
    items = draw(1, 1, 40)
    student, teacher = row(items, trained=False), row(items + 20, trained=False)
    noise = np.array([-0.5, 0, 0.5])[:, None, None]
    share = recovered(row(items + 5 + noise), student, teacher)
    assert share is not None
    assert share.mean == pytest.approx(25)
    assert 15 < share.low < 25 < share.high < 35
    assert recovered(row(items), teacher, student) is None
    assert recovered(row(items), student, row(draw(1, 1, 40, seed=3), trained=False)) is None


@pytest.mark.filterwarnings("error")
def test_a_gap_that_hangs_on_few_items_has_no_share() -> None:
    """On four of 24: one resample in a hundred leaves them all out, and would divide by nothing."""
    right = np.zeros((1, 1, 24))
    student, weak, strong = (row(right, trained=False) for _ in range(3))
    weak.scores["dolly"] = right.copy()
    weak.scores["dolly"][0, 0, :4] = 100  # its own interval does not reach 0
    strong.scores["dolly"] = right + 100
    assert difference(weak, student).low > 0
    assert recovered(row(right), student, weak) is None
    assert recovered(row(right), student, strong) is not None


def suites(**scores: Any) -> Sample:
    """A trained sample of several suites, from arrays (S, D, I)."""
    arrays = {name: np.asarray(x, dtype=float) for name, x in scores.items()}
    runs = len(next(iter(arrays.values())))
    return Sample(arrays, dict.fromkeys(arrays, "h"), tuple(range(1, runs + 1)), True)


def test_a_row_in_proportion_keeps_that_share() -> None:
    """Three quarters of the teacher on every item: no draw of items can say anything but 75 %."""
    easy, hard = draw(1, 4, 40), draw(1, 4, 9, seed=1) / 10
    teacher = dataclasses.replace(suites(easy=easy, hard=hard), trained=False)
    result = retained(suites(easy=0.75 * easy, hard=0.75 * hard), teacher)
    noise = (result.high - result.low) / 2  # the teacher's decoding; its items cancel
    assert result.mean == pytest.approx(75)
    assert result.low + noise == pytest.approx(75, abs=0.2)
    calm = dataclasses.replace(teacher, scores={s: x[:, :1] for s, x in teacher.scores.items()})
    result = retained(suites(easy=0.75 * easy[:, :1], hard=0.75 * hard[:, :1]), calm)
    assert (result.mean, result.low, result.high) == pytest.approx((75, 75, 75), abs=1e-4)


def test_the_teacher_keeps_all_of_itself() -> None:
    teacher = dataclasses.replace(suites(dolly=draw(1, 5, 30)), trained=False)
    result = retained(teacher, teacher)
    assert (result.mean, result.low, result.high) == pytest.approx((100, 100, 100), abs=1e-4)


def test_a_share_is_the_mean_of_the_suites_shares() -> None:
    """10 of 40 and 3 of 4 make 50 %, not 13 of 44: a suite of high scores weighs no more than another."""
    teacher = dataclasses.replace(suites(a=[[[40.0, 40.0]]], b=[[[4.0, 4.0, 4.0]]]), trained=False)
    mine = suites(a=[[[10.0, 10.0]]], b=[[[3.0, 3.0, 3.0]]])
    assert retained(mine, teacher).mean == pytest.approx(50)
    assert of_teacher(mine, teacher).scores["b"] == pytest.approx(np.full((1, 1, 3), 75))


def test_no_share_of_nothing_nor_of_other_items() -> None:
    teacher, mine = suites(dolly=np.zeros((1, 1, 4))), suites(dolly=np.ones((1, 1, 4)))
    with pytest.raises(StatisticsError, match="scored nothing on dolly"):
        retained(mine, teacher)
    with pytest.raises(StatisticsError, match="same items"):
        retained(mine, dataclasses.replace(mine, items={"dolly": "other"}))
    rare = suites(dolly=[[[1.0] + 30 * [0.0]]])  # a third of all draws hold no success at all
    with pytest.raises(StatisticsError, match="too near to nothing"):
        retained(rare, rare)


def test_the_mean_of_rows_is_over_the_seeds_they_share() -> None:
    a, b = row(draw(3, 1, 8), seeds=(1, 2, 3)), row(draw(2, 1, 8, seed=1), seeds=(3, 2))
    both = mean_of([a, b])
    assert both.seeds == (2, 3)
    expected = (a.scores["dolly"][[1, 2]] + b.scores["dolly"][[1, 0]]) / 2
    assert both.scores["dolly"] == pytest.approx(expected)
    with pytest.raises(StatisticsError, match="share no training seed"):
        mean_of([a, row(draw(1, 1, 8), seeds=(9,))])


def test_holes_are_refused() -> None:
    good = [record(1, [[1, 2], [3, 4]]), record(2, [[1, 2], [3, 4]])]
    result = sample(list(reversed(good)), ["dolly"])
    assert result.seeds == (1, 2)
    assert result.scores["dolly"].shape == (2, 2, 2)
    for records, message in (
        ([], "no records"),
        ([good[0], good[0]], "twice"),
        ([good[0], record(2, [[1, 2]])], "other items or decoding"),
        ([good[0], record(2, [[1, 2], [3, 4]], items="x")], "other items"),
        ([record(1, [[1, 2], [3]])], "unequal"),
        ([record(1, [[1]], suite="unni")], "no scores on dolly"),
    ):
        with pytest.raises(StatisticsError, match=message):
            sample(records, ["dolly"])
