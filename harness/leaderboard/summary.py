"""A board as plain data for the page: scores, ranks, differences, costs, published figures, claims."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dskd import method as methods
from dskd.method import MethodError
from harness import page as words
from harness import ranking, statistics, tables, verdict
from harness.cells import UNTRAINED
from harness.leaderboard.boards import Apart, Board, Entrant, Outside, Record, family, label, tables_of
from harness.ranking import Ranking
from harness.statistics import Estimate, Sample, StatisticsError
from harness.tables import AVERAGE, Table
from harness.verdict import RowVerdict, TableVerdict

Data = dict[str, Any]

_VOCABULARY = {True: "same", False: "different", None: "unknown"}


def describe(board: Board) -> Data:
    """Everything the page shows of a board without opening records or examples."""
    judged = [_judge(table, board) for table in tables_of(board)]
    said = {name: row for result in reversed(judged) for name, row in _rows(result).items()}
    shown = [*board.entrants, *board.references]
    return {
        "id": board.id,
        "scale": board.scale,
        "pair": board.pair.name,
        "teacher": board.pair.teacher,
        "student": board.pair.student,
        "vocabulary": _VOCABULARY[board.pair.same_vocabulary],
        "group": board.group,
        "suites": [_suite(board, name) for name in board.suites],
        "seeds": list(board.seeds),
        "budget": dict(board.budget),
        "methods": [_method(board, entrant, said.get(entrant.method)) for entrant in shown],
        "apart": [_apart(some, board) for some in _all_apart(board, said)],
        "external": sorted(
            (_outside(some, board) for some in board.external), key=lambda row: (row["label"], row["source"])
        ),
        "views": {column: _view(board, column) for column in (AVERAGE, *board.suites)},
        "claims": [claim for result in judged for claim in _claims(result)],
        "tables": [_table(result.table) for result in judged],
        "notes": board.notes,
    }


def _judge(table: Table, board: Board) -> TableVerdict:
    side = table.rows[0].side if table.rows else "same"
    entries = {f"{side}/{entrant.method}": list(entrant.records) for entrant in board.everyone}
    known = {row.key for row in table.rows}
    return verdict.judge(table, board.scale, {key: some for key, some in entries.items() if key in known})


@dataclass(frozen=True)
class _Said:
    """What a table says of a method."""

    row: RowVerdict
    whole: bool  #: the board has all suites of the table, so that averages are of the same things


def _rows(result: TableVerdict) -> dict[str, _Said]:
    whole = result.table.suites == tables.load(result.table.id).suites
    return {row.row.method: _Said(row, whole) for row in result.rows.values()}


def _table(table: Table) -> Data:
    paper = tables.paper(table.paper).citation if table.paper in tables.papers() else ""
    return {"id": table.id, "title": table.title, "paper": paper}


def _suite(board: Board, name: str) -> Data:
    from evals.suites import SUITES

    scores = next((r["scores"][name] for r in board.records if name in r["scores"]), None)
    return {
        "name": name,
        "title": SUITES[name].title if name in SUITES else name,
        "metric": scores["metric"] if scores else "",
        "items": scores["items"] if scores else 0,
    }


# methods


def _named(address: str) -> Data:
    return {
        "method": address,
        "label": label(address),
        "family": family(address),
        "about": _about(address),
    }


def _about(address: str) -> Data | None:
    """Title, source and formula from the ledger; None for what is no built-in method."""
    try:
        method = methods.create(address)
    except MethodError:
        return None
    entry, variant = method.entry, method.spec.variant
    return {
        "title": entry.title,
        "citation": entry.citation,
        "formula": entry.formula,
        "variant": entry.variants.get(variant, "") if variant else "",
    }


def _method(board: Board, entrant: Entrant, said: _Said | None) -> Data:
    cost = statistics.cost(entrant.records)
    return {
        **_named(entrant.method),
        "ranked": entrant.sample.trained,
        "cells": [_cell(record) for record in entrant.records],
        "cost": {k: v if isinstance(v, bool) else _round(v) for k, v in dataclasses.asdict(cost).items()},
        "columns": {
            column: _column(board, entrant, column, said) for column in (AVERAGE, *board.suites)
        },
    }  # fmt: skip


def _cell(record: Record) -> Data:
    return {"id": record["cell"], "seed": record["spec"]["seed"], "status": record["status"]}


def _part(sample: Sample, column: str) -> Sample:
    return sample if column == AVERAGE else sample.only(column)


def _column(board: Board, entrant: Entrant, column: str, said: _Said | None) -> Data:
    sample = _part(entrant.sample, column)
    return {
        **_estimate(statistics.estimate(sample)),
        "runs": [_round(score) for score in sample.runs()],
        "gap": _gap(board, entrant, column),
        **_published(column, said),
    }


def _estimate(estimate: Estimate) -> Data:
    return {
        "mean": _round(estimate.mean),
        "low": _round(estimate.low),
        "high": _round(estimate.high),
        "seed_sd": _round(estimate.training_spread),
        "decoding_sd": _round(estimate.decoding_spread),
    }


def _gap(board: Board, entrant: Entrant, column: str) -> list[float | None] | None:
    """Share of the gap student -> teacher that is recovered, percent: mean, low, high."""
    ends = {reference.method: _part(reference.sample, column) for reference in board.references}
    if not entrant.sample.trained or set(ends) != {"teacher", "student"}:
        return None
    share = statistics.recovered(_part(entrant.sample, column), ends["student"], ends["teacher"])
    return [_round(share.mean), _round(share.low), _round(share.high)] if share else None


def _published(column: str, said: _Said | None) -> Data:
    """The published figure with its marks, where it comes from, and the verdict on ours."""
    if said is None:
        why = "no table of this protocol has the row"
        return {"published": "none", "source": "", "verdict": "not comparable", "why": why}
    cell = said.row.cells[column]
    if column == AVERAGE and not said.whole:
        why = "the published average is over other suites than this board's"
        return {"published": "none", "source": "", "verdict": "not comparable", "why": why}
    figure = cell.figure
    via = f", quoted by {figure.via}" if figure and figure.via else ""
    return {
        "published": words.published(said.row, figure),
        "source": f"{figure.source}, {figure.status}{via}" if figure else "",
        "verdict": cell.verdict,
        "why": cell.reason,
    }


def _all_apart(board: Board, said: Mapping[str, _Said]) -> list[Apart]:
    """Methods that are not ranked: short of records, or rows of the board's tables without any."""
    known = {entrant.method for entrant in board.everyone} | {some.method for some in board.apart}
    missing = [
        Apart(name, f"not run: {one.row.reason}", ()) for name, one in said.items() if name not in known
    ]
    return [*board.apart, *missing]


def _apart(some: Apart, board: Board) -> Data:
    """What there is of an incomplete method: means of the suites it has, run by run, and no average."""
    runs = {
        suite: [_mean(record["scores"][suite]) for record in some.records if suite in record["scores"]]
        for suite in board.suites
    }
    cells = [_cell(record) for record in some.records]
    return {**_named(some.method), "reason": some.reason, "cells": cells, "runs": runs}


def _outside(some: Outside, board: Board) -> Data:
    """What there is from elsewhere: the suites it has, and their average where it has all of the board's."""
    method = some.records[0]["spec"]["method"]
    there = [suite for suite in board.suites if suite in some.records[0]["scores"]]
    columns = {}
    if there:
        sample = statistics.sample(some.records, there, trained=method not in UNTRAINED)
        whole = [AVERAGE, *there] if len(there) == len(board.suites) else there
        columns = {column: _estimate(statistics.estimate(_part(sample, column))) for column in whole}
    return {
        "method": method,
        "label": label(method),
        "source": some.source,
        "seeds": [record["spec"]["seed"] for record in some.records],
        "columns": columns,
        "note": some.note,
    }


def _mean(scores: Mapping[str, Any]) -> float | None:
    return _round(sum(run["score"] for run in scores["seeds"].values()) / len(scores["seeds"]))


# ranks and differences


def _view(board: Board, column: str) -> Data:
    """Ranks and differences by one suite or the average; methods by name."""
    if not board.entrants:
        return {"places": [], "contrasts": [], "groups": [], "run_sd": None, "freedom": 0}
    samples = {entrant.method: _part(entrant.sample, column) for entrant in board.entrants}
    result: Ranking = ranking.rank(samples)
    contrasts = [
        [c.a, c.b, *map(_round, (c.mean, c.low, c.high, c.p)), int(c.apart)] for c in result.contrasts
    ]
    return {
        "places": [[p.name, p.rank, p.low, p.high, _round(p.best)] for p in result.places],
        "contrasts": contrasts + _against_references(board, samples, column),
        "groups": [list(group) for group in result.groups],
        "run_sd": _round(result.run_spread),
        "freedom": result.freedom,
    }


def _against_references(board: Board, samples: Mapping[str, Sample], column: str) -> list[list[Any]]:
    """Each entrant minus teacher and student: the difference and interval of the tables; no test is made."""
    found: list[list[Any]] = []
    for reference in board.references:
        for name, sample in samples.items():
            try:
                gain = statistics.difference(sample, _part(reference.sample, column))
            except StatisticsError:
                continue
            ends = (None, None) if gain.single else (_round(gain.low), _round(gain.high))
            found.append([name, reference.method, _round(gain.mean), *ends, None, None])
    return found


# claims


def _claims(result: TableVerdict) -> Sequence[Data]:
    return [
        {
            "table": result.table.id,
            "text": claim.claim.text,
            "verdict": words.claim_words(claim),
            "mark": words.MARKS[claim.verdict],
            "why": claim.reason,
            "source": words.claim_source(claim),
            "size": list(claim.size) if claim.size else None,
            "pairs": [
                [pair.a.partition("/")[2], pair.b.partition("/")[2], pair.verdict, pair.reason, pair.sign]
                for pair in claim.pairs
            ],
        }
        for claim in result.claims
    ]


def _round(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)
