"""Verdicts: what the records say about a table's cells and about its paper's claims. Never a blank.

Cells against a published figure
    agrees          our 95 % interval, over runs on the same items, lies within the margin around the figure
    differs         it lies wholly outside
    inconclusive    it straddles the margin, or one training seed is all there is (one decoding seed, for an
                    untrained row that is sampled)
    not comparable  other models, data or protocol than published, or the figure is unknown
    not run, failed nothing was measured; with the reason

In a table of retentions all numbers, those of claims too, are percent of the teacher's score.

Claims ("row a scores higher than row b, for every pair") against our own rows, at every scale, by the 95 %
interval of the paired difference of averages over examples and training seeds; "in the mean over the pairs"
by that of the mean difference; "keeps a share within a range" by the interval of the share
    agrees          the claim holds: every pair's interval lies above 0 (the share's within the range)
    differs         the claim does not hold: some pair's interval lies below 0, corrected for their number
    inconclusive    neither, or one training seed is all there is
    not run, failed a row the claim needs was not measured, and what was does not refute it
A claim is "not comparable" only in its published *size*, never in its direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness import statistics
from harness.statistics import Cost, Estimate, Sample, StatisticsError
from harness.tables import Claim, Figure, PublishedRow, Row, Table, published, why_unknown

Verdict = Literal["agrees", "differs", "inconclusive", "not comparable", "not run", "failed"]
VERDICTS: tuple[Verdict, ...] = ("agrees", "differs", "inconclusive", "not comparable", "not run", "failed")
COMPARED = ("agrees", "differs", "inconclusive")

#: What may stand for one planned training seed: its record, None (not run yet), or why it will not run.
Entry = Mapping[str, Any] | str | None

_STAND_INS = {
    "tiny": "tiny: generated text and models of some hundred thousand weights",
    "small": "small: other models and training data than published",
}


@dataclass(frozen=True)
class CellVerdict:
    """One number of the table."""

    column: str
    measured: Estimate | None
    figure: Figure | None
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class RowVerdict:
    """One row: its numbers, what it cost, and why it is short of any."""

    row: Row
    pair: str | None
    state: Literal["done", "partial", "not run", "failed"]
    reason: str  #: empty when done
    planned: int  #: training seeds asked for
    cells: Mapping[str, CellVerdict]
    published: PublishedRow | None
    recovered: Estimate | None  #: share of the gap student -> teacher, percent
    cost: Cost | None
    data: tuple[str, ...]  #: training data that is not exactly the published one, "name: state"
    diverged: tuple[str, ...] = ()  #: trainings that did (harness/train.py has the rule), "seed N: how"
    sample: Sample | None = field(repr=False, default=None)


@dataclass(frozen=True)
class PairVerdict:
    """One pair of rows of a claim: the difference a - b of averages, or the share a / b."""

    a: str
    b: str
    gain: Estimate | None  #: of a claim about shares, the share in percent
    verdict: Verdict
    reason: str
    sign: Literal["-", "/"] = "-"

    @property
    def name(self) -> str:
        """What was reckoned, by row keys."""
        return f"{self.a} {self.sign} {self.b}"


@dataclass(frozen=True)
class ClaimVerdict:
    """A claim, its verdict, and the verdict on its published size."""

    claim: Claim
    verdict: Verdict
    reason: str
    pairs: tuple[PairVerdict, ...]
    size: tuple[Verdict, str] | None  #: None where the paper gives no size


@dataclass(frozen=True)
class Census:
    """How much of the table stands on what."""

    cells: int
    measured: int
    compared: int
    figures: int  #: published values that are known
    verified: int  #: of these, read at their source
    secondary: int
    unverified: int
    unknown: int  #: cells whose published value nobody has read, or that were never published
    verdicts: Mapping[str, int]
    claims: Mapping[str, int]


@dataclass(frozen=True)
class External:
    """Numbers from elsewhere for a row: shown beside it, counted nowhere (harness/external.py)."""

    row: Row
    source: str
    seeds: tuple[int, ...]
    cells: Mapping[str, Estimate]  #: by column; those it has
    unlike: str  #: how its settings differ from ours; empty if they do not


@dataclass(frozen=True)
class TableVerdict:
    """Everything a report needs."""

    table: Table
    scale: str
    rows: Mapping[str, RowVerdict]
    claims: tuple[ClaimVerdict, ...]
    census: Census
    external: tuple[External, ...] = ()


def judge(table: Table, scale: str, cells_by_row: Mapping[str, Sequence[Entry]]) -> TableVerdict:
    """Judge a table at a scale.

    ``cells_by_row``: row key -> an entry per planned training seed. A row left out counts as not run. Raises
    KeyError for a row the table does not have and StatisticsError for records with holes.
    """
    stray = set(cells_by_row) - {row.key for row in table.rows}
    if stray:
        raise KeyError(f"table {table.id} has no row {', '.join(sorted(stray))}")
    samples = {row.key: _sample(table, row, cells_by_row.get(row.key, ())) for row in table.rows}
    rows = {
        row.key: _judge_row(table, scale, row, cells_by_row.get(row.key, ()), samples) for row in table.rows
    }
    claims = tuple(_judge_claim(claim, table, scale, rows) for claim in table.claims)
    return TableVerdict(table, scale, rows, claims, _census(rows, claims))


def done(entries: Sequence[Entry]) -> list[Mapping[str, Any]]:
    """The finished records among them."""
    return [entry for entry in entries if isinstance(entry, Mapping) and entry["status"] == "done"]


def _sample(table: Table, row: Row, entries: Sequence[Entry]) -> Sample | None:
    records = done(entries)
    if not records:
        return None
    try:
        return statistics.sample(records, table.suites, trained=row.trained)
    except StatisticsError as error:
        raise StatisticsError(f"table {table.id}, row {row.key}: {error}") from None


# rows and cells


def _judge_row(
    table: Table, scale: str, row: Row, entries: Sequence[Entry], samples: Mapping[str, Sample | None]
) -> RowVerdict:
    records, sample = done(entries), samples[row.key]
    state, reason = _state(table, scale, row, entries)
    known, unknown = _published(row)
    lowered = _not_exact(records)
    barred = _row_barred(scale, known, unknown, lowered)
    cells = {}
    for column in table.columns:
        figure = known.figures.get(column) if known else None
        if sample is None:
            cells[column] = CellVerdict(
                column, None, figure, "failed" if state == "failed" else "not run", reason
            )
        else:
            part, margin = sample.only(*table.part(column)), table.margin
            points = margin.points if column in table.suites else margin.average
            measured = _measured(table, row, column, samples)
            cells[column] = _judge_cell(column, part, measured, known, points, barred)
    return RowVerdict(
        row=row,
        pair=table.pair(scale, row.side),
        state=state,
        reason=reason,
        planned=len(entries),
        cells=cells,
        published=known,
        recovered=_recovered(row, samples),
        cost=statistics.cost(records) if records else None,
        data=lowered,
        diverged=_diverged(records),
        sample=sample,
    )


def _measured(table: Table, row: Row, column: str, samples: Mapping[str, Sample | None]) -> Estimate | str:
    """A cell's number, or why a share of the teacher's cannot be had."""
    mine, suites = samples[row.key], table.part(column)
    assert mine is not None
    if table.value == "score":
        return statistics.estimate(mine.only(*suites))
    teacher = samples.get(f"{row.side}/teacher")
    if teacher is None:
        return "no share without the teacher's score"
    try:
        base = teacher.only(*suites)
        return statistics.retained(base if mine is teacher else mine.only(*suites), base)
    except StatisticsError as error:
        return str(error)


def _state(
    table: Table, scale: str, row: Row, entries: Sequence[Entry]
) -> tuple[Literal["done", "partial", "not run", "failed"], str]:
    """How far the row got, and why no further."""
    failed = [
        f"seed {e['spec']['seed']}: {e['reason']}"
        for e in entries
        if isinstance(e, Mapping) and e["status"] == "failed"
    ]
    said = [entry for entry in entries if isinstance(entry, str)]
    finished, missing = len(done(entries)), sum(entry is None for entry in entries)
    reasons = list(dict.fromkeys([*failed, *said]))
    if missing:
        reasons.append(f"{missing} of {len(entries)} seeds not yet")
    if finished:
        return ("partial", "; ".join(reasons)) if finished < len(entries) else ("done", "")
    if failed:
        return "failed", "; ".join(reasons)
    if table.pair(scale, row.side) is None:
        return "not run", table.absent[scale].get(row.side, "no pair at this scale")
    return "not run", "; ".join(dict.fromkeys(said)) or "not yet"


def _published(row: Row) -> tuple[PublishedRow | None, str]:
    """The first known published row, or why there is none."""
    for key in row.published:
        found = published(key)
        if found is not None:
            return found, ""
    if row.published:
        return None, f"published figure unknown: {why_unknown(row.published[0])}"
    return None, "no paper gives a figure for this row"


def _diverged(records: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    said = {record["spec"]["seed"]: (record.get("training") or {}).get("diverged") for record in records}
    return tuple(f"seed {seed}: {how}" for seed, how in sorted(said.items()) if how)


def _not_exact(records: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    states = {
        f"{data['name']}: {data['state']}"
        for record in records
        for data in record["data"]
        if data["state"] != "exact"
    }
    return tuple(sorted(states))


def _row_barred(scale: str, known: PublishedRow | None, unknown: str, lowered: Sequence[str]) -> str:
    """Why no number of a row may be held against a published figure; empty if it may."""
    if scale in _STAND_INS:
        return _STAND_INS[scale]
    if known is None:
        return unknown
    if known.unlike:
        return f"{known.key}: {known.unlike}"
    return f"training data not the published one ({', '.join(lowered)})" if lowered else ""


def _judge_cell(
    column: str,
    sample: Sample,
    measured: Estimate | str,
    known: PublishedRow | None,
    margin: float,
    barred: str,
) -> CellVerdict:
    figure = known.figures.get(column) if known else None
    if isinstance(measured, str):
        return CellVerdict(column, None, figure, "not run", measured)
    if barred or known is None:
        return CellVerdict(column, measured, figure, "not comparable", barred)
    if figure is None:
        return CellVerdict(
            column, measured, None, "not comparable", f"{known.key} gives no figure for {column}"
        )
    for suite, scores in sample.scores.items():
        items = scores.shape[2]
        if known.items.get(suite, items) != items:
            why = f"{suite} scored on {items} items, published on {known.items[suite]}"
            return CellVerdict(column, measured, figure, "not comparable", why)
    verdict, said = _compare(measured, figure, margin, sample.greedy)
    return CellVerdict(column, measured, figure, verdict, said)


def _compare(measured: Estimate, figure: Figure, margin: float, greedy: bool) -> tuple[Verdict, str]:
    """Equivalence by inclusion: both ends of our interval within the margin around the figure.

    The published figure was scored on the very same items, so only runs vary here, not examples.
    """
    low, high = measured.run_low, measured.run_high
    if low is None or high is None:
        if measured.trained or not greedy:
            return "inconclusive", f"one {'training' if measured.trained else 'decoding'} seed"
        low = high = measured.mean  # untrained and greedy: nothing is left to vary
    low, high = low - figure.value, high - figure.value
    said = (
        f"ours - published {measured.mean - figure.value:+.2f} [{low:+.2f}, {high:+.2f}], margin {margin:g}"
    )
    if -margin <= low and high <= margin:
        return "agrees", said
    if low > margin or high < -margin:
        return "differs", said
    return "inconclusive", said


def _recovered(row: Row, samples: Mapping[str, Sample | None]) -> Estimate | None:
    mine, student, teacher = (
        samples.get(f"{row.side}/{name}") for name in (row.method, "student", "teacher")
    )
    if mine is None or student is None or teacher is None or not row.trained:
        return None
    try:
        return statistics.recovered(mine, student, teacher)
    except StatisticsError:  # scored on other items, say while a table is half re-run
        return None


# claims


def _judge_claim(claim: Claim, table: Table, scale: str, rows: Mapping[str, RowVerdict]) -> ClaimVerdict:
    judge_pair = _judge_share if claim.kind == "share" else _judge_pair
    pairs = tuple(judge_pair(a, b, claim, table, rows) for a, b in claim.pairs)
    if claim.kind == "mean":
        gain, verdict, reason = _judge_mean(claim, table, rows, pairs)
        return ClaimVerdict(claim, verdict, reason, pairs, _judge_size(claim, table, scale, [gain]))
    verdict, reason = _sum_up(pairs)
    gains = [pair.gain for pair in pairs]
    size = None if claim.kind == "share" else _judge_size(claim, table, scale, gains)
    if claim.kind == "share" and scale in _STAND_INS:
        size = ("not comparable", _STAND_INS[scale])
    return ClaimVerdict(claim, verdict, reason, pairs, size)


def _missing(keys: Sequence[str], table: Table, rows: Mapping[str, RowVerdict]) -> tuple[Verdict, str] | None:
    """Why rows cannot be compared: the first of them, or of what they are told in, that was not measured."""
    for key in (*keys, *sorted(table.needed(keys) - set(keys))):
        if rows[key].sample is None:
            state: Verdict = "failed" if rows[key].state == "failed" else "not run"
            return state, f"{key}: {rows[key].reason}"
    return None


def _claimed(key: str, claim: Claim, table: Table, rows: Mapping[str, RowVerdict]) -> Sample:
    """A row's scores on the suites a claim is about, in the table's own units. Raises StatisticsError."""
    sample, suites = rows[key].sample, table.part(claim.column)
    assert sample is not None
    if table.value == "score":
        return sample.only(*suites)
    teacher = rows[f"{rows[key].row.side}/teacher"].sample
    assert teacher is not None
    return statistics.of_teacher(sample.only(*suites), teacher.only(*suites))


def _judge_pair(a: str, b: str, claim: Claim, table: Table, rows: Mapping[str, RowVerdict]) -> PairVerdict:
    """One difference. To refute needs an interval corrected for the number of pairs asked (Bonferroni)."""
    missing = _missing((a, b), table, rows)
    if missing:
        return PairVerdict(a, b, None, *missing)
    try:
        first, second = (_claimed(key, claim, table, rows) for key in (a, b))
        gain = statistics.difference(first, second)
    except StatisticsError as error:
        return PairVerdict(a, b, None, "inconclusive", str(error))
    return PairVerdict(a, b, gain, *_settled(gain, first, second, len(claim.pairs)))


def _settled(gain: Estimate, first: Sample, second: Sample, asked: int) -> tuple[Verdict, str]:
    """Whether a difference is above 0."""
    said = f"{gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
    if gain.single:
        return "inconclusive", f"{said}, one training seed"
    if gain.low > 0:
        return "agrees", said
    level = 1 - (1 - statistics.LEVEL) / asked
    if statistics.difference(first, second, level=level).high < 0:
        return "differs", said
    return "inconclusive", said


def _judge_mean(
    claim: Claim, table: Table, rows: Mapping[str, RowVerdict], pairs: Sequence[PairVerdict]
) -> tuple[Estimate | None, Verdict, str]:
    """The mean of all differences; the pairs are told beside it."""
    missing = _missing([key for pair in claim.pairs for key in pair], table, rows)
    if missing:
        return None, *missing
    try:
        sides = [
            [_claimed(key, claim, table, rows) for key in keys] for keys in zip(*claim.pairs, strict=True)
        ]
        first, second = map(statistics.mean_of, sides)
        gain = statistics.difference(first, second)
    except StatisticsError as error:
        return None, "inconclusive", str(error)
    verdict, said = _settled(gain, first, second, 1)
    above = sum(pair.gain is not None and pair.gain.mean > 0 for pair in pairs)
    return gain, verdict, f"mean gain {said}; {above} of {len(pairs)} gains above 0"


def _judge_share(a: str, b: str, claim: Claim, table: Table, rows: Mapping[str, RowVerdict]) -> PairVerdict:
    """The share of the teacher's score that one row keeps, against the range it is said to lie in."""
    assert claim.size is not None
    missing = _missing((a, b), table, rows)
    if missing:
        return PairVerdict(a, b, None, *missing, sign="/")
    mine, teacher = rows[a].sample, rows[b].sample
    assert mine is not None
    assert teacher is not None
    suites = table.part(claim.column)
    try:
        share = statistics.retained(mine.only(*suites), teacher.only(*suites))
    except StatisticsError as error:
        return PairVerdict(a, b, None, "inconclusive", str(error), "/")
    low, high = claim.size
    said = f"{share.mean:.1f} % [{share.low:.1f}, {share.high:.1f}], said to be {low:g} to {high:g} %"
    if share.single:
        return PairVerdict(a, b, share, "inconclusive", f"{said}, one training seed", "/")
    if low <= share.low and share.high <= high:
        return PairVerdict(a, b, share, "agrees", said, "/")
    apart = share.high < low or share.low > high
    return PairVerdict(a, b, share, "differs" if apart else "inconclusive", said, "/")


def _sum_up(pairs: Sequence[PairVerdict]) -> tuple[Verdict, str]:
    """Verdict over all pairs: refuted by one, held by all."""
    count = {verdict: sum(pair.verdict == verdict for pair in pairs) for verdict in VERDICTS}
    gains = [pair.gain.mean for pair in pairs if pair.gain is not None and pair.sign == "-"]
    said = f"holds in {count['agrees']} of {len(pairs)} pairs"
    if gains:
        low, high = f"{min(gains):+.2f}", f"{max(gains):+.2f}"
        said += f", gains {low} to {high}" if low != high else f", gain {low}"
    order: tuple[Verdict, ...] = ("differs", "failed", "not run", "inconclusive", "agrees")
    verdict = next(name for name in order if count[name])
    culprits = [f"{pair.name}: {pair.reason}" for pair in pairs if pair.verdict == verdict]
    if verdict == "agrees":
        return verdict, said
    more = f" (and {len(culprits) - 1} more)" if len(culprits) > 1 else ""
    return verdict, f"{said}; {culprits[0]}{more}"


def _judge_size(
    claim: Claim, table: Table, scale: str, found: Sequence[Estimate | None]
) -> tuple[Verdict, str] | None:
    """The published range of gains against ours: every interval within the range widened by the margin."""
    if claim.size is None:
        return None
    low, high = claim.size
    said = f"published gains {low:+.2f} to {high:+.2f}" if low != high else f"published gain {low:+.2f}"
    if scale in _STAND_INS:
        return "not comparable", f"{said}; {_STAND_INS[scale]}"
    gains = [gain for gain in found if gain is not None]
    if len(gains) < len(found):
        pairs = f"{len(gains)} of {len(found)} pairs measured"
        return "not run", f"{said}; {'a pair is missing' if claim.kind == 'mean' else pairs}"
    if any(gain.single for gain in gains):
        return "inconclusive", f"{said}; one training seed"
    margin, means = table.margin.average, [gain.mean for gain in gains]
    low, high = low - margin, high + margin
    said += f", ours {min(means):+.2f} to {max(means):+.2f}, margin {margin:g}"
    if all(low <= gain.low and gain.high <= high for gain in gains):
        return "agrees", said
    if any(gain.high < low or gain.low > high for gain in gains):
        return "differs", said
    return "inconclusive", said


def _census(rows: Mapping[str, RowVerdict], claims: Sequence[ClaimVerdict]) -> Census:
    cells = [cell for row in rows.values() for cell in row.cells.values()]
    figures = [cell.figure for cell in cells if cell.figure is not None]
    status = {
        name: sum(figure.status == name for figure in figures)
        for name in ("primary", "secondary", "unverified")
    }
    return Census(
        cells=len(cells),
        measured=sum(cell.measured is not None for cell in cells),
        compared=sum(cell.measured is not None and cell.verdict in COMPARED for cell in cells),
        figures=len(figures),
        verified=status["primary"],
        secondary=status["secondary"],
        unverified=status["unverified"],
        unknown=len(cells) - len(figures),
        verdicts={verdict: sum(cell.verdict == verdict for cell in cells) for verdict in VERDICTS},
        claims={verdict: sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS},
    )
