"""What lies behind a score: records, training curves, logs, prompts and answers, packed small.

A pack is JSON, gzipped, in base64; the page opens one when it is looked at. Answers are kept once per item
with their score, for the runs of one item write few different texts. Where all of them are too much, runs are
taken in turn, first seeds first, until the room is used; scores are always whole.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evals import suites
from evals.suites import Item, SuiteError
from harness import locate
from harness.cells import Cell
from harness.leaderboard.boards import Board, Record
from harness.plan import Step
from harness.store import Store, StoreError

Data = dict[str, Any]

#: What a log line of a run says of a cell: the time, what happened, which cell.
_LOG_LINE = re.compile(r"^\S+ \S+ (?:start )?(?:\[\d+/\d+\] )?(?P<title>\S+ \S+ seed \d+)(?::.*)?$")


@dataclass(frozen=True)
class Run:
    """One decoding of one training run on one suite."""

    board: str
    method: str
    seed: int  #: training seed
    suite: str
    decoding: int  #: decoding seed
    cell: str
    scores: Sequence[float] = field(repr=False)
    answers: Mapping[str, str] | None = field(repr=False)  #: path and hash of the generations


def pack(data: Any) -> str:
    """Data as base64 of gzipped JSON; the same data give the same text."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()


# records


def records_of(board: Board, log: Mapping[str, Sequence[str]]) -> Data:
    """By cell id: the record without items and curve, the curve, and its lines of the run's log."""
    return {record["cell"]: _record(board, record, log) for record in board.records}


def _record(board: Board, record: Record, log: Mapping[str, Sequence[str]]) -> Data:
    body = {key: value for key, value in record.items() if key not in ("scores", "training")}
    body["scores"] = {
        suite: {
            **{key: value for key, value in scores.items() if key != "seeds"},
            "seeds": {seed: _without(run, "per_item") for seed, run in scores["seeds"].items()},
        }
        for suite, scores in record["scores"].items()
    }
    training = record["training"]
    body["training"] = _without(training, "curve") if training else None
    curve = training["curve"] if training else []
    return {"record": body, "curve": curve, "log": list(log.get(_title(board, record), ()))}


def _without(data: Mapping[str, Any], name: str) -> Data:
    return {key: value for key, value in data.items() if key != name}


def _title(board: Board, record: Record) -> str:
    """The cell as the run's log names it."""
    return Step(Cell.from_dict(dict(record["spec"])), board.pair, "done").title


def log_of(results: Path) -> dict[str, list[str]]:
    """Lines of ``work/run.log`` by the title of the cell they are about; empty where the log is gone."""
    try:
        lines = (results / "work" / "run.log").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    found: dict[str, list[str]] = {}
    for line in lines:
        if match := _LOG_LINE.match(line):
            found.setdefault(match["title"], []).append(line)
    return found


# prompts


def items_of(record: Record, suite: str, root: Path | None) -> list[Item] | str:
    """The items a suite was scored on, or why they cannot be shown."""
    if root is None:
        return "the data folder is not here"
    limit = next(run["limit"] for run in record["spec"]["suites"] if run["name"] == suite)
    try:
        items = suites.load(suites.get(suite), root, limit)
    except SuiteError as error:
        return str(error)
    if suites.items_hash(items) != record["scores"][suite]["items_sha256"]:
        return "the data here are not those that were answered"
    return items


def data_root(scale: str, cache: Path, data: Path | None) -> Path | None:
    """The folder of suites of a scale, or None where it is not here."""
    try:
        return locate.data_root(scale, cache, data)
    except (OSError, ValueError, RuntimeError):
        return None


# answers


def runs_of(boards: Iterable[Board]) -> list[Run]:
    """Every run of every board, those apart included; first seeds of all boards first."""
    found: list[tuple[int, int, Run]] = []
    for board in boards:
        for record in board.records:
            spec = record["spec"]
            for suite, scores in record["scores"].items():
                for number, decoding in enumerate(sorted(scores["seeds"], key=int)):
                    run = scores["seeds"][decoding]
                    found.append((spec["seed"], number, Run(
                        board.id, spec["method"], spec["seed"], suite, int(decoding), record["cell"],
                        run["per_item"], run.get("generations"),
                    )))  # fmt: skip
    found.sort(key=lambda item: item[:2])
    return [run for _, _, run in found]


@dataclass(frozen=True)
class Answers:
    """The answers that the page holds, and what it leaves out."""

    kept: frozenset[str]  #: paths of the generations that are shown
    missing: Mapping[str, str]  #: path -> why it cannot be shown
    over: int  #: runs left out for want of room


def choose(runs: Sequence[Run], store: Store, room: int) -> Answers:
    """Take runs in turn while their files, in bytes, fit into the room. A run without a file is missing."""
    kept: set[str] = set()
    missing: dict[str, str] = {}
    over = used = 0
    for run in runs:
        if not run.answers:
            continue
        path = run.answers["path"]
        try:
            size = (store.root / path).stat().st_size
        except OSError as error:
            missing[path] = f"{path}: {error.strerror}"
            continue
        if over or used + size > room:
            over += 1
        elif path not in kept:
            kept.add(path)
            used += size
    return Answers(frozenset(kept), missing, over)


def examples(runs: Sequence[Run], store: Store, answers: Answers) -> Data:
    """One suite of one board: per item the distinct answers with scores, and which run gave which.

    ``runs``: [method, training seed, decoding seed]; ``texts[i]``: [[text or null, score], ...] of item i;
    ``given[i][r]``: index into ``texts[i]``; ``ids``: of the items, or null; ``faults``: files refused.
    """
    written = [_texts(run, store, answers) for run in runs]
    ids = next((found.ids for found in written if found.ids), None)
    texts: list[list[list[Any]]] = []
    given: list[list[int]] = []
    blank = [None] * len(runs[0].scores)
    columns = (zip(found.texts or blank, run.scores, strict=True)
               for run, found in zip(runs, written, strict=True))  # fmt: skip
    for pairs in zip(*columns, strict=True):  # of one item, a pair from every run
        index: dict[tuple[str | None, float], int] = {}
        given.append([index.setdefault(pair, len(index)) for pair in pairs])
        texts.append([list(pair) for pair in index])
    return {
        "runs": [[run.method, run.seed, run.decoding, run.cell] for run in runs],
        "ids": ids,
        "texts": texts,
        "given": given,
        "faults": list(dict.fromkeys(found.fault for found in written if found.fault)),
    }


@dataclass(frozen=True)
class _Written:
    texts: list[str] | None = None
    ids: list[str] | None = None
    fault: str = ""


def _texts(run: Run, store: Store, answers: Answers) -> _Written:
    if not run.answers or run.answers["path"] not in answers.kept:
        return _Written()
    try:
        rows = store.read_generations(run.answers)
    except StoreError as error:
        return _Written(fault=str(error))
    if len(rows) != len(run.scores):
        return _Written(fault=f"{run.answers['path']} holds {len(rows)} answers for {len(run.scores)} items")
    return _Written([row["text"] for row in rows], [row["id"] for row in rows])
