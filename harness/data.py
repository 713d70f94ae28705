"""Training text as two models read it: encoded once, aligned once, cut to windows, packed into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dskd.alignment import Tokens, align_all, encode
from dskd.batch import Pairs
from dskd.vocabulary import Vocabulary
from evals.prompts import encode_prompts
from harness.examples import DataError, Example


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

    def text(self, row: int) -> Text:
        """An example as a text to distil on."""
        teacher = None if self.teacher is None else self.teacher[row]
        return Text(row, self.student[row], teacher, None if self.pairs is None else self.pairs[row])


@dataclass(frozen=True)
class Text:
    """A prompt of the data with a response, the data's or one that the student wrote."""

    row: int  #: the example whose prompt it is
    student: Encoded
    teacher: Encoded | None
    pairs: np.ndarray | None  #: (P, 2)
    sampled: bool = False


def align(
    kind: str, student: list[Encoded], teacher: list[Encoded], s: Vocabulary, t: Vocabulary
) -> list[np.ndarray] | None:
    """Matched positions for every example, or None where the method wants none."""
    if kind == "none":
        return None
    return align_all(kind, [x.response for x in student], [x.response for x in teacher], s, t)


def steps_per_epoch(count: int, batch: int) -> int:
    """Optimiser steps that an epoch over ``count`` examples takes."""
    return -(-count // batch)


def epoch_batches(count: int, batch: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """Global batches of one epoch: a permutation that depends on seed and epoch only."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    for start in range(0, count, batch):
        yield order[start : start + batch].tolist()


def micro_batches(rows: Sequence[int], lengths: Sequence[int], size: int) -> Iterator[list[int]]:
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

    def to(self, device: torch.device) -> Packed:
        """The same there."""
        return Packed(*(getattr(self, field.name).to(device) for field in fields(self)))


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
