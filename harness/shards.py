"""A share of a grid's cells, for machines that do not talk to each other (an array of SLURM, say)."""

from __future__ import annotations

from dataclasses import dataclass


class ShardError(ValueError):
    """A share that does not exist."""


@dataclass(frozen=True)
class Shard:
    """Share ``number`` of ``count``, counted from 1.

    A cell's share depends on its id and the count alone: neither on the other cells of the request nor on
    what is finished, so that every machine may plan for itself and no cell falls to two or to none.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``2/8``. Raises ShardError for anything that is no share."""
        parts = text.split("/")
        if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
            raise ShardError(f"{text!r} is no share such as 2/8")
        number, count = map(int, parts)
        if not 1 <= number <= count:
            raise ShardError(f"{text}: shares of {count} are numbered from 1 to {count}")
        return cls(number, count)

    def holds(self, cell_id: str) -> bool:
        """Whether a cell (sixteen hex digits) is in this share."""
        return int(cell_id, 16) % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"
