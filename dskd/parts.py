"""The trainable parts of the DSKD methods. Imports torch; the method files import it when they build.

Projectors live and compute in float32 (float64 where the models do) and hand their result back in the
dtype of what they were given, so a bfloat16 run keeps full-precision projector weights.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from dskd.projectors import CHUNK, PseudoInverse, ideal_projector, transfer

if TYPE_CHECKING:
    from torch import Tensor

    from dskd.batch import Pair, Side, View


def parts_dtype(head: Tensor) -> torch.dtype:
    """float64 for float64 models, float32 for all others."""
    return torch.float64 if head.dtype == torch.float64 else torch.float32


class Projector(nn.Linear):
    """A linear map in its own precision, also under autocast; output in the dtype of the input."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def projector(width: int, to: int, like: Tensor, *, bias: bool) -> Projector:
    """torch's default initialisation, on the device of ``like``."""
    return Projector(width, to, bias=bias, device=like.device, dtype=parts_dtype(like))


class TrainedProjectors(nn.Module):
    """DSKD v1: both maps are trained, with bias, from torch's default initialisation."""

    def __init__(self, student: Side, teacher: Side) -> None:
        super().__init__()
        self.t2s = projector(teacher.width, student.width, teacher.head, bias=True)
        self.s2t = projector(student.width, teacher.width, student.head, bias=True)


class IdealProjectors(nn.Module):
    """DSKD v2: t2s is trained from the ideal start, s2t follows the student's current head.

    ``student_rows`` and ``teacher_rows`` hold the ids of the tokens both vocabularies know, row by row
    (both None where there is one vocabulary). ``frozen`` keeps a clone of the student's head of the
    start and uses it for good (KDFlow).
    """

    student_rows: Tensor | None
    frozen_head: Tensor | None
    inverse: Tensor  #: pinv(W_t).T over the common tokens, (rows, D), in the dtype of W_t
    probe: Tensor  #: (d,) random, tells whether a head has changed
    translation: Tensor | None  #: (V_t,) student id of each teacher id or -1; None: one vocabulary

    def __init__(self, pair: Pair, *, random: bool, frozen: bool) -> None:
        super().__init__()
        assert pair.teacher is not None
        student, teacher = pair.student.head.detach(), pair.teacher.head.detach()
        dtype = parts_dtype(student)
        student_rows = teacher_rows = None
        if not pair.vocabulary.same:
            overlap = pair.vocabulary.overlap
            student_rows, teacher_rows = (torch.from_numpy(ids).to(student.device) for ids in overlap)
        self.register_buffer("student_rows", student_rows, persistent=False)
        self.register_buffer("frozen_head", student.clone() if frozen else None)
        common_teacher = teacher if teacher_rows is None else teacher[teacher_rows]
        self.t2s = projector(pair.teacher.width, pair.student.width, teacher, bias=False)
        if not random:
            ideal = ideal_projector(common_teacher.to(dtype), self._common(student).to(dtype))
            with torch.no_grad():
                self.t2s.weight.copy_(ideal.T)
        self.register_buffer("inverse", PseudoInverse(common_teacher).rows(), persistent=False)
        translation = None
        if not pair.vocabulary.same:
            translation = torch.from_numpy(pair.vocabulary.translation).to(student.device)
        self.register_buffer("translation", translation, persistent=False)
        draw = torch.Generator().manual_seed(0)
        probe = torch.randn(pair.student.width, generator=draw, dtype=torch.float64).to(student.device, dtype)
        self.register_buffer("probe", probe, persistent=False)
        self._built: tuple[Tensor, Tensor] | None = None  #: what the probe saw of the head, and the map

    def _common(self, student_head: Tensor) -> Tensor:
        return student_head if self.student_rows is None else student_head[self.student_rows]

    def student_head(self, current: Tensor) -> Tensor:
        """The head that projected teachers are read with: the current one, constant, or the frozen clone."""
        return current.detach() if self.frozen_head is None else self.frozen_head

    def to_teacher(self, hidden: Tensor, head: Tensor) -> Tensor:
        """h_s sg(W_s) pinv(W_t) (n, D). Args: hidden (n, d), the current student head (V, d)."""
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = self._matrix(self.student_head(head))
            return (hidden.to(matrix.dtype) @ matrix).to(hidden.dtype)

    @torch.no_grad()
    def _matrix(self, head: Tensor) -> Tensor:
        """sg(W_s) pinv(W_t) (d, D), rebuilt only when the head has changed.

        Building costs V d D multiply-adds, as much as a thousand or so tokens through both heads. It is
        kept over the micro-batches of a step and, where the head is frozen (LoRA, KDFlow), for good. A
        changed head shows in its product with a random vector, V d multiply-adds; its version counter
        does not tell, since fused optimisers leave that alone.
        """
        rows = head.split(CHUNK)  # of a bfloat16 head, only a few thousand are widened at a time
        seen = torch.cat([part.to(self.probe.dtype) @ self.probe for part in rows])
        if self._built is None or not torch.equal(seen, self._built[0]):
            self._built = seen, transfer(self._common(head), self.inverse)
        return self._built[1]


class CrossModelAttention(nn.Module):
    """DSKD v1 for two vocabularies: attention between the two models' positions of one example.

    ``whole_batch`` takes every std over all positions of the batch instead of the example's (@released).
    """

    def __init__(self, student: Side, teacher: Side, *, whole_batch: bool) -> None:
        super().__init__()
        self.whole_batch = whole_batch
        widths = 2 * student.embedding.shape[1], 2 * teacher.embedding.shape[1]
        self.query = projector(*widths, student.head, bias=True)
        self.t2s = projector(teacher.width, student.width, teacher.head, bias=True)
        self.s2t = projector(student.width, teacher.width, student.head, bias=True)

    def forward(self, student: View, teacher: View) -> tuple[Tensor, Tensor]:
        """Returns the teacher at the student's positions (N, d) and the student at the teacher's (M, D)."""
        with torch.autocast(student.hidden.device.type, enabled=False):
            at_student, at_teacher = self._attend(student, teacher)
        return at_student.to(student.hidden.dtype), at_teacher.to(student.hidden.dtype)

    def _attend(self, student: View, teacher: View) -> tuple[Tensor, Tensor]:
        dtype = self.query.weight.dtype
        asked, known = _token_states(student, dtype), _token_states(teacher, dtype)
        target = known[:, known.shape[1] // 2 :]  # e_t(label)
        hidden = teacher.hidden.detach().to(dtype)
        values = self.t2s(self._scale(hidden, teacher) + self._scale(target, teacher))
        s_rows, s_mask = padded_rows(student.offsets)
        t_rows, t_mask = padded_rows(teacher.offsets)
        keys = self._scale(known, teacher)[t_rows]
        # (B, S, T); the keys are 2D wide
        scores = self.query(asked)[s_rows] @ keys.mT / math.sqrt(keys.shape[-1])
        scores = scores.masked_fill(~(s_mask[:, :, None] & t_mask[:, None]), torch.finfo(dtype).min)
        at_student = scores.softmax(-1) @ values[t_rows]
        at_teacher = scores.mT.softmax(-1) @ self.s2t(student.hidden.to(dtype))[s_rows]
        return at_student[s_mask], at_teacher[t_mask]

    def _scale(self, x: Tensor, view: View) -> Tensor:
        """N(x) = x / std(x), over all elements of an example's rows of x, or of the whole batch's."""
        return x / (x.std() if self.whole_batch else example_std(x, view.offsets))


def _token_states(view: View, dtype: torch.dtype) -> Tensor:
    """[e(input); e(label)] (N, 2 width), constant."""
    embedding = view.embedding.detach()
    return torch.cat([embedding[view.inputs], embedding[view.labels]], -1).to(dtype)


def padded_rows(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Packed row of every place of a padded batch: rows (B, L) int64 and which places are real (B, L)."""
    lengths = offsets.diff()
    places = torch.arange(int(lengths.max()), device=offsets.device)
    real = places < lengths[:, None]
    return (offsets[:-1, None] + places).masked_fill(~real, 0), real


def example_std(x: Tensor, offsets: Tensor) -> Tensor:
    """Unbiased standard deviation over all elements of an example's rows: x (N, w) to (N, 1)."""
    rows, real = padded_rows(offsets)
    count = real.sum(-1) * x.shape[1]
    mean = (x.sum(-1)[rows] * real).sum(-1) / count
    lengths = offsets.diff()
    centred = x - mean.repeat_interleave(lengths)[:, None]
    variance = (centred.square().sum(-1)[rows] * real).sum(-1) / (count - 1)
    return variance.sqrt().repeat_interleave(lengths)[:, None]
