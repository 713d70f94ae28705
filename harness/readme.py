"""The generated parts of README.md: tables from records, the example plugin. ``python -m harness.readme``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"

#: Block name -> file it shows, and the language of its fence ("" shows Markdown as it is).
BLOCKS = {
    "table": ("results/tables/tiny-2.md", ""),
    "small": ("results/tables/small-first-small.md", ""),
    "plugin": ("examples/my_method.py", "python"),
}


def filled(text: str) -> str:
    """README text with every ``<!-- NAME -->`` ... ``<!-- /NAME -->`` block made anew."""
    for name, (file, language) in BLOCKS.items():
        body = (ROOT / file).read_text(encoding="utf-8").strip()
        body = f"```{language}\n{body}\n```" if language else body
        block = f"<!-- {name} -->\n{body}\n<!-- /{name} -->"
        parts = re.split(rf"<!-- {name} -->.*?<!-- /{name} -->", text, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(f"README.md has {len(parts) - 1} blocks named {name}, not one")
        text = block.join(parts)
    return text


def main() -> int:
    """Write the README; with ``--check``, only say whether it is stale (exit 1)."""
    text = README.read_text(encoding="utf-8")
    fresh = filled(text)
    if "--check" in sys.argv[1:]:
        if fresh != text:
            print("README.md is stale; run python -m harness.readme", file=sys.stderr)
        return int(fresh != text)
    README.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
