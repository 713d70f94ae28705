"""Data sets: a local folder first, then what packages carry, in one folder layout (see evals/suites.py)."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness import files
from harness.sources import catalogue, packages
from harness.sources.catalogue import DataSet, SourceError
from harness.sources.packages import Progress

State = Literal["exact", "re-sampled", "generated", "lost"]
REMEDY = "give a folder with --data DIR, or run: python reproduce.py --fetch small"


@dataclass(frozen=True)
class DataFile:
    """One file of the data folder as it is found here."""

    name: str  #: as in the folder, without .jsonl
    kind: Literal["local", "package", "hub", "missing"]
    path: Path | None
    sha256: str | None
    licence: str | None
    state: State
    remedy: str | None = None
    revision: str | None = None  #: packages or hub commit, where they are known

    def __str__(self) -> str:
        if self.path is None:
            return f"{self.name}: not here; {self.remedy}"
        details = [self.kind, self.revision, self.state, self.licence, f"sha256 {str(self.sha256)[:12]}"]
        return f"{self.name}: {self.path} ({', '.join(detail for detail in details if detail)})"


def data_folder(cache: Path) -> Path:
    """Where fetched data sets lie."""
    return cache / "data"


def data_root(cache: Path, given: Path | None = None) -> Path:
    """The folder to read suites and training files from.

    ``given`` (the user's --data) comes first; what it lacks and packages brought is joined to it in a
    folder of links under ``cache``. Raises SourceError if there is neither.
    """
    fetched = data_folder(cache)
    here = {path.relative_to(fetched): path for path in sorted(fetched.glob("*/*.jsonl"))}
    if given is None:
        if not here:
            raise SourceError(f"no data; {REMEDY}")
        return fetched
    if not given.is_dir():
        raise SourceError(f"{given} is no folder; {REMEDY}")
    lacking = {name: path for name, path in here.items() if not (given / name).exists()}
    return _joined(given.resolve(), lacking, cache) if lacking else given


def _joined(given: Path, lacking: dict[Path, Path], cache: Path) -> Path:
    """A folder of links to the user's files and to fetched ones; made anew, safe beside other processes."""
    key = hashlib.sha256(str(given).encode()).hexdigest()[:12]
    view = cache / "views" / key
    own = {path.relative_to(given): path for path in given.rglob("*.jsonl*") if path.is_file()}
    links = lacking | own
    for name, target in links.items():
        link = view / name
        if link.is_symlink() and os.readlink(link) == str(target.resolve()):
            continue
        link.parent.mkdir(parents=True, exist_ok=True)
        fresh = link.with_name(f".{link.name}.{os.getpid()}")
        fresh.symlink_to(target.resolve())
        fresh.replace(link)
    for path in view.rglob("*.jsonl*"):
        if not path.name.startswith(".") and path.relative_to(view) not in links:
            path.unlink(missing_ok=True)  # the user's folder no longer has it
    return view


def data_files(names: Sequence[str], cache: Path, given: Path | None = None) -> list[DataFile]:
    """What ``names`` (``gsm8k/test``, or ``gsm8k`` for all of its files) are here, in the order given."""
    known = catalogue.load().data
    wanted = [
        full
        for name in names
        for full in (
            [name] if "/" in name else [entry for entry in known if entry.startswith(f"{name}/")] or [name]
        )
    ]
    return [_find(name, known.get(name) or DataSet(name, "unknown"), cache, given) for name in wanted]


def _find(name: str, entry: DataSet, cache: Path, given: Path | None) -> DataFile:
    if given is not None and (path := given / f"{name}.jsonl").is_file():
        digest = files.file_hash(path)
        state: State = "exact" if digest in entry.exact else "re-sampled"
        return DataFile(name, "local", path, digest, entry.licence, state)
    path = data_folder(cache) / f"{name}.jsonl"
    if not path.is_file():
        path = _installed(entry) or path
    if not files.damaged(path):
        digest, origin = files.file_hash(path), _origin(path)
        if origin["kind"] == "hub":
            found: State = "exact" if digest in entry.exact else "re-sampled"
            return DataFile(name, "hub", path, digest, entry.licence, found, revision=origin["revision"])
        licence = entry.made_licence or entry.licence
        made: State = "exact" if entry.state == "exact" else "re-sampled"
        return DataFile(name, "package", path, digest, licence, made, revision=origin.get("revision"))
    fetchable = entry.make is not None
    remedy = (
        REMEDY if fetchable else f"no package carries it; give a folder that has {name}.jsonl with --data DIR"
    )
    if path.is_file():
        remedy = f"{path} was changed after it was made; {remedy}"
    return DataFile(name, "missing", None, None, entry.licence, "lost", remedy)


def _installed(entry: DataSet) -> Path | None:
    """A file inside an installed dependency (not imported)."""
    if entry.installed is None:
        return None
    package, _, inside = entry.installed.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / inside


Row = dict[str, Any]


def make(entry: DataSet, cache: Path, progress: Progress) -> None:
    """Write one data set into the data folder, unless it is there: from packages, else from the hub.

    One that packages carry in part only comes from the hub where that answers. Raises SourceError.
    """
    target = data_folder(cache) / f"{entry.name}.jsonl"
    if not files.damaged(target):
        return
    if entry.make is None:
        raise SourceError(f"no package carries {entry.name}; give a folder that has it with --data DIR")
    target.parent.mkdir(parents=True, exist_ok=True)
    ways = [_from_packages, _from_hub] if entry.hub else [_from_packages]
    failed = []
    for way in reversed(ways) if entry.partial else ways:
        try:
            rows, origin = way(entry, cache, progress)
        except SourceError as error:
            failed.append(str(error))
            continue
        files.write_whole(_origin_file(target), json.dumps(origin).encode())
        files.write_whole(target, rows)
        files.seal(target)
        return
    raise SourceError("; ".join(failed))


def _from_packages(entry: DataSet, cache: Path, progress: Progress) -> tuple[bytes, dict[str, str]]:
    """The file's bytes, and what is to be told of them."""
    work = cache / ".fetch" / "data" / entry.name
    packages.gather(entry.files, work, cache / ".fetch" / "packages", progress, f"data {entry.name}")
    maker = _MAKERS[str(entry.make)]
    rows = (work / entry.files[0].to).read_bytes() if maker is None else _as_lines(maker(work))
    shutil.rmtree(work, ignore_errors=True)
    origin = ", ".join(dict.fromkeys(part.requirement for file in entry.files for part in file.parts))
    return rows, {"kind": "package", "revision": origin}


def _from_hub(entry: DataSet, cache: Path, progress: Progress) -> tuple[bytes, dict[str, str]]:
    """As _from_packages, at the hub data set's newest revision."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        raise SourceError("HF_HUB_OFFLINE is set; unset it to download from the hub")
    name, configuration, split = str(entry.hub).split(" ")
    progress(f"data {entry.name}: {name}", 0.0)
    try:
        from datasets import load_dataset
        from huggingface_hub import HfApi

        revision = str(HfApi().dataset_info(name, timeout=30).sha)
        rows = list(load_dataset(name, configuration, split=split, revision=revision))
    except Exception as error:  # the clients raise their own, requests' and httpx's errors alike
        raise SourceError(f"the hub did not give {name} ({type(error).__name__}: {error})") from error
    columns = _COLUMNS[entry.name]
    kept = ({column: row[column] for column in columns} for row in rows)
    ordered = sorted(kept, key=lambda row: int(row["task_id"])) if "task_id" in columns else kept
    return _as_lines(ordered), {"kind": "hub", "revision": f"{name}@{revision[:12]}"}


def _as_lines(rows: Iterable[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _origin_file(target: Path) -> Path:
    return target.with_name(f".{target.name}.source")


def _origin(target: Path) -> dict[str, str]:
    """How a fetched file was had, as ``make`` noted."""
    try:
        return dict(json.loads(_origin_file(target).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {"kind": "package"}


def _lines(path: Path) -> list[Row]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.split(b"\n") if line.strip()]


def _gsm8k(work: Path) -> Iterator[Row]:
    for row in _lines(work / "rows.jsonl"):
        yield {"question": row["question"], "answer": row["answer"]}


def _vicuna(work: Path) -> Iterator[Row]:
    """The 80 questions with GPT-3.5's answers: the references that MiniLLM's and DSKD's evaluation uses."""
    answers = {row["question_id"]: row["text"] for row in _lines(work / "answer.jsonl")}
    for row in _lines(work / "question.jsonl"):
        yield {"instruction": row["text"], "category": row["category"], "output": answers[row["question_id"]]}


def _self_instruct(work: Path) -> Iterator[Row]:
    """The user-oriented instructions inside AlpacaEval, inputs joined to them, and its reference answers."""
    for row in json.loads((work / "outputs.json").read_text(encoding="utf-8")):
        if row["dataset"] == "selfinstruct":
            yield {"instruction": row["instruction"], "input": "", "output": row["output"]}


def _mbpp(work: Path) -> Iterable[Row]:
    rows = [
        {column: row["doc"][column] for column in _COLUMNS["mbpp/mbpp"]}
        for row in _lines(work / "requests.jsonl.gz")
    ]
    return sorted(rows, key=lambda row: int(row["task_id"]))


#: What is kept of a hub data set's rows, in the order of the published file.
_COLUMNS = {
    "gsm8k/train": ("question", "answer"),
    "gsm8k/test": ("question", "answer"),
    "math500/test": ("problem", "solution", "answer", "subject", "level", "unique_id"),
    "mbpp/mbpp": ("text", "code", "task_id", "test_setup_code", "test_list", "challenge_test_list"),
}

#: How a data set is made of its files; None: the file as it is.
_MAKERS: dict[str, Callable[[Path], Iterable[Row]] | None] = {
    "as-is": None,
    "gsm8k": _gsm8k,
    "vicuna": _vicuna,
    "alpaca-eval-self-instruct": _self_instruct,
    "mbpp": _mbpp,
}
