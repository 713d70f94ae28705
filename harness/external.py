"""Records from elsewhere: checked, kept apart under ``external/``, and shown as what they are.

They are never mixed with what was measured here: no row's mean, no rank, no best, no claim and no census
counts them. A record comes as a file of anybody's, so whatever of it is shown is checked first: fields and
types, printable text, sane numbers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from dskd.method import MethodError, Spec
from evals import suites
from evals.suites import SuiteError
from harness import statistics
from harness.cells import UNTRAINED, Cell
from harness.files import write_whole
from harness.statistics import Estimate
from harness.store import Store, StoreError, canonical, check_record, checksum, core
from harness.tables import SCALES, Row, Table
from harness.verdict import External

Record = Mapping[str, Any]

LARGEST = 64 * 2**20  #: bytes of a record
LONGEST = 300  #: characters of a name in a record's description
_ODD = (KeyError, TypeError, AttributeError, ValueError, RecursionError, MethodError, SuiteError)


def read(file: Path) -> dict[str, Any]:
    """A record from a file of anybody's. StoreError says what is wrong with it."""
    try:
        if file.exists() and not file.is_file():
            raise StoreError(f"{file} is no file")
        if file.stat().st_size > LARGEST:
            raise StoreError(f"{file} is larger than {LARGEST // 2**20} MiB; no record is")
        record = json.loads(file.read_bytes())
    except OSError as error:
        raise StoreError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{file} is no JSON: {error}") from None
    check(record, str(file))
    return dict(record)


def check(record: Any, where: str) -> None:
    """Raise StoreError unless this is a whole, unchanged, finished record that makes sense."""
    if not isinstance(record, dict) or record.get("sha256") != checksum(record):
        raise StoreError(f"{where} is no record, or was changed after it was written (checksum differs)")
    try:
        check_record(record, where)
        _check_spec(record, where)
        for name, scores in record["scores"].items():
            _check_suite(record, name, scores, f"{where}: {name}")
        _check_cost(record["cost"], where)
    except StoreError:
        raise
    except _ODD as error:
        raise StoreError(f"{where} is no record of this benchmark: {type(error).__name__}: {error}") from None


def _check_spec(record: Mapping[str, Any], where: str) -> None:
    """The cell's description is one that this code could have made."""
    if record["status"] != "done":
        raise StoreError(f"{where}: a failed cell has nothing to show")
    cell = Cell.from_dict(record["spec"])
    if cell.id != record["cell"]:
        raise StoreError(f"{where}: its description has other fields than this version's")
    if not _fits(cell, Cell):
        raise StoreError(f"{where}: its description has a field of another type than this version's")
    if any(len(text) > LONGEST or not text.isprintable() for text in _texts(record["spec"])):
        raise StoreError(f"{where}: its description has text that nobody can read")
    if cell.scale not in SCALES:
        raise StoreError(f"{where}: scale is one of {', '.join(SCALES)}, not {cell.scale!r}")
    if cell.method not in UNTRAINED and str(Spec.parse(cell.method)) != cell.method:
        raise StoreError(f"{where}: {cell.method!r} is no method's canonical address")
    wanted = {run.name for run in cell.suites}
    if set(record["scores"]) != wanted or not wanted:
        raise StoreError(f"{where}: scored on {sorted(record['scores'])}, described with {sorted(wanted)}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, field by field; bool is no number."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if kind is tuple:
        hints = [parts[0]] * len(value) if parts[-1] is ... else parts
        return isinstance(value, tuple) and all(map(_fits, value, hints))
    if dataclasses.is_dataclass(hint):
        fields = typing.get_type_hints(hint)
        return type(value) is hint and all(_fits(getattr(value, name), fields[name]) for name in fields)
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint


def _texts(value: Any) -> Iterator[str]:
    """Every string in plain JSON data, names of fields too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.items():
            yield from _texts(item)
    elif isinstance(value, Sequence):
        for part in value:
            yield from _texts(part)


def _check_suite(record: Mapping[str, Any], name: str, scores: Mapping[str, Any], where: str) -> None:
    suite = suites.get(name)
    version = next(run["version"] for run in record["spec"]["suites"] if run["name"] == name)
    if version == suite.version and scores["metric"] != suite.metric:
        raise StoreError(f"{where} is scored by {suite.metric}, not by {scores['metric']!r}")
    seeds = {str(seed) for seed in record["spec"]["decoding"]["seeds"]}
    if set(scores["seeds"]) != seeds:
        raise StoreError(f"{where}: decoding seeds {sorted(scores['seeds'])}, described with {sorted(seeds)}")
    for run in scores["seeds"].values():
        if not all(0 <= value <= 100 for value in (*run["per_item"], run["score"])):
            raise StoreError(f"{where}: scores lie between 0 and 100")


def _check_cost(cost: Mapping[str, Any], where: str) -> None:
    for name, value in cost.items():
        if isinstance(value, (int, float)) and not (math.isfinite(value) and value >= 0):
            raise StoreError(f"{where}: cost {name} is {value}")


def take_in(results: Path, given: Sequence[tuple[str, Any]], source: str) -> list[Path]:
    """Keep checked records, (file, record) each, with whose they are: all of them, or none and StoreError."""
    source = source.strip()
    _check_source(source, "--source NAME, whose records these are,")
    paths = [_path(results, source, record) for _, record in given]
    for number, (file, record) in enumerate(given):
        _check_new(results, record, source, file)
        if paths[number] in paths[:number]:
            raise StoreError(f"{file} is of the same cell as {given[paths.index(paths[number])][0]}")
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    for (file, record), path in zip(given, paths, strict=True):
        imported = {"source": source, "date": moment, "file": Path(file).name}
        body = {"imported": imported, "record": record}
        write_whole(path, (json.dumps(body, sort_keys=True, indent=1, allow_nan=False) + "\n").encode())
    return paths


def _check_source(source: Any, where: str) -> None:
    """A name that no terminal, page or spreadsheet takes for more than a name."""
    if not isinstance(source, str) or not source.isprintable() or not 0 < len(source) <= 80:
        raise StoreError(f"{where} is of 1 to 80 printable characters")
    if not source[0].isalnum():
        raise StoreError(f"{where} begins with a letter or a digit")


def _path(results: Path, source: str, record: Mapping[str, Any]) -> Path:
    """One file for a source's record of a cell."""
    whose = hashlib.sha256(source.encode()).hexdigest()[:8]
    return results / "external" / record["spec"]["scale"] / f"{record['cell']}-{whose}.json"


def _check_new(results: Path, record: Mapping[str, Any], source: str, file: str) -> None:
    """Refuse what is here already, as our own or as anybody's, and a second word of one source on a cell."""
    cell, own = record["cell"], Store(results)
    known = own.get(cell) if own.has(cell) else None
    if known is not None and known["sha256"] == record["sha256"]:
        raise StoreError(f"{file} is this store's own record of cell {cell}")
    for path, other, before in _kept(results, record["spec"]["scale"], cell):
        if before["sha256"] == record["sha256"]:
            raise StoreError(f"{file} was imported before, from {other}, as {path}")
        if other == source:
            said = "the same" if core(before) == core(record) else "other"
            raise StoreError(
                f"{path} has {said} results of {source} for cell {cell} already; remove it to take in {file}"
            )


def kept(results: Path, scale: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(source, record) of all that was imported (at a scale), by file. StoreError for a damaged one."""
    for _, source, record in _kept(results, scale or "*"):
        yield source, record


def checksums(results: Path) -> dict[Path, str]:
    """The files of all that was imported, and their records' checksums. StoreError for a damaged one."""
    return {path: record["sha256"] for path, _, record in _kept(results, "*")}


def _kept(results: Path, scale: str, cell: str = "") -> Iterator[tuple[Path, str, dict[str, Any]]]:
    for file in sorted((results / "external").glob(f"{scale}/{cell}*.json")):
        try:
            body = json.loads(file.read_bytes())
            source, record = body["imported"]["source"], body["record"]
        except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
            raise StoreError(f"{file} is not as it was imported: {error}") from None
        check(record, str(file))
        _check_source(source, f"the source in {file}")
        if file != _path(results, source, record):
            raise StoreError(f"{file} does not have the name it was imported by")
        yield file, source, record


def alike(records: Iterable[tuple[str, Record]]) -> list[tuple[str, list[Record]]]:
    """(source, records) of one source, items and description, which differ in the training seed alone."""
    groups: dict[tuple[bytes, str], dict[int, Record]] = defaultdict(dict)
    for source, record in records:
        items = {name: scores["items_sha256"] for name, scores in record["scores"].items()}
        groups[canonical([{**record["spec"], "seed": 0}, items]), source][record["spec"]["seed"]] = record
    return [(source, [some[seed] for seed in sorted(some)]) for (_, source), some in sorted(groups.items())]


def rows(table: Table, scale: str, results: Path, ours: Mapping[str, Cell]) -> tuple[External, ...]:
    """What was imported for the table's rows, in their order; ``alike`` records together.

    None for a table of shares of the teacher's score: whose teacher would that be? ``ours``: row key -> a
    cell as it would be run here, to say where settings differ.
    """
    if table.value != "score":
        return ()
    given = alike(kept(results, scale))
    return tuple(
        _external(table, row, source, records, ours.get(row.key))
        for row in table.rows
        for source, records in given
        if is_of(records[0]["spec"], table, row)
    )


def is_of(spec: Mapping[str, Any], table: Table, row: Row) -> bool:
    """Whether a record of this description is one of the row's, whatever its settings."""
    asked = (table.pair(spec["scale"], row.side), row.method, table.group)
    return table.value == "score" and (spec["pair"], spec["method"], spec["group"]) == asked


def _external(table: Table, row: Row, source: str, records: list[Record], ours: Cell | None) -> External:
    there = [suite for suite in table.suites if suite in records[0]["scores"]]
    whole = [column for column in table.columns if set(table.part(column)) <= set(there)]
    cells: dict[str, Estimate] = {}
    if whole:
        sample = statistics.sample(records, there, trained=row.trained)
        cells = {column: statistics.estimate(sample.only(*table.part(column))) for column in whole}
    seeds = tuple(record["spec"]["seed"] for record in records)
    return External(row, source, seeds, cells, _unlike(records[0]["spec"], ours))


def _unlike(spec: Mapping[str, Any], ours: Cell | None) -> str:
    """How its description differs from ours, in words; empty where it does not."""
    if ours is None:
        return ""
    mine = json.loads(canonical(ours.as_dict()))
    said = []
    for part in ("training", "decoding", "data"):
        said += _differences(part, spec[part], mine[part])
    for words, name in (("items of", "limit"), ("version of suite", "version")):
        said += _differences(
            words, *({run["name"]: run[name] for run in each["suites"]} for each in (spec, mine))
        )
    theirs, here = dict(spec["versions"]), dict(mine["versions"])
    absent = [name for name in theirs if name not in here and name.startswith(("file ", "files of "))]
    here |= {name: theirs[name] for name in absent}  # hashes of what is not here cannot differ
    said += _differences("version of", theirs, here)
    return "; ".join(said)


def _differences(part: str, theirs: Any, ours: Any) -> list[str]:
    if theirs == ours:
        return []
    if not (isinstance(theirs, dict) and isinstance(ours, dict)):
        return [f"{part} {theirs} (here {ours})"]
    names = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
    return [f"{part} {name} {theirs.get(name)} (here {ours.get(name)})" for name in names]
