"""What is made from the records and shown: tables, figures, README.md. ``python -m harness.readme``."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from harness import rendering

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"

#: Block name -> file it shows, and the language of its fence ("" shows Markdown as it is).
BLOCKS = {
    "table": ("results/tables/tiny-2.md", ""),
    "small": ("results/tables/small-first-small.md", ""),
    "plugin": ("examples/my_method.py", "python"),
}


def filled(text: str, made: Mapping[Path, str]) -> str:
    """The text with every ``<!-- NAME -->`` ... block made anew, from ``made`` or its file."""
    for name, (file, language) in BLOCKS.items():
        path = ROOT / file
        body = (made[path] if path in made else path.read_text(encoding="utf-8")).strip()
        body = f"```{language}\n{body}\n```" if language else body
        block = f"<!-- {name} -->\n{body}\n<!-- /{name} -->"
        parts = re.split(rf"<!-- {name} -->.*?<!-- /{name} -->", text, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(f"README.md has {len(parts) - 1} blocks named {name}, not one")
        text = block.join(parts)
    return text


def made() -> dict[Path, str]:
    """Every file that is made from the records, as it should be now."""
    files: dict[Path, str] = {}
    for judged in rendering.from_records(ROOT / "results"):
        files |= rendering.files(judged, ROOT / "results")
    return {**files, README: filled(README.read_text(encoding="utf-8"), files)}


def main() -> int:
    """Write what is stale; with ``--check``, only name it (exit 1)."""
    files = made()
    if "--check" not in sys.argv[1:]:
        rendering.keep(files)
        return 0
    stale = rendering.stale(files)
    for file in stale:
        print(f"{file.relative_to(ROOT)} is stale; run python -m harness.readme", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
