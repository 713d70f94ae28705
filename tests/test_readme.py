"""What the README shows is what the files say."""

from __future__ import annotations

from harness import readme


def test_generated_parts_are_fresh() -> None:
    text = readme.README.read_text(encoding="utf-8")
    assert readme.filled(text) == text, "run python -m harness.readme"
