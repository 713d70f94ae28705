"""What is made from the records and shown: tables, figures, README.md. ``python -m harness.readme``."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from harness import brief, rendering, report

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"

#: Block of README.md -> the table it shows at a glance, "<scale>-<table>".
TABLES = {"table": "tiny-2", "small": "small-1"}

#: Block of README.md -> the file it shows, and the language of its fence.
FILES = {"plugin": ("examples/my_method.py", "python")}


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """The text with every ``<!-- NAME -->`` ... ``<!-- /NAME -->`` block made anew."""
    for name, body in blocks.items():
        block = f"<!-- {name} -->\n{body.strip()}\n<!-- /{name} -->"
        parts = re.split(rf"<!-- {name} -->.*?<!-- /{name} -->", text, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(f"README.md has {len(parts) - 1} blocks named {name}, not one")
        text = block.join(parts)
    return text


def made() -> dict[Path, str]:
    """Every file that is made from the records, as it should be now."""
    files: dict[Path, str] = {}
    blocks = {
        name: f"```{language}\n{(ROOT / file).read_text(encoding='utf-8').strip()}\n```"
        for name, (file, language) in FILES.items()
    }
    for judged in rendering.from_records(ROOT / "results"):
        files |= rendering.files(judged, ROOT / "results")
        for name in (name for name, table in TABLES.items() if table == judged.name):
            whole = report.path(Path("results"), judged.result.scale, judged.result.table.id)
            blocks[name] = brief.render(judged.result, judged.info, whole.as_posix())
    return {**files, README: filled(README.read_text(encoding="utf-8"), blocks)}


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
