"""What a method sees of a batch, and what it may know of its pair of models.

Everything is *packed*: only response positions exist, one after the other over the examples of
the batch. Padding and prompts never reach a method, so no method can depend on them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dskd.vocabulary import Vocabulary, VocabularyPair


@dataclass(frozen=True)
class View:
    """One model's side of a batch: its response positions, packed.

    A position reads the token ``inputs[i]`` and predicts ``labels[i]``; the last label of every
    example is EOS.
    """

    hidden: Tensor  #: (N, width) hidden states after the last norm; the student's carry gradient
    head: Tensor  #: (V, width) output embedding, only the rows that tokenizer ids reach
    embedding: Tensor  #: (V, width) input embedding, same rows
    inputs: Tensor  #: (N,) int64
    labels: Tensor  #: (N,) int64
    offsets: Tensor  #: (B + 1,) int64: example b owns positions offsets[b] .. offsets[b + 1] - 1


@dataclass(frozen=True)
class Pairs:
    """Matched positions of the two models: ``student[k]`` goes with ``teacher[k]`` (both ascending)."""

    student: Tensor  #: (P,) int64 indices into the student's packed positions
    teacher: Tensor  #: (P,) int64 indices into the teacher's


@dataclass(frozen=True)
class Gold:
    """The gold responses, where the text that is distilled on is another."""

    view: View  #: the student's, with gradient
    normaliser: float  #: response tokens of the *global* batch's gold responses


@dataclass(frozen=True)
class Batch:
    """One micro-batch of the text that is distilled on: the data's, or the student's own (on-policy).

    ``normaliser`` is the response-token count (student's) of the *global* batch.
    """

    student: View
    teacher: View | None
    pairs: Pairs | None
    normaliser: float
    sampled: Tensor | None = None  #: (B,) bool, the examples the student wrote; None: not one
    gold: Gold | None = None  #: beside student text, unless the method does without (``Sampling.gold``)


@dataclass(frozen=True)
class Loss:
    """``total`` is differentiated; ``terms`` are detached scalars for the log, already weighted.

    Names: ``ce`` is the student's cross-entropy on gold labels, a name beginning with ``kd`` is a
    divergence from the teacher (0 where student and teacher agree), others are free. They sum to total.
    """

    total: Tensor
    terms: dict[str, Tensor]


@dataclass
class Side:
    """One model of a pair as methods know it: its matrices and its vocabulary, never its layers."""

    head: Tensor  #: (V, width)
    embedding: Tensor  #: (V, width)
    vocabulary: Vocabulary

    @property
    def width(self) -> int:
        return int(self.head.shape[1])


@dataclass
class Pair:
    """Student and teacher, from which a method builds its trainable parts."""

    student: Side
    teacher: Side | None
    cache: Path | None = field(default=None, compare=False)  #: folder for maps that are dear to build

    @cached_property
    def vocabulary(self) -> VocabularyPair:
        """Overlap, translation and edit-distance map of the two vocabularies."""
        from dskd.vocabulary import VocabularyPair

        if self.teacher is None:
            raise ValueError("a pair without a teacher has one vocabulary only")
        return VocabularyPair(self.student.vocabulary, self.teacher.vocabulary, cache=self.cache)
