"""A judged table in words: what every text format of it shows, marks and notes included.

Published figures that are not primary carry a mark wherever they appear: ``?`` unverified, ``†`` secondary,
``‡`` under another protocol than the table's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evals import programs, suites
from harness.statistics import Estimate
from harness.tables import AVERAGE, Figure, Table
from harness.verdict import CellVerdict, Census, ClaimVerdict, External, RowVerdict, TableVerdict

#: One character for each verdict.
MARKS = {
    "agrees": "=",
    "differs": "≠",
    "inconclusive": "~",
    "not comparable": "–",
    "not run": "·",
    "failed": "!",
}

#: Above rows from elsewhere.
OUTSIDE = "external: not measured here, counted nowhere"

#: What a verdict means for a claim.
CLAIM_WORDS = {"agrees": "agrees: holds", "differs": "differs: does not hold"}

#: Marks of a published figure.
PUBLISHED = "? unverified, † secondary, ‡ another protocol"

SIDES = {"same": "Same vocabulary", "cross": "Different vocabularies"}

COSTS = (
    *("gap %", "seed sd", "decoding sd", "seeds", "train s", "decode s", "tok/s", "peak MB"),
    "passes",
)


@dataclass(frozen=True)
class Text:
    """A cell in words."""

    ours: str
    interval: str
    published: str
    mark: str
    best: bool


@dataclass(frozen=True)
class Line:
    """A row in words."""

    label: str
    method: str
    cells: Mapping[str, Text]
    costs: tuple[str, ...]
    reason: str  #: why the row is not, or only partly, there


@dataclass(frozen=True)
class Outside:
    """A row from elsewhere in words."""

    label: str  #: row and source
    cells: Mapping[str, str]  #: mean and interval by column; empty where it has none
    note: str


@dataclass(frozen=True)
class Block:
    """The rows of one side."""

    side: str
    heading: str
    lines: tuple[Line, ...]
    outside: tuple[Outside, ...] = ()


@dataclass(frozen=True)
class Page:
    """A whole table in words."""

    title: str
    table: Table
    scale: str
    blocks: tuple[Block, ...]
    claims: tuple[ClaimVerdict, ...]
    notes: tuple[str, ...]
    census: str


def of(result: TableVerdict, pairs_info: Mapping[str, str]) -> Page:
    """A table in words; ``pairs_info`` maps a side to what is said of its pair."""
    table = result.table
    blocks = tuple(_block(result, side, pairs_info.get(side, "")) for side in table.sides)
    title = f"Table {table.id}, {result.scale}: {table.heading(result.scale)}"
    notes = (*_row_notes(result), *_legend(result))
    return Page(title, table, result.scale, blocks, result.claims, notes, census_line(result.census))


def _block(result: TableVerdict, side: str, info: str) -> Block:
    table = result.table
    rows = [row for row in result.rows.values() if row.row.side == side]
    best = {column: _best(rows, column) for column in table.columns}
    lines = tuple(
        Line(
            row.row.label,
            row.row.method,
            {column: _text(row, row.cells[column], row.row.key in best[column]) for column in table.columns},
            _costs(row),
            row.reason,
        )
        for row in rows
    )
    pair = table.pair(result.scale, side)
    about = pair or f"not run: {table.absent[result.scale].get(side, '')}"
    outside = tuple(_outside(each, table) for each in result.external if each.row.side == side)
    return Block(side, f"{SIDES[side]}, {about}" + (f" ({info})" if info else ""), lines, outside)


def _outside(external: External, table: Table) -> Outside:
    cells = dict.fromkeys(table.columns, "")
    for column, estimate in external.cells.items():
        cells[column] = f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
    seeds = f"seeds {', '.join(map(str, external.seeds))}" if external.row.trained else ""
    note = "; ".join(part for part in (seeds, external.unlike) if part)
    return Outside(f"{external.row.label} (external: {external.source})", cells, note)


def _best(rows: Sequence[RowVerdict], column: str) -> set[str]:
    """Keys of the trained rows with the highest printed mean; none where all of them have it."""
    means = {}
    for row in rows:
        measured = row.cells[column].measured
        if row.row.trained and measured is not None:
            means[row.row.key] = round(measured.mean, 2)
    best = {key for key, mean in means.items() if mean == max(means.values())}
    return best if len(best) < len(means) else set()


def _text(row: RowVerdict, cell: CellVerdict, best: bool) -> Text:
    measured = cell.measured
    ours = f"{measured.mean:.2f}" if measured else cell.verdict
    interval = f"[{measured.low:.2f}, {measured.high:.2f}]" if measured else ""
    return Text(ours, interval, published(row, cell.figure), MARKS[cell.verdict], best)


def published(row: RowVerdict, figure: Figure | None) -> str:
    """A published number with the marks it must carry; ``unknown`` if nobody has read it, else ``none``."""
    if figure is None:
        return "unknown" if row.row.published and row.published is None else "none"
    mark = {"primary": "", "secondary": "†", "unverified": "?"}[figure.status]
    other = "‡" if row.published and row.published.unlike else ""
    return f"{figure.value:.2f}{mark}{other}"


def _costs(row: RowVerdict) -> tuple[str, ...]:
    average, cost = row.cells[AVERAGE].measured, row.cost
    if average is None or cost is None:
        return ("",) * len(COSTS)
    return (
        _share(row.recovered),
        number(average.training_spread, 2),
        number(average.decoding_spread, 2),
        f"{average.runs}/{row.planned}" if average.trained else "",
        number(cost.train_seconds, 0) if row.row.trained else "",
        number(cost.decode_seconds, 0),
        number(cost.tokens_per_second, 0) if row.row.trained else "",
        ("≤" if cost.peak_is_bound and cost.peak_rss_mb else "") + number(cost.peak_rss_mb, 0),
        number(cost.teacher_passes, 0) if row.row.trained else "",
    )


def number(value: float | None, places: int) -> str:
    """Rounded; empty where there is none."""
    return "" if value is None else f"{value:.{places}f}"


def _share(share: Estimate | None) -> str:
    return "" if share is None else f"{share.mean:.0f} [{share.low:.0f}, {share.high:.0f}]"


def _row_notes(result: TableVerdict) -> list[str]:
    """Why rows are short, rows with one reason together; and which data stood in for the published."""
    reasons: dict[str, list[str]] = {}
    for row in result.rows.values():
        if row.reason:
            said = {"partial": "partly run", "failed": "failed", "not run": "not run"}[row.state]
            reasons.setdefault(f"{said}: {row.reason}", []).append(f"{row.row.side}/{row.row.label}")
    notes = [f"{', '.join(rows)} {reason}" for reason, rows in reasons.items()]
    notes += [
        f"{row.row.side}/{row.row.label} diverged in training, {'; '.join(row.diverged)}"
        for row in result.rows.values()
        if row.diverged
    ]
    notes += [
        f"{row.row.side}/{row.row.label}, {suite}: {_pass_at_k(row.sample.scores[suite])}"
        for row in result.rows.values()
        if row.sample is not None and not row.sample.greedy
        for suite in result.table.suites
        if suites.get(suite).kind == "code" and row.sample.scores[suite].shape[1] > 1
    ]
    data = sorted({state for row in result.rows.values() for state in row.data})
    return notes + ([f"training data: {'; '.join(data)}"] if data else [])


def _pass_at_k(scores: NDArray[np.float64]) -> str:
    """In words, from (training seeds, decoding seeds, items): means over training seeds."""
    means = [programs.pass_at_ks(runs.tolist()) for runs in scores]
    return ", ".join(f"pass@{k} {sum(mean[k] for mean in means) / len(means):.2f}" for k in means[0])


def _legend(result: TableVerdict) -> list[str]:
    margin = result.table.margin
    bounded = any(row.cost and row.cost.peak_is_bound for row in result.rows.values())
    reasons = {
        cell.reason
        for row in result.rows.values()
        for cell in row.cells.values()
        if cell.verdict == "not comparable" and cell.measured
    }
    means = "; ".join(f"{name}: {', '.join(of)}" for name, of in result.table.averages.items())
    kept = "Numbers are percent of the teacher's score on the suite, averages the mean of these over suites"
    return [
        kept if result.table.value == "retention" else "",
        f"Averages over some suites: {means}" if means else "",
        "Verdicts: " + ", ".join(f"{mark} {word}" for word, mark in MARKS.items()),
        f"Not comparable because: {'; '.join(sorted(reasons))}" if reasons else "",
        f"Published: {PUBLISHED}; unmarked ones were read at their source",
        "Brackets: 95 % interval over examples and training seeds",
        "Both sd are of the average; a decoding sd takes two decoding seeds or more",
        f"Margin: {margin.points:g} points a suite, {margin.average:g} the average. {margin.why}",
        "Gap %: (row - student before training) / (teacher - student before training)",
        "Cost: means over seeds. Passes: of the teacher over the training texts, shared between cells",
        "Peak after ≤ is of a process that had run other cells before" if bounded else "",
    ]


def census_line(census: Census) -> str:
    """How much of the table stands on what, in one sentence each."""
    verdicts = ", ".join(f"{count} {name}" for name, count in census.verdicts.items() if count)
    claims = ", ".join(f"{count} {name}" for name, count in census.claims.items() if count)
    return (
        f"{census.measured} of {census.cells} cells measured, "
        f"{census.compared} compared with a published figure. "
        f"{census.figures} published values, {census.verified} of them verified at source "
        f"({census.secondary} secondary, {census.unverified} unverified); "
        f"{census.unknown} cells have none that is known. "
        f"Cells: {verdicts or 'none'}. Claims: {claims or 'none'}."
    )


def claim_words(claim: ClaimVerdict) -> str:
    """The verdict as it reads for a claim."""
    return CLAIM_WORDS.get(claim.verdict, claim.verdict)


def claim_source(claim: ClaimVerdict) -> str:
    """Where a claim is from, with the status of that source unless it is our own question."""
    return (
        claim.claim.source if claim.claim.status == "ours" else f"{claim.claim.source} ({claim.claim.status})"
    )
