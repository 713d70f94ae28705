"""A judged table as text: terminal, Markdown, CSV, LaTeX or JSON; ours beside published, with verdicts."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table as Grid

from harness import flat, latex, markdown, verdict
from harness.markdown import escaped, foreign
from harness.page import COSTS, MARKS, OUTSIDE, Block, Page, Text, claim_source, claim_words, of
from harness.tables import AVERAGE, Table
from harness.verdict import ClaimVerdict, Entry, TableVerdict

FORMATS = ("terminal", "md", "csv", "tex", "json")


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
    info = pairs_info or {}
    page = of(result, info)
    writers: dict[str, Callable[[], str]] = {
        "terminal": lambda: _terminal(page, width or 100, color),
        "md": lambda: _markdown(page),
        "csv": lambda: flat.table(result),
        "tex": lambda: latex.table(page),
        "json": lambda: json.dumps(flat.as_dict(result, info), indent=1, ensure_ascii=False) + "\n",
    }
    if format not in writers:
        raise ValueError(f"no format {format!r}; known: {', '.join(FORMATS)}")
    return writers[format]()


def path(results: Path, scale: str, table: str) -> Path:
    """Where the Markdown rendering of a table lies: ``results/tables/<scale>-<table>.md``."""
    return results / "tables" / f"{scale}-{table}.md"


# terminal


def _terminal(page: Page, width: int, color: bool) -> str:
    """All columns where they fit, else the averages or the one alone, else one short paragraph a row."""
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
        columns, means = page.table.columns, (*page.table.averages, AVERAGE)
        if width >= 28 + 17 * len(columns):
            console.print(_grid_full(block, columns))
        elif page.table.averages and width >= 28 + 17 * len(means):
            console.print(_grid_full(block, means))
        elif width >= 76:
            console.print(_grid_average(block))
        else:
            _stack(console, block)
        if width >= 100 and any(any(line.costs) for line in block.lines):
            console.print(_grid_costs(block))
        _print_outside(console, page, block)
    _terminal_foot(console, page)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _starred(cell: Text) -> str:
    return f"[bold]{cell.ours}*[/]" if cell.best else cell.ours


def _grid_full(block: Block, columns: Sequence[str]) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("row", overflow="fold", max_width=26)
    for column in columns:
        grid.add_column(column, justify="right", no_wrap=True)
    for line in block.lines:
        cells = (line.cells[column] for column in columns)
        texts = [
            "\n".join(
                part for part in (_starred(c), escape(c.interval), f"[dim]{c.published} {c.mark}[/]") if part
            )
            for c in cells
        ]
        grid.add_row(escape(line.label), *texts)
    return grid


def _grid_average(block: Block) -> Grid:
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


def _stack(console: Console, block: Block) -> None:
    for line in block.lines:
        c = line.cells[AVERAGE]
        console.print(escape(line.label))
        console.print(Padding(f"avg {_starred(c)} {escape(c.interval)}".rstrip(), (0, 0, 0, 2)))
        console.print(Padding(f"published {c.published}  verdict {c.mark}", (0, 0, 0, 2)))


def _grid_costs(block: Block) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    grid.add_column("spread and cost", overflow="fold", min_width=16)
    for heading in COSTS:
        grid.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
    for line in block.lines:
        if any(line.costs):
            grid.add_row(escape(line.label), *map(escape, line.costs))
    return grid


def _print_outside(console: Console, page: Page, block: Block) -> None:
    """Rows from elsewhere, column under column: they may lack any."""
    if block.outside:
        console.print(f"[bold]{OUTSIDE}[/]")
    for row in block.outside:
        said = "  ".join(
            f"{column} {row.cells[column]}" for column in page.table.columns if row.cells[column]
        )
        console.print(escape(row.label), style="italic")
        console.print(Padding(escape(said or "none of these suites"), (0, 0, 0, 2)))
        if row.note:
            console.print(Padding(escape(row.note), (0, 0, 0, 2)), style="dim")


def _terminal_foot(console: Console, page: Page) -> None:
    if page.claims:
        console.print("\n[bold]Claims[/]")
    for claim in page.claims:
        console.print(f"{MARKS[claim.verdict]} [bold]{claim_words(claim)}[/]  {escape(claim.claim.text)}")
        console.print(Padding(escape(claim.reason), (0, 0, 0, 2)))
        if claim.size:
            console.print(Padding(escape(f"size {claim.size[0]}: {claim.size[1]}"), (0, 0, 0, 2)))
        console.print(Padding(escape(claim_source(claim)), (0, 0, 0, 2)), style="dim")
    console.print()
    console.print(escape(page.census))
    for note in filter(None, page.notes):
        console.print(escape(note), style="dim")


# Markdown


def _markdown(page: Page) -> str:
    parts = [f"# {escaped(page.title)}\n"]
    for block in page.blocks:
        columns = page.table.columns
        head = ["row", *columns]
        body = [
            [escaped(line.label), *(_md_cell(line.cells[column]) for column in columns)]
            for line in block.lines
        ]
        parts += [f"## {escaped(block.heading)}\n", markdown.table(head, body)]
        costs = [[escaped(line.label), *line.costs] for line in block.lines if any(line.costs)]
        if costs:
            parts.append(markdown.table(["spread and cost", *COSTS], costs))
        if block.outside:
            rows = [
                [f"*{foreign(row.label)}*", *(row.cells[column] for column in columns), foreign(row.note)]
                for row in block.outside
            ]
            parts.append(markdown.table([OUTSIDE, *columns, "note"], rows))
    if page.claims:
        parts.append("## Claims\n")
        parts.append("".join(_md_claim(claim) for claim in page.claims))
    parts.append(f"## Census\n\n{escaped(page.census)}\n")
    parts.append("".join(f"- {escaped(note)}\n" for note in page.notes if note))
    return "\n".join(parts)


def _md_cell(cell: Text) -> str:
    ours = f"**{cell.ours}**" if cell.best else cell.ours
    return f"{ours} {cell.interval}".rstrip() + f"<br>{cell.published} {escaped(cell.mark)}"


def _md_claim(claim: ClaimVerdict) -> str:
    lines = [f"- **{claim_words(claim)}**: {escaped(claim.claim.text)}. {escaped(claim.reason)}."]
    if claim.size:
        lines.append(f"  Size {claim.size[0]}: {escaped(claim.size[1])}.")
    lines.append(f"  Source: {escaped(claim_source(claim))}.")
    pairs = (f"  - {MARKS[p.verdict]} {escaped(p.name)}: {escaped(p.reason)}" for p in claim.pairs)
    lines += [pair.replace("- ~", "- \\~") for pair in pairs]
    return "\n".join(lines) + "\n"
