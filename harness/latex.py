"""A judged table as LaTeX. The document needs ``booktabs`` and ``adjustbox``."""

from __future__ import annotations

from collections.abc import Sequence

from harness.page import COSTS, OUTSIDE, Block, Page, Text, claim_source, claim_words

PACKAGES = ("booktabs", "adjustbox")

_SIGNS = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: f"${character}$" for character in "=<>"},
    **{"\\": r"\textbackslash{}", "~": r"$\sim$", "^": r"\^{}", "≠": r"$\neq$", "–": "--", "·": r"$\cdot$"},
    **{"†": r"$^\dagger$", "‡": r"$^\ddagger$", "≤": r"$\leq$"},
}


def escaped(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(_SIGNS.get(character, character) for character in text)


def table(page: Page) -> str:
    """The scores, then spread and cost, then claims, census and notes."""
    lines = [f"% needs {''.join(f'{chr(92)}usepackage{{{name}}}' for name in PACKAGES)}"]
    lines += _float(_scores(page), f"{page.title}. Sub- and superscripts: 95 % interval.")
    if any(any(line.costs) for block in page.blocks for line in block.lines):
        lines += _float(_costs(page), f"{page.title}: spread and cost.")
    lines += _claims(page)
    notes = (page.census, *page.notes)
    lines += [f"\\par\\noindent{{\\footnotesize {escaped(note.rstrip('.'))}.}}" for note in notes if note]
    return "\n".join(lines) + "\n"


def _float(tabular: list[str], caption: str) -> list[str]:
    """A table that shrinks to the page where it must."""
    return [
        "\\begin{table}",
        "\\centering\\small",
        "\\begin{adjustbox}{max width=\\textwidth, max totalheight=0.9\\textheight}",
        *tabular,
        "\\end{adjustbox}",
        f"\\caption{{{escaped(caption)}}}",
        "\\end{table}",
    ]


def _tabular(heads: Sequence[str], blocks: Sequence[tuple[str, list[list[str]]]]) -> list[str]:
    """Rows of ready LaTeX under headings that span the table."""
    lines = [
        f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        "\\toprule",
        f"{' & '.join(map(escaped, heads))} \\\\",
    ]
    for heading, rows in blocks:
        spanning = f"\\multicolumn{{{len(heads)}}}{{l}}{{\\emph{{{escaped(heading)}}}}} \\\\"
        lines += ["\\midrule", spanning, *(f"{' & '.join(cells)} \\\\" for cells in rows)]
    return [*lines, "\\bottomrule", "\\end{tabular}"]


def _scores(page: Page) -> list[str]:
    columns = page.table.columns

    def rows(block: Block) -> list[list[str]]:
        found = []
        for line in block.lines:
            cells = [line.cells[column] for column in columns]
            found.append([escaped(line.label), *map(_ours, cells)])
            published = [f"{{\\scriptsize {escaped(f'{cell.published} {cell.mark}')}}}" for cell in cells]
            found.append(["\\quad{\\scriptsize published}", *published])
        return found

    blocks = []
    for block in page.blocks:
        blocks.append((block.heading, rows(block)))
        outside = [
            [f"\\emph{{{escaped(row.label)}}}", *(_interval("", row.cells[column]) for column in columns)]
            for row in block.outside
        ]
        blocks += [(OUTSIDE, outside)] if outside else []
    return _tabular(["row", *columns], blocks)


def _ours(cell: Text) -> str:
    mean = f"\\textbf{{{escaped(cell.ours)}}}" if cell.best else escaped(cell.ours)
    return _interval(mean, cell.interval)


def _interval(mean: str, interval: str) -> str:
    """A mean with ``[low, high]`` as sub- and superscript; the mean may stand before the bracket."""
    before, _, inside = interval.partition("[")
    if not inside:
        return mean
    low, high = inside.rstrip("]").split(", ")
    return f"{mean}{before.strip()}$_{{{low}}}^{{{high}}}$"


def _costs(page: Page) -> list[str]:
    def rows(block: Block) -> list[list[str]]:
        lines = [line for line in block.lines if any(line.costs)]
        return [[escaped(line.label), *map(escaped, line.costs)] for line in lines]

    return _tabular(["row", *COSTS], [(block.heading, rows(block)) for block in page.blocks])


def _claims(page: Page) -> list[str]:
    if not page.claims:
        return []
    lines = ["\\begin{itemize}"]
    for claim in page.claims:
        said = f"{escaped(claim.claim.text)}. {escaped(claim.reason)}."
        lines.append(f"\\item \\textbf{{{escaped(claim_words(claim))}}}: {said}")
        if claim.size:
            lines.append(f"Size {escaped(claim.size[0])}: {escaped(claim.size[1])}.")
        lines.append(f"Source: {escaped(claim_source(claim))}.")
    return [*lines, "\\end{itemize}"]
