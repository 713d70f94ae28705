"""Training texts of several lengths, with letters beyond ASCII and a line break."""

from __future__ import annotations

from harness.examples import Example


def examples(count: int) -> list[Example]:
    """``count`` examples whose responses repeat their lengths every five."""
    return [
        Example(
            str(n),
            f"### Instruction:\nName item {n}.\n\n### Response:\n",
            "geese " * (n % 5 + 1) + "naïve\nboats",
        )
        for n in range(count)
    ]
