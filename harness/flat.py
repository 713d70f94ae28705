"""A judged table as plain data: CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from harness.page import number
from harness.statistics import Estimate
from harness.tables import AVERAGE
from harness.verdict import CellVerdict, RowVerdict, TableVerdict

COLUMNS = (
    *("kind", "table", "scale", "pair", "side", "row", "method", "column", "measured", "low", "high"),
    *("runs", "items", "training_sd", "decoding_sd"),
    *("published", "published_status", "published_source", "verdict", "reason"),
    *("gap_percent", "gap_low", "gap_high"),  # these and the costs belong to the row: on its average's line
    *("train_seconds", "decode_seconds", "tokens_per_second", "peak_rss_mb", "peak_is_bound"),
    "teacher_passes",
)


def table(result: TableVerdict) -> str:
    """A line per cell, external number (``reason``: whose), claim (``row``: its id) and pair of a claim."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    base = {"table": result.table.id, "scale": result.scale}
    for row in result.rows.values():
        about = {"pair": row.pair or "", "side": row.row.side, "row": row.row.label, "method": row.row.method}
        for cell in row.cells.values():
            more = _of_row(row) if cell.column == AVERAGE else {}
            writer.writerow({**base, "kind": "cell", **about, **_cell(cell), **more})
    for outside in result.external:
        about = {"side": outside.row.side, "row": outside.row.label, "method": outside.row.method}
        about |= {"reason": "; ".join(filter(None, (outside.source, outside.unlike)))}
        for column, estimate in outside.cells.items():
            writer.writerow({**base, "kind": "external", **about, "column": column, **_estimate(estimate)})
    for claim in result.claims:
        said = {
            "verdict": claim.verdict,
            "reason": claim.reason,
            "published_status": claim.claim.status,
            "published_source": claim.claim.source,
        }
        about = {"row": claim.claim.id, "column": claim.claim.column}
        writer.writerow({**base, "kind": "claim", **about, **said})
        for pair in claim.pairs:
            said = {
                "method": pair.name,
                "verdict": pair.verdict,
                "reason": pair.reason,
            }
            writer.writerow({**base, "kind": "pair", **about, **said, **_estimate(pair.gain)})
    return buffer.getvalue()


def _cell(cell: CellVerdict) -> dict[str, Any]:
    figure = cell.figure
    return {
        "column": cell.column,
        **_estimate(cell.measured),
        "published": figure.value if figure else "",
        "published_status": figure.status if figure else "",
        "published_source": figure.source if figure else "",
        "verdict": cell.verdict,
        "reason": cell.reason,
    }


def _of_row(row: RowVerdict) -> dict[str, Any]:
    gap, cost = row.recovered, row.cost
    known = {"gap_percent": gap.mean, "gap_low": gap.low, "gap_high": gap.high} if gap else {}
    if cost:
        known |= {name: value for name, value in asdict(cost).items() if value is not None}
    return {name: value if isinstance(value, bool) else number(value, 4) for name, value in known.items()}


def _estimate(estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {}
    return {
        "measured": number(estimate.mean, 4),
        "low": number(estimate.low, 4),
        "high": number(estimate.high, 4),
        "runs": estimate.runs,
        "items": estimate.items,
        "training_sd": number(estimate.training_spread, 4),
        "decoding_sd": number(estimate.decoding_spread, 4),
    }


def as_dict(result: TableVerdict, pairs_info: Mapping[str, str]) -> dict[str, Any]:
    """The whole judged table as plain data."""
    table = result.table
    return {
        "table": table.id,
        "title": table.title,
        "published_with": table.published_with,
        "scale": result.scale,
        "pairs": {
            side: {"name": table.pair(result.scale, side), "about": pairs_info.get(side, "")}
            for side in table.sides
        },
        "value": table.value,
        "averages": {name: list(suites) for name, suites in table.averages.items()},
        "margin": asdict(table.margin),
        "rows": [_row_dict(row) for row in result.rows.values()],
        "claims": [asdict(claim) for claim in result.claims],
        "census": asdict(result.census),
        "external": [asdict(outside) for outside in result.external],
    }


def _row_dict(row: RowVerdict) -> dict[str, Any]:
    return {
        **asdict(row.row),
        "pair": row.pair,
        "state": row.state,
        "reason": row.reason,
        "planned": row.planned,
        "cells": {column: asdict(cell) for column, cell in row.cells.items()},
        "unlike": row.published.unlike if row.published else "",
        "recovered_percent": asdict(row.recovered) if row.recovered else None,
        "cost": asdict(row.cost) if row.cost else None,
        "data": list(row.data),
    }
