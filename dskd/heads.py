"""Output heads fused with their losses: logits exist for one tile of rows at a time.

A head over 50,000 or 150,000 tokens makes whole logits the largest tensor of a training step. Here a
tile of rows is multiplied by the whole vocabulary, losses and logit gradients are computed in it, and
the gradients of hidden states and head follow at once, in the forward pass; the backward pass only
scales them. That works because every weight is known beforehand and every divergence has a
closed-form gradient. Where a loss needs weights that depend on an argmax (DSKD keeps the positions
at which two argmaxes agree), run first the term that yields the argmax and use its result.

``reference()`` switches to the plain computation, whole logits through autograd.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor

TILE_BYTES = 96 * 2**20  #: all logits of a tile together
_BLOCK_BYTES = 4 * 2**20  #: float32 logits worked on at once inside a tile on a CPU, to stay in its caches
_HEAD_CHUNK = 8192  #: vocabulary rows per product when head gradients of several tiles are summed


class LogitDivergence(Protocol):
    """What ``distil`` asks of a divergence; see dskd.divergences.Divergence."""

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, /) -> Tensor: ...

    def value_and_grad(self, student_logits: Tensor, teacher_logits: Tensor, /) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class CrossEntropy:
    """Result of ``cross_entropy``; only ``loss`` carries a gradient."""

    loss: Tensor  #: scalar, sum of weights * nll
    nll: Tensor  #: (N,) negative log-likelihood of the labels
    argmax: Tensor  #: (N,) int64


@dataclass(frozen=True)
class Distilled:
    """Result of ``distil``; only ``loss`` carries a gradient."""

    loss: Tensor  #: scalar, sum of weights * values + sum of label_weights * nll
    values: Tensor  #: (M,) divergence of each pair of rows
    nll: Tensor | None  #: (N,) where labels were given
    student_argmax: Tensor  #: (N,) int64
    teacher_argmax: Tensor  #: (M,) int64


@dataclass
class _Switch:
    reference: bool = False


_switch = _Switch()


def use_reference(flag: bool) -> None:
    """Compute everything plainly from now on (``--reference``), or tiled again."""
    _switch.reference = flag


def is_reference() -> bool:
    """Whether everything is to be computed plainly."""
    return _switch.reference


@contextmanager
def reference() -> Iterator[None]:
    """Within it the functions of this module form whole logits and leave the gradient to autograd."""
    before = _switch.reference
    use_reference(True)
    try:
        yield
    finally:
        use_reference(before)


def tile_rows(vocabularies: Sequence[int], budget_bytes: int = TILE_BYTES, itemsize: int = 4) -> int:
    """Rows whose logits over all these vocabularies fit in the budget; at least one."""
    return max(1, budget_bytes // max(1, itemsize * sum(vocabularies)))


def cross_entropy(
    hidden: Tensor, head: Tensor, labels: Tensor, weights: Tensor, *, head_grad: bool = True
) -> CrossEntropy:
    """sum_i weights_i * -log softmax(hidden_i head.T)[labels_i], at temperature 1.

    Args: hidden (N, d) and head (V, d), which receive gradients (head only with head_grad); labels
    (N,) int64, a negative one meaning none (nll 0); weights (N,), constants.
    """
    made = _run(hidden, head if head_grad else head.detach(), None, _Gold(labels, weights))
    assert made.nll is not None
    return CrossEntropy(made.loss, made.nll, made.student_argmax)


def distil(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    divergence: LogitDivergence,
    *,
    temperature: float,
    weights: Tensor,
    positions: Tensor | None = None,
    labels: Tensor | None = None,
    label_weights: Tensor | None = None,
    head_grad: bool = True,
    extra: tuple[Tensor, Tensor] | None = None,
) -> Distilled:
    """sum_k weights_k * D(student logits / T, teacher logits / T) + sum_i label_weights_i * nll_i.

    Row k of the teacher pairs with row ``positions[k]`` of the student. The student's logits serve
    both sums; the cross-entropy is taken at temperature 1. Gradients reach student_hidden and, with
    head_grad, student_head; the teacher's side is constant. ``extra`` is one more logit for each pair of
    rows, the student's and the teacher's, which D finds as the last column; the student's has a gradient.

    Args: student_hidden (N, d), student_head (V, d); teacher_hidden (M, D), teacher_head (V', D), where
    V' may differ from V if the divergence allows; weights (M,); positions (M,) int64 ascending,
    None where M == N row by row; labels and label_weights (N,), given together or not at all;
    extra (M,) and (M,).
    """
    if (labels is None) != (label_weights is None):
        raise ValueError("labels and label_weights are given together or not at all")
    gold = None if labels is None or label_weights is None else _Gold(labels, label_weights)
    further, constant = extra or (None, None)
    teacher = _Teacher(teacher_hidden, teacher_head, divergence, temperature, weights, positions, constant)
    return _run(student_hidden, student_head if head_grad else student_head.detach(), teacher, gold, further)


@torch.no_grad()
def argmax(hidden: Tensor, head: Tensor) -> Tensor:
    """The likeliest token of each row (N,) int64, without a gradient. Args: hidden (N, d), head (V, d)."""
    _check(hidden, head)
    head = head.to(hidden.dtype)
    step = len(hidden) if _switch.reference else tile_rows([len(head)], TILE_BYTES, hidden.element_size())
    parts = [(hidden[i : i + step] @ head.T).argmax(-1) for i in range(0, len(hidden), max(step, 1))]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=hidden.device)


def _check(hidden: Tensor, head: Tensor) -> None:
    if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and head {tuple(head.shape)}: not (N, d) and (V, d)")


@dataclass(frozen=True)
class _Gold:
    """Labels of the student's rows and the weights of their cross-entropy."""

    labels: Tensor
    weights: Tensor

    def check(self, rows: int, vocabulary: int) -> None:
        for name, given in (("labels", self.labels), ("label weights", self.weights)):
            if given.shape != (rows,):
                raise ValueError(f"{rows} rows but {name} of shape {tuple(given.shape)}")
        if rows and int(self.labels.max()) >= vocabulary:
            raise ValueError(f"label {int(self.labels.max())} in a vocabulary of {vocabulary}")


@dataclass(frozen=True)
class _Teacher:
    """The teacher's side of ``distil``."""

    hidden: Tensor
    head: Tensor
    divergence: LogitDivergence
    temperature: float
    weights: Tensor
    positions: Tensor | None
    extra: Tensor | None

    def check(self, rows: int) -> None:
        _check(self.hidden, self.head)
        if self.weights.shape != self.hidden.shape[:1]:
            raise ValueError(f"{len(self.hidden)} teacher rows, weights of shape {tuple(self.weights.shape)}")
        if self.positions is None:
            if len(self.hidden) != rows:
                raise ValueError(f"{len(self.hidden)} teacher rows for {rows} student rows, and no positions")
            return
        if self.positions.shape != self.weights.shape:
            raise ValueError(f"positions {tuple(self.positions.shape)}, weights {tuple(self.weights.shape)}")
        if len(self.positions):
            if int(self.positions[0]) < 0 or int(self.positions[-1]) >= rows:
                raise ValueError(f"positions outside the {rows} student rows")
            if bool((self.positions[1:] <= self.positions[:-1]).any()):
                raise ValueError("positions are not strictly ascending")


def _run(
    hidden: Tensor, head: Tensor, teacher: _Teacher | None, gold: _Gold | None, extra: Tensor | None = None
) -> Distilled:
    _check(hidden, head)
    if gold is not None:
        gold.check(*hidden.shape[:1], *head.shape[:1])
    if teacher is not None:
        teacher.check(len(hidden))
        if extra is not None and extra.shape != teacher.weights.shape:
            raise ValueError(f"{len(teacher.weights)} pairs of rows, extra of shape {tuple(extra.shape)}")
    if _switch.reference:
        return _plain(hidden, head, teacher, gold, extra)
    loss, values, nll, best, teacher_best = _Fused.apply(hidden, head, extra, teacher, gold)
    return Distilled(loss, values, None if gold is None else nll, best, teacher_best)


def _wide(logits: Tensor) -> Tensor:
    """Logits in the precision of the losses: float32, or float64 where that came in."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _with(logits: Tensor, extra: Tensor | None) -> Tensor:
    """The logits with the extra one of each row as their last column."""
    return logits if extra is None else torch.cat([logits, extra[:, None].to(logits.dtype)], -1)


def _plain(
    hidden: Tensor, head: Tensor, teacher: _Teacher | None, gold: _Gold | None, extra: Tensor | None
) -> Distilled:
    """The definition, with whole logits and autograd."""
    logits = _wide(hidden @ head.to(hidden.dtype).T)
    loss, nll = logits.new_zeros(()), None
    values, teacher_best = logits.new_zeros(0), torch.empty(0, dtype=torch.int64, device=logits.device)
    if gold is not None:
        known = torch.where(gold.labels < 0, -100, gold.labels)
        nll = torch.nn.functional.cross_entropy(logits, known, reduction="none", ignore_index=-100)
        loss = loss + (gold.weights.to(nll.dtype) * nll).sum()
    if teacher is not None:
        with torch.no_grad():
            target = _wide(teacher.hidden @ teacher.head.to(teacher.hidden.dtype).T)
        rows = logits if teacher.positions is None else logits[teacher.positions]
        values = teacher.divergence(
            _with(rows, extra) / teacher.temperature, _with(target, teacher.extra) / teacher.temperature
        )
        loss = loss + (teacher.weights.to(values.dtype) * values).sum()
        teacher_best = target.argmax(-1)
    nll = None if nll is None else nll.detach()
    return Distilled(loss + 0 * hidden.sum(), values.detach(), nll, logits.detach().argmax(-1), teacher_best)


def tile_bounds(rows: int, vocabularies: Sequence[int], itemsize: int) -> list[tuple[int, int]]:
    """(first row, end) of tiles of about equal height whose logits fit the budget."""
    step = tile_rows(vocabularies, TILE_BYTES, itemsize)
    tiles = -(-rows // step)
    if tiles:
        step = -(-rows // tiles)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


class HeadGradients:
    """Gradients of hidden states (N, d) and of a head (V, d), summed up from those of tiles of logits."""

    def __init__(self, hidden: Tensor, head: Tensor, wanted: Sequence[bool]) -> None:
        """``wanted``: whether that of the hidden states, and that of the head."""
        self.hidden, self.head_dtype = hidden, head.dtype
        self.head = head.to(hidden.dtype)  #: as the logits are computed with
        want_hidden, self.want_head = wanted
        self.of_hidden = torch.zeros_like(hidden) if want_hidden else None
        self.of_head: Tensor | None = None

    def add(self, grad: Tensor, start: int, stop: int, *, alone: bool) -> None:
        """Take in the gradient (stop - start, V) of a tile's logits; ``alone``: there is no other tile."""
        if self.of_hidden is not None:
            torch.mm(grad, self.head, out=self.of_hidden[start:stop])
        if not self.want_head:
            return
        rows = self.hidden[start:stop]
        if alone:
            self.of_head = grad.T @ rows
            return
        if self.of_head is None:
            precision = torch.float64 if rows.dtype == torch.float64 else torch.float32
            self.of_head = torch.zeros(self.head.shape, dtype=precision, device=rows.device)
        if self.of_head.dtype == rows.dtype:
            self.of_head.addmm_(grad.T, rows)
            return
        # bf16 products are rounded once a tile and summed in float32, a slice of the vocabulary at a time.
        for low in range(0, len(self.of_head), _HEAD_CHUNK):
            part = slice(low, low + _HEAD_CHUNK)
            self.of_head[part] += grad[:, part].T @ rows

    def result(self) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of hidden and head in their own dtypes, None where not wanted."""
        if self.want_head and self.of_head is None:
            self.of_head = torch.zeros(self.head.shape, dtype=self.head_dtype, device=self.hidden.device)
        return self.of_hidden, None if self.of_head is None else self.of_head.to(self.head_dtype)


class _Fused(torch.autograd.Function):
    """Losses and gradients in one forward sweep; backward scales."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        extra: Tensor | None,
        teacher: _Teacher | None,
        gold: _Gold | None,
    ) -> tuple[Tensor, ...]:
        sweep = _Sweep(hidden, head, extra, teacher, gold, ctx.needs_input_grad[:2])
        sweep.run()
        ctx.save_for_backward(*sweep.gradients.result(), sweep.extra_grad)
        out = (sweep.loss(), sweep.values, sweep.nll, sweep.best, sweep.teacher_best)
        ctx.mark_non_differentiable(*out[1:])
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # A factor of one is the usual case, and the head's gradient is large: no second copy then.
        same = bool(scale == 1)
        grads = [g if g is None or same else g * scale.to(g.dtype) for g in ctx.saved_tensors]
        return *grads, None, None


class _Sweep:
    """One pass over the rows, tile by tile."""

    def __init__(
        self,
        hidden: Tensor,
        head: Tensor,
        extra: Tensor | None,
        teacher: _Teacher | None,
        gold: _Gold | None,
        wanted: Sequence[bool],
    ) -> None:
        self.gradients = HeadGradients(hidden, head, wanted)
        self.hidden, self.head, self.wanted = hidden, self.gradients.head, any(wanted)
        self.teacher, self.gold, self.extra = teacher, gold, extra
        self.extra_grad = None if extra is None else torch.zeros_like(extra)
        self.teacher_head = None if teacher is None else teacher.head.to(teacher.hidden.dtype)
        precision = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        rows, pairs = len(hidden), 0 if teacher is None else len(teacher.hidden)
        self.label_weights = None if gold is None else gold.weights.to(precision)
        self.weights = None if teacher is None else teacher.weights.to(precision)
        self.values = hidden.new_zeros(pairs, dtype=precision)
        self.nll = hidden.new_zeros(rows, dtype=precision)
        self.best = torch.zeros(rows, dtype=torch.int64, device=hidden.device)
        self.teacher_best = torch.zeros(pairs, dtype=torch.int64, device=hidden.device)

    def run(self) -> None:
        sizes = [len(self.head)] + ([] if self.teacher_head is None else [len(self.teacher_head)])
        bounds = tile_bounds(len(self.hidden), sizes, self.hidden.element_size())
        for start, stop in bounds:
            with torch.no_grad():
                grad = self._logits(start, stop)
                self.gradients.add(grad, start, stop, alone=len(bounds) == 1)

    def _pairs(self, start: int, stop: int) -> tuple[int, int]:
        """The teacher rows whose student rows are start .. stop - 1."""
        if self.teacher is None:
            return 0, 0
        if self.teacher.positions is None:
            return start, stop
        ends = torch.tensor([start, stop], device=self.teacher.positions.device)
        first, last = torch.searchsorted(self.teacher.positions, ends).tolist()
        return first, last

    def _logits(self, start: int, stop: int) -> Tensor:
        """Logits of a tile, overwritten block by block with their gradient."""
        tile = self.hidden[start:stop] @ self.head.T
        first, last = self._pairs(start, stop)
        target = None
        if self.teacher is not None and self.teacher_head is not None and last > first:
            target = self.teacher.hidden[first:last] @ self.teacher_head.T
        block = tile_rows([len(self.head)], _BLOCK_BYTES) if tile.device.type == "cpu" else stop - start
        for low in range(start, stop, block):
            high = min(low + block, stop)
            logits = tile[low - start : high - start]
            student = _wide(logits)
            gradient = self._labels(student, low, high)
            begin, end = self._pairs(low, high)
            if target is not None and end > begin:
                wide = _wide(target[begin - first : end - first])
                gradient = self._distil(student, wide, gradient, low, slice(begin, end))
            if gradient is None:
                logits.zero_()
            else:
                logits.copy_(gradient)
        return tile

    def _labels(self, logits: Tensor, low: int, high: int) -> Tensor | None:
        """Argmax and cross-entropy of rows low .. high - 1; the gradient of the latter."""
        self.best[low:high] = logits.argmax(-1)
        if self.gold is None or self.label_weights is None:
            return None
        labels, weights = self.gold.labels[low:high, None], self.label_weights[low:high, None]
        known = labels >= 0
        labels, weights = labels.clamp_min(0), weights * known
        log_q = logits.log_softmax(-1)
        self.nll[low:high] = -(log_q.gather(-1, labels) * known).squeeze(-1)
        if not self.wanted:
            return None
        return log_q.exp_().mul_(weights).scatter_add_(-1, labels, -weights)

    def _distil(
        self, student: Tensor, target: Tensor, gradient: Tensor | None, low: int, pairs: slice
    ) -> Tensor:
        """Divergences of these teacher rows, their gradient added to that of the block starting at low."""
        assert self.teacher is not None
        assert self.weights is not None
        self.teacher_best[pairs] = target.argmax(-1)
        temperature = self.teacher.temperature
        where = None if self.teacher.positions is None else self.teacher.positions[pairs] - low
        rows = student if where is None else student[where]
        rows = _with(rows, None if self.extra is None else self.extra[pairs])
        target = _with(target, None if self.teacher.extra is None else self.teacher.extra[pairs])
        values, grad = self.teacher.divergence.value_and_grad(rows / temperature, target / temperature)
        self.values[pairs] = values
        grad = grad * (self.weights[pairs, None] / temperature)
        if self.extra_grad is not None:
            self.extra_grad[pairs], grad = grad[:, -1], grad[:, :-1]
        if where is not None:
            gradient = torch.zeros_like(student) if gradient is None else gradient
            return gradient.index_add_(0, where, grad)
        return grad if gradient is None else gradient.add_(grad)

    def loss(self) -> Tensor:
        """Sum of weighted values and weighted label losses."""
        total = self.values.new_zeros(())
        if self.weights is not None:
            total = total + (self.weights * self.values).sum()
        if self.label_weights is not None:
            total = total + (self.label_weights * self.nll).sum()
        return total
