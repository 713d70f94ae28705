"""Training examples from their files, in the layouts this project knows; nothing here needs torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals import jsonl
from evals.prompts import function_prompt, maths_prompt

#: MBPP's own training split, by task id (Austin et al. 2021); the rest is for testing, prompting, validation.
MBPP_TRAINING = range(601, 975)

#: Validation examples at most.
HELD_OUT = 128


class DataError(ValueError):
    """Training data that cannot be used; the message names the file and the line."""


@dataclass(frozen=True)
class Example:
    """A prompt with its template applied, and the response to learn."""

    id: str
    prompt: str
    response: str
    ended: bool = True  #: False: written by a model that was cut, so no EOS follows


def load_examples(path: Path, limit: int | None = None) -> list[Example]:
    """The first ``limit`` examples of a JSON-lines file: instructions, GSM8K's or MBPP's.

    The whole file is checked whatever the limit. Raises DataError.
    """
    examples: list[Example] = []
    seen: dict[str, int] = {}
    for number, row in jsonl.rows(path, DataError):
        example = _example(f"{path}:{number}", number, row)
        if example is None:
            continue
        if "id" in row and seen.setdefault(example.id, number) != number:
            raise DataError(f"{path}:{number}: id {example.id!r} is already that of line {seen[example.id]}")
        if limit is None or len(examples) < limit:
            examples.append(example)
    if not examples:
        raise DataError(f"{path}: no examples")
    return examples


def load_held_out(path: Path, limit: int | None = None) -> tuple[list[Example], list[Example]]:
    """Training examples as ``load_examples`` gives them, and others of the file to validate on.

    These follow the ones trained on; where those are all, the last twentieth is kept back from them.
    """
    everything = load_examples(path)
    if len(everything) < 2:
        raise DataError(f"{path}: one example alone cannot be both trained and validated on")
    count = len(everything) - max(1, len(everything) // 20)
    if limit is not None and limit < len(everything):
        count = limit
    return everything[:count], everything[count : count + HELD_OUT]


def _example(where: str, number: int, row: dict[str, Any]) -> Example | None:
    """One line as an example; None for one that is not for training (MBPP's other splits)."""
    try:
        if "prompt" in row:
            prompt, output = row["prompt"], row["output"]
        elif "question" in row:  # GSM8K
            prompt, output = maths_prompt(row["question"]), row["answer"]
        else:
            prompt, output = function_prompt(row["text"], row["test_list"]), row["code"]
            if row.get("task_id", number) not in MBPP_TRAINING:
                return None
    except (KeyError, TypeError, AttributeError) as error:
        wanted = "'prompt' and 'output', 'question' and 'answer', or 'text', 'test_list' and 'code'"
        raise DataError(f"{where}: needs {wanted} ({error!r})") from None
    response = output[0] if isinstance(output, list) and output else output
    if not isinstance(prompt, str) or not isinstance(response, str):
        raise DataError(f"{where}: prompt and response must be text")
    if not prompt.strip():
        raise DataError(f"{where}: the prompt is blank")
    return Example(str(row.get("id", number - 1)), prompt, response.replace("\r\n", "\n"))


def text_hash(examples: Sequence[Example]) -> str:
    """SHA-256 over prompts and responses in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.prompt, example.response]).encode())
    return digest.hexdigest()
