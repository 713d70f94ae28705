"""A file that grows by a line for each piece of work done, so that a kill costs one piece.

A line is ``hash json``, the JSON being ``[key, seconds, value]``. The key has to say everything that the
value depends on and the file's place does not. A torn or altered line is cut off with all that follow.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any


class Journal:
    """Values by key, and the seconds that making them took, in this process or an earlier one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds = 0.0  #: of the values asked for or added here
        self._kept = _whole_lines(path)
        self._since = time.monotonic()

    def get(self, key: str) -> Any:
        """What was kept under this key, or None."""
        seconds, value = self._kept.get(key, (0.0, None))
        self.seconds += seconds
        return value

    def add(self, key: str, value: Any) -> None:
        """Keep a value; it took the time since the last one, or since the journal was opened."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        self.seconds += seconds
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(_line(json.dumps([key, seconds, value]).encode()))

    def forget(self) -> None:
        """Remove the file: what its entries were for is kept elsewhere."""
        self.path.unlink(missing_ok=True)


def _line(entry: bytes) -> bytes:
    return hashlib.sha256(entry).hexdigest()[:16].encode() + b" " + entry + b"\n"


def _whole_lines(path: Path) -> dict[str, tuple[float, Any]]:
    """The entries of a journal; what follows the last whole one is cut off."""
    try:
        content = path.read_bytes()
    except OSError:
        return {}
    found, whole = {}, 0
    for line in content.splitlines(keepends=True):
        entry = line[17:-1]
        if line != _line(entry):
            break
        key, seconds, value = json.loads(entry)
        found[key] = (seconds, value)
        whole += len(line)
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    return found
