"""A cell: one method on one pair with one training seed, and everything that can change its numbers.

Its id is the hash of that description, so a finished record is found again and never recomputed.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

#: Rows that are evaluated without training: the teacher itself, and the student before distillation.
UNTRAINED = ("teacher", "student")

Group = Literal["instructions", "maths", "code"]


@dataclass(frozen=True)
class Lora:
    """Low-rank adaptation of the student (all linear layers of the blocks)."""

    rank: int
    alpha: int
    dropout: float


@dataclass(frozen=True)
class Training:
    """What decides the student's weights, given data, pair, method and seed."""

    examples: int | None  #: first so many training examples; None takes all
    epochs: int
    batch: int  #: global batch, in examples
    micro_batch: int  #: examples per forward pass; accumulation makes up the rest
    lr: float
    lora: Lora | None = None
    weight_decay: float = 0.01
    clip: float = 1.0
    min_lr: float = 1e-7  #: cosine ends here; no warm-up
    max_length: int = 512
    max_prompt: int = 256
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint: Literal["last", "best-dev-rouge"] = "last"

    def accumulation(self, world: int = 1) -> int:
        """Micro-batches that each of ``world`` processes takes in a step, so that ``batch`` stays global."""
        return -(-self.batch // (self.micro_batch * world))


@dataclass(frozen=True)
class Decoding:
    """How answers are written. ``temperature`` 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    no_repeat_ngram: int = 0
    max_new_tokens: int = 128
    max_length: int = 512  #: prompt and answer together
    seeds: tuple[int, ...] = (10,)


@dataclass(frozen=True)
class SuiteRun:
    """A suite as a cell scores it."""

    name: str
    version: int
    limit: int | None  #: first so many items; None takes all


def _fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass; unlike ``asdict`` it copies nothing, which counts for thousands of cells."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


@dataclass(frozen=True)
class Cell:
    """One training (or none, for ``teacher`` and ``student``) and its scores."""

    scale: str
    pair: str  #: name in harness/pairs
    method: str  #: canonical method address, or one of UNTRAINED
    seed: int  #: training seed; 0 for UNTRAINED
    group: Group
    training: Training | None
    decoding: Decoding
    suites: tuple[SuiteRun, ...]
    data: str  #: name of the training set
    versions: tuple[
        tuple[str, int], ...
    ]  #: of method, trainer, decoder, world ...: whatever can move a number

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as written into the record."""
        training = _fields(self.training) if self.training is not None else None
        if self.training is not None and training is not None and self.training.lora is not None:
            training["lora"] = _fields(self.training.lora)
        return {
            **_fields(self),
            "training": training,
            "decoding": _fields(self.decoding),
            "suites": tuple(map(_fields, self.suites)),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Cell:
        """The inverse of as_dict (lists from JSON become tuples again)."""
        training = data["training"]
        if training is not None:
            lora = training.get("lora")
            training = Training(**{**training, "lora": Lora(**lora) if lora else None})
        decoding = Decoding(**{**data["decoding"], "seeds": tuple(data["decoding"]["seeds"])})
        suites = tuple(SuiteRun(**suite) for suite in data["suites"])
        versions = tuple((str(name), int(number)) for name, number in data["versions"])
        return cls(
            **{**data, "training": training, "decoding": decoding, "suites": suites, "versions": versions}
        )

    @functools.cached_property
    def id(self) -> str:
        """Sixteen hex digits of SHA-256 over the canonical JSON of the description."""
        text = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.pair} {self.method} seed {self.seed}"
