"""A pair of models small enough to reason about: random matrices, letters for tokens, float64.

What ``harness.conformance`` and the tests run methods on. Two vocabularies over one alphabet differ in
pieces, ids and control tokens; texts are cut greedily by the longest piece, aligned by dskd.alignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dskd.alignment import Tokens, align_all
from dskd.batch import Batch, Gold, Pair, Pairs, Side, View
from dskd.method import Method
from dskd.vocabulary import Vocabulary

STUDENT_PIECES = ("a", "b", "c", "d", "e", " ", "ab", "cd", "de", " a", "bca", "ee", "ad", "eb", "ce", "ba")
#: "zz" has no counterpart in the student's vocabulary; it never occurs in a text, but may be predicted.
TEACHER_PIECES = (
    "a", "b", "c", "d", "e", " ", "ab", "bc", " a", "cde", "ea", "zz", "ad", "eb", "ce", "da", "q",
)  # fmt: skip
TEXTS = ("abcade ab", "cdab", "bcaeede a", "e", "ab cdeabd")


def vocabulary(pieces: Sequence[str], controls: Sequence[str], eos: str) -> Vocabulary:
    """Control tokens first, then the pieces."""
    surfaces = tuple(word.encode() for word in (*controls, *pieces))
    return Vocabulary(surfaces, eos=list(controls).index(eos), special=frozenset(range(len(controls))))


#: "<u>" is a control token of the student that the teacher lacks.
STUDENT = vocabulary(STUDENT_PIECES, ("<u>", "<eos>"), "<eos>")
TEACHER = vocabulary(TEACHER_PIECES, ("</s>",), "</s>")


def cut(known: Vocabulary, text: str) -> Tokens:
    """Greedy longest match, EOS appended."""
    raw, at = text.encode(), 0
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    while at < len(raw):
        width = next(w for w in range(len(raw) - at, 0, -1) if raw[at : at + w] in known.ids)
        ids.append(known.ids[raw[at : at + width]])
        spans.append((at, at + width))
        at += width
    return Tokens(np.array([*ids, known.eos]), np.array([*spans, (at, at)]))


@dataclass(frozen=True)
class Example:
    """One text as both models see it; hidden states are leaves of no graph."""

    student: Tokens
    teacher: Tokens
    student_hidden: Tensor  #: (n, d)
    teacher_hidden: Tensor  #: (m, D)
    pairs: np.ndarray  #: (P, 2)
    gold: tuple[Tokens, Tensor] | None = None  #: another text and the student's states, where this is sampled


@dataclass(frozen=True)
class World:
    """A pair of models and what they think of a few texts."""

    pair: Pair
    examples: tuple[Example, ...]
    sampled: bool = False  #: the student wrote the texts

    def batch(self, rows: Sequence[int] | None = None, normaliser: float | None = None) -> Batch:
        """The examples ``rows`` packed; student's hidden states are a leaf with gradient."""
        chosen = [self.examples[row] for row in (range(len(self.examples)) if rows is None else rows)]
        student = _view(self.pair.student, [e.student for e in chosen], [e.student_hidden for e in chosen])
        student.hidden.requires_grad_(True)
        total = float(sum(len(e.student.ids) for e in self.examples)) if normaliser is None else normaliser
        if self.pair.teacher is None:
            return Batch(student, None, None, total)
        written = torch.ones(len(chosen), dtype=torch.bool) if self.sampled else None
        teacher = _view(self.pair.teacher, [e.teacher for e in chosen], [e.teacher_hidden for e in chosen])
        starts = zip(student.offsets.tolist(), teacher.offsets.tolist(), strict=True)
        moved = [e.pairs + np.array(start) for e, start in zip(chosen, starts, strict=False)]
        packed = torch.from_numpy(np.concatenate(moved).astype(np.int64))
        pairs = Pairs(packed[:, 0].contiguous(), packed[:, 1].contiguous())
        return Batch(student, teacher, pairs, total, written, self._gold(chosen, normaliser))

    def _gold(self, chosen: Sequence[Example], normaliser: float | None) -> Gold | None:
        found = [e.gold for e in chosen if e.gold is not None]
        if not found:
            return None
        view = _view(self.pair.student, [tokens for tokens, _ in found], [hidden for _, hidden in found])
        view.hidden.requires_grad_(True)
        total = sum(len(e.gold[0].ids) for e in self.examples if e.gold is not None)
        return Gold(view, float(total) if normaliser is None else normaliser)

    def with_pair(self, pair: Pair) -> World:
        """The same examples under other matrices or vocabularies."""
        return replace(self, pair=pair)


def _view(side: Side, tokens: Sequence[Tokens], hidden: Sequence[Tensor]) -> View:
    labels = torch.from_numpy(np.concatenate([t.ids for t in tokens]).astype(np.int64))
    shifted = np.concatenate([[side.vocabulary.eos, *t.ids[:-1]] for t in tokens])
    before = torch.from_numpy(shifted.astype(np.int64))
    offsets = torch.tensor(np.cumsum([0, *(len(t.ids) for t in tokens)]))
    return View(torch.cat(list(hidden)).detach().clone(), side.head, side.embedding, before, labels, offsets)


def world(method: Method, seed: int = 0, *, same: bool | None = None, equal: bool = False) -> World:
    """A world fit for the method.

    ``same``: one vocabulary (default: what the method needs, two where it does not care); ``equal``:
    the teacher is the student. Student states are 6 wide, the teacher's 9, at about the scale at which
    logits spread by a few units. A method that needs student samples gets every text as one, with another
    text as the gold response if it wants one.
    """
    needs = method.needs
    same = (needs.vocabulary == "same") if same is None else same
    draw = torch.Generator().manual_seed(seed)
    student = _side(STUDENT, 6, draw)
    student.head.requires_grad_(True)
    if not needs.teacher:
        teacher = None
    elif equal:
        teacher = Side(student.head.detach().clone(), student.embedding.clone(), STUDENT)
    else:
        teacher = _side(STUDENT if same else TEACHER, 9, draw)
    pair = Pair(student, teacher)
    other = teacher or student
    ours = [cut(student.vocabulary, text) for text in TEXTS]
    theirs = [cut(other.vocabulary, text) for text in TEXTS]
    kind = needs.alignment if needs.alignment != "none" else "spans"
    pairs = align_all(kind, ours, theirs, student.vocabulary, other.vocabulary)
    examples = []
    for s, t, matched in zip(ours, theirs, pairs, strict=True):
        states = _randn(draw, len(s.ids), student.width)
        seen = states if equal else _randn(draw, len(t.ids), other.width)
        examples.append(Example(s, t, states, seen, matched))
    sampling = needs.student_samples
    if sampling is not None and sampling.gold:
        others = [*ours[2:], *ours[:2]]
        drawn = [(tokens, _randn(draw, len(tokens.ids), student.width)) for tokens in others]
        examples = [replace(e, gold=gold) for e, gold in zip(examples, drawn, strict=True)]
    return World(pair, tuple(examples), sampling is not None)


def _side(known: Vocabulary, width: int, draw: torch.Generator) -> Side:
    return Side(_randn(draw, known.size, width), _randn(draw, known.size, width), known)


def _randn(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw, dtype=torch.float64)
