"""Where a model reference leads on this machine: a local folder, a package's model, the hub's cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.sources import catalogue
from harness.sources.catalogue import PREFIX, Model, SourceError

Kind = Literal["local", "package", "hub", "missing"]

#: Rises whenever the same packages would give another folder; folders of an older one are made again.
CONVERSION = 1
MANIFEST = ".source.json"
GGUF = ".gguf"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class Resolution:
    """What a reference stands for here, or what would get it."""

    ref: str
    kind: Kind
    path: Path | None = None
    revision: str | None = None  #: package versions, or the hub's commit
    licence: str | None = None
    sha256: str | None = None  #: of the weights, where it was taken when they were made
    remedy: str | None = None  #: why it is missing and the command that gets it

    def __str__(self) -> str:
        if self.path is None:
            return f"{self.ref}: not here; {self.remedy}"
        details = [self.kind, self.revision, self.licence, self.sha256 and f"sha256 {self.sha256[:12]}"]
        return f"{self.ref}: {self.path} ({', '.join(detail for detail in details if detail)})"


def resolve(ref: str, cache: Path) -> Resolution:
    """Find a model without downloading or loading anything.

    ``ref`` is ``small:NAME``, a folder, a ``.gguf`` file, or a hub name ``org/name`` (or
    ``org/name@revision``). A folder wins over a hub name; ``small:`` names are the packaged weights and
    nothing else, because the hub's copies of those models are not quantized and would give other numbers.
    """
    if ref.startswith(PREFIX):
        return _packaged(ref, cache)
    folder = Path(ref).expanduser()
    if folder.is_dir():
        return _local(ref, folder)
    if folder.suffix == GGUF:
        return _gguf(ref, folder, cache)
    if _HUB_NAME.fullmatch(ref) and ".." not in re.split("[/@]", ref):
        return _hub(ref)
    return Resolution(ref, "missing", remedy="it is no folder; give the path of a model folder or org/name")


def model_folder(name: str, cache: Path) -> Path:
    """Where a packaged model is kept once converted."""
    return cache / "small" / name


def manifest(folder: Path) -> dict[str, Any] | None:
    """What was written beside a converted model; None if it is not whole or of an older conversion."""
    try:
        content: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    sizes = content.get("sizes", {})
    whole = all((folder / n).is_file() and (folder / n).stat().st_size == size for n, size in sizes.items())
    return content if whole and sizes and content.get("conversion") == CONVERSION else None


def revision(model: Model) -> str:
    """The packages a model comes from, numbered series in short."""
    known = catalogue.load()
    if model.source is not None:
        return f"{revision(known.model(model.source))}, {model.convert}"
    texts = []
    for file in (*model.files, *model.tokenizer):
        first, last = file.parts[0].requirement, file.parts[-1].requirement
        texts.append(first if first == last else f"{first} ... {last}")
    return ", ".join(dict.fromkeys(texts))


def _packaged(ref: str, cache: Path) -> Resolution:
    try:
        model = catalogue.load().model(ref)
    except SourceError as error:
        return Resolution(ref, "missing", remedy=str(error))
    folder = model_folder(model.name, cache)
    found = manifest(folder)
    if found is None:
        size = model.megabytes[0] or catalogue.load().model(model.source or model.name).megabytes[0]
        remedy = f"get it with: python reproduce.py --fetch {PREFIX}{model.name} (downloads about {size} MB)"
        return Resolution(ref, "missing", None, revision(model), model.licence, None, remedy)
    return Resolution(ref, "package", folder, found["revision"], model.licence, found["sha256"])


def _local(ref: str, folder: Path) -> Resolution:
    if not (folder / "config.json").is_file():
        return Resolution(ref, "missing", remedy=f"{folder} has no config.json; give a model folder")
    return Resolution(ref, "local", folder.resolve(), licence=_card_licence(folder))


def gguf_folder(file: Path, cache: Path) -> Path:
    """Where a user's GGUF file is kept once converted."""
    file = file.resolve()
    return cache / "gguf" / f"{file.stem}-{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"


def stamp(file: Path) -> dict[str, int]:
    """Size and time of a file: whether it is the one that was converted, without reading gigabytes."""
    found = file.stat()
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def _gguf(ref: str, file: Path, cache: Path) -> Resolution:
    if not file.is_file():
        return Resolution(ref, "missing", remedy="there is no such file")
    folder = gguf_folder(file, cache)
    found = manifest(folder)
    if found is None or found["stamp"] != stamp(file):
        again = "" if found is None else "it was changed since it was converted; "
        remedy = f"{again}convert it with: python reproduce.py --fetch {shlex.quote(ref)}"
        return Resolution(ref, "missing", remedy=remedy)
    return Resolution(ref, "local", folder, found["revision"], None, found["sha256"])


def _hub(ref: str) -> Resolution:
    """The newest complete snapshot in the hub client's cache, as its ``refs/main`` (or revision) says."""
    name, _, wanted = ref.partition("@")
    store = _hub_cache() / f"models--{name.replace('/', '--')}"
    commit = wanted or "main"
    with contextlib.suppress(OSError):  # a commit hash has no entry under refs
        commit = (store / "refs" / commit).read_text(encoding="utf-8").strip()
    folder = store / "snapshots" / commit
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return Resolution(ref, "hub", folder, commit, _card_licence(folder))
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
    remedy = (
        f"no such folder, and not in the hub's cache{offline}; get it with: python reproduce.py --fetch {ref}"
    )
    return Resolution(ref, "missing", remedy=remedy)


def _hub_cache() -> Path:
    """The hub client's own rule, without importing the client."""
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if given:
        return Path(given).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(home).expanduser() / "hub"


def _card_licence(folder: Path) -> str | None:
    """The licence that a model card states in its head."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    stated = re.search(r"^license:\s*(\S+)\s*$", card.partition("\n---")[0], re.MULTILINE)
    return stated[1] if stated else None
