"""Who leads a board, how surely, and who cannot be told apart. numpy only; same input, same digits.

The entrants of a board were scored on the same examples with the same training seeds; a hole is refused.
Scores and their intervals are those of harness/statistics, each row from its own runs. Comparing all with all
asks more: the spread of three runs is itself so uncertain that every rank would reach over half the board. So
here the variance between runs is *pooled* over the entrants, after the shift that all runs of one training
seed share (it moves no rank) is taken out: K entrants and R seeds leave (K - 1)(R - 1) degrees of freedom.
That is the residual of a two-way analysis of variance (Montgomery 2017, section 4.1).

Ranks and the probability of being best come from joint draws: examples resampled (the same resamples for
all), runs from the multivariate t that pooling implies, so that each difference of two is exactly Student's
t. Two entrants are told apart where the difference holds at a false discovery rate of 5 % over all pairs of
the board (Benjamini and Hochberg 1995). Groups are the largest sets of which no two are told apart, the bars
of a critical-difference diagram (Demsar 2006); one entrant may be in several.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from harness import statistics
from harness.statistics import LEVEL, RESAMPLES, Array, Sample, StatisticsError

Mask = NDArray[np.bool_]

DISCOVERY_RATE = 0.05
_SEED = 20250611


@dataclass(frozen=True)
class Place:
    """Where an entrant stands. Interval and probability are None for one seed, and for an entrant alone."""

    name: str
    mean: float  #: points
    rank: int  #: one more than the entrants with a higher mean
    low: int | None  #: best rank of the interval at statistics.LEVEL
    high: int | None
    best: float | None  #: probability of having the highest score; over all entrants they sum to 1


@dataclass(frozen=True)
class Contrast:
    """The difference a - b of two entrants, a the higher; without an interval where runs cannot vary."""

    a: str
    b: str
    mean: float  #: points
    low: float | None
    high: float | None
    p: float | None  #: two-sided, before correction
    apart: bool  #: told apart at the false discovery rate, over all pairs of the board


@dataclass(frozen=True)
class Ranking:
    """A board's standings."""

    places: tuple[Place, ...]  #: highest mean first
    contrasts: tuple[Contrast, ...]  #: every pair once
    groups: tuple[tuple[str, ...], ...]  #: cannot be told apart; the group of the leader first
    run_spread: float | None  #: pooled standard deviation of a run around its seed's shift, points
    freedom: int  #: its degrees of freedom


def rank(entrants: Mapping[str, Sample]) -> Ranking:
    """Rank entrants by the mean over their suites.

    Raises StatisticsError for none, for an untrained row, and unless all have the same items and seeds.
    """
    _refuse_holes(entrants)
    names = sorted(entrants, key=lambda name: (-entrants[name].runs().mean(), name))
    rows = [entrants[name] for name in names]
    runs = np.stack([row.runs() for row in rows])
    means = runs.mean(axis=1)
    variance, freedom = pooled_variance(runs)
    pairs = list(combinations(range(len(names)), 2))
    if freedom:
        examples = np.stack([statistics.example_replicates(row) for row in rows])
        draws = examples + _run_errors(names, variance / runs.shape[1], freedom)
        places = _places(names, means, draws)
        contrasts = _contrasts(names, means, examples, draws, pairs, variance / runs.shape[1], freedom)
    else:
        places = [Place(name, float(mean), _rank(means, mean), None, None, None)
                  for name, mean in zip(names, means, strict=True)]  # fmt: skip
        contrasts = [Contrast(names[i], names[j], float(means[i] - means[j]), None, None, None, False)
                     for i, j in pairs]  # fmt: skip
    close = np.ones((len(names), len(names)), dtype=bool)
    for (i, j), contrast in zip(pairs, contrasts, strict=True):
        close[i, j] = close[j, i] = not contrast.apart
    groups = tuple(tuple(names[i] for i in group) for group in cliques(close))
    return Ranking(tuple(places), tuple(contrasts), groups, math.sqrt(variance) if freedom else None, freedom)


def _refuse_holes(entrants: Mapping[str, Sample]) -> None:
    if not entrants:
        raise StatisticsError("no entrants to rank")
    first = next(iter(entrants.values()))
    for name, row in entrants.items():
        if not row.trained:
            raise StatisticsError(f"{name} was not trained; it can be a reference, not an entrant")
        if dict(row.items) != dict(first.items):
            raise StatisticsError(f"{name} was not scored on the same items as the others")
        if row.seeds != first.seeds:
            raise StatisticsError(f"{name} has training seeds {row.seeds}, others {first.seeds}")


def pooled_variance(runs: Array) -> tuple[float, int]:
    """Variance of a run around entrant and seed effects, and its degrees of freedom (0: none to be had).

    ``runs``: score of each run (entrants K, seeds R).
    """
    freedom = (runs.shape[0] - 1) * (runs.shape[1] - 1)
    if not freedom:
        return 0.0, 0
    left = runs - runs.mean(axis=0) - runs.mean(axis=1, keepdims=True) + runs.mean()
    return float((left**2).sum() / freedom), freedom


def _run_errors(names: Sequence[str], variance: float, freedom: int) -> Array:
    """Errors of the means over runs, (K, RESAMPLES): multivariate t, each name with normals of its own."""
    shared = np.random.default_rng([_SEED, freedom]).chisquare(freedom, RESAMPLES)
    own = [np.random.default_rng([_SEED, zlib.crc32(name.encode())]) for name in names]
    normal = np.stack([generator.standard_normal(RESAMPLES) for generator in own])
    return math.sqrt(variance) * normal / np.sqrt(shared / freedom)


def _rank(means: Array, mean: float) -> int:
    return 1 + int((means > mean).sum())


def _places(names: Sequence[str], means: Array, draws: Array) -> list[Place]:
    top = draws == draws.max(axis=0)
    best = (top / top.sum(axis=0)).mean(axis=1)
    above = np.stack([(draws > row).sum(axis=0) for row in draws])
    level = np.stack([(draws == row).sum(axis=0) for row in draws])  # itself included
    low = np.quantile(1 + above, (1 - LEVEL) / 2, axis=1, method="inverted_cdf")
    high = np.quantile(above + level, (1 + LEVEL) / 2, axis=1, method="inverted_cdf")
    return [Place(name, float(means[k]), _rank(means, means[k]), int(low[k]), int(high[k]), float(best[k]))
            for k, name in enumerate(names)]  # fmt: skip


def _contrasts(
    names: Sequence[str],
    means: Array,
    examples: Array,
    draws: Array,
    pairs: Sequence[tuple[int, int]],
    variance: float,
    freedom: int,
) -> list[Contrast]:
    p = np.array([_p_value(examples[i] - examples[j], 2 * variance, freedom) for i, j in pairs])
    apart = discoveries(p, DISCOVERY_RATE)
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    made = []
    for number, (i, j) in enumerate(pairs):
        low, high = np.quantile(draws[i] - draws[j], ends)
        mean = float(means[i] - means[j])
        made.append(Contrast(names[i], names[j], mean, float(low), float(high), float(p[number]),
                             bool(apart[number])))  # fmt: skip
    return made


def _p_value(differences: Array, variance: float, freedom: int) -> float:
    """Two-sided: how often a difference crosses zero, over resampled examples, the run error integrated."""
    if variance > 0:
        below = float(_t_cdf(-differences / math.sqrt(variance), freedom).mean())
    else:
        below = float((differences < 0).mean() + (differences == 0).mean() / 2)
    return min(1.0, 2 * min(below, 1 - below))


def _t_cdf(t: Array, freedom: int) -> Array:
    """Student's distribution function; of many degrees of freedom from a table, right to 1e-6."""
    if freedom <= 100:
        return statistics.t_cdf(t, freedom)
    angles, values = _t_table(freedom)
    return np.interp(np.arctan(t / math.sqrt(freedom)), angles, values)


@functools.lru_cache(maxsize=64)
def _t_table(freedom: int) -> tuple[Array, Array]:
    angles = np.linspace(-math.pi / 2, math.pi / 2, (1 << 15) + 1)[1:-1]
    return angles, statistics.t_cdf(np.tan(angles) * math.sqrt(freedom), freedom)


def discoveries(p: Array, rate: float) -> Mask:
    """Which hypotheses fall at a false discovery rate (Benjamini and Hochberg 1995, procedure 1)."""
    order = np.argsort(p)
    passed = np.flatnonzero(p[order] <= rate * np.arange(1, len(p) + 1) / len(p))
    found = np.zeros(len(p), dtype=bool)
    if len(passed):
        found[order[: passed[-1] + 1]] = True
    return found


def cliques(close: Mask) -> list[tuple[int, ...]]:
    """All largest sets in which every two are close, each sorted, in order (Bron and Kerbosch 1973, pivoted).

    ``close``: symmetric (K, K). Exponential at worst, but scores on a line make few more sets than entrants.
    """
    near = [set(np.flatnonzero(row).tolist()) - {k} for k, row in enumerate(close)]

    def grow(inside: set[int], may: set[int], seen: set[int]) -> Iterator[tuple[int, ...]]:
        if not may and not seen:
            yield tuple(sorted(inside))
            return
        pivot = max(sorted(may | seen), key=lambda k: len(near[k] & may))
        for k in sorted(may - near[pivot]):
            yield from grow(inside | {k}, may & near[k], seen & near[k])
            may, seen = may - {k}, seen | {k}

    return sorted(grow(set(), set(range(len(close))), set()))
