"""Which records compete: boards of entrants that were trained and scored under one protocol.

A board is a pair at a scale with one way of decoding and one budget. On it a method is an entrant if it has
every suite and every training seed of the board; whatever falls short stands apart with the reason, and is
never averaged over what it lacks. Records from elsewhere stand beside the board of their protocol and take no
part in anything.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dskd import method as methods
from dskd.method import MethodError, Spec
from harness import pairs, scales, statistics, store, tables
from harness.cells import UNTRAINED, Cell
from harness.external import alike
from harness.pairs import PairError, PairSpec
from harness.scales import Setting
from harness.statistics import Sample
from harness.tables import Table

Record = Mapping[str, Any]

#: Versions that belong to a method; every other one must be the same all over a board.
_OWN_VERSIONS = ("method", "divergence", "plugin")
#: Versions that count up and so say something to a reader; others are hashes.
_COUNTED = ("decoder", "trainer", "tiny", "world", "reference-heads")
_GROUPS = ("instructions", "maths", "code")


@dataclass(frozen=True)
class Entrant:
    """A method, or an untrained reference, with all that its board asks for."""

    method: str  #: canonical address, or one of cells.UNTRAINED
    records: tuple[Record, ...]  #: by training seed
    sample: Sample


@dataclass(frozen=True)
class Apart:
    """A method that is not ranked, and why. It may have no record at all."""

    method: str
    reason: str
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Outside:
    """A method's records from elsewhere, alike but for the seed; shown, never ranked."""

    source: str
    records: tuple[Record, ...]  #: by training seed
    note: str  #: in what they depart from the board


@dataclass
class Board:
    """What competes under one protocol."""

    id: str  #: the pair's name; where one pair has several protocols, the smaller ones with a hash behind
    scale: str
    pair: PairSpec
    group: str
    suites: tuple[str, ...]
    seeds: tuple[int, ...]  #: training seeds that every entrant has
    budget: Mapping[str, Any]  #: settings that are not the scale's own
    entrants: list[Entrant]
    references: list[Entrant]
    apart: list[Apart]
    notes: list[str] = field(default_factory=list)  #: records that were passed over, and why
    external: list[Outside] = field(default_factory=list)

    @property
    def everyone(self) -> list[Entrant]:
        """Ranked and reference."""
        return [*self.entrants, *self.references]

    @property
    def records(self) -> list[Record]:
        """All records of our own that are shown, those apart included."""
        shown = [some.records for some in self.everyone] + [some.records for some in self.apart]
        return [record for records in shown for record in records]


def gather(records: Iterable[Record], external: Iterable[tuple[str, Record]] = ()) -> list[Board]:
    """All boards, by scale, group and pair. ``external``: (source, record)s from elsewhere."""
    groups: dict[bytes, list[Record]] = defaultdict(list)
    for record in records:
        groups[_frame(record["spec"])].append(record)
    found = [board for some in groups.values() for board in _split(some)]
    for source, some in alike(external):
        _stand_beside(found, source, some)
    names = list(pairs.PAIRS)
    found.sort(key=lambda board: (
        scales.SCALES.index(board.scale), _GROUPS.index(board.group),
        names.index(board.pair.name) if board.pair.name in names else len(names),
        board.pair.name, -len(board.records), store.canonical(board.budget),
    ))  # fmt: skip
    _name(found)
    return found


def tables_of(board: Board) -> list[Table]:
    """The tables whose protocol is the board's, each cut down to the board's side and suites."""
    found = []
    for table in map(tables.load, tables.ids()):
        sides = [side for side in table.sides if table.pair(board.scale, side) == board.pair.name]
        alike = table.group == board.group and set(board.suites) <= set(table.suites)
        if sides and alike and _protocol(table, board) == board.budget:
            keys = {row.key for row in table.rows if row.side in sides}
            found.append(tables.only(table, board.suites, keys))
    return found


@functools.cache
def label(address: str) -> str:
    """What the tables call a method; where none has it, its address."""
    rows = (row for name in tables.ids() for row in tables.load(name).rows)
    return next((row.label for row in rows if row.method == address), address)


# protocols


def _frame(spec: Mapping[str, Any]) -> bytes:
    """What trained and untrained rows of a board share."""
    limits = sorted({str(run["limit"]) for run in spec["suites"]})
    return store.canonical([spec[key] for key in ("scale", "pair", "group", "decoding")] + [limits])


def _split(records: Sequence[Record]) -> list[Board]:
    """One frame's records as boards, one for each training set and budget; all share the references."""
    references = [record for record in records if record["spec"]["method"] in UNTRAINED]
    trained: dict[bytes, list[Record]] = defaultdict(list)
    budgets: dict[bytes, dict[str, Any]] = {}
    for record in records:
        if record["spec"]["method"] not in UNTRAINED:
            budget = _budget(record["spec"])
            key = store.canonical(budget)
            budgets[key] = budget
            trained[key].append(record)
    if not trained:
        return [_board(references, {})]
    return [_board([*some, *references], budgets[key]) for key, some in trained.items()]


def _stand_beside(boards: list[Board], source: str, records: Sequence[Record]) -> None:
    """Put records from elsewhere beside the board of their protocol; where none has it, on an empty one."""
    spec = records[0]["spec"]
    budget = None if spec["method"] in UNTRAINED else _budget(spec)
    board = next((board for board in boards if _has_protocol(board, spec, budget)), None)
    if board is None:
        suites, pair = _suites(records), _pair(spec)
        board = Board(pair.name, spec["scale"], pair, spec["group"], suites, (), budget or {}, [], [], [])
        boards.append(board)
    usual = _usual(board.records)
    note = "; ".join(dict.fromkeys(filter(None, (_unlike(record, usual) for record in records))))
    board.external.append(Outside(source, tuple(records), note))


def _has_protocol(board: Board, spec: Mapping[str, Any], budget: Mapping[str, Any] | None) -> bool:
    """Whether a description is of the board's pair, decoding and items, and trained as its methods are."""
    shown = [*board.records, *(record for some in board.external for record in some.records)]
    return _frame(shown[0]["spec"]) == _frame(spec) and (budget is None or budget == board.budget)


def _pair(spec: Mapping[str, Any]) -> PairSpec:
    """The pair as known today; one that is known no longer keeps its name."""
    try:
        return pairs.get(spec["pair"])
    except PairError:
        return PairSpec(spec["pair"], spec["scale"], "unknown", "unknown", None, "table1-same")


def _budget(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a trained cell that differ from the scale's own for its method, by name."""
    cell = Cell.from_dict(dict(spec))
    usual = scales.setting(_pair(spec), cell.group, Spec.parse(cell.method).name)
    limits = {run.limit for run in cell.suites}
    given = Setting(cell.training or usual.training, cell.decoding, cell.data, limits.pop())
    return _changes(given, usual) | ({"prompts": "mixed"} if limits else {})


def _protocol(table: Table, board: Board) -> dict[str, Any]:
    """What a table changes in its scale's settings, as a board's budget has it."""
    usual = scales.setting(board.pair, table.group)
    return _changes(scales.setting(board.pair, table.group, "", table.budget.get(board.scale)), usual)


def _changes(given: Setting, usual: Setting) -> dict[str, Any]:
    """Training, decoding, items of a suite (``prompts``) and training set, where they differ."""
    mine, theirs = dataclasses.asdict(given), dataclasses.asdict(usual)
    parts = [(mine[part], theirs[part]) for part in ("training", "decoding")]
    parts.append(({"prompts": given.limit, "data": given.data}, {"prompts": usual.limit, "data": usual.data}))
    return {key: value for a, b in parts for key, value in a.items() if value != b[key]}


def _name(boards: Sequence[Board]) -> None:
    taken: Counter[str] = Counter()
    for board in boards:
        taken[board.id] += 1
        if taken[board.id] > 1:
            known = store.canonical([board.group, board.budget, board.suites])
            board.id += "~" + hashlib.sha256(known).hexdigest()[:6]


# entrants


def _board(records: Sequence[Record], budget: Mapping[str, Any]) -> Board:
    spec = records[0]["spec"]
    usual = _usual(records)
    kept, notes = _newest([record for record in records if not _unlike(record, usual)])
    suites = _suites(records)
    seeds = _seeds([some for name, some in kept.items() if name not in UNTRAINED], suites)
    board = Board(
        _pair(spec).name, spec["scale"], _pair(spec), spec["group"], suites, seeds, budget, [], [], [], notes
    )
    for name, some in sorted(kept.items()):
        _place(board, name, some)
    for name, some in sorted(_by_method(record for record in records if _unlike(record, usual)).items()):
        reason = "; ".join(dict.fromkeys(_unlike(record, usual) for record in some))
        if name in kept:
            board.notes.append(f"{len(some)} records of {name} passed over: {reason}")
        else:
            board.apart.append(Apart(name, reason, tuple(some)))
    return board


def _conditions(record: Record) -> dict[str, Any]:
    """What must be the same for two records to be compared."""
    versions = {str(name): value for name, value in record["spec"]["versions"]}
    found = {name: value for name, value in versions.items() if name.split()[0] not in _OWN_VERSIONS}
    if record["spec"]["method"] not in UNTRAINED:
        found.setdefault("reference-heads", 0)
    for run in record["spec"]["suites"]:
        found[f"suite {run['name']}"] = run["version"]
    for name, scores in record["scores"].items():
        found[f"items of {name}"] = scores["items_sha256"]
    return found


def _usual(records: Sequence[Record]) -> dict[str, Any]:
    """The condition that most records have; among equals the one met first."""
    counts: dict[str, Counter[Any]] = defaultdict(Counter)
    for record in records:
        for name, value in _conditions(record).items():
            counts[name][value] += 1
    return {name: counter.most_common(1)[0][0] for name, counter in counts.items()}


def _unlike(record: Record, usual: Mapping[str, Any]) -> str:
    """In what a record departs from its board; empty if in nothing."""
    return ", ".join(
        f"{name} {value}, the board has {usual[name]}" if name in _COUNTED else f"other {name}"
        for name, value in _conditions(record).items()
        if value != usual.get(name, value)
    )


def _by_method(records: Iterable[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: (record["spec"]["seed"], record["cell"])):
        found[record["spec"]["method"]].append(record)
    return found


def _newest(records: Sequence[Record]) -> tuple[dict[str, list[Record]], list[str]]:
    """For each method and seed the record with the highest versions of the method; what that passes over."""
    kept: dict[str, list[Record]] = {}
    notes = []
    for name, some in _by_method(records).items():
        best: dict[int, Record] = {}
        for record in some:
            seed = record["spec"]["seed"]
            if seed not in best or _age(record) >= _age(best[seed]):
                best[seed] = record
        kept[name] = list(best.values())
        if len(some) > len(best):
            notes.append(f"{len(some) - len(best)} records of {name} are of older versions of it")
    return kept, notes


def _age(record: Record) -> tuple[bool, list[tuple[str, int]]]:
    """Finished before failed, then by version."""
    own = [(str(k), int(v)) for k, v in record["spec"]["versions"] if str(k).split()[0] in _OWN_VERSIONS]
    return record["status"] == "done", sorted(own)


def _suites(records: Sequence[Record]) -> tuple[str, ...]:
    """The suites of all records, in the order of the registry."""
    from evals.suites import SUITES

    order = list(SUITES)
    found = {run["name"] for record in records for run in record["spec"]["suites"]}
    return tuple(sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name)))


def _seeds(some: Sequence[Sequence[Record]], suites: Sequence[str]) -> tuple[int, ...]:
    """Training seeds that at least half of the methods with all suites have."""
    whole = [[r["spec"]["seed"] for r in records if _lacks(r, suites) == ""] for records in some]
    counts = Counter(seed for seeds in whole for seed in seeds)
    methods_ = sum(bool(seeds) for seeds in whole)
    return tuple(sorted(seed for seed, count in counts.items() if 2 * count >= methods_))


def _lacks(record: Record, suites: Sequence[str]) -> str:
    if record["status"] != "done":
        return f"seed {record['spec']['seed']} failed: {record['reason']}"
    missing = [suite for suite in suites if suite not in record["scores"]]
    return f"no {', '.join(missing)}" if missing else ""


def _place(board: Board, name: str, records: Sequence[Record]) -> None:
    """Put a method among the entrants, the references or those apart."""
    seeds = (records[0]["spec"]["seed"],) if name in UNTRAINED else board.seeds
    wanted = [record for record in records if not seeds or record["spec"]["seed"] in seeds]
    reasons = list(dict.fromkeys(filter(None, (_lacks(record, board.suites) for record in wanted))))
    missing = sorted(set(seeds) - {record["spec"]["seed"] for record in wanted})
    if missing:
        reasons.append(f"no training seed {', '.join(map(str, missing))}")
    if reasons:
        board.apart.append(Apart(name, "; ".join(reasons), tuple(records)))
        return
    more = sorted({record["spec"]["seed"] for record in records} - set(seeds))
    if more:
        board.notes.append(f"training seed {', '.join(map(str, more))} of {name} not ranked: others lack it")
    try:
        sample = statistics.sample(wanted, board.suites, trained=name not in UNTRAINED)
    except statistics.StatisticsError as error:
        board.apart.append(Apart(name, str(error), tuple(records)))
        return
    among = board.references if name in UNTRAINED else board.entrants
    among.append(Entrant(name, tuple(wanted), sample))


# what a method is called


@functools.cache
def family(address: str) -> str:
    """What a method belongs to, after the module that defines it."""
    if address in UNTRAINED:
        return "reference"
    try:
        module = type(methods.create(address)).__module__
    except MethodError:
        return "other"
    floor, _, name = module.partition(".")
    return {"dskd": "dual space", "baselines": name.replace("_", " ")}.get(floor, "other")
