"""Records that several machines made, brought into one store: all of them, or none.

Everything is read and checked before anything is written: checksums of records and answers, and that
no two records of a cell differ in anything but provenance and cost. Imported records come along, as such.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.files import write_whole
from harness.store import Store, StoreError, core, first_difference, read_record, references


@dataclass(frozen=True)
class _Found:
    """A record, and the store it lies in."""

    record: dict[str, Any]
    path: Path
    store: Store

    @property
    def done(self) -> bool:
        return bool(self.record["status"] == "done")


@dataclass
class Merge:
    """What a merge would do. It may only be carried out where ``faults`` is empty."""

    target: Store
    faults: list[str] = field(default_factory=list)
    read: int = 0  #: records in the sources
    _chosen: dict[str, _Found] = field(default_factory=dict)  #: by cell
    #: Imported files and their records' checksums, by their place in the target.
    _imported: dict[Path, tuple[Path, str]] = field(default_factory=dict)

    @property
    def new(self) -> list[_Found]:
        """What the target lacks, or has as failed."""
        return [found for found in self._chosen.values() if found.store is not self.target]

    @property
    def imported(self) -> int:
        """How many imported records the target lacks."""
        return len(self._imported)

    def carry_out(self) -> None:
        """Write the new cells, answers before records: a cell that is seen is whole."""
        for found in self.new:
            for reference in references(found.record):
                self.target.adopt_generations(reference, found.store)
            self.target.put(found.record)
        for place, (file, _) in self._imported.items():
            write_whole(place, file.read_bytes())


def plan(target: Store, sources: Sequence[Path]) -> Merge:
    """Read all that is to be merged. StoreError for a source that is no store, or is the target itself."""
    merge = Merge(target)
    for source in sources:
        if not any((source / name).is_dir() for name in ("records", "external")):
            raise StoreError(f"{source} holds no records")
        if source.resolve() == target.root.resolve():
            raise StoreError(f"{source} cannot be merged into itself")
    for source in sources:
        for found in _records(Store(source), merge.faults):
            merge.read += 1
            _weigh(merge, found)
    for source in sources:
        _weigh_imported(merge, source)
    for found in merge._chosen.values():
        merge.faults += _answer_faults(found)
    return merge


def _records(store: Store, faults: list[str]) -> Iterable[_Found]:
    """The whole records of a store; a line in ``faults`` for each that is not."""
    for path in store.paths():
        try:
            yield _Found(read_record(path), path, store)
        except StoreError as error:
            faults.append(str(error))


def _weigh(merge: Merge, found: _Found) -> None:
    """Compare a record with what is known of its cell; one that failed gives way to one that did not."""
    cell = found.record["cell"]
    known = merge._chosen.get(cell) or _in_target(merge, cell)
    if known is None or (found.done and not known.done):
        known = found
    elif found.done and core(known.record) != core(found.record):
        what = first_difference(core(known.record), core(found.record))
        merge.faults.append(f"{found.path} and {known.path} differ: {what}")
    merge._chosen[cell] = known


def _weigh_imported(merge: Merge, source: Path) -> None:
    """Take in what a source imported, but for what is here: as imported, or as a record of our own."""
    from harness import external

    try:
        theirs, here = external.checksums(source), external.checksums(merge.target.root)
    except StoreError as error:
        merge.faults.append(str(error))
        return
    taken = here | {place: checksum for place, (_, checksum) in merge._imported.items()}
    for file, checksum in theirs.items():
        place = merge.target.root / file.relative_to(source)
        cell = file.name.partition("-")[0]
        own = merge._chosen.get(cell) or _in_target(merge, cell)
        if own is not None and own.record["sha256"] == checksum:
            continue
        elsewhere = [path for path, known in taken.items() if known == checksum and path != place]
        if taken.get(place, checksum) != checksum:
            merge.faults.append(f"{file} and {place} differ: one source's records of one cell")
        elif elsewhere:
            merge.faults.append(f"{file} has come from another source before, as {elsewhere[0]}")
        elif place not in taken:
            merge._imported[place] = (file, checksum)


def _in_target(merge: Merge, cell: str) -> _Found | None:
    try:
        record = merge.target.get(cell)
    except StoreError as error:
        merge.faults.append(str(error))
        return None
    return None if record is None else _Found(record, merge.target.record_path(cell), merge.target)


def _answer_faults(found: _Found) -> list[str]:
    """Answers that are not what the record was made from, or lie in another cell's folder."""
    folder = f"generations/{found.record['spec']['scale']}/{found.record['cell']}/"
    faults = []
    for reference in references(found.record):
        try:
            found.store.check_generations(reference)
        except StoreError as error:
            faults.append(str(error))
        if not reference["path"].startswith(folder):
            faults.append(f"{found.path}: {reference['path']} is not in the cell's own folder {folder}")
    return faults
