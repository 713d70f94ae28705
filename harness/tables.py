"""Tables and published figures: files that are read whole, checked key by key, and refused with file and key.

A table (``harness/tables/<id>.yaml``) states rows, columns, the pair behind each side at each scale, an
equivalence margin and the paper's claims. A paper (``results/published/<name>.yaml``) states figures, each
with the status ``primary`` (read at the source), ``secondary`` (quoted by somebody else) or ``unverified``.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from dskd.method import MethodError, Spec
from evals.suites import SUITES
from harness.cells import UNTRAINED
from harness.scales import ScaleError, parse_overrides

TABLES = Path(__file__).with_name("tables")
PUBLISHED = Path(__file__).resolve().parents[1] / "results" / "published"

SIDES = ("same", "cross")
SCALES = ("tiny", "small", "paper")
STATUSES = ("primary", "secondary", "unverified")
CLAIM_STATUSES = (*STATUSES, "ours")  # ours: a question this benchmark asks, attributed to no paper
AVERAGE = "avg"
VALUES = ("score", "retention")
#: What a claim's rows are said to do: each pair's first scores higher; the firsts do in the mean over pairs;
#: or a row keeps a share of the teacher's score within the size.
KINDS = ("greater", "mean", "share")

Side = Literal["same", "cross"]
T = TypeVar("T")


class TableError(ValueError):
    """A table or published file that is wrong (file and key are named), or a name that does not exist."""


@dataclass(frozen=True)
class Figure:
    """One published number in points."""

    value: float
    status: str
    source: str  #: "paper table"
    via: str  #: who quotes it, for secondary figures

    @property
    def verified(self) -> bool:
        """Read at its source."""
        return self.status == "primary"


@dataclass(frozen=True)
class PublishedRow:
    """A published row: its figures by column."""

    key: str  #: paper:table/row
    figures: Mapping[str, Figure]
    unlike: str  #: how its protocol differs from the one the tables reproduce; empty if it does not
    items: Mapping[str, int]  #: suite -> number of items it was scored on, where stated
    note: str


@dataclass(frozen=True)
class Paper:
    """A paper's figures. ``unread``: tables nobody could read yet, with the reason; unknown, not zero."""

    name: str
    citation: str
    tables: Mapping[str, Mapping[str, PublishedRow]]
    unread: Mapping[str, str]
    omitted: Mapping[str, str]  #: "table/row" -> why a row was left out


@dataclass(frozen=True)
class Row:
    """A row: a method (or ``teacher`` / ``student``) on one side of the table."""

    label: str
    method: str  #: canonical address, or one of cells.UNTRAINED
    side: Side
    published: tuple[str, ...]  #: keys into results/published; the first that is known counts

    @property
    def key(self) -> str:
        """``side/method``: unique in a table, and how claims name a row."""
        return f"{self.side}/{self.method}"

    @property
    def trained(self) -> bool:
        return self.method not in UNTRAINED


@dataclass(frozen=True)
class Margin:
    """Numbers closer than this count as equal: ``points`` for a suite, ``average`` for a mean of suites."""

    points: float
    average: float
    why: str


@dataclass(frozen=True)
class Claim:
    """A paper's claim as data: in every pair (a, b), row a scores higher than row b on average.

    Of kind "mean", the first rows do so in the mean over the pairs. Of kind "share", row a keeps a share
    of the score of b, the teacher, that lies within the size.
    """

    id: str
    text: str
    source: str
    status: str
    pairs: tuple[tuple[str, str], ...]  #: row keys
    size: tuple[float, float] | None  #: published range of the gains, in points (of shares, in percent)
    kind: Literal["greater", "mean", "share"] = "greater"
    column: str = AVERAGE  #: what it is about


@dataclass(frozen=True)
class Table:
    """A validated table."""

    id: str
    title: str
    published_with: str  #: models of the published figures; empty where there are none
    paper: str
    aliases: tuple[str, ...]
    group: Literal["instructions", "maths", "code"]
    suites: tuple[str, ...]
    margin: Margin
    pairs: Mapping[str, Mapping[str, str]]  #: scale -> side -> pair
    absent: Mapping[str, Mapping[str, str]]  #: scale -> side -> why there is no pair
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    budget: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  #: scale -> as --budget
    seeds: Mapping[str, int] = field(default_factory=dict)  #: scale -> number of training seeds
    averages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  #: further column -> its suites
    value: Literal["score", "retention"] = "score"  #: what a cell holds: points, or percent of the teacher's

    def heading(self, scale: str) -> str:
        """The title, and which models the published figures are of: at scale paper these, else others."""
        if not self.published_with:
            return self.title
        models = self.published_with if scale == "paper" else f"published with {self.published_with}"
        return f"{self.title} ({models})"

    @property
    def columns(self) -> tuple[str, ...]:
        """Suites, then means over some of them, then the mean over all."""
        return (*self.suites, *self.averages, AVERAGE)

    def part(self, column: str) -> tuple[str, ...]:
        """The suites that a column is the mean over. Raises KeyError for another column."""
        if column == AVERAGE:
            return self.suites
        return (column,) if column in self.suites else self.averages[column]

    @property
    def sides(self) -> tuple[Side, ...]:
        """Sides that have rows, in order."""
        return tuple(side for side in SIDES if any(row.side == side for row in self.rows))  # type: ignore[misc]

    def row(self, key: str) -> Row:
        """The row named ``side/method``. Raises TableError."""
        for row in self.rows:
            if row.key == key:
                return row
        raise TableError(f"table {self.id} has no row {key!r}" + nearest(key, (row.key for row in self.rows)))

    def needed(self, keys: Iterable[str]) -> set[str]:
        """These rows and those that their numbers are told in: of a share, the teacher's too."""
        keys = set(keys)
        bases = {f"{key.partition('/')[0]}/teacher" for key in keys} if self.value == "retention" else set()
        return keys | bases

    def pair(self, scale: str, side: str) -> str | None:
        """Name of the pair behind a side at a scale, or None (then ``absent`` says why)."""
        return self.pairs[scale].get(side)


def ids() -> tuple[str, ...]:
    """The tables there are, numbers first."""
    return tuple(
        sorted((path.stem for path in TABLES.glob("*.yaml")), key=lambda name: (not name.isdigit(), name))
    )


def load(name: str) -> Table:
    """A table by id (``2``) or paper and number (``dskd-v1:2``). Raises TableError with the nearest names."""
    if name in ids():
        return read(TABLES / f"{name}.yaml")
    aliases = {alias: table for table in map(load, ids()) for alias in table.aliases}
    if name not in aliases:
        raise TableError(f"there is no table {name!r}" + nearest(name, [*ids(), *aliases]))
    return aliases[name]


def nearest(name: str, known: Iterable[str]) -> str:
    """End of an error message: the names that look alike, or all of them."""
    known = sorted(set(known))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else f"; known: {', '.join(known)}"


def only(table: Table, suites: Sequence[str], keys: Collection[str] | None = None) -> Table:
    """The table with some of its suites and rows, and the claims that these rows can settle."""
    kept = tuple(name for name in table.suites if name in suites) or table.suites
    averages = {name: tuple(part for part in of if part in kept) for name, of in table.averages.items()}
    table = dataclasses.replace(
        table, suites=kept, averages={name: of for name, of in averages.items() if of}
    )
    claims = [claim for claim in table.claims if claim.column in table.columns]
    if keys is None:
        return dataclasses.replace(table, claims=tuple(claims))
    rows = tuple(row for row in table.rows if row.key in keys)
    settled = (
        claim for claim in claims if table.needed(key for pair in claim.pairs for key in pair) <= set(keys)
    )
    return dataclasses.replace(table, rows=rows, claims=tuple(settled))


@functools.cache
def read(path: Path) -> Table:
    """Read and check one table file."""
    top = _Node.load(path)
    suites = tuple(top.texts("columns"))
    table = Table(
        id=path.stem,
        title=top.text("title"),
        published_with=top.text("published_with", optional=True),
        paper=top.text("paper"),
        aliases=tuple(top.texts("aliases")),
        group=top.choice("group", ("instructions", "maths", "code")),  # type: ignore[arg-type]
        suites=suites,
        margin=_margin(top.node("margin")),
        pairs={scale: _pairs(top.node("pairs").node(scale))[0] for scale in SCALES},
        absent={scale: _pairs(top.node("pairs").node(scale))[1] for scale in SCALES},
        rows=tuple(_row(node) for node in top.nodes("rows")),
        claims=tuple(_claim(node) for node in top.nodes("claims")),
        budget=_budget(top),
        seeds=_seeds(top),
        averages=_averages(top),
        value=top.choice("value", VALUES) if "value" in top.data else "score",  # type: ignore[arg-type]
    )
    top.node("pairs").done(SCALES)
    top.done()
    _check(table, top)
    return table


def _margin(node: _Node) -> Margin:
    margin = Margin(node.number("points"), node.number("average"), node.text("why"))
    node.done()
    if not (margin.points > 0 and margin.average > 0):
        raise node.error("points", "a margin is above 0")
    return margin


def _averages(top: _Node) -> dict[str, tuple[str, ...]]:
    """Means over some of the suites, as columns of their own."""
    named = top.mapping("averages", list)
    return {name: tuple(map(str, suites)) for name, suites in named.items()}


def _budget(top: _Node) -> dict[str, dict[str, float]]:
    """What a table changes in its scales' settings, written as on the command line."""
    found = {}
    for scale, text in top.mapping("budget", str).items():
        try:
            found[scale] = parse_overrides(text)
        except ScaleError as error:
            raise top.error(f"budget.{scale}", str(error)) from None
    return _by_scale(found, "budget", top)


def _seeds(top: _Node) -> dict[str, int]:
    found = top.mapping("seeds", int)
    if any(isinstance(count, bool) or count < 1 for count in found.values()):
        raise top.error("seeds", "numbers of seeds are whole and above 0")
    return _by_scale(found, "seeds", top)


def _by_scale(found: dict[str, T], key: str, top: _Node) -> dict[str, T]:
    for scale in found:
        if scale not in SCALES:
            raise top.error(f"{key}.{scale}", f"one of {', '.join(SCALES)}")
    return found


def _pairs(node: _Node) -> tuple[dict[str, str], dict[str, str]]:
    """Pair names, and for sides given as ``{absent: reason}`` the reasons."""
    named, absent = {}, {}
    for side in node.data:
        if side not in SIDES:
            raise node.error(side, "a side is same or cross")
        if isinstance(node.data[side], str):
            named[side] = node.text(side)
        else:
            absent[side] = node.node(side).text("absent")
            node.node(side).done(("absent",))
    return named, absent


def _row(node: _Node) -> Row:
    row = Row(
        label=node.text("label"),
        method=node.text("method"),
        side=node.choice("pair", SIDES),  # type: ignore[arg-type]
        published=tuple(node.texts("published", optional=True)),
    )
    node.done()
    try:
        address = str(Spec.parse(row.method))
    except MethodError as error:
        raise node.error("method", str(error)) from None
    if address != row.method:
        raise node.error("method", f"the canonical address is {address}")
    for key in row.published:
        try:
            published(key)
        except TableError as error:
            raise node.error("published", str(error)) from None
    return row


def _claim(node: _Node) -> Claim:
    kind = node.choice("kind", KINDS)
    pairs = node.get("pairs", list)
    if not pairs or any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
        raise node.error("pairs", "a list of [row, row], the first said to be higher")
    size = node.get("size", list) if "size" in node.data else None
    if size is not None and (
        len(size) != 2 or not all(isinstance(x, (int, float)) for x in size) or size[0] > size[1]
    ):
        raise node.error("size", "two numbers, the lower first")
    claim = Claim(
        id=node.text("id"),
        text=node.text("text"),
        source=node.text("source"),
        status=node.choice("status", CLAIM_STATUSES),
        pairs=tuple((str(a), str(b)) for a, b in pairs),
        size=(float(size[0]), float(size[1])) if size else None,
        kind=kind,  # type: ignore[arg-type]
        column=node.text("column", optional=True) or AVERAGE,
    )
    node.done()
    if kind == "share" and size is None:
        raise node.error("size", "a share is said to lie between two numbers, in percent")
    return claim


def _check(table: Table, top: _Node) -> None:
    """What no single key can tell."""
    for key, names in (
        ("rows", [row.key for row in table.rows]),
        ("claims", [claim.id for claim in table.claims]),
        ("columns", list(table.suites)),
        ("aliases", list(table.aliases)),
    ):
        double = {name for name in names if names.count(name) > 1}
        if double:
            raise top.error(key, f"{', '.join(sorted(double))} occurs twice")
    if not table.suites or AVERAGE in table.suites:
        raise top.error("columns", f"name the suites; {AVERAGE} is added by itself")
    for suite in table.suites:
        if suite not in SUITES:
            raise top.error("columns", f"no suite {suite!r}" + nearest(suite, SUITES))
    for scale in SCALES:
        for side in table.sides:
            if side not in table.pairs[scale] and side not in table.absent[scale]:
                raise top.error(f"pairs.{scale}", f"no {side} pair, and no {{absent: reason}}")
    for name, of in table.averages.items():
        if name in (*table.suites, AVERAGE):
            raise top.error(f"averages.{name}", "a column of that name is there already")
        if not of or any(suite not in table.suites for suite in of) or len(set(of)) < len(of):
            raise top.error(f"averages.{name}", f"some of {', '.join(table.suites)}, each once")
    lacking = table.needed(row.key for row in table.rows) - {row.key for row in table.rows}
    if lacking:
        raise top.error(
            "rows", f"retention is told in percent of {', '.join(sorted(lacking))}, which is missing"
        )
    for claim in table.claims:
        _check_claim(claim, table, top)


def _check_claim(claim: Claim, table: Table, top: _Node) -> None:
    for key in {key for pair in claim.pairs for key in pair}:
        try:
            table.row(key)
        except TableError as error:
            raise top.error(f"claims.{claim.id}.pairs", str(error)) from None
    if claim.column not in table.columns:
        raise top.error(f"claims.{claim.id}.column", f"one of {', '.join(table.columns)}")
    if claim.kind == "share" and any(table.row(b).method != "teacher" for _, b in claim.pairs):
        raise top.error(f"claims.{claim.id}.pairs", "a share is of the teacher's score: [row, side/teacher]")


# published figures


def papers() -> tuple[str, ...]:
    """Papers with a file of figures."""
    return tuple(sorted(path.stem for path in PUBLISHED.glob("*.yaml")))


def published(key: str) -> PublishedRow | None:
    """The row behind ``paper:table/row``; None if the table is unread or the row left out, with a reason.

    Raises TableError for a paper, table or row that does not exist.
    """
    name, _, rest = key.partition(":")
    table, _, row = rest.partition("/")
    if name not in papers():
        raise TableError(f"no published file for {name!r}" + nearest(name, papers()))
    found = paper(name)
    if table in found.unread or f"{table}/{row}" in found.omitted:
        return None
    if table not in found.tables:
        raise TableError(f"{name} has no table {table!r}" + nearest(table, [*found.tables, *found.unread]))
    if row not in found.tables[table]:
        raise TableError(f"{name}:{table} has no row {row!r}" + nearest(row, found.tables[table]))
    return found.tables[table][row]


def why_unknown(key: str) -> str:
    """Why ``published(key)`` is None."""
    name, _, rest = key.partition(":")
    found = paper(name)
    return found.omitted.get(rest) or found.unread[rest.partition("/")[0]]


def paper(name: str) -> Paper:
    """A paper's figures, checked. Raises TableError."""
    if name not in papers():
        raise TableError(f"no published file for {name!r}" + nearest(name, papers()))
    return read_paper(PUBLISHED / f"{name}.yaml")


@functools.cache
def read_paper(path: Path) -> Paper:
    """Read and check one file of published figures."""
    top = _Node.load(path)
    name = top.text("paper")
    if name != path.stem:
        raise top.error("paper", f"the file is named {path.stem}")
    tables: dict[str, dict[str, PublishedRow]] = {}
    omitted: dict[str, str] = {}
    for node in top.nodes("tables"):
        table = node.text("table")
        if table in tables:
            raise node.error("table", f"{table} occurs twice")
        tables[table], left_out = _published_table(node, name, table)
        omitted |= left_out
    unread = top.mapping("unread", str)
    top.done(("title", "arxiv", "venue"))
    citation = ", ".join(
        part for part in (top.text("title"), _arxiv(top), top.text("venue", optional=True)) if part
    )
    return Paper(name, citation, tables, unread, omitted)


def _arxiv(top: _Node) -> str:
    number = top.text("arxiv", optional=True)
    return f"arXiv {number}" if number else ""


def _published_table(node: _Node, name: str, table: str) -> tuple[dict[str, PublishedRow], dict[str, str]]:
    columns = node.texts("columns")
    unlike = node.text("unlike", optional=True)
    items = node.mapping("items", int)
    rows: dict[str, PublishedRow] = {}
    for row in node.nodes("rows"):
        key = row.text("row")
        if key in rows:
            raise row.error("row", f"{key} occurs twice")
        via = row.text("via", optional=True)
        figures = {c: _figure(row, c, f"{name}:{table}", via) for c in columns if c in row.data}
        if not figures:
            raise row.error("row", f"{key} has no figure")
        rows[key] = PublishedRow(
            f"{name}:{table}/{key}", figures, unlike, items, row.text("note", optional=True)
        )
        row.done(("teacher", "student", *columns))
    omitted = {f"{table}/{row}": why for row, why in node.mapping("omitted", str).items()}
    node.done(("title", "protocol", "metric"))
    return rows, omitted


def _figure(row: _Node, column: str, source: str, via: str) -> Figure:
    data = row.get(column, list)
    if len(data) != 2 or isinstance(data[0], bool) or not isinstance(data[0], (int, float)):
        raise row.error(column, "a figure is [number, status]")
    if data[1] not in STATUSES:
        raise row.error(column, f"status is one of {', '.join(STATUSES)}, not {data[1]!r}")
    if data[1] == "secondary" and not via:
        raise row.error(column, "a secondary figure needs the row's via: who quotes it")
    return Figure(float(data[0]), data[1], source, via)


class _Node:
    """A mapping in a YAML file that knows where it stands and which of its keys were asked for."""

    def __init__(self, path: Path, where: str, data: Any) -> None:
        self.path, self.where, self.data = path, where, data
        self.seen: set[str] = set()
        if not isinstance(data, dict):
            raise TableError(f"{path}: {where or 'the file'} is not a mapping")

    @classmethod
    def load(cls, path: Path) -> _Node:
        try:
            return cls(path, "", yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys))
        except OSError as error:
            raise TableError(f"{path}: {error.strerror}") from None
        except yaml.YAMLError as error:
            raise TableError(f"{path}: {error}") from None

    def error(self, key: str, what: str) -> TableError:
        return TableError(f"{self.path}: {self.where}{key}: {what}")

    def get(self, key: str, kind: type) -> Any:
        self.seen.add(key)
        if key not in self.data:
            raise self.error(key, "missing")
        if not isinstance(self.data[key], kind):
            raise self.error(key, f"should be a {kind.__name__}, is {self.data[key]!r}")
        return self.data[key]

    def text(self, key: str, *, optional: bool = False) -> str:
        if optional and key not in self.data:
            self.seen.add(key)
            return ""
        text = self.get(key, str).strip()
        if not text:
            raise self.error(key, "empty")
        return str(text)

    def number(self, key: str) -> float:
        self.seen.add(key)
        value = self.data.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, f"should be a number, is {value!r}")
        return float(value)

    def choice(self, key: str, choices: Iterable[str]) -> str:
        text = self.text(key)
        if text not in tuple(choices):
            raise self.error(key, f"one of {', '.join(choices)}, not {text!r}")
        return text

    def texts(self, key: str, *, optional: bool = False) -> list[str]:
        """A list of texts; a single text counts as a list of one, null (if optional) as none."""
        self.seen.add(key)
        value = self.data.get(key)
        if value is None and optional and key in self.data:
            return []
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
            raise self.error(key, f"should be a list of texts, is {value!r}")
        return value

    def mapping(self, key: str, kind: type) -> dict[str, Any]:
        """An optional mapping of texts to ``kind``."""
        self.seen.add(key)
        value = self.data.get(key, {})
        if not isinstance(value, dict) or not all(isinstance(v, kind) for v in value.values()):
            raise self.error(key, f"should map names to {kind.__name__}")
        return {str(name): item for name, item in value.items()}

    def node(self, key: str) -> _Node:
        return _Node(self.path, f"{self.where}{key}.", self.get(key, dict))

    def nodes(self, key: str) -> list[_Node]:
        items = self.get(key, list)
        return [
            _Node(self.path, f"{self.where}{key}[{number}].", item) for number, item in enumerate(items, 1)
        ]

    def done(self, also: Iterable[str] = ()) -> None:
        """Refuse keys that nobody asked for."""
        known = self.seen | set(also)
        for key in self.data:
            if key not in known:
                raise self.error(str(key), "unknown key" + nearest(str(key), known))


class _UniqueKeys(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML in which a key given twice is an error, not a silent last word."""


def _unique(loader: _UniqueKeys, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} occurs twice", node.start_mark)
    return {
        key: loader.construct_object(value, deep=True)
        for key, (_, value) in zip(keys, node.value, strict=True)
    }  # type: ignore[no-untyped-call]


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique)
