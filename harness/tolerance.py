"""How far a number may move before it counts as moved, from the spread over training seeds. No torch.

A run on another machine differs from the reference run of its seed by rounding, which training blows up;
at worst it is another draw, as another seed would be. So the mean of m new runs and the mean of n reference
runs differ by less than

    t(1 - alpha / 2k, nu) s sqrt(1/m + 1/n)

in all but a share ``alpha`` of checks: a prediction interval, corrected for the k numbers compared at once
(Bonferroni). s is the larger of the row's own spread and that pooled over the trained rows of its pair. Those
rows share seeds, hence order of data, so they are not independent: nu is Box's (1954) degrees of freedom
from their covariances, with the unbiased traces of Srivastava (2005), and is seeds - 1 where all rows move
together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.statistics import t_quantile

ALPHA = 0.01  #: share of checks of unchanged code in which anything at all counts as moved

Runs = Mapping[str, float]  #: training seed -> a number


@dataclass(frozen=True)
class Spread:
    """Standard deviation over training seeds, and the degrees of freedom it rests on."""

    sd: float
    freedom: int


@dataclass(frozen=True)
class Tolerance:
    """``half`` is t * sd * sqrt(1/m + 1/n); in words for the reader."""

    half: float
    words: str


def pooled(rows: Sequence[Runs]) -> Spread | None:
    """Spread of rows that have the same seeds, two or more (the commonest set of seeds counts)."""
    sets = Counter(tuple(sorted(row)) for row in rows if len(row) > 1)
    if not sets:
        return None
    seeds = max(sets, key=lambda seeds: (sets[seeds], len(seeds)))
    values = np.array([[row[seed] for seed in seeds] for row in rows if tuple(sorted(row)) == seeds])
    return _pooled(values)


def _pooled(values: np.ndarray) -> Spread:
    """Of an array (rows, seeds)."""
    rows, freedom = len(values), values.shape[1] - 1
    centred = values - values.mean(axis=1, keepdims=True)
    covariance = centred @ centred.T / freedom
    trace, square = float(np.trace(covariance)), float((covariance**2).sum())
    if trace <= 0:
        return Spread(0.0, freedom)
    # Unbiased for tr(S^2) and tr(S)^2 under normality, up to the factor N^2 / ((N - 1)(N + 2)) of both.
    squares = square - trace**2 / freedom
    traces = (freedom + 1) / freedom * (trace**2 - 2 / (freedom + 1) * square)
    ratio = traces / squares if squares > 0 else float(rows)
    nu = freedom * min(max(ratio, 1.0), float(rows))
    return Spread(math.sqrt(trace / rows), int(nu + 1e-9))


def prediction(row: Runs, pool: Spread | None, new: int, comparisons: int) -> Tolerance | None:
    """How far the mean of ``new`` runs may lie from the mean of ``row``; None where no spread is known."""
    own = float(np.std(list(row.values()), ddof=1)) if len(row) > 1 else 0.0
    if pool is None or not row:
        return None
    sd, from_one = max(own, pool.sd), math.sqrt(1 / new + 1 / len(row))
    t = float(t_quantile(np.array([1 - ALPHA / (2 * comparisons)]), pool.freedom)[0])
    words = f"t({pool.freedom}) {t:.2f} x seed sd {sd:.3g} x sqrt(1/{new} + 1/{len(row)})"
    return Tolerance(t * sd * from_one, words)
