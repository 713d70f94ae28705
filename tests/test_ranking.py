"""Ranks, probabilities and groups: against SciPy, by brute force, and by simulation of what they promise."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harness import ranking, statistics
from harness.ranking import Ranking, cliques, discoveries, pooled_variance, rank
from harness.statistics import Sample, StatisticsError

ITEMS = 40


def entrant(
    mean: float, *, seeds: int = 3, run_noise: float = 0.3, seed: int = 0, items: int = ITEMS
) -> Sample:
    """Runs that vary around ``mean``; all entrants find the same items easy or hard."""
    generator = np.random.default_rng([seed, 7])
    hard = np.random.default_rng(3).normal(0, 5, items)
    runs = mean + generator.normal(0, run_noise, seeds)
    scores = runs[:, None, None] + hard + generator.normal(0, 1, (seeds, 1, items))
    return Sample({"dolly": scores}, {"dolly": "h"}, tuple(range(1, seeds + 1)), True)


def board(means: list[float], seed: int = 0, **more: float) -> dict[str, Sample]:
    return {f"m{k}": entrant(mean, seed=100 * seed + k, **more) for k, mean in enumerate(means)}  # type: ignore[arg-type]


BOARDS = st.tuples(st.lists(st.floats(10, 30), min_size=2, max_size=7), st.integers(0, 99)).map(
    lambda drawn: board(*drawn)
)


@given(BOARDS)
@settings(max_examples=40, deadline=None)
def test_a_ranking_is_whole(entrants: dict[str, Sample]) -> None:
    result = rank(entrants)
    count = len(entrants)
    assert {place.name for place in result.places} == set(entrants)
    assert [p.mean for p in result.places] == sorted((p.mean for p in result.places), reverse=True)
    assert sum(place.best or 0 for place in result.places) == pytest.approx(1)
    for place in result.places:
        assert place.low is not None and place.high is not None
        assert 1 <= place.low <= place.high <= count
        assert place.mean == pytest.approx(statistics.estimate(entrants[place.name]).mean)
    assert len(result.contrasts) == count * (count - 1) // 2
    _check_groups(result)


def _check_groups(result: Ranking) -> None:
    """Two entrants share a group exactly where they are not told apart."""
    together = {frozenset(pair) for group in result.groups for pair in combinations(group, 2)}
    for contrast in result.contrasts:
        assert (frozenset((contrast.a, contrast.b)) in together) != contrast.apart
    assert {name for group in result.groups for name in group} == {place.name for place in result.places}


@given(BOARDS, st.floats(-50, 50))
@settings(max_examples=20, deadline=None)
def test_a_shift_and_the_order_of_names_change_nothing(entrants: dict[str, Sample], shift: float) -> None:
    def moved(row: Sample) -> Sample:
        return Sample({"dolly": row.scores["dolly"] + shift}, row.items, row.seeds, True)

    a = rank(entrants)
    b = rank({name: moved(entrants[name]) for name in reversed(entrants)})
    assert [(p.name, p.rank, p.low, p.high) for p in a.places] == [
        (p.name, p.rank, p.low, p.high) for p in b.places
    ]
    assert a.groups == b.groups
    assert [c.p for c in a.contrasts] == pytest.approx([c.p for c in b.contrasts], abs=1e-4)


def test_a_shift_of_a_whole_seed_moves_no_rank() -> None:
    """A training seed that is kind to all says nothing of who is best."""
    plain = board([20, 20.3, 21])
    kind = {
        name: Sample(
            {"dolly": row.scores["dolly"] + np.array([0, 9, -9])[:, None, None]}, row.items, row.seeds, True
        )
        for name, row in plain.items()
    }
    for a, b in zip(rank(plain).places, rank(kind).places, strict=True):
        assert (a.name, a.rank, a.low, a.high) == (b.name, b.rank, b.low, b.high)
        assert a.best == pytest.approx(b.best)


def test_clear_winners_and_twins() -> None:
    entrants = board([30, 20, 10])
    entrants["twin"] = entrants["m1"]
    result = rank(entrants)
    assert [(p.rank, p.low, p.high) for p in result.places] == [(1, 1, 1), (2, 2, 3), (2, 2, 3), (4, 4, 4)]
    assert [p.best for p in result.places] == [1.0, 0.0, 0.0, 0.0]
    assert sorted(map(sorted, result.groups)) == [["m0"], ["m1", "twin"], ["m2"]]
    contrast = next(c for c in result.contrasts if {c.a, c.b} == {"m1", "twin"})
    assert contrast.p == pytest.approx(1, abs=0.1)


def test_contrasts_are_student_t_where_examples_do_not_vary() -> None:
    """Equal items leave the run error alone: intervals and p are of the two-way analysis of variance."""
    runs = np.array([[20.0, 21.0, 20.4], [19.0, 19.2, 19.9], [20.1, 19.5, 20.2]])
    entrants = {
        f"m{k}": Sample({"dolly": np.repeat(row[:, None, None], 5, 2)}, {"dolly": "h"}, (1, 2, 3), True)
        for k, row in enumerate(runs)
    }
    left = runs - runs.mean(0) - runs.mean(1, keepdims=True) + runs.mean()
    error = np.sqrt(2 * (left**2).sum() / 4 / 3)
    result = rank(entrants)
    assert result.freedom == 4
    assert result.run_spread == pytest.approx(np.sqrt((left**2).sum() / 4))
    for contrast in result.contrasts:
        assert contrast.p == pytest.approx(2 * stats.t.sf(contrast.mean / error, 4), abs=1e-6)
        half = stats.t.ppf(0.975, 4) * error
        assert contrast.low == pytest.approx(contrast.mean - half, abs=0.25 * half)  # 2000 draws of a tail
        assert contrast.high == pytest.approx(contrast.mean + half, abs=0.25 * half)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.01, 0.5))
def test_discoveries_agree_with_scipy(p: list[float], rate: float) -> None:
    adjusted = stats.false_discovery_control(p)
    clear = np.abs(adjusted - rate) > 1e-9
    assert (discoveries(np.array(p), rate) == (adjusted <= rate))[clear].all()


@given(st.integers(1, 7), st.integers(0, 2**21 - 1))
@settings(max_examples=60)
def test_cliques_by_brute_force(size: int, bits: int) -> None:
    close = np.eye(size, dtype=bool)
    for number, (i, j) in enumerate(combinations(range(size), 2)):
        close[i, j] = close[j, i] = bool(bits >> number & 1)
    whole = [
        set(some)
        for count in range(1, size + 1)
        for some in combinations(range(size), count)
        if all(close[i, j] for i in some for j in some)
    ]
    largest = sorted(tuple(sorted(some)) for some in whole if not any(some < other for other in whole))
    assert cliques(close) == largest


def test_one_seed_concludes_nothing() -> None:
    result = rank(board([30, 20, 10], seeds=1))
    assert [place.rank for place in result.places] == [1, 2, 3]
    assert all(place.best is None and place.low is None for place in result.places)
    assert not any(contrast.apart or contrast.low is not None for contrast in result.contrasts)
    assert result.groups == (("m0", "m1", "m2"),)
    assert result.run_spread is None


def test_alone_is_no_ranking() -> None:
    (place,) = rank(board([20])).places
    assert (place.rank, place.best, place.high) == (1, None, None)


def test_holes_are_refused() -> None:
    whole = board([20, 21])
    with pytest.raises(StatisticsError, match="no entrants"):
        rank({})
    with pytest.raises(StatisticsError, match=r"x has training seeds \(1, 2\)"):
        rank({**whole, "x": entrant(20, seeds=2)})
    with pytest.raises(StatisticsError, match="x was not scored on the same items"):
        rank({**whole, "x": Sample({"vicuna": np.zeros((3, 1, 9))}, {"vicuna": "h"}, (1, 2, 3), True)})
    with pytest.raises(StatisticsError, match="not trained"):
        rank({"teacher": Sample({"dolly": np.zeros((1, 1, 9))}, {"dolly": "h"}, (0,), False)})


def test_pooling_is_the_two_way_residual() -> None:
    runs = np.random.default_rng(0).normal(size=(5, 4))
    variance, freedom = pooled_variance(runs)
    design = np.array([[float(i == k) for k in range(5)] + [float(j == k) for k in range(1, 4)]
                       for i in range(5) for j in range(4)])  # fmt: skip
    _, residual, rank_of, _ = np.linalg.lstsq(design, runs.ravel(), rcond=None)
    assert freedom == 20 - rank_of == 12
    assert variance == pytest.approx(residual[0] / 12)
    assert pooled_variance(runs[:, :1]) == (0.0, 0)


def test_promises_hold_in_simulation() -> None:
    """Of 95 % rank intervals, at least 95 % hold the true rank; being sure of the leader is earned."""
    means = [20.0, 20.0, 20.4, 21.0, 21.3, 15.0]
    order = np.array([[sum(b > a for b in means) + 1, sum(b >= a for b in means)] for a in means])
    inside, claimed, hits, false = [], [], [], []
    for trial in range(120):
        result = rank(board(means, seed=trial + 1, run_noise=0.5))
        for place in result.places:
            first, last = order[int(place.name[1])]
            inside.append(place.low <= last and place.high >= first)  # type: ignore[operator]
        leader = max(result.places, key=lambda place: place.best or 0)
        claimed.append(leader.best)
        hits.append(leader.name == "m4")
        false.append(any(c.apart and {c.a, c.b} == {"m0", "m1"} for c in result.contrasts))
    assert np.mean(inside) >= 0.95
    assert np.mean(hits) == pytest.approx(np.mean(claimed), abs=0.12)
    assert np.mean(false) <= 0.08  # a true tie is seldom told apart


def test_level_and_rate_are_those_of_the_tables() -> None:
    assert statistics.LEVEL == 0.95
    assert ranking.DISCOVERY_RATE == 0.05
