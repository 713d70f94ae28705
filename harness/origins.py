"""Where models and data of cells come from on this machine: for ``--dry-run`` and a record's provenance.

Two machines may have the same files by different ways, so none of this is part of what two runs of a cell
must agree on; the hashes in the record are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dskd.method import MethodError
from harness.cells import Cell
from harness.locate import TRAINING_FILES
from harness.pairs import PairSpec
from harness.plan import Plan, Step, model_refs


def of_cell(cell: Cell, pair: PairSpec, cache: Path, data: Path | None) -> dict[str, list[dict[str, Any]]]:
    """Kind (local, package, hub or built) and revision of every model and data file of a cell."""
    refs = model_refs(cell.method, pair)
    if cell.scale == "tiny":
        return {"models": [{"ref": ref, "kind": "built"} for ref in refs], "data": []}
    from harness import sources

    models = [sources.resolve(ref, cache) for ref in refs]
    files = sources.data_files(list(_files([cell])), cache, data)
    return {
        "models": [{"ref": found.ref, "kind": found.kind, "revision": found.revision} for found in models],
        "data": [{"name": file.name, "kind": file.kind, "sha256": file.sha256} for file in files],
    }


def lines(plan: Plan) -> Iterator[str]:
    """One line for each model and data file of a plan: what it is and where, or how to get it."""
    if plan.request.scale == "tiny":
        return
    from harness import sources

    for ref in dict.fromkeys(ref for step in plan.steps for ref in _refs(step)):
        yield str(sources.resolve(ref, plan.request.cache))
    names = list(_files(step.cell for step in plan.steps))
    for file in sources.data_files(names, plan.request.cache, plan.request.data):
        yield str(file)


def _refs(step: Step) -> tuple[str, ...]:
    try:
        return model_refs(step.cell.method, step.pair)
    except MethodError:  # refused already, with the reason
        return ()


def _files(cells: Iterable[Cell]) -> Iterator[str]:
    """Names in the data folder, each once; a training file of the user's own is named by its path."""
    from evals import suites

    names = [
        name
        for cell in cells
        for name in (
            *(suites.get(run.name).file for run in cell.suites),
            *([TRAINING_FILES.get(cell.data, cell.data)] if cell.data else []),
        )
    ]
    return iter(dict.fromkeys(name.removesuffix(".jsonl") for name in names))
