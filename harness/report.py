"""A judged table as text: terminal, Markdown, CSV, LaTeX or JSON; ours beside published, with verdicts.

Published figures that are not primary carry a mark wherever they appear: ``?`` unverified, ``†`` secondary,
``‡`` under another protocol than the table's own.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table as Grid

from harness import verdict
from harness.statistics import Estimate
from harness.tables import AVERAGE, Figure, Table
from harness.verdict import CellVerdict, Census, ClaimVerdict, Entry, RowVerdict, TableVerdict

FORMATS = ("terminal", "md", "csv", "tex", "json")

#: One character for each verdict.
MARKS = {
    "agrees": "=",
    "differs": "≠",
    "inconclusive": "~",
    "not comparable": "–",
    "not run": "·",
    "failed": "!",
}

#: What a verdict means for a claim.
CLAIM_WORDS = {"agrees": "agrees: holds", "differs": "differs: does not hold"}

SIDES = {"same": "Same vocabulary", "cross": "Different vocabularies"}

_COSTS = ("gap %", "seed sd", "decoding sd", "seeds", "train s", "decode s", "tok/s", "peak MB")


def render(
    table: Table,
    scale: str,
    cells_by_row: Mapping[str, Sequence[Entry]],
    pairs_info: Mapping[str, str] | None = None,
    format: str = "terminal",
    width: int | None = None,
    *,
    color: bool = False,
) -> str:
    """Judge a table and render it.

    ``cells_by_row`` as in verdict.judge; ``pairs_info`` maps a side to words about its pair; ``width`` in
    characters counts for the terminal only. Raises ValueError for an unknown format.
    """
    return render_verdict(verdict.judge(table, scale, cells_by_row), pairs_info, format, width, color=color)


def render_verdict(
    result: TableVerdict,
    pairs_info: Mapping[str, str] | None = None,
    format: str = "terminal",
    width: int | None = None,
    *,
    color: bool = False,
) -> str:
    """Render a table that is judged already."""
    page = _page(result, pairs_info or {})
    writers: dict[str, Callable[[], str]] = {
        "terminal": lambda: _terminal(page, width or 100, color),
        "md": lambda: _markdown(page),
        "csv": lambda: _csv(result),
        "tex": lambda: _latex(page),
        "json": lambda: json.dumps(as_dict(result, pairs_info or {}), indent=1, ensure_ascii=False) + "\n",
    }
    if format not in writers:
        raise ValueError(f"no format {format!r}; known: {', '.join(FORMATS)}")
    return writers[format]()


def path(results: Path, scale: str, table: str) -> Path:
    """Where the Markdown rendering of a table lies: ``results/tables/<scale>-<table>.md``."""
    return results / "tables" / f"{scale}-{table}.md"


# what every text format shows


@dataclass(frozen=True)
class _Text:
    """A cell in words."""

    ours: str
    interval: str
    published: str
    mark: str
    best: bool


@dataclass(frozen=True)
class _Line:
    label: str
    method: str
    cells: Mapping[str, _Text]
    costs: tuple[str, ...]
    reason: str  #: why the row is not, or only partly, there


@dataclass(frozen=True)
class _Block:
    side: str
    heading: str
    lines: tuple[_Line, ...]


@dataclass(frozen=True)
class _Page:
    title: str
    table: Table
    scale: str
    blocks: tuple[_Block, ...]
    claims: tuple[ClaimVerdict, ...]
    notes: tuple[str, ...]
    census: str


def _page(result: TableVerdict, pairs_info: Mapping[str, str]) -> _Page:
    table = result.table
    blocks = tuple(_block(result, side, pairs_info.get(side, "")) for side in table.sides)
    title = f"Table {table.id}, {result.scale}: {table.title}"
    notes = (*_row_notes(result), *_legend(result))
    return _Page(title, table, result.scale, blocks, result.claims, notes, census_line(result.census))


def _block(result: TableVerdict, side: str, info: str) -> _Block:
    table = result.table
    rows = [row for row in result.rows.values() if row.row.side == side]
    best = {column: _best(rows, column) for column in table.columns}
    lines = tuple(
        _Line(
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
    return _Block(side, f"{SIDES[side]}, {about}" + (f" ({info})" if info else ""), lines)


def _best(rows: Sequence[RowVerdict], column: str) -> set[str]:
    """Keys of the trained rows with the highest printed mean; none where only one was measured."""
    means = {}
    for row in rows:
        measured = row.cells[column].measured
        if row.row.trained and measured is not None:
            means[row.row.key] = round(measured.mean, 2)
    return {key for key, mean in means.items() if mean == max(means.values())} if len(means) > 1 else set()


def _text(row: RowVerdict, cell: CellVerdict, best: bool) -> _Text:
    measured = cell.measured
    ours = f"{measured.mean:.2f}" if measured else cell.verdict
    interval = f"[{measured.low:.2f}, {measured.high:.2f}]" if measured else ""
    return _Text(ours, interval, _figure(row, cell.figure), MARKS[cell.verdict], best)


def _figure(row: RowVerdict, figure: Figure | None) -> str:
    """A published number with the marks it must carry; ``unknown`` if nobody has read it, else ``none``."""
    if figure is None:
        return "unknown" if row.row.published and row.published is None else "none"
    mark = {"primary": "", "secondary": "†", "unverified": "?"}[figure.status]
    other = "‡" if row.published and row.published.unlike else ""
    return f"{figure.value:.2f}{mark}{other}"


def _costs(row: RowVerdict) -> tuple[str, ...]:
    average, cost = row.cells[AVERAGE].measured, row.cost
    if average is None or cost is None:
        return ("",) * len(_COSTS)
    return (
        _share(row.recovered),
        _number(average.training_spread, 2),
        _number(average.decoding_spread, 2),
        f"{average.runs}/{row.planned}" if average.trained else "",
        _number(cost.train_seconds, 0),
        _number(cost.decode_seconds, 0),
        _number(cost.tokens_per_second, 0),
        _number(cost.peak_rss_mb, 0),
    )


def _number(value: float | None, places: int) -> str:
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
    data = sorted({state for row in result.rows.values() for state in row.data})
    return notes + ([f"training data: {'; '.join(data)}"] if data else [])


def _legend(result: TableVerdict) -> list[str]:
    margin = result.table.margin
    reasons = {
        cell.reason
        for row in result.rows.values()
        for cell in row.cells.values()
        if cell.verdict == "not comparable" and cell.measured
    }
    return [
        "Verdicts: " + ", ".join(f"{mark} {word}" for word, mark in MARKS.items()),
        f"Not comparable because: {'; '.join(sorted(reasons))}" if reasons else "",
        "Published: ? unverified, † secondary, ‡ another protocol; unmarked ones were read at their source",
        "Brackets: 95 % interval over examples and training seeds. Both sd are of the average",
        f"Margin: {margin.points:g} points a suite, {margin.average:g} the average. {margin.why}",
        "Gap %: (row - student before training) / (teacher - student before training)",
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


def _claim_words(claim: ClaimVerdict) -> str:
    return CLAIM_WORDS.get(claim.verdict, claim.verdict)


def _claim_source(claim: ClaimVerdict) -> str:
    return (
        claim.claim.source if claim.claim.status == "ours" else f"{claim.claim.source} ({claim.claim.status})"
    )


# terminal


def _terminal(page: _Page, width: int, color: bool) -> str:
    """All columns where they fit, else the average alone, else one short paragraph a row."""
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=width,
        force_terminal=color,
        no_color=not color,
        highlight=False,
        legacy_windows=False,
    )
    console.print(f"[bold]{escape(page.title)}[/]")
    for block in page.blocks:
        console.print()
        console.print(f"[bold]{escape(block.heading)}[/]")
        if width >= 28 + 17 * len(page.table.columns):
            console.print(_grid_full(page, block))
        elif width >= 76:
            console.print(_grid_average(block))
        else:
            _stack(console, block)
        if width >= 100 and any(any(line.costs) for line in block.lines):
            console.print(_grid_costs(block))
    _terminal_foot(console, page)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _starred(cell: _Text) -> str:
    return f"[bold]{cell.ours}*[/]" if cell.best else cell.ours


def _grid_full(page: _Page, block: _Block) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("row", overflow="fold", max_width=26)
    for column in page.table.columns:
        grid.add_column(column, justify="right", no_wrap=True)
    for line in block.lines:
        cells = (line.cells[column] for column in page.table.columns)
        texts = [
            "\n".join(
                part for part in (_starred(c), escape(c.interval), f"[dim]{c.published} {c.mark}[/]") if part
            )
            for c in cells
        ]
        grid.add_row(escape(line.label), *texts)
    return grid


def _grid_average(block: _Block) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("row", overflow="fold")
    for heading in ("avg", "95 % interval", "published", "verdict", "gap %"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for line in block.lines:
        c = line.cells[AVERAGE]
        grid.add_row(
            escape(line.label), _starred(c), escape(c.interval), c.published, c.mark, escape(line.costs[0])
        )
    return grid


def _stack(console: Console, block: _Block) -> None:
    for line in block.lines:
        c = line.cells[AVERAGE]
        console.print(escape(line.label))
        console.print(Padding(f"avg {_starred(c)} {escape(c.interval)}".rstrip(), (0, 0, 0, 2)))
        console.print(Padding(f"published {c.published}  verdict {c.mark}", (0, 0, 0, 2)))


def _grid_costs(block: _Block) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("spread and cost", overflow="fold")
    for heading in _COSTS:
        grid.add_column(heading, justify="right", no_wrap=True)
    for line in block.lines:
        if any(line.costs):
            grid.add_row(escape(line.label), *map(escape, line.costs))
    return grid


def _terminal_foot(console: Console, page: _Page) -> None:
    if page.claims:
        console.print("\n[bold]Claims[/]")
    for claim in page.claims:
        console.print(f"{MARKS[claim.verdict]} [bold]{_claim_words(claim)}[/]  {escape(claim.claim.text)}")
        console.print(Padding(escape(claim.reason), (0, 0, 0, 2)))
        if claim.size:
            console.print(Padding(escape(f"size {claim.size[0]}: {claim.size[1]}"), (0, 0, 0, 2)))
        console.print(Padding(escape(_claim_source(claim)), (0, 0, 0, 2)), style="dim")
    console.print()
    console.print(escape(page.census))
    for note in filter(None, page.notes):
        console.print(escape(note), style="dim")


# Markdown


def _markdown(page: _Page) -> str:
    parts = [f"# {_md(page.title)}\n"]
    for block in page.blocks:
        columns = page.table.columns
        head = ["row", *columns]
        body = [
            [_md(line.label), *(_md_cell(line.cells[column]) for column in columns)] for line in block.lines
        ]
        parts += [f"## {_md(block.heading)}\n", _md_table(head, body)]
        costs = [[_md(line.label), *line.costs] for line in block.lines if any(line.costs)]
        if costs:
            parts.append(_md_table(["spread and cost", *_COSTS], costs))
    if page.claims:
        parts.append("## Claims\n")
        parts.append("".join(_md_claim(claim) for claim in page.claims))
    parts.append(f"## Census\n\n{_md(page.census)}\n")
    parts.append("".join(f"- {_md(note)}\n" for note in page.notes if note))
    return "\n".join(parts)


def _md(text: str) -> str:
    return re.sub(r"([\\|*_<>`~])", r"\\\1", text)


def _md_cell(cell: _Text) -> str:
    ours = f"**{cell.ours}**" if cell.best else cell.ours
    return f"{ours} {cell.interval}".rstrip() + f"<br>{cell.published} {_md(cell.mark)}"


def _md_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *body))


def _md_claim(claim: ClaimVerdict) -> str:
    lines = [f"- **{_claim_words(claim)}**: {_md(claim.claim.text)}. {_md(claim.reason)}."]
    if claim.size:
        lines.append(f"  Size {claim.size[0]}: {_md(claim.size[1])}.")
    lines.append(f"  Source: {_md(_claim_source(claim))}.")
    lines += [
        f"  - {MARKS[p.verdict]} {_md(p.a)} - {_md(p.b)}: {_md(p.reason)}".replace("- ~", "- \\~")
        for p in claim.pairs
    ]
    return "\n".join(lines) + "\n"


# LaTeX (needs booktabs)

_TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: f"${character}$" for character in "=<>"},
    **{"\\": r"\textbackslash{}", "~": r"$\sim$", "^": r"\^{}", "≠": r"$\neq$", "–": "--", "·": r"$\cdot$"},
    **{"†": r"$^\dagger$", "‡": r"$^\ddagger$"},
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _latex(page: _Page) -> str:
    columns = page.table.columns
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering\\small",
        f"\\begin{{tabular}}{{l{'r' * len(columns)}}}",
        "\\toprule",
        f"row & {' & '.join(map(_tex, columns))} \\\\",
    ]
    for block in page.blocks:
        heading = f"\\multicolumn{{{len(columns) + 1}}}{{l}}{{\\emph{{{_tex(block.heading)}}}}} \\\\"
        lines += ["\\midrule", heading]
        for line in block.lines:
            cells = [line.cells[column] for column in columns]
            lines.append(" & ".join([_tex(line.label), *map(_tex_ours, cells)]) + " \\\\")
            published = (f"{{\\scriptsize {_tex(f'{cell.published} {cell.mark}')}}}" for cell in cells)
            lines.append(" & ".join(["\\quad{\\scriptsize published}", *published]) + " \\\\")
    lines += [
        "\\bottomrule",
        "\\end{tabular}",
        f"\\caption{{{_tex(page.title)}. {_tex(page.census)}}}",
        "\\end{table}",
    ]
    if page.claims:
        lines.append("\\begin{itemize}")
        for claim in page.claims:
            said = f"{_tex(claim.claim.text)}. {_tex(claim.reason)}."
            lines.append(f"\\item \\textbf{{{_tex(_claim_words(claim))}}}: {said}")
            if claim.size:
                lines.append(f"Size {_tex(claim.size[0])}: {_tex(claim.size[1])}.")
            lines.append(f"Source: {_tex(_claim_source(claim))}.")
        lines.append("\\end{itemize}")
    lines += [f"\\par\\noindent{{\\footnotesize {_tex(note.rstrip('.'))}.}}" for note in page.notes if note]
    return "\n".join(lines) + "\n"


def _tex_ours(cell: _Text) -> str:
    ours = f"\\textbf{{{_tex(cell.ours)}}}" if cell.best else _tex(cell.ours)
    return f"{ours} {{\\scriptsize {cell.interval}}}" if cell.interval else ours


# CSV and JSON

_CSV = (
    *("kind", "table", "scale", "pair", "side", "row", "method", "column", "measured", "low", "high"),
    *("runs", "items", "training_sd", "decoding_sd"),
    *("published", "published_status", "published_source", "verdict", "reason"),
)


def _csv(result: TableVerdict) -> str:
    """One line per cell, then one per claim (``row`` holds its id) and one per pair of rows of a claim."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _CSV, restval="", lineterminator="\n")
    writer.writeheader()
    base = {"table": result.table.id, "scale": result.scale}
    for row in result.rows.values():
        about = {"pair": row.pair or "", "side": row.row.side, "row": row.row.label, "method": row.row.method}
        for cell in row.cells.values():
            writer.writerow({**base, "kind": "cell", **about, **_csv_cell(cell)})
    for claim in result.claims:
        said = {"verdict": claim.verdict, "reason": claim.reason, "published_status": claim.claim.status}
        writer.writerow({**base, "kind": "claim", "row": claim.claim.id, "column": AVERAGE, **said})
        for pair in claim.pairs:
            said = {
                "row": claim.claim.id,
                "method": f"{pair.a} - {pair.b}",
                "verdict": pair.verdict,
                "reason": pair.reason,
            }
            writer.writerow({**base, "kind": "pair", "column": AVERAGE, **said, **_csv_estimate(pair.gain)})
    return buffer.getvalue()


def _csv_cell(cell: CellVerdict) -> dict[str, Any]:
    figure = cell.figure
    return {
        "column": cell.column,
        **_csv_estimate(cell.measured),
        "published": figure.value if figure else "",
        "published_status": figure.status if figure else "",
        "published_source": figure.source if figure else "",
        "verdict": cell.verdict,
        "reason": cell.reason,
    }


def _csv_estimate(estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {}
    return {
        "measured": _number(estimate.mean, 4),
        "low": _number(estimate.low, 4),
        "high": _number(estimate.high, 4),
        "runs": estimate.runs,
        "items": estimate.items,
        "training_sd": _number(estimate.training_spread, 4),
        "decoding_sd": _number(estimate.decoding_spread, 4),
    }


def as_dict(result: TableVerdict, pairs_info: Mapping[str, str]) -> dict[str, Any]:
    """The whole judged table as plain data."""
    table = result.table
    return {
        "table": table.id,
        "title": table.title,
        "scale": result.scale,
        "pairs": {
            side: {"name": table.pair(result.scale, side), "about": pairs_info.get(side, "")}
            for side in table.sides
        },
        "margin": asdict(table.margin),
        "rows": [_row_dict(row) for row in result.rows.values()],
        "claims": [asdict(claim) for claim in result.claims],
        "census": asdict(result.census),
    }


def _row_dict(row: RowVerdict) -> dict[str, Any]:
    return {
        **asdict(row.row),
        "pair": row.pair,
        "state": row.state,
        "reason": row.reason,
        "planned": row.planned,
        "cells": {column: asdict(cell) for column, cell in row.cells.items()},
        "unlike": row.published.unlike if row.published else "",
        "recovered_percent": asdict(row.recovered) if row.recovered else None,
        "cost": asdict(row.cost) if row.cost else None,
        "data": list(row.data),
    }
