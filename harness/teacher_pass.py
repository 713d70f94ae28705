"""The teacher's part of cells by itself: hidden states and texts, made before any student trains.

A pass may run where there is memory for the teacher, and the cells later where there is only room for the
student. What a pass has finished is noted by its *task*, which many cells share. No torch here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dskd.method import Method, create
from dskd.student_text import Adaptive
from harness import locate
from harness.cells import UNTRAINED, Cell
from harness.files import write_whole

#: What of a training's settings decides the texts, and so the states on them.
_SETTINGS = ("examples", "max_length", "max_prompt", "precision")


def task(cell: Cell) -> str | None:
    """The key of what the teacher can do ahead for a cell; None where there is nothing."""
    if cell.method in UNTRAINED or cell.training is None:
        return None
    method = create(cell.method)
    if not (method.needs.teacher_text or _reads_ahead(method)):
        return None
    settings = {name: getattr(cell.training, name) for name in _SETTINGS}
    asked: list[Any] = [cell.scale, cell.pair, cell.data, settings, _versions(cell), _reads_ahead(method)]
    asked.append(_holds_out(method))
    if method.needs.teacher_text:
        asked += [vars(method.sampling), cell.decoding.max_new_tokens, cell.decoding.max_length]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:20]


def _reads_ahead(method: Method) -> bool:
    """Whether the teacher reads texts that are there before training; else only what the student writes."""
    asked = method.needs.student_samples
    return method.needs.teacher and not (asked is not None and asked.always)


def _holds_out(method: Method) -> bool:
    """Whether a part of the training set is kept for validation, and so not read."""
    asked = method.needs.student_samples
    return asked is not None and isinstance(asked.schedule, Adaptive)


def _versions(cell: Cell) -> dict[str, int]:
    """Those of models, training file, and the code that reads and writes."""
    wanted = {"trainer", "decoder", "tiny", "world", f"file {locate.training_name(cell.data)}"}
    return {name: n for name, n in cell.versions if name in wanted or name.startswith("files of ")}


def ready(cell: Cell, cache: Path) -> bool:
    """Whether a pass has finished the cell's task, and what it made is still there."""
    key = task(cell)
    if key is None:
        return False
    try:
        made = json.loads(_note(key, cache).read_text(encoding="utf-8"))
        return all((cache / path).stat().st_size == size for path, size in made.items())
    except (OSError, ValueError, AttributeError):
        return False


def note(cell: Cell, cache: Path, made: Iterable[Path]) -> None:
    """Say that the cell's task is finished, and which files under the cache that made."""
    key = task(cell)
    assert key is not None
    sizes = {path.relative_to(cache).as_posix(): path.stat().st_size for path in made}
    write_whole(_note(key, cache), json.dumps(sizes, sort_keys=True).encode())


def _note(key: str, cache: Path) -> Path:
    return cache / "teacher" / f"ready-{key}.json"
