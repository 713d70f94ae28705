"""Markdown that says what it is given, whatever that holds."""

from __future__ import annotations

import re
from collections.abc import Sequence


def escaped(text: str) -> str:
    """Words of our own: nothing in them is emphasis, code or HTML."""
    return re.sub(r"([\\|*_<>`~])", r"\\\1", text)


def foreign(text: str) -> str:
    """Words of somebody else: nothing in them is a link, an image or an entity either."""
    return re.sub(r"([\[\]()!&#])", r"\\\1", escaped(text))


def code(text: str) -> str:
    """A name as code; what would end the code, the cell of a table or the line is a question mark."""
    return "`" + "".join(c if c.isprintable() and c not in "`|" else "?" for c in text) + "`"


def table(head: Sequence[str], body: Sequence[Sequence[str]], words: int = 1) -> str:
    """A pipe table; the first ``words`` columns stand to the left, the others to the right."""
    rule = [*["---"] * words, *["---:"] * (len(head) - words)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *body))


def padded(table: str) -> str:
    """The same table with its columns under one another, for a terminal."""
    rows = [line[2:-2].split(" | ") for line in table.splitlines()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [cell.endswith(":") for cell in rows[1]]
    rows[1] = ["-" * (width - end) + ":" * end for width, end in zip(widths, right, strict=True)]
    for row in rows:
        cells = zip(row, widths, right, strict=True)
        row[:] = [cell.rjust(width) if end else cell.ljust(width) for cell, width, end in cells]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
