"""Training text as two models read it: encoded once, aligned once, cut to windows, packed into batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dskd.alignment import Tokens, align_all, encode
from dskd.batch import Pairs
from dskd.vocabulary import Vocabulary
from evals.prompts import encode_prompts, function_prompt, maths_prompt

#: MBPP's own training split, by task id (Austin et al. 2021); the rest is for testing, prompting, validation.
MBPP_TRAINING = range(601, 975)


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
    """Read a training file, a JSON object a line: instructions, GSM8K's or MBPP's. Raises DataError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # JSON may hold other line breaks raw
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    rows = (_example(path, number, line) for number, line in enumerate(lines, 1) if line.strip())
    examples = list(islice((row for row in rows if row is not None), limit))
    if not examples:
        raise DataError(f"{path}: no examples")
    return examples


def _example(path: Path, number: int, line: str) -> Example | None:
    """One line as an example; None for one that is not for training (MBPP's other splits)."""
    try:
        row = json.loads(line)
        if "prompt" in row:
            prompt, output = row["prompt"], row["output"]
        elif "question" in row:  # GSM8K
            prompt, output = maths_prompt(row["question"]), row["answer"]
        else:
            if row.get("task_id", number) not in MBPP_TRAINING:
                return None
            prompt, output = function_prompt(row["text"], row["test_list"]), row["code"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        wanted = "'prompt' and 'output', 'question' and 'answer', or 'text', 'test_list' and 'code'"
        raise DataError(f"{path}:{number}: needs a JSON object with {wanted} ({error!r})") from None
    response = output[0] if isinstance(output, list) and output else output
    if not isinstance(prompt, str) or not isinstance(response, str):
        raise DataError(f"{path}:{number}: prompt and response must be text")
    return Example(str(row.get("id", number - 1)), prompt, response.replace("\r\n", "\n"))


def text_hash(examples: Sequence[Example]) -> str:
    """SHA-256 over prompts and responses in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.prompt, example.response]).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Encoded:
    """One example in one model's tokens: prompt ids, then response tokens with their spans."""

    prompt: np.ndarray  #: (p,) int64, at least one token
    response: Tokens  #: ids (r,), spans (r, 2); ends with EOS unless the window cut it

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response.ids)

    @property
    def inputs(self) -> np.ndarray:
        """Everything the model reads: the last token is only predicted."""
        return np.concatenate([self.prompt, self.response.ids])[:-1].astype(np.int64)


def encode_examples(
    tokenizer: Any, examples: Sequence[Example], *, max_prompt: int, max_length: int
) -> list[Encoded]:
    """Encode prompts (cut from the left) and responses (cut at the window; a cut one has no EOS)."""
    prompts = encode_prompts(tokenizer, [e.prompt for e in examples], max_prompt)
    responses = encode(tokenizer, [e.response for e in examples])
    sequences = []
    for example, prompt, tokens in zip(examples, prompts, responses, strict=True):
        if len(prompt) == 0:
            raise DataError(f"example {example.id}: the prompt is empty in this tokenizer")
        room = min(max_length - len(prompt), len(tokens.ids) - (not example.ended))
        sequences.append(
            Encoded(np.asarray(prompt, dtype=np.int64), Tokens(tokens.ids[:room], tokens.spans[:room]))
        )
    return sequences


@dataclass
class PairedData:
    """The training set as student and teacher read it, with aligned positions per example."""

    examples: list[Example]
    student: list[Encoded]
    teacher: list[Encoded] | None
    pairs: list[np.ndarray] | None  #: (P, 2) per example

    def __len__(self) -> int:
        return len(self.examples)

    def response_tokens(self, rows: Sequence[int]) -> int:
        """The student's response tokens in these examples: the normaliser of a global batch."""
        return sum(len(self.student[row].response.ids) for row in rows)


def align(
    kind: str, student: list[Encoded], teacher: list[Encoded], s: Vocabulary, t: Vocabulary
) -> list[np.ndarray] | None:
    """Matched positions for every example, or None where the method wants none."""
    if kind == "none":
        return None
    return align_all(kind, [x.response for x in student], [x.response for x in teacher], s, t)


def epoch_batches(count: int, batch: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """Global batches of one epoch: a permutation that depends on seed and epoch only."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    for start in range(0, count, batch):
        yield order[start : start + batch].tolist()


def micro_batches(rows: list[int], lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Split a global batch into micro-batches of like length, so that little is spent on padding."""
    ordered = sorted(rows, key=lambda row: (lengths[row], row))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


@dataclass(frozen=True)
class Packed:
    """A micro-batch for one model: padded ids to read, and where its response positions lie."""

    ids: Tensor  #: (B, L) right-padded with 0
    positions: Tensor  #: (N,) flat indices into (B * L)
    inputs: Tensor  #: (N,)
    labels: Tensor  #: (N,)
    offsets: Tensor  #: (B + 1,)


def pack(sequences: Sequence[Encoded]) -> Packed:
    """Pad what the model reads; list the positions that predict response tokens, packed."""
    width = max(len(s) for s in sequences) - 1
    ids = np.zeros((len(sequences), width), dtype=np.int64)
    positions, labels, counts = [], [], [0]
    for row, sequence in enumerate(sequences):
        read = sequence.inputs
        ids[row, : len(read)] = read
        first, count = len(sequence.prompt) - 1, len(sequence.response.ids)
        positions.append(row * width + np.arange(first, first + count))
        labels.append(sequence.response.ids.astype(np.int64))
        counts.append(count)
    flat = np.concatenate(positions)
    return Packed(
        torch.from_numpy(ids),
        torch.from_numpy(flat),
        torch.from_numpy(ids.reshape(-1)[flat]),
        torch.from_numpy(np.concatenate(labels)),
        torch.from_numpy(np.cumsum(counts)),
    )


def pack_pairs(pairs: Sequence[np.ndarray], student: Tensor, teacher: Tensor) -> Pairs:
    """Shift each example's pairs to packed positions. ``student``/``teacher`` are offsets (B + 1,)."""
    shift = np.stack([student[:-1].numpy(), teacher[:-1].numpy()], axis=1)
    moved = [pair.astype(np.int64) + shift[row] for row, pair in enumerate(pairs)]
    joined = torch.from_numpy(np.concatenate(moved) if moved else np.zeros((0, 2), dtype=np.int64))
    return Pairs(joined[:, 0].contiguous(), joined[:, 1].contiguous())
