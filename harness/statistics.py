"""Means, spreads, intervals and paired differences of scores. numpy only; same input, same digits.

Two things are random when a method is scored: which examples the suite holds and how the run went (training
seed; for an untrained model, decoding seed). Examples are resampled with replacement, two thousand times, and
every row of a table meets the *same* resamples, so differences are paired. Runs are few: resampling three
seeds knows only ten means and gives intervals that are too narrow, so the run effect is drawn from Student's
t with runs - 1 degrees of freedom instead. Where examples do not vary, that is the textbook t interval.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
_SEED = 20240626


class StatisticsError(ValueError):
    """Scores with a hole, or two rows that were not scored on the same items."""


@dataclass(frozen=True, eq=False)
class Sample:
    """The scores of one row: per suite an array (runs S, decoding seeds D, items I), in percent."""

    scores: Mapping[str, Array]
    items: Mapping[str, str]  #: suite -> hash of its items
    seeds: tuple[int, ...]  #: training seeds, along S
    trained: bool  #: an untrained row (teacher, student) has no training seed to vary
    greedy: bool = False  #: decoded greedily, so decoding does not vary either

    def only(self, *suites: str) -> Sample:
        """The same row on some suites."""
        scores, items = {s: self.scores[s] for s in suites}, {s: self.items[s] for s in suites}
        return dataclasses.replace(self, scores=scores, items=items)

    def at(self, seeds: Sequence[int]) -> Sample:
        """The same row with some of its training seeds, in this order."""
        index = [self.seeds.index(seed) for seed in seeds]
        scores = {suite: x[index] for suite, x in self.scores.items()}
        return dataclasses.replace(self, scores=scores, seeds=tuple(seeds))

    def runs(self) -> Array:
        """Score of each run, mean over suites: (S,) if trained, else (D,), for there only decoding varies."""
        axis = (1, 2) if self.trained else (0, 2)
        return np.mean([x.mean(axis=axis) for x in self.scores.values()], axis=0)

    @property
    def count(self) -> int:
        """Items in all suites together."""
        return sum(x.shape[2] for x in self.scores.values())


@dataclass(frozen=True)
class Estimate:
    """A mean or difference in points, with the interval over examples and runs at ``level``."""

    mean: float
    low: float
    high: float
    level: float
    runs: int  #: training seeds; for an untrained row, decoding seeds
    trained: bool
    items: int
    run_low: float | None = None  #: interval over runs alone, for the very same items; None with one run
    run_high: float | None = None
    training_spread: float | None = None  #: standard deviation over training seeds (decoding averaged out)
    decoding_spread: float | None = None  #: standard deviation over decoding seeds within a training run

    @property
    def single(self) -> bool:
        """Whether one training seed is all there is: then nothing can be concluded."""
        return self.trained and self.runs < 2


def sample(records: Sequence[Mapping[str, Any]], suites: Sequence[str], *, trained: bool = True) -> Sample:
    """Scores of a row's finished records, ordered by training seed.

    Raises StatisticsError for a missing suite, for decoding seeds or items that differ between
    records, and for a training seed that occurs twice.
    """
    if not records:
        raise StatisticsError("no records")
    records = sorted(records, key=lambda record: record["spec"]["seed"])
    seeds = tuple(int(record["spec"]["seed"]) for record in records)
    if len(set(seeds)) < len(seeds):
        raise StatisticsError(f"a training seed occurs twice: {seeds}")
    scores, items = {}, {}
    for suite in suites:
        parts = [_suite(record, suite) for record in records]
        hashes = {record["scores"][suite]["items_sha256"] for record in records}
        if len(hashes) > 1 or len({part.shape for part in parts}) > 1:
            raise StatisticsError(f"{suite}: training seeds scored on other items or decoding seeds")
        scores[suite], items[suite] = np.stack(parts), hashes.pop()
    greedy = all(record["spec"]["decoding"]["temperature"] == 0 for record in records)
    return Sample(scores, items, seeds, trained, greedy)


def _suite(record: Mapping[str, Any], suite: str) -> Array:
    if suite not in record["scores"]:
        raise StatisticsError(f"cell {record['cell']} has no scores on {suite}")
    runs = record["scores"][suite]["seeds"]
    rows = [runs[seed]["per_item"] for seed in sorted(runs, key=int)]
    if not rows or len({len(row) for row in rows}) > 1 or not rows[0]:
        raise StatisticsError(f"cell {record['cell']}, {suite}: decoding seeds with unequal numbers of items")
    return np.asarray(rows, dtype=np.float64)


def estimate(row: Sample, *, level: float = LEVEL) -> Estimate:
    """Mean over suites of the mean over runs, decoding seeds and items; its intervals and spreads."""
    runs = row.runs()
    low, high = _interval(replicates(row), level)
    below, above = _unseen(row, level)
    run_low, run_high = _run_interval(runs, level)
    return Estimate(
        float(runs.mean()),
        low - below,
        high + above,
        level,
        len(runs),
        row.trained,
        row.count,
        run_low,
        run_high,
        training_spread=_spread(runs) if row.trained else None,
        decoding_spread=decoding_spread(row),
    )


def _unseen(row: Sample, level: float) -> tuple[float, float]:
    """What resampling cannot see below and above the mean: suites whose every answer scored 0, or 100.

    Resamples of such a suite are all alike. Yet n failures leave a chance of success up to
    1 - ((1 - level) / 2)^(1/n) (Clopper and Pearson 1934), and a mean score of 100 times that at most.
    """
    below = above = 0.0
    for scores in row.scores.values():
        bound = 100 * (1 - ((1 - level) / 2) ** (1 / scores.shape[2])) / len(row.scores)
        if (scores == 0).all():
            above += bound
        if (scores == 100).all():
            below += bound
    return below, above


def difference(a: Sample, b: Sample, *, level: float = LEVEL) -> Estimate:
    """a - b on the same items, paired by example and, where both were trained, by training seed.

    Raises StatisticsError where the two were not scored on the same items or share no training seed.
    """
    if dict(a.items) != dict(b.items):
        raise StatisticsError("the two rows were not scored on the same items")
    if a.trained and b.trained:
        common = sorted(set(a.seeds) & set(b.seeds))
        if not common:
            raise StatisticsError("the two rows share no training seed")
        a, b = a.at(common), b.at(common)
        runs = a.runs() - b.runs()
        noise = _run_noise(runs, "difference")
    else:
        runs = a.runs() - b.runs().mean() if a.trained else a.runs().mean() - b.runs()
        noise = _run_noise(a.runs(), "a") - _run_noise(b.runs(), "b")
    low, high = _interval(example_replicates(a) - example_replicates(b) + noise, level)
    run_low, run_high = _run_interval(runs, level)
    return Estimate(
        float(runs.mean()), low, high, level, len(runs), a.trained or b.trained, a.count, run_low, run_high
    )


def recovered(row: Sample, student: Sample, teacher: Sample, *, level: float = LEVEL) -> Estimate | None:
    """Share of the gap that a row recovers, in percent: (row - student) / (teacher - student).

    None where the gap's own interval reaches zero, or a resample of the examples has no gap: a share of
    nothing says nothing.
    """
    if difference(teacher, student, level=level).low <= 0 or dict(row.items) != dict(student.items):
        return None
    base = replicates(student, "student")
    gap = replicates(teacher, "teacher") - base
    if gap.min() <= 0:
        return None
    share = 100 * (replicates(row) - base) / gap
    runs = row.runs()
    mean = 100 * (runs.mean() - student.runs().mean()) / (teacher.runs().mean() - student.runs().mean())
    low, high = _interval(share, level)
    return Estimate(float(mean), low, high, level, len(runs), row.trained, row.count)


def of_teacher(row: Sample, teacher: Sample) -> Sample:
    """The row's scores in percent of the teacher's mean on each suite.

    Raises StatisticsError where the two were not scored on the same items or the teacher scored nothing.
    """
    if dict(row.items) != dict(teacher.items):
        raise StatisticsError("the row and the teacher were not scored on the same items")
    means = {suite: float(x.mean()) for suite, x in teacher.scores.items()}
    nothing = [suite for suite, mean in means.items() if mean <= 0]
    if nothing:
        raise StatisticsError(f"the teacher scored nothing on {', '.join(nothing)}")
    return dataclasses.replace(row, scores={s: 100 * x / means[s] for s, x in row.scores.items()})


def retained(row: Sample, teacher: Sample, *, level: float = LEVEL) -> Estimate:
    """Share of the teacher's score that a row keeps, in percent: mean over suites of row / teacher.

    The teacher's own uncertainty is part of the interval over examples and runs: both meet the same
    resamples. ``run_low`` and ``run_high`` take the teacher as it was scored. Raises as ``of_teacher``.
    """
    share, base = of_teacher(row, teacher), of_teacher(teacher, teacher)
    plain = estimate(share, level=level)
    own, ends = _by_suite(share), _by_suite(base)
    if any((draws <= 0).any() for draws in ends.values()):
        raise StatisticsError("the teacher's score is too near to nothing for a share of it")
    draws = np.mean([100 * own[suite] / ends[suite] for suite in own], axis=0)
    name = "teacher" if row is teacher else "row"
    noise = _run_noise(share.runs(), name) - plain.mean / 100 * _run_noise(base.runs(), "teacher")
    low, high = _interval(draws + noise, level)
    return dataclasses.replace(plain, low=low, high=high)


def mean_of(rows: Sequence[Sample]) -> Sample:
    """Rows that were trained, averaged item by item over the training seeds they share.

    Raises StatisticsError where they were not scored on the same items or share no training seed.
    """
    common = sorted(set.intersection(*(set(row.seeds) for row in rows)))
    if not common or any(dict(row.items) != dict(rows[0].items) for row in rows):
        raise StatisticsError("the rows were not scored on the same items or share no training seed")
    kept = [row.at(common) for row in rows]
    scores = {suite: np.mean([row.scores[suite] for row in kept], axis=0) for suite in kept[0].scores}
    return dataclasses.replace(kept[0], scores=scores, greedy=all(row.greedy for row in rows))


def decoding_spread(row: Sample) -> float | None:
    """Standard deviation over decoding seeds within a training run, pooled over runs; None with one seed."""
    decoded = np.mean([x.mean(axis=2) for x in row.scores.values()], axis=0)  # (S, D)
    return float(math.sqrt(decoded.var(axis=1, ddof=1).mean())) if decoded.shape[1] > 1 else None


def _spread(runs: Array) -> float | None:
    return float(runs.std(ddof=1)) if len(runs) > 1 else None


def replicates(row: Sample, name: str = "row") -> Array:
    """RESAMPLES draws of the row's mean over examples and runs."""
    return example_replicates(row) + _run_noise(row.runs(), name)


def example_replicates(row: Sample) -> Array:
    """RESAMPLES draws of the mean over examples alone; rows on the same items meet the same resamples."""
    return np.mean(list(_by_suite(row).values()), axis=0)


def _by_suite(row: Sample) -> dict[str, Array]:
    """RESAMPLES draws of each suite's mean over examples alone."""
    return {suite: _resampler(suite, x.shape[2])(x.mean(axis=(0, 1))) for suite, x in row.scores.items()}


@functools.lru_cache(maxsize=16)
def _resampler(suite: str, items: int) -> Callable[[Array], Array]:
    """Resampled means for a suite: a matrix of how often each draw holds each item (rows sum to 1)."""
    generator = np.random.default_rng([_SEED, zlib.crc32(suite.encode()), items])
    counts = np.empty((RESAMPLES, items), dtype=np.float32)
    for draw in counts:
        draw[:] = np.bincount(generator.integers(items, size=items), minlength=items)

    known: dict[bytes, Array] = {}  # a row meets its cells, its average and every claim it is in

    def resample(values: Array) -> Array:
        key = values.tobytes()
        if key not in known:
            centre = values.mean()  # the counts are exact in float32; what is left over is small
            moved = counts @ (values - centre).astype(np.float32)
            known[key] = np.asarray(moved, dtype=np.float64) / items + centre
        return known[key]

    return resample


def _run_noise(runs: Array, name: str) -> Array:
    """Draws of the error of the runs' mean: s / sqrt(R) times Student's t, on an exact grid, shuffled."""
    if len(runs) < 2:
        return np.zeros(RESAMPLES)
    return runs.std(ddof=1) / math.sqrt(len(runs)) * _t_draws(len(runs) - 1, name)


@functools.lru_cache(maxsize=64)
def _t_draws(freedom: int, name: str) -> Array:
    grid = t_quantile((np.arange(RESAMPLES) + 0.5) / RESAMPLES, freedom)
    return np.random.default_rng([_SEED, zlib.crc32(name.encode())]).permutation(grid)


def _interval(draws: Array, level: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _run_interval(runs: Array, level: float) -> tuple[float | None, float | None]:
    if len(runs) < 2:
        return None, None
    half = _t_point((1 + level) / 2, len(runs) - 1) * runs.std(ddof=1) / math.sqrt(len(runs))
    return float(runs.mean() - half), float(runs.mean() + half)


@functools.lru_cache(maxsize=256)
def _t_point(probability: float, freedom: int) -> float:
    return float(t_quantile(np.array([probability]), freedom)[0])


def t_cdf(t: Array, freedom: int) -> Array:
    """Student's t distribution function, whole degrees of freedom (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    angle = np.arctan(t / math.sqrt(freedom))
    cosine = np.cos(angle)
    term = np.ones_like(angle) if freedom % 2 == 0 else cosine
    total = np.zeros_like(angle) if freedom == 1 else term
    for k in range(2 + freedom % 2, freedom - 1, 2):
        term = term * cosine**2 * (k - 1) / k
        total = total + term
    area = np.sin(angle) * total if freedom % 2 == 0 else 2 / math.pi * (angle + np.sin(angle) * total)
    return (1 + area) / 2


def t_quantile(probability: Array, freedom: int) -> Array:
    """Inverse of t_cdf by bisection, to about 1e-12."""
    low, high = np.full_like(probability, -1.0), np.ones_like(probability)
    while (t_cdf(high, freedom) < probability).any():
        high = np.where(t_cdf(high, freedom) < probability, 2 * high, high)
    while (t_cdf(low, freedom) > probability).any():
        low = np.where(t_cdf(low, freedom) > probability, 2 * low, low)
    for _ in range(60):
        middle = (low + high) / 2
        below = t_cdf(middle, freedom) < probability
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Cost:
    """What a row took, mean over its records; None where nothing was measured."""

    train_seconds: float | None
    decode_seconds: float | None
    tokens_per_second: float | None  #: read by the student in training, prompts included
    peak_rss_mb: float | None
    peak_is_bound: bool  #: the peak is that of a process that ran other cells before: at most so much
    teacher_passes: float | None  #: how often the teacher read the training texts


def cost(records: Sequence[Mapping[str, Any]]) -> Cost:
    """Mean cost of a row's finished records."""

    def mean(key: str) -> float | None:
        values = [record["cost"][key] for record in records if record["cost"].get(key) is not None]
        return float(np.mean(values)) if values else None

    return Cost(
        mean("train_seconds"),
        mean("decode_seconds"),
        mean("tokens_per_second"),
        mean("peak_rss_mb"),
        any(record["cost"].get("peak_of") != "cell" for record in records),
        mean("teacher_passes"),
    )
