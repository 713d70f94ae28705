"""Two sets of records side by side: what differs, by how much, and what only one of them has."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from harness import commits, markdown, methods, plan, regression, rendering, statistics, tables, verdict
from harness.cells import UNTRAINED
from harness.markdown import code, escaped, padded
from harness.page import CLAIM_WORDS
from harness.plan import Plan, Request
from harness.provenance import ROOT, started
from harness.statistics import Estimate, StatisticsError
from harness.store import Store, StoreError, canonical
from harness.tables import AVERAGE

Record = Mapping[str, Any]
Rows = Mapping[str, Mapping[int, Record]]  #: row -> training seed -> record
FORMATS = ("md", "csv", "json")


@dataclass(frozen=True)
class Difference:
    """One number of a row, b minus a, by the same items and, where trained, the same seeds."""

    row: str
    column: str  #: a suite, or the average over them
    a: float
    b: float
    gap: Estimate | None
    note: str  #: why there is no gap, or what it can and cannot tell

    @property
    def moved(self) -> bool:
        """Whether the interval leaves out zero; with one training seed it can tell nothing."""
        return self.gap is not None and not self.gap.single and not self.gap.low <= 0 <= self.gap.high


@dataclass(frozen=True)
class Claim:
    """A claim that the two sets of records do not say the same of."""

    scale: str
    table: str
    text: str
    a: str  #: verdict
    b: str


@dataclass
class Compared:
    """All rows of two sets of records."""

    a: str  #: folder or commit
    b: str
    identical: list[str] = field(default_factory=list)  #: rows whose records agree in all but cost and origin
    differences: list[Difference] = field(default_factory=list)
    only_a: list[str] = field(default_factory=list)  #: rows, or training seeds of rows of both
    only_b: list[str] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)


def compare(a: str, b: str, root: Path = ROOT) -> Compared:
    """Compare what two names stand for, each a results folder or a commit of ``root``."""
    first, second = load(a, root), load(b, root)
    compared = of_records(first, second, (a, b))
    if compared.differences or compared.only_a or compared.only_b:
        compared.claims = claims(first, second)
    return compared


def load(name: str, root: Path = ROOT) -> list[dict[str, Any]]:
    """The finished records of a results folder or, where none has this name, of a commit of ``root``."""
    folder = Path(name)
    if folder.is_dir() and not (folder / "records").is_dir():
        raise StoreError(f"{name} holds no records")
    found = Store(folder).all() if folder.is_dir() else commits.records(name, root)
    return [record for record in found if record["status"] == "done"]


# rows


def of_records(
    first: Iterable[Record], second: Iterable[Record], names: tuple[str, str] = ("a", "b")
) -> Compared:
    """Row by row (pair, method and settings; code versions may differ), over the training seeds of both."""
    a, b = _rows(first), _rows(second)
    titles = _titles({*a, *b})
    compared = Compared(*names, only_a=_only(a, b, titles), only_b=_only(b, a, titles))
    for key in sorted(set(a) & set(b)):
        seeds = sorted(set(a[key]) & set(b[key]))
        mine, other = [a[key][seed] for seed in seeds], [b[key][seed] for seed in seeds]
        if seeds and all(map(_same, mine, other)):
            compared.identical.append(titles[key])
        elif seeds:
            compared.differences += _differences(titles[key], mine, other)
    return compared


def _rows(records: Iterable[Record]) -> Rows:
    """Records by row and training seed; of two versions of one cell the later run counts."""
    found: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in sorted(records, key=started):
        found[regression.key(record["spec"])][int(record["spec"]["seed"])] = record
    return found


def _titles(keys: Collection[str]) -> dict[str, str]:
    """Pair and method; where several settings share them, with digits of the settings' hash."""
    short = Counter(key.rpartition(" ")[0] for key in keys)
    words = {key: key.rpartition(" ") for key in keys}
    return {key: name if short[name] == 1 else f"{name} ({code})" for key, (name, _, code) in words.items()}


def _only(here: Rows, there: Rows, titles: Mapping[str, str]) -> list[str]:
    """What the other side lacks: whole rows, and single seeds of rows of both."""
    rows = [titles[key] for key in sorted(set(here) - set(there))]
    common = sorted(set(here) & set(there))
    return rows + [
        f"{titles[key]} seed {seed}" for key in common for seed in sorted(set(here[key]) - set(there[key]))
    ]


def _same(a: Record, b: Record) -> bool:
    """Whether training and every item's scores are the same, whatever versions are called."""
    return bool(a["training"] == b["training"] and _answers(a) == _answers(b))


def _answers(record: Record) -> dict[str, Any]:
    return {
        name: (scores["items_sha256"], {seed: run["per_item"] for seed, run in scores["seeds"].items()})
        for name, scores in record["scores"].items()
    }


def _differences(title: str, first: Sequence[Record], second: Sequence[Record]) -> list[Difference]:
    """Each suite, which are the same for records of one row, then their average."""
    suites = sorted(first[0]["scores"])
    found = [_difference(title, suite, [suite], first, second) for suite in suites]
    if len(suites) > 1:
        found.append(_difference(title, AVERAGE, suites, first, second))
    return found


def _difference(
    title: str, column: str, suites: Sequence[str], first: Sequence[Record], second: Sequence[Record]
) -> Difference:
    trained = first[0]["spec"]["method"] not in UNTRAINED
    means = (_mean(first, suites), _mean(second, suites))
    try:
        a, b = (statistics.sample(records, suites, trained=trained) for records in (first, second))
        gap = statistics.difference(b, a)
    except StatisticsError as error:
        return Difference(title, column, *means, None, str(error))
    same = "same scores" if gap.low == gap.mean == gap.high == 0 else ""
    notes = (same or ("one training seed" if gap.single else ""), _other_metric(suites, first, second))
    return Difference(title, column, *means, gap, "; ".join(filter(None, notes)))


def _other_metric(suites: Sequence[str], first: Sequence[Record], second: Sequence[Record]) -> str:
    """What the suites were scored by on either side, where that is not the same."""
    pairs = [tuple(side[0]["scores"][suite]["metric"] for side in (first, second)) for suite in suites]
    return ", ".join(f"scored by {b}, before by {a}" for a, b in pairs if a != b)


def _mean(records: Sequence[Record], suites: Sequence[str]) -> float:
    """Over suites, of the mean over training and decoding seeds."""
    return fmean(
        fmean(run["score"] for record in records for run in record["scores"][suite]["seeds"].values())
        for suite in suites
    )


# claims


def claims(first: Sequence[Record], second: Sequence[Record]) -> list[Claim]:
    """The claims of today's tables with another verdict, whatever the versions of the code were."""
    methods.load()
    a, b = _by_cell(first), _by_cell(second)
    scales = {record["spec"]["scale"] for record in (*first, *second)}
    found = []
    for scale, name in ((scale, name) for scale in tables.SCALES if scale in scales for name in tables.ids()):
        planned = plan.make(Request(scale, tables=(name,), cache=rendering.NOTHING), Store(rendering.NOTHING))
        old, new = (_entries(planned, cells) for cells in (a, b))
        if old != new:
            before, after = (_verdicts(planned, entries) for entries in (old, new))
            texts = {claim.id: claim.text for claim in tables.load(name).claims}
            found += [
                Claim(scale, name, texts[claim], was, after.get(claim, "not judged"))
                for claim, was in before.items()
                if after.get(claim) != was
            ]
    return found


def _by_cell(records: Sequence[Record]) -> dict[tuple[bytes, int], Record]:
    """Records by all of their description but versions and suites; of several the later run counts."""
    found = {}
    for record in sorted(records, key=started):
        limits = {run["limit"] for run in record["spec"]["suites"]}
        found[_settings(record["spec"], limits), record["spec"]["seed"]] = record
    return found


def _settings(spec: Mapping[str, Any], limits: Collection[int | None]) -> bytes:
    rest = {key: value for key, value in spec.items() if key not in ("seed", "versions", "suites")}
    return canonical([rest, sorted(map(str, limits))])


def _entries(planned: Plan, records: Mapping[tuple[bytes, int], Record]) -> dict[str, list[verdict.Entry]]:
    """What a set of records has for the rows of a plan's only table, as verdict.judge takes it."""
    found: dict[str, list[verdict.Entry]] = defaultdict(list)
    for step in sorted(planned.steps, key=lambda step: step.cell.seed):
        limits = {run.limit for run in (*step.cell.suites, *step.unseen)}
        record = records.get((_settings(step.cell.as_dict(), limits), step.cell.seed))
        for place in step.rows:
            found[place.partition(" ")[2]].append(record)
    return dict(found)


def _verdicts(planned: Plan, entries: Mapping[str, Sequence[verdict.Entry]]) -> dict[str, str]:
    (table,) = planned.tables
    result = rendering.judge(table, planned, entries)
    return {each.claim.id: CLAIM_WORDS.get(each.verdict, each.verdict) for each in result.claims}


# words


def render(compared: Compared, style: str) -> str:
    """Markdown, CSV or JSON."""
    if style == "json":
        return json.dumps(dataclasses.asdict(compared), indent=1, ensure_ascii=False) + "\n"
    return _csv(compared) if style == "csv" else _markdown(compared)


def _markdown(compared: Compared) -> str:
    parts = [f"# A = {code(compared.a)}, B = {code(compared.b)}\n", f"{_summary(compared)}\n"]
    if compared.differences:
        head = ["row", "column", "A", "B", "B - A", "95 % interval", "note"]
        body = [[code(each.row), each.column, *_numbers(each)] for each in compared.differences]
        parts += ["## Scores\n", padded(markdown.table(head, body, words=2))]
    if compared.claims:
        body = [[each.scale, each.table, escaped(each.text), each.a, each.b] for each in compared.claims]
        parts += ["## Claims\n", padded(markdown.table(["scale", "table", "claim", "A", "B"], body, words=5))]
    for name, rows in (("A", compared.only_a), ("B", compared.only_b)):
        if rows:
            parts += [f"## Only in {name}\n", "".join(f"- {code(row)}\n" for row in rows)]
    return "\n".join(parts)


def _summary(compared: Compared) -> str:
    same, moved = len(compared.identical), sum(each.moved for each in compared.differences)
    rows = len({each.row for each in compared.differences})
    said = [f"{same + rows} rows in both: {same} identical, {rows} not"]
    if rows:
        said[0] += f" ({moved} of {len(compared.differences)} differences have an interval without 0, *)"
    said.append(f"only in A: {len(compared.only_a)}, only in B: {len(compared.only_b)}")
    said.append(f"claims with another verdict: {len(compared.claims)}")
    return "; ".join(said) + "."


def _numbers(each: Difference) -> list[str]:
    means = [f"{each.a:.2f}", f"{each.b:.2f}"]
    if each.gap is None:
        return [*means, "", "", each.note]
    interval = f"[{each.gap.low:+.2f}, {each.gap.high:+.2f}]"
    return [*means, f"{each.gap.mean:+.2f}", interval, "*" if each.moved else each.note]


def _csv(compared: Compared) -> str:
    """A line per difference, claim (``a`` and ``b``: verdicts) and row that one of them lacks."""
    buffer = io.StringIO()
    names = ("kind", "row", "column", "a", "b", "difference", "low", "high", "moved", "note")
    writer = csv.DictWriter(buffer, names, restval="", lineterminator="\n")
    writer.writeheader()
    for each in compared.differences:
        gap = {"difference": each.gap.mean, "low": each.gap.low, "high": each.gap.high} if each.gap else {}
        fields = {"row": each.row, "column": each.column, "a": each.a, "b": each.b}
        writer.writerow({"kind": "score", **fields, **gap, "moved": each.moved, "note": each.note})
    for claim in compared.claims:
        row = f"{claim.scale} {claim.table}"
        writer.writerow({"kind": "claim", "row": row, "a": claim.a, "b": claim.b, "note": claim.text})
    for kind, rows in (("only a", compared.only_a), ("only b", compared.only_b)):
        writer.writerows({"kind": kind, "row": row} for row in rows)
    return buffer.getvalue()
