"""The form of a finding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """An ``error`` keeps cells from running, a ``warning`` moves numbers, a ``note`` is good to know."""

    severity: Severity
    about: str  #: the model, file or machine concerned
    reason: str
    remedy: str
    cells: frozenset[str] = frozenset()  #: ids of the cells concerned

    def concerns(self, cell: str) -> bool:
        """Whether it is about a cell; one without cells is about all."""
        return not self.cells or cell in self.cells

    def __str__(self) -> str:
        return f"{self.about}: {self.reason}; {self.remedy}"


def size(count: float) -> str:
    """Bytes as a person says it."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"
