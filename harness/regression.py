"""Records against references: what moved, by how much, and how much was allowed. No torch.

A row's key is what it computes (pair, method, settings) without code versions, so that a new version of a
method is held against the old one. Three kinds of numbers are compared:

first     the loss terms of the first training step, seed by seed, where the models are the same to the bit:
          nothing has been trained yet, so only rounding may differ (the square root of eps, relative to the
          loss: half of the digits)
terms     the loss terms averaged over training, on a logarithmic scale
scores    each suite's and their average, in points

Terms and scores have a tolerance from the spread over training seeds (harness/tolerance.py).
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.store import canonical
from harness.tables import AVERAGE
from harness.tolerance import Runs, Spread, pooled, prediction

Row = Mapping[str, Any]  #: as ``rows`` makes it; plain JSON
Kind = Literal["moved", "missing", "unjudged"]

EPS = {"fp32": 2.0**-23, "bf16": 2.0**-7}
ROUNDED = 1e-6  #: curves are kept to six decimals


@dataclass(frozen=True)
class Finding:
    """One thing that is not as the reference has it."""

    kind: Kind
    where: str  #: row, or method
    what: str  #: number
    said: str  #: was, is, tolerance; or the reason

    def __str__(self) -> str:
        return f"{self.where}: {f'{self.what} ' if self.what else ''}{self.said}"


@dataclass
class Comparison:
    """What was compared and what was found."""

    rows: int = 0
    numbers: int = 0
    identical: int = 0  #: rows of which every number is the same to the last digit
    findings: list[Finding] = field(default_factory=list)
    new: list[str] = field(default_factory=list)  #: rows without a reference

    def bad(self) -> bool:
        """Whether anything stands against the reference."""
        return bool(self.findings)


def rows(records: Iterable[Mapping[str, Any]]) -> dict[str, Row]:
    """Finished records as rows by key, one number a seed; of two records of one seed the last counts."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        if record["status"] != "done":
            continue
        spec = record["spec"]
        row = found.setdefault(
            key(spec),
            {
                "pair": spec["pair"],
                "method": spec["method"],
                "precision": (spec["training"] or {}).get("precision"),
                "models": {},
                "items": {},
                "first": {},
                "terms": defaultdict(dict),
                "scores": defaultdict(dict),
            },
        )
        _add(row, record, str(spec["seed"]))
    return {
        name: {**row, "terms": dict(row["terms"]), "scores": dict(row["scores"])}
        for name, row in found.items()
    }


def key(spec: Mapping[str, Any]) -> str:
    """Pair, method and eight digits over everything else that is neither a seed nor a version."""
    rest = {name: value for name, value in spec.items() if name not in ("seed", "versions")}
    rest["suites"] = [{"name": suite["name"], "limit": suite["limit"]} for suite in spec["suites"]]
    return f"{spec['pair']} {spec['method']} {hashlib.sha256(canonical(rest)).hexdigest()[:8]}"


def _add(row: dict[str, Any], record: Mapping[str, Any], seed: str) -> None:
    """Put one record's numbers into its row."""
    row["models"][seed] = {side: model["sha256"] for side, model in sorted(record["models"].items())}
    curve = (record["training"] or {}).get("curve") or []
    if curve:
        row["first"][seed] = dict(curve[0][1])
    for name in sorted({name for _, terms in curve for name in terms}):
        values = [terms[name] for _, terms in curve if name in terms]
        row["terms"][name][seed] = round(sum(values) / len(values), 6)
    means = []
    for suite, scores in sorted(record["scores"].items()):
        runs = [run["score"] for run in scores["seeds"].values()]
        means.append(sum(runs) / len(runs))
        row["scores"][suite][seed] = round(means[-1], 4)
        row["items"][suite] = scores["items_sha256"]
    if len(means) > 1:
        row["scores"][AVERAGE][seed] = round(sum(means) / len(means), 4)


def compare(references: Mapping[str, Row], now: Mapping[str, Row]) -> Comparison:
    """Hold rows against references. A row without a reference is ``new``; the other way round is missing."""
    result = Comparison(new=sorted(set(now) - set(references)))
    for name in sorted(set(references) - set(now)):
        result.findings.append(Finding("missing", _title(references[name]), "", "no record"))
    common = sorted(set(references) & set(now))
    asked = sum(_count(references[name], now[name]) for name in common)
    pools = _Pools(references)
    for name in common:
        before = len(result.findings)
        _compare_row(references[name], now[name], pools, asked, result)
        result.identical += before == len(result.findings) and _identical(references[name], now[name])
    result.rows = len(common)
    return result


def _title(row: Row) -> str:
    return f"{row['pair']} {row['method']}"


def _count(old: Row, new: Row) -> int:
    """Numbers of two rows that are judged by seed spread."""
    return sum(len(set(old[kind]) & set(new[kind])) for kind in ("terms", "scores"))


def _identical(old: Row, new: Row) -> bool:
    """Whether the new row's runs are runs of the old one, digit by digit."""
    return all(
        run == old[kind].get(name, {}).get(seed)
        for kind in ("first", "terms", "scores")
        for name, runs in new[kind].items()
        for seed, run in runs.items()
    )


class _Pools:
    """Spreads of the references, pooled over the trained rows of a pair."""

    def __init__(self, references: Mapping[str, Row]) -> None:
        self._rows: dict[tuple[str, str, str], list[Runs]] = defaultdict(list)
        for row in references.values():
            for kind in ("terms", "scores"):
                for name, runs in row[kind].items():
                    scaled = _logarithms(runs) if kind == "terms" else runs
                    self._rows[row["pair"], kind, name] += [scaled] if scaled else []
        self._known: dict[tuple[str, str, str], Spread | None] = {}

    def of(self, row: Row, kind: str, name: str) -> Spread | None:
        """The spread of a number in a row's pair."""
        place = (row["pair"], kind, name)
        if place not in self._known:
            self._known[place] = pooled(self._rows[place])
        return self._known[place]


def _logarithms(runs: Runs) -> Runs | None:
    """Loss terms spread in proportion to size, so rows are pooled by logarithms; None unless all > 0."""
    if not all(value > 0 for value in runs.values()):
        return None
    return {seed: math.log(value) for seed, value in runs.items()}


def _compare_row(old: Row, new: Row, pools: _Pools, asked: int, result: Comparison) -> None:
    for seed in sorted(set(old["first"]) & set(new["first"])):
        if old["models"][seed] == new["models"][seed] and old["precision"] == new["precision"]:
            result.numbers += len(old["first"][seed])
            result.findings += _first_step(old, new, seed)
    for kind in ("terms", "scores"):
        for name in sorted(set(old[kind]) | set(new[kind])):
            result.numbers += 1
            found = _judge(old, new, kind, name, pools, asked)
            result.findings += [found] if found else []


def _first_step(old: Row, new: Row, seed: str) -> list[Finding]:
    """The first step's terms against the reference's, to rounding."""
    was, now = old["first"][seed], new["first"][seed]
    share = math.sqrt(EPS[str(old["precision"])])
    allowed = share * sum(map(abs, was.values())) + ROUNDED
    return [
        Finding(
            "moved",
            _title(old),
            f"first step's {name} (seed {seed})",
            f"{_shown(was.get(name))} -> {_shown(now.get(name))}, tolerance {allowed:.2g} "
            f"(square root of {old['precision']}'s eps x the loss)",
        )
        for name in sorted({*was, *now})
        if name not in was or name not in now or abs(was[name] - now[name]) > allowed
    ]


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"


def _judge(old: Row, new: Row, kind: str, name: str, pools: _Pools, asked: int) -> Finding | None:
    """One term or score by seed spread; None where it did not move."""
    where, what = _title(old), name if kind == "scores" else f"mean {name} in training"
    was, now = old[kind].get(name), new[kind].get(name)
    if was is None or now is None:
        return Finding("moved", where, what, "is new" if was is None else "is gone")
    if kind == "scores" and old["items"].get(name) != new["items"].get(name):
        return Finding("moved", where, what, "is scored on other items")
    if all(run == was.get(seed) for seed, run in now.items()):
        return None
    logs = (_logarithms(was), _logarithms(now)) if kind == "terms" else (None, None)
    if logs[0] and logs[1]:
        a, b, spread, percent = logs[0], logs[1], pools.of(old, kind, name), True
    else:
        a, b, percent = was, now, False
        spread = pools.of(old, kind, name) if kind == "scores" else pooled([was])
    gap, allowed = _mean(b) - _mean(a), prediction(a, spread, len(b), asked)
    moved = f"{_shown(_mean(was))} -> {_shown(_mean(now))}, off by {_gap(gap, percent)}"
    if allowed is None:
        return Finding("unjudged", where, what, f"{moved}; one training seed has no spread to judge by")
    if abs(gap) <= allowed.half:
        return None
    return Finding(
        "moved", where, what, f"{moved}, tolerance {_gap(allowed.half, percent)[1:]} ({allowed.words})"
    )


def _mean(runs: Runs) -> float:
    return sum(runs.values()) / len(runs)


def _gap(gap: float, percent: bool) -> str:
    """A difference in points, or of logarithms as a percentage."""
    return f"{100 * math.expm1(gap):+.3g} %" if percent else f"{gap:+.4g}"


def claims(judged: Iterable[Any]) -> dict[str, str]:
    """``table/claim`` -> verdict, of judged tables (rendering.Judged)."""
    return {
        f"{shown.result.table.id}/{claim.claim.id}": claim.verdict
        for shown in judged
        for claim in shown.result.claims
    }


def compare_claims(references: Mapping[str, str], now: Mapping[str, str]) -> list[Finding]:
    """Verdicts follow from records without chance, so any change counts."""
    return [
        Finding(
            "moved" if name in now else "missing",
            f"claim {name}",
            "",
            f"{was} -> {now.get(name, 'not judged')}",
        )
        for name, was in sorted(references.items())
        if now.get(name) != was
    ]


def compare_losses(
    references: Mapping[str, Mapping[str, float]],
    now: Mapping[str, Mapping[str, float]],
    dtype: str,
    share: float,
) -> list[Finding]:
    """Golden losses: each number to rounding, relative to the largest of its kind in the method."""
    found = []
    for address in sorted({*references, *now}):
        was, made = references.get(address), now.get(address)
        if made is None or was is None:
            said = "the method is gone" if made is None else "has no reference; --accept --reason adds it"
            found.append(Finding("missing", address, "", said))
            continue
        found += [
            Finding("moved", address, f"{name} ({dtype})", said)
            for name in sorted({*was, *made})
            if (said := _off(name, was, made, share))
        ]
    return found


def _off(name: str, was: Mapping[str, float], now: Mapping[str, float], share: float) -> str:
    """How a golden number moved; empty if it did not."""
    if name not in was or name not in now:
        return "is gone" if name in was else "is new"
    kind = name.startswith("gradient")
    largest = max(abs(value) for other, value in was.items() if other.startswith("gradient") == kind)
    allowed = share * largest
    if abs(now[name] - was[name]) <= allowed:
        return ""
    return f"{was[name]:.10g} -> {now[name]:.10g}, tolerance {allowed:.2g}"


def worst(findings: Sequence[Finding], each: int = 3) -> list[str]:
    """A line for each finding, but a row or method with many has its first few and a count."""
    grouped: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        grouped[finding.where].append(finding)
    lines = []
    for where, mine in grouped.items():
        lines += [str(finding) for finding in mine[:each]]
        if len(mine) > each:
            lines.append(f"{where}: and {len(mine) - each} more")
    return lines
