"""Records and generations on disk: written atomically, checked when read, never changed.

Layout under the root: ``records/<scale>/<cell>.json``, ``generations/<scale>/<cell>/<suite>-<seed>.jsonl.gz``
and ``work/`` (scratch and locks, ignored by git).
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from harness.files import write_whole

SCHEMA = 1

#: Fields that may differ between two runs of one cell.
VOLATILE = ("provenance", "cost")

_ID = re.compile(r"[0-9a-f]{16}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REQUIRED = (
    "schema",
    "cell",
    "spec",
    "status",
    "reason",
    "scores",
    "training",
    "models",
    "data",
    "provenance",
    "cost",
)


class StoreError(RuntimeError):
    """A record or file that is damaged, misplaced, or would be overwritten."""


def canonical(value: Any) -> bytes:
    """The one JSON text of a value: keys sorted, no spaces. Raises StoreError for what JSON cannot hold."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise StoreError(f"not plain JSON: {error}") from None


def core(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without what may differ from run to run (provenance, cost) and without its checksum."""
    return {key: value for key, value in record.items() if key not in (*VOLATILE, "sha256")}


def plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as JSON gives it back (lists, not tuples), without its checksum."""
    body: dict[str, Any] = json.loads(canonical({k: v for k, v in record.items() if k != "sha256"}))
    return body


def checksum(record: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON of everything but the checksum itself."""
    return hashlib.sha256(canonical({k: v for k, v in record.items() if k != "sha256"})).hexdigest()


class Store:
    """All records under one root. Several processes may use the same root at once."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    # records

    def record_path(self, cell_id: str, scale: str | None = None) -> Path:
        """Where a record lies. Without a scale, where it is found; StoreError if nowhere."""
        _check_id(cell_id)
        if scale is not None:
            return self.root / "records" / _name(scale, "scale") / f"{cell_id}.json"
        found = self._places(cell_id)
        if len(found) != 1:
            raise StoreError(f"{len(found)} records of cell {cell_id} under {self.root / 'records'}, not one")
        return found[0]

    def _places(self, cell_id: str) -> list[Path]:
        """The files of a cell's record at any scale: there should be one at most."""
        _check_id(cell_id)
        try:
            scales = sorted(os.listdir(self.root / "records"))
        except OSError:  # no record yet
            return []
        places = (self.root / "records" / scale / f"{cell_id}.json" for scale in scales)
        return [place for place in places if place.exists()]

    def has(self, cell_id: str) -> bool:
        """Whether a record of the cell exists, unread."""
        return bool(self._places(cell_id))

    def get(self, cell_id: str) -> dict[str, Any] | None:
        """The record of a cell, or None. Raises StoreError where the file is not what was written."""
        found = self._places(cell_id)
        return read_record(self.record_path(cell_id) if len(found) > 1 else found[0]) if found else None

    def put(self, record: Mapping[str, Any]) -> Path:
        """Write a record once. The same core again leaves the file as it was; another core raises StoreError.

        A record with status ``failed`` is the exception: a later run of the cell replaces it.
        """
        record = plain(record)
        check_record(record, "record")
        path = self.record_path(record["cell"], record["spec"]["scale"])
        with self._file_lock(f"put-{record['cell']}"):
            if path.exists():
                old = read_record(path)
                if core(old) == core(record):
                    return path
                if old["status"] != "failed":
                    what = first_difference(core(old), core(record))
                    raise StoreError(f"{path} holds other results for this cell: {what}")
            signed = {**record, "sha256": checksum(record)}
            write_whole(path, (json.dumps(signed, sort_keys=True, indent=1, allow_nan=False) + "\n").encode())
        return path

    def all(self, scale: str | None = None) -> Iterator[dict[str, Any]]:
        """Every record (of a scale), by path. Raises StoreError at the first damaged one."""
        for path in self.paths(scale):
            yield read_record(path)

    def check(self) -> list[str]:
        """What is wrong in the store, a line for each fault; empty when all is well. Reads every file."""
        faults = []
        for path in self.paths(None):
            try:
                record = read_record(path)
                for reference in references(record):
                    self.check_generations(reference)
            except StoreError as error:
                faults.append(str(error))
        return faults

    def paths(self, scale: str | None = None) -> list[Path]:
        """The files of all records (of a scale), unread."""
        return sorted((self.root / "records").glob(f"{_name(scale, 'scale') if scale else '*'}/*.json"))

    # generations

    def write_generations(
        self, cell: Any, suite: str, seed: int, rows: Iterable[Mapping[str, Any]], *, scale: str | None = None
    ) -> dict[str, str]:
        """Write a suite's answers (one mapping per item) and return ``{"path", "sha256"}`` for the record.

        ``cell`` is a Cell, or an id together with ``scale``. The same rows give the same bytes.
        """
        cell_id, scale = getattr(cell, "id", cell), scale or getattr(cell, "scale", None)
        if scale is None:
            raise StoreError("generations of a bare cell id need scale=")
        _check_id(cell_id)
        name = f"{_name(suite, 'suite')}-{int(seed)}.jsonl.gz"
        path = self.root / "generations" / _name(scale, "scale") / cell_id / name
        data = b"".join(_gzipped(canonical(row) + b"\n" for row in rows))
        write_whole(path, data)
        return {"path": path.relative_to(self.root).as_posix(), "sha256": hashlib.sha256(data).hexdigest()}

    def read_generations(self, reference: Mapping[str, str]) -> list[dict[str, Any]]:
        """The rows behind ``{"path", "sha256"}``. Raises StoreError for a missing, changed or stray file."""
        return list(self.generations(reference))

    def generations(self, reference: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """The same rows one by one: memory does not grow with the file, which is checked before the first."""
        with self._verified(reference) as stream, gzip.GzipFile(fileobj=stream) as lines:
            for line in lines:
                yield json.loads(line)

    def check_generations(self, reference: Mapping[str, str]) -> None:
        """Raise StoreError unless the file is there, unchanged and readable to its end."""
        for _ in self.generations(reference):
            pass

    def adopt_generations(self, reference: Mapping[str, str], source: Store) -> None:
        """Take over another store's file as it is. Raises StoreError unless it is what was referred to."""
        with source._verified(reference) as stream:
            write_whole(self._inside(reference["path"]), stream.read())

    @contextlib.contextmanager
    def _verified(self, reference: Mapping[str, str]) -> Iterator[BinaryIO]:
        """The file behind a reference, open at its start and known to be what was referred to."""
        path = self._inside(reference["path"])
        try:
            stream = path.open("rb")
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from None
        with stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != reference["sha256"]:
                raise StoreError(f"{path} is not the file its record was made from (SHA-256 differs)")
            stream.seek(0)
            yield stream

    def _inside(self, relative: str) -> Path:
        check_relative(relative, "path")
        path = (self.root / relative).resolve()
        if not path.is_relative_to(self.root.resolve()):  # a link that leads out
            raise StoreError(f"{relative!r} leads out of {self.root}")
        return path

    # scratch

    def work(self, cell_id: str) -> Path:
        """Scratch folder of a cell, made on first use."""
        _check_id(cell_id)
        path = self.root / "work" / cell_id
        path.mkdir(parents=True, exist_ok=True)
        return path

    def lock(self, cell_id: str, timeout: float = -1) -> FileLock:
        """A lock between processes, for ``with``. ``timeout`` 0: raises Timeout at once if it is held."""
        _check_id(cell_id)
        return self._file_lock(cell_id, timeout)

    def _file_lock(self, name: str, timeout: float = -1) -> FileLock:
        folder = self.root / "work" / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{name}.lock", timeout=timeout)


def read_record(path: Path) -> dict[str, Any]:
    """A record from its file. Raises StoreError unless it is whole, unchanged and where it belongs."""
    try:
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise StoreError(f"{path} is no JSON ({error}); remove it to run the cell again") from None
    if not isinstance(record, dict) or record.get("sha256") != checksum(record):
        raise StoreError(
            f"{path} was changed after it was written (checksum differs); remove it to run the cell again"
        )
    check_record(record, str(path))
    if path.stem != record["cell"] or path.parent.name != record["spec"]["scale"]:
        raise StoreError(
            f"{path} holds the record of cell {record['cell']} at scale {record['spec']['scale']}"
        )
    return record


def check_record(record: Mapping[str, Any], where: str) -> None:
    """Raise StoreError unless the record has the schema's fields, its own cell's id and whole scores."""
    missing = [key for key in _REQUIRED if key not in record]
    if missing:
        raise StoreError(f"{where} lacks {', '.join(missing)}")
    if record["schema"] != SCHEMA:
        raise StoreError(f"{where} has schema {record['schema']}; this code reads {SCHEMA}")
    if record["status"] not in ("done", "failed"):
        raise StoreError(f"{where}: status is done or failed, not {record['status']!r}")
    if record["status"] == "failed" and not record["reason"]:
        raise StoreError(f"{where}: a failed cell says why")
    _check_id(record["cell"])
    if hashlib.sha256(canonical(record["spec"])).hexdigest()[:16] != record["cell"]:
        raise StoreError(f"{where}: cell id {record['cell']} is not the hash of its description")
    _name(record["spec"]["scale"], "scale")
    for suite, scores in record["scores"].items():
        for seed, run in scores["seeds"].items():
            _check_scores(run, scores["items"], f"{where}: {suite}, decoding seed {seed}")


def _check_scores(run: Mapping[str, Any], items: int, where: str) -> None:
    values = run["per_item"]
    if len(values) != items or not items:
        raise StoreError(f"{where}: {len(values)} scores for {items} items")
    if not set(map(type, values)) <= {int, float} or not math.isfinite(sum(values)):
        raise StoreError(f"{where}: a score is not a finite number")
    if abs(sum(values) / items - run["score"]) > 1e-3:  # per-item scores are kept to four decimals
        raise StoreError(
            f"{where}: score {run['score']} is not the mean of its items ({sum(values) / items:.4f})"
        )
    if run.get("generations"):
        check_relative(run["generations"]["path"], where)


def references(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Every ``{"path", "sha256"}`` of generations that a record points to."""
    runs = [run for scores in record["scores"].values() for run in scores["seeds"].values()]
    return [run["generations"] for run in runs if run.get("generations")]


def check_relative(path: str, where: str) -> None:
    """Raise StoreError for a path that is absolute, climbs, or is not written with plain slashes."""
    parts = path.split("/")
    if not path or path.startswith("/") or "\\" in path or ":" in path or {"", ".", ".."} & set(parts):
        raise StoreError(f"{where}: {path!r} is no path inside the store")


def _gzipped(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Gzip without a time, so that the same parts give the same bytes; whole texts are never held."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    for part in parts:
        yield packer.compress(part)
    yield packer.flush()


def _check_id(cell_id: str) -> None:
    if not isinstance(cell_id, str) or not _ID.fullmatch(cell_id):
        raise StoreError(f"{cell_id!r} is no cell id (sixteen hex digits)")


def _name(text: str, what: str) -> str:
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise StoreError(f"{text!r} is no {what} name")
    return text


def first_difference(old: Any, new: Any, where: str = "") -> str:
    """The first place where two JSON values differ, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key) or (key in old) != (key in new):
                return first_difference(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
    return f"{where} was {str(old)[:60]}, is {str(new)[:60]}"


__all__ = [
    "SCHEMA",
    "VOLATILE",
    "Store",
    "StoreError",
    "Timeout",
    "canonical",
    "check_record",
    "check_relative",
    "checksum",
    "core",
    "first_difference",
    "read_record",
    "references",
]
