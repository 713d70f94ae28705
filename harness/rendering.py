"""Tables from the records alone: judged, and rendered as the files that are kept under ``results/``.

What is kept does not depend on the machine: it is made as if no model and no data were here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import external, figure, methods, pairs, plan, report, run, tables, verdict
from harness.files import write_whole
from harness.plan import Plan, Request
from harness.pool import Outcome
from harness.store import Store
from harness.tables import Table
from harness.verdict import TableVerdict

#: A cache with nothing in it.
NOTHING = Path("/nonexistent")
SCALES = ("tiny", "small", "paper")


@dataclass(frozen=True)
class Judged:
    """A table as it is shown."""

    result: TableVerdict
    info: Mapping[str, str]  #: side -> teacher and student

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.result.scale}-{self.result.table.id}"

    @property
    def measured(self) -> bool:
        """Whether any of it was."""
        return self.result.census.measured > 0


def judged(planned: Plan, store: Store, outcomes: Mapping[str, Outcome]) -> Iterator[Judged]:
    """The tables of a plan, with the records there are and what became of the cells that were run."""
    scale = planned.request.scale
    found = run.entries(planned, store, outcomes)
    for table in planned.tables:
        info = {side: _pair_words(name) for side, name in table.pairs[scale].items()}
        result = judge(table, planned, found[table.id])
        places = ((place.partition(" "), step.cell) for step in planned.steps for place in step.rows)
        ours = {row: cell for (name, _, row), cell in places if name == table.id}
        outside = external.rows(result.table, scale, store.root, ours)
        yield Judged(dataclasses.replace(result, external=outside), info)


def judge(table: Table, planned: Plan, entries: Mapping[str, Sequence[verdict.Entry]]) -> TableVerdict:
    """A planned table by its entries, over the suites that all of them have."""
    return verdict.judge(_shown(table, planned, entries), planned.request.scale, entries)


def _shown(table: Table, planned: Plan, entries: Mapping[str, Sequence[verdict.Entry]]) -> Table:
    """The table with the suites that all its records have and, if rows were chosen, with those rows only."""
    mine = [step for step in planned.steps if any(place.startswith(f"{table.id} ") for place in step.rows)]
    scored = [set(entry["scores"]) for row in entries.values() for entry in verdict.done(row)]
    scored = scored or [{run.name for run in step.cell.suites} for step in mine]
    chosen = planned.request.methods or planned.request.pairs
    suites = tuple(set.intersection(*scored)) if scored else ()
    return tables.only(table, suites, set(entries) if chosen else None)


def _pair_words(name: str) -> str:
    pair = pairs.get(name)
    return f"{pair.teacher} -> {pair.student}"


def files(shown: Judged, results: Path) -> dict[Path, str]:
    """What is kept of a table: its Markdown and, where anything was trained, score against cost."""
    result = shown.result
    made = {
        report.path(results, result.scale, result.table.id): report.render_verdict(result, shown.info, "md")
    }
    if any(figure.points(result, side) for side in result.table.sides):
        made[results / "figures" / f"{shown.name}.svg"] = figure.svg(result)
    return made


def keep(made: Mapping[Path, str]) -> None:
    """Write files that are not yet so."""
    for file in stale(made):
        write_whole(file, made[file].encode())


def stale(made: Mapping[Path, str]) -> list[Path]:
    """Files that are missing or say something else."""
    return [file for file, text in made.items() if not file.is_file() or file.read_bytes() != text.encode()]


def from_records(results: Path) -> Iterator[Judged]:
    """Every table of every scale that the records have anything of."""
    methods.load()
    store = Store(results)
    for scale in SCALES:
        if not any((results / "records" / scale).glob("*.json")):
            continue
        for name in tables.ids():
            planned = plan.make(Request(scale, tables=(name,), cache=NOTHING), store)
            for shown in judged(planned, store, {}):
                if shown.measured:
                    yield shown
