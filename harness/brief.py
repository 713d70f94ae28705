"""A judged table at a glance, in Markdown: its means, and one line for each claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness import markdown
from harness.markdown import escaped
from harness.page import MARKS, PUBLISHED, Block, Line, claim_words, of
from harness.tables import AVERAGE
from harness.verdict import ClaimVerdict, TableVerdict


def render(result: TableVerdict, info: Mapping[str, str], whole: str) -> str:
    """The table; ``info`` maps a side to what is said of its pair, ``whole`` is the file with all of it."""
    page = of(result, info)
    columns = [column for column in page.table.columns if column != AVERAGE]
    parts = [f"**{escaped(page.title)}**\n", *(_block(block, columns) for block in page.blocks)]
    if page.claims:
        parts.append("".join(map(_claim, page.claims)))
    census = result.census
    verdicts = ", ".join(f"{escaped(MARKS[name])} {name}" for name, n in census.verdicts.items() if n)
    parts.append(
        f"{census.measured} of {census.cells} cells measured. Brackets: 95 % interval over examples and "
        f"training seeds. Published: the average, {PUBLISHED}; its verdict: {verdicts}. Gap: share of the "
        f"way from the untrained student to the teacher. All cells, their reasons, costs and claims: "
        f"[{whole}]({whole}).\n"
    )
    return "\n".join(parts)


def _block(block: Block, columns: Sequence[str]) -> str:
    head = ["row", *columns, AVERAGE, "published", "gap %"]
    rows = [_row(line, columns) for line in block.lines]
    return f"{escaped(block.heading)}\n\n{markdown.table(head, rows)}"


def _row(line: Line, columns: Sequence[str]) -> list[str]:
    means = [_bold(line.cells[column].ours, line.cells[column].best) for column in columns]
    average = line.cells[AVERAGE]
    mean = f"{_bold(average.ours, average.best)} {average.interval}".rstrip()
    return [escaped(line.label), *means, mean, f"{average.published} {escaped(average.mark)}", line.costs[0]]


def _bold(text: str, best: bool) -> str:
    return f"**{text}**" if best else text


def _claim(claim: ClaimVerdict) -> str:
    how = claim.reason.partition(";")[0]
    return f"- **{claim_words(claim)}**: {escaped(claim.claim.text)} ({escaped(how)})\n"
