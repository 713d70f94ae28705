"""One thing asked of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evals.prompts import short_prompt


@dataclass(frozen=True)
class Task:
    """An instruction with its accepted answers; the first is the one that training shows."""

    instruction: str
    outputs: tuple[str, ...]
    input: str = ""

    @property
    def prompt(self) -> str:
        return short_prompt(self.instruction, self.input)

    @property
    def text(self) -> str:
        """Prompt and answer, as a model is trained on them (EOS not included)."""
        return self.prompt + self.outputs[0]

    def row(self, *, references: bool = False) -> dict[str, Any]:
        """A row in the layout of the real files; with ``references`` the output is a list, as in S-NI."""
        return {
            "instruction": self.instruction,
            "input": self.input,
            "output": list(self.outputs) if references else self.outputs[0],
            "prompt": self.prompt,
        }
