"""Scores from stored answers, without a model: to check a record, or to bring it to a suite's new version.

A suite's version is part of a cell's id, so a new version makes a new cell; its record is written from
the answers of the old one, whose decoding does not depend on how answers are scored.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evals import scoring, suites
from evals.suites import Item, Suite
from harness import cell as cells
from harness import locate
from harness.cells import Cell
from harness.provenance import provenance
from harness.store import Store, StoreError

TOLERANCE = 1e-3  #: per-item scores are kept to four decimals


class RescoreError(RuntimeError):
    """Stored answers that cannot be scored, with the reason."""


def differences(cell: Cell, store: Store, root: Path, unsafe: bool = False) -> list[str]:
    """Where a finished cell's answers score otherwise than its record says; a line each."""
    record = store.get(cell.id)
    if record is None:
        raise RescoreError(f"{cell} has no record")
    faults = []
    for name, old in record["scores"].items():
        suite, items = _suite(cell, name, root, old["items_sha256"])
        for seed, run in old["seeds"].items():
            new = scoring.score(suite, items, _texts(store, run, items), allow_unsafe=unsafe).per_item[
                suite.metric
            ]
            moved = sum(abs(a - b) > TOLERANCE for a, b in zip(new, run["per_item"], strict=True))
            if moved:
                mean = sum(new) / len(new)
                said = f"{moved} items differ, mean {run['score']:.2f} -> {mean:.2f}"
                faults.append(f"{cell}, {name}, decoding seed {seed}: {said}")
    return faults


def predecessor(cell: Cell, store: Store) -> dict[str, Any] | None:
    """A finished record that differs from the cell in suite versions only."""
    wanted = _without_suite_versions(cell.as_dict())
    for record in store.all(cell.scale):
        if record["status"] == "done" and _without_suite_versions(record["spec"]) == wanted:
            return record
    return None


def renew(
    cell: Cell, old: Mapping[str, Any], store: Store, root: Path, command: str, unsafe: bool = False
) -> None:
    """Write the cell's record from the answers of ``old``."""
    record = copy.deepcopy({key: value for key, value in old.items() if key != "sha256"})
    made = provenance(command) | {"answers_of": {"cell": old["cell"], "provenance": old["provenance"]}}
    record |= {"cell": cell.id, "spec": cell.as_dict(), "provenance": made, "scores": {}}
    for name, before in old["scores"].items():
        suite, items = _suite(cell, name, root, before["items_sha256"])
        entry = {**before, "metric": suite.metric, "seeds": {}}
        for seed, run in before["seeds"].items():
            texts = _texts(store, run, items)
            result = scoring.score(suite, items, texts, allow_unsafe=unsafe)
            entry["seeds"][seed] = cells.seed_entry(store, cell, name, int(seed), items, texts, result)
        cells.add_pass_at_k(suite, entry)
        record["scores"][name] = entry
    store.put(record)


def data_root(scale: str, cache: Path, data: Path | None) -> Path:
    """The folder of suites that the scale's cells were scored on."""
    return locate.data_root(scale, cache, data)


def _suite(cell: Cell, name: str, root: Path, known: str) -> tuple[Suite, list[Item]]:
    limit = next(run.limit for run in cell.suites if run.name == name)
    suite = suites.get(name)
    items = suites.load(suite, root, limit)
    if suites.items_hash(items) != known:
        raise RescoreError(f"{cell}, {name}: the suite's items are not those that were answered")
    return suite, items


def _texts(store: Store, run: Mapping[str, Any], items: list[Item]) -> list[str]:
    rows = store.read_generations(run["generations"])
    if [row["id"] for row in rows] != [item.id for item in items]:
        raise StoreError(f"{run['generations']['path']} answers other items")
    return [row["text"] for row in rows]


def _without_suite_versions(spec: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = Cell.from_dict(dict(spec)).as_dict()
    for run in plain["suites"]:
        run["version"] = 0
    return plain
