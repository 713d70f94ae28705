"""JSON-lines files of unknown origin, read line by line and refused with the line's number."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Longer than any text a model here could read; what is longer is not a line of a data set.
MAX_LINE = 1 << 20

_BOM, _UTF16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


def rows(path: Path, error: type[ValueError]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every line that is not blank; gzip by its suffix.

    Only "\\n" ends a line: ``str.splitlines`` would also cut at the U+2028 that some answers hold.
    Raises ``error``, whose message names file and line, for whatever is no JSON object in UTF-8.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            number = 0
            while line := stream.readline(MAX_LINE + 1):
                number += 1
                where = f"{path}:{number}"
                if len(line) > MAX_LINE:
                    raise error(f"{where}: the line is longer than {MAX_LINE >> 20} MB")
                if number == 1:
                    if line.startswith(_UTF16):
                        raise error(f"{where}: this is UTF-16; save the file as UTF-8")
                    line = line.removeprefix(_BOM)
                if line.strip():
                    yield number, _object(line, where, error)
    except (OSError, EOFError, zlib.error) as fault:
        raise error(f"{path}: cannot be read ({fault})") from None


def _object(line: bytes, where: str, error: type[ValueError]) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as fault:
        raise error(f"{where}: not UTF-8 ({fault.reason} at byte {fault.start})") from None
    except (ValueError, RecursionError) as fault:
        raise error(f"{where}: not JSON ({fault})") from None
    if not isinstance(row, dict):
        raise error(f"{where}: a JSON object is needed, not {type(row).__name__}")
    return row
