"""Render the committed measurements as results/benchmarks/README.md: ``python -m benchmarks.report``."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from benchmarks import losses, train

FOLDER = Path(__file__).resolve().parents[1] / "results" / "benchmarks"
INTRODUCTION = """\
# Speed and memory, measured

Rendered by `python -m benchmarks.report` from the JSON files beside it; do not edit. Ratios hold within
one run on one machine; times of different runs do not compare.
"""


def render(folder: Path = FOLDER) -> str:
    """The page, from losses.json and train.json."""
    parts = [INTRODUCTION]
    found = json.loads((folder / "losses.json").read_text())
    parts.append("## Losses, one step forward and backward (`python -m benchmarks.losses`)\n")
    parts.append(f"{_machine(found['machine'])}Times: {found['times']}.\n")
    rows = [losses.read_measurement(row) for row in found["measurements"]]
    for shape, group in itertools.groupby(rows, key=lambda row: row.shape):
        measured = list(group)
        parts.append(f"### {shape}\n\n{losses.table(measured)}\n{_bound(measured)}")
    found = json.loads((folder / "train.json").read_text())
    task = found["task"]
    parts.append("## Training end to end (`python -m benchmarks.train`)\n")
    parts.append(
        f"{task['teacher']} -> {task['student']}, {task['examples']} examples of {task['data']}, "
        f"{task['epochs']} epochs, batch {task['batch']}, bf16. {_machine(found['machine'])}"
    )
    parts.append(train.table([train.Measurement(**row) for row in found["measurements"]]) + "\n")
    return "\n".join(parts)


def _bound(rows: list[losses.Measurement]) -> str:
    """What no computation of this loss can beat, where that was measured."""
    seconds = {row.kind: row.seconds for row in rows}
    if losses.PRODUCTS not in seconds:
        return ""
    floor = seconds[losses.PRODUCTS]
    return (
        f"\nThe matrix products alone are {floor / seconds['ours']:.0%} of ours. With nothing else to do, a "
        f"step would be {seconds['response-only'] / floor:.2f} times faster than response-only.\n"
    )


def _machine(facts: dict[str, Any]) -> str:
    bf16 = "with" if facts["bf16"] else "without"
    return (
        f"{facts['processor']}, {facts['threads']} threads, {bf16} AVX-512 bf16, load {facts['load']:.1f} at "
        f"the end, torch {facts['torch']}.\n"
    )


if __name__ == "__main__":
    (FOLDER / "README.md").write_text(render(), encoding="utf-8")
