"""The list of packages, versions, hashes and licences (catalogue.yaml), read and checked."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).with_name("catalogue.yaml")
PREFIX = "small:"


class SourceError(ValueError):
    """Something that cannot be found, fetched, trusted or converted; the message says what to do."""


@dataclass(frozen=True)
class Part:
    """A file inside a package of a public index."""

    index: str  #: "pypi" or "npm"
    package: str
    version: str
    member: str  #: path inside the archive

    @property
    def requirement(self) -> str:
        """The package as its index writes it."""
        return f"{self.package}{'==' if self.index == 'pypi' else '@'}{self.version}"


@dataclass(frozen=True)
class File:
    """A file needed for a conversion: parts put end to end, cut to ``bytes`` if given, then hashed."""

    to: str
    sha256: str
    parts: tuple[Part, ...]
    bytes: int | None = None


@dataclass(frozen=True)
class Model:
    """A model that packages carry, or that is cut from one of those."""

    name: str
    title: str
    licence: str
    convert: str
    files: tuple[File, ...]
    tokenizer: tuple[File, ...] = ()
    source: str | None = None  #: the model it is cut from
    requires: str | None = None  #: an optional package that converting needs
    megabytes: tuple[int, int] = (0, 0)  #: download, converted


@dataclass(frozen=True)
class DataSet:
    """A file of the data folder: how to recognise it and, where packages carry it, how to make it."""

    name: str  #: path in the data folder without .jsonl
    licence: str
    exact: tuple[str, ...] = ()
    make: str | None = None
    made_licence: str | None = None
    state: str = "lost"
    files: tuple[File, ...] = ()
    installed: str | None = None  #: package/path of a file that comes with a dependency
    hub: str | None = None  #: "org/name configuration split": asked when no package gives it
    partial: bool = False  #: the package has a part of it only, so the hub is asked first


@dataclass(frozen=True)
class Catalogue:
    """Everything ``--fetch small`` knows of."""

    models: dict[str, Model]
    data: dict[str, DataSet]
    aliases: dict[str, str]

    def model(self, ref: str) -> Model:
        """A model by ``small:NAME`` or NAME; SourceError with the nearest names."""
        name = ref.removeprefix(PREFIX)
        name = self.aliases.get(name, name)
        if name in self.models:
            return self.models[name]
        near = difflib.get_close_matches(name, self.models, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(self.models)}"
        raise SourceError(f"no packaged model is called {ref!r}; {hint}")


def load(path: Path = FILE) -> Catalogue:
    """Read a catalogue file."""
    return _load(path.resolve())


@cache
def _load(path: Path) -> Catalogue:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    tokenizers = {name: _files(rows) for name, rows in content.get("tokenizers", {}).items()}
    models = {
        name: Model(
            name=name,
            title=row["title"],
            licence=row["licence"],
            convert=row["convert"],
            files=_files(row.get("files", ())),
            tokenizer=tokenizers[row["tokenizer"]] if "tokenizer" in row else (),
            source=row.get("from"),
            requires=row.get("requires"),
            megabytes=tuple(row.get("megabytes", (0, 0))),
        )
        for name, row in content.get("models", {}).items()
    }
    data = {name: _data_set(name, row) for name, row in content.get("data", {}).items()}
    return Catalogue(models, data, content.get("aliases", {}))


def _data_set(name: str, row: dict[str, Any]) -> DataSet:
    rest = {key: value for key, value in row.items() if key not in ("files", "exact")}
    return DataSet(name=name, files=_files(row.get("files", ())), exact=tuple(row.get("exact", ())), **rest)


def _files(rows: Any) -> tuple[File, ...]:
    files = []
    for row in rows:
        parts = _parts(row["part"], row.get("count", 1))
        files.append(File(row["to"], row["sha256"], parts, row.get("bytes")))
    return tuple(files)


def _parts(pattern: str, count: int) -> tuple[Part, ...]:
    parts = []
    for number in range(1, count + 1):
        head, member = pattern.format(n=number).split(" ", 1)
        index, _, requirement = head.partition(":")
        package, _, version = requirement.rpartition("@")
        parts.append(Part(index, package, version, member))
    return tuple(parts)
