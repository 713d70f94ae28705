"""One self-contained HTML file: data, style and script inline, nothing fetched, no script run but its own.

Text of models never meets the HTML parser: in the data every ``<`` is written as an escape, answers are
packed in base64, and the script makes text nodes only. A content security policy with the hash of the one
script stands behind that.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from harness import external
from harness.leaderboard import examples, summary
from harness.leaderboard.boards import Board, gather
from harness.leaderboard.examples import Answers, Run, pack
from harness.store import Store

HERE = Path(__file__).parent
#: In this order: each file uses what those before it define.
SCRIPTS = ("base.js", "state.js", "plots.js", "ranking.js", "details.js", "compare.js", "page.js")

#: Bytes of stored answers that one page may take in.
ROOM = 12_000_000


@dataclass(frozen=True)
class Made:
    """A page and what went into it."""

    html: str
    boards: int
    records: int
    external: int  #: records from elsewhere
    left_out: tuple[str, ...]  #: what the page says it does not hold


def make(store: Store, target: Path, cache: Path, *, scale: str | None = None, data: Path | None = None,
         room: int = ROOM) -> Made:  # fmt: skip
    """The page of all records (of one scale), for a file at ``target``: links to records are relative to it.

    ``data``: the user's folder of suites, for prompts. Raises StoreError for a damaged record and
    StatisticsError for scores with holes.
    """
    records = list(store.all(scale))
    imported = list(external.kept(store.root, scale))
    boards = gather(records, imported)
    described = [summary.describe(board) for board in boards]
    packs: dict[str, str] = {}
    answers = _add_examples(boards, described, store, room, packs)
    prompts = _add_prompts(boards, described, cache, data, packs)
    _add_records(boards, described, store, packs)
    left_out = (*_left_out(answers), *prompts)
    body = {
        "boards": described,
        "records": len(records),
        "external": len(imported),
        "results": _relative(store.root, target),
        "leftOut": left_out,
    }
    return Made(_html(body, packs), len(boards), len(records), len(imported), left_out)


def _relative(root: Path, target: Path) -> str:
    """The results folder as a link from the page; an absolute address on another drive."""
    try:
        return Path(os.path.relpath(root.resolve(), target.resolve().parent)).as_posix()
    except ValueError:
        return root.resolve().as_uri()


# packs


def _add(packs: dict[str, str], data: Any) -> str:
    name = f"pack-{len(packs)}"
    packs[name] = pack(data)
    return name


def _add_examples(
    boards: list[Board], described: list[dict[str, Any]], store: Store, room: int, packs: dict[str, str]
) -> Answers:
    runs = examples.runs_of(boards)
    answers = examples.choose(runs, store, room)
    by_suite: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        by_suite.setdefault((run.board, run.suite), []).append(run)
    for board, shown in zip(boards, described, strict=True):
        shown["examples"] = {
            suite: _add(packs, examples.examples(_same_items(by_suite[board.id, suite]), store, answers))
            for suite in board.suites
            if (board.id, suite) in by_suite
        }
    return answers


def _same_items(runs: list[Run]) -> list[Run]:
    """The runs with as many items as most have; another number means other items."""
    counts = [len(run.scores) for run in runs]
    usual = max(counts, key=counts.count)
    return [run for run in runs if len(run.scores) == usual]


def _add_prompts(
    boards: list[Board],
    described: list[dict[str, Any]],
    cache: Path,
    data: Path | None,
    packs: dict[str, str],
) -> list[str]:
    """Prompts and references of every suite, once for all boards that share them; what could not be had."""
    roots = {scale: examples.data_root(scale, cache, data) for scale in {board.scale for board in boards}}
    known: dict[str, str] = {}
    reasons: dict[str, None] = {}
    for board, shown in zip(boards, described, strict=True):
        shown["prompts"] = {}
        for suite in board.suites:
            record = next((r for r in board.records if suite in r["scores"]), None)
            if record is None:
                continue
            key = record["scores"][suite]["items_sha256"]
            if key not in known:
                items = examples.items_of(record, suite, roots[board.scale])
                if isinstance(items, str):
                    reasons[f"prompts of {suite} at scale {board.scale}: {items}"] = None
                    continue
                known[key] = _add(packs, [[item.prompt, list(item.references)] for item in items])
            shown["prompts"][suite] = known[key]
    return list(reasons)


def _add_records(
    boards: list[Board], described: list[dict[str, Any]], store: Store, packs: dict[str, str]
) -> None:
    log = examples.log_of(store.root)
    for board, shown in zip(boards, described, strict=True):
        shown["records"] = _add(packs, examples.records_of(board, log))


def _left_out(answers: Answers) -> Iterable[str]:
    if answers.over:
        yield f"answers of {answers.over} runs, for want of room; their scores are here"
    if answers.missing:
        yield f"answers of {len(answers.missing)} runs, whose files are not beside the records"


# HTML


def _html(body: dict[str, Any], packs: dict[str, str]) -> str:
    style = _read("style.css")
    script = f'"use strict";\n(() => {{\n{"".join(map(_read, SCRIPTS))}}})();\n'
    packed = "".join(
        f'<script type="text/plain" id="{name}">{text}</script>\n' for name, text in packs.items()
    )
    return Template(_read("template.html")).substitute(
        policy=f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        style=style,
        script=script,
        data=inert(body),
        packs=packed,
    )


def inert(data: Any) -> str:
    """JSON that no HTML parser can leave a script element by: ``</script`` and ``<!--`` need a ``<``."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
