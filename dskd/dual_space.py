"""Dual-space knowledge distillation over one vocabulary: dskd-v1 (EMNLP 2024) and dskd-v2 (2025).

Both models' hidden states are carried into the other's space, so that one head serves both
distributions: the student's head in the student space, the teacher's in the teacher space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dskd import divergences
from dskd.batch import Batch, Loss, Pair, View
from dskd.lazy import torch
from dskd.method import Entry, MethodError, Needs, Options, register
from dskd.student_text import ON_POLICY
from dskd.terms import (
    COMMON,
    DIVERGENCE_PARAMETERS,
    DivergenceMethod,
    OnPolicyOptions,
    Sum,
    constant,
    distil_beside_gold,
    divergence_factor,
    gold_term,
    needs_of,
    teacher_view,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dskd.divergences import Divergence
    from dskd.heads import CrossEntropy

SPACE = "both (default), student (gold CE, CE_t2s, student-space KD) or teacher (gold CE, teacher-space KD)"
OWN_MEAN = (
    "{terms} a mean over a count found in the micro-batch, as published, times its share of the global "
    "batch's tokens: with one micro-batch per step this is the paper's number, with more it is their "
    "weighted mean"
)


@dataclass(frozen=True)
class DualSpaceOptions(Options):
    """Options of every DSKD method."""

    space: Literal["both", "student", "teacher"] = "both"
    projector_lr: float = 1e-3


class DualSpace(DivergenceMethod):
    """What the DSKD methods share: the terms, each from one fused pass."""

    Options: ClassVar[type[Any]] = DualSpaceOptions

    def student_space(
        self,
        out: Sum,
        batch: Batch,
        projected: Tensor,
        head: Tensor,
        *,
        weights: Tensor,
        positions: Tensor | None,
    ) -> None:
        """Gold CE at every position and D(q, sg(projected)) at ``positions``.

        ``projected`` (P, d) are the teacher's states in the student's space, read with ``head``.
        """
        o = self.options
        distil_beside_gold(
            out, batch, projected.detach(), head.detach(), self.divergence, temperature=o.temperature,
            weights=weights * divergence_factor(o), of_ce=1 - o.rate, positions=positions, term="kd_student",
        )  # fmt: skip

    def teacher_space(
        self, out: Sum, carried: Tensor, hidden: Tensor, head: Tensor, *, weights: Tensor, by: Divergence
    ) -> Tensor:
        """D(teacher, (h_s P_s2t) W_t) row by row; returns the teacher's argmax (P,)."""
        from dskd import heads

        kd = weights * divergence_factor(self.options)
        made = heads.distil(
            carried, head.detach(), hidden.detach(), head.detach(), by,
            temperature=self.options.temperature, weights=kd, head_grad=False,
        )  # fmt: skip
        out.add(made.loss, kd_teacher=(kd * made.values).sum())
        return made.teacher_argmax

    def projected_ce(
        self, out: Sum, projected: Tensor, head: Tensor, labels: Tensor, weights: Tensor
    ) -> CrossEntropy:
        """CE of the projected teacher (P rows), which trains its projector only."""
        from dskd import heads

        made = heads.cross_entropy(projected, head.detach(), labels, weights, head_grad=False)
        out.add(made.loss, ce_t2s=made.loss)
        return made

    def gold_only(self, out: Sum, batch: Batch) -> None:
        """The gold CE where no student-space pass computes it along."""
        gold_term(out, batch, 1 - self.options.rate)

    def _same_rows(self, batch: Batch) -> View:
        teacher = teacher_view(batch)
        if len(teacher.labels) != len(batch.student.labels):
            rows = len(batch.student.labels), len(teacher.labels)
            raise ValueError(f"one vocabulary, but {rows[0]} student and {rows[1]} teacher positions")
        return teacher


@register(
    Entry(
        name="dskd-v1",
        title="Dual-space knowledge distillation, first version",
        citation="Zhang et al., EMNLP 2024 (arXiv:2406.17328), sec. 3.1-3.2; released code dual_space_kd.py",
        formula=(
            "(1 - r) CE + r [ D(q, sg(softmax(h_t P_t2s W_s / T))) + CE(gold, softmax(h_t P_t2s W_s)) "
            "+ KL(p, softmax(h_s P_s2t W_t / T)) ]; D as addressed, the teacher-space term always forward KL"
        ),
        needs=Needs(vocabulary="same"),
        parameters={
            **COMMON,
            **DIVERGENCE_PARAMETERS,
            "space": SPACE,
            "projector_lr": "of both projectors, default 1e-3",
        },
        stop_gradients=(
            "teacher states and head; W_s in the projected teacher's logits; the projected teacher in the "
            "student-space KD. CE_t2s trains P_t2s only; the teacher-space KD trains P_s2t and the "
            "student's states"
        ),
        released="the same; P_t2s and P_s2t are linear with bias, torch's default initialisation",
        divergences=True,
        exceptions={"identity": "the projectors start at random, so the two spaces differ at first"},
    )
)
class DualSpaceV1(DualSpace):
    """Both projectors trained; the projected teacher learns the gold labels."""

    def build(self, pair: Pair) -> nn.Module:
        from dskd.parts import TrainedProjectors

        return TrainedProjectors(pair.student, _teacher_side(pair))

    def loss(self, batch: Batch, parts: Any) -> Loss:
        student, teacher, o = batch.student, self._same_rows(batch), self.options
        each = constant(len(student.labels), o.rate / batch.normaliser, student.hidden)
        out = Sum()
        if o.space != "teacher":
            projected = parts.t2s(teacher.hidden.detach())
            self.student_space(out, batch, projected, student.head, weights=each, positions=None)
            self.projected_ce(out, projected, student.head, student.labels, each)
        else:
            self.gold_only(out, batch)
        if o.space != "student":
            carried = parts.s2t(student.hidden)
            kl = divergences.get("kl")
            self.teacher_space(out, carried, teacher.hidden, teacher.head, weights=each, by=kl)
        return out.loss()


def _teacher_side(pair: Pair) -> Any:
    if pair.teacher is None:
        raise MethodError("this method builds its projectors from a teacher, and the pair has none")
    return pair.teacher


@dataclass(frozen=True)
class TiedOptions(DualSpaceOptions, OnPolicyOptions):
    """Options of a method whose projectors are tied to the heads."""

    projector_lr: float = 5e-4
    init: Literal["ideal", "random"] = "ideal"


@dataclass(frozen=True)
class IdealOptions(TiedOptions):
    """Options of dskd-v2 and dskd-eta."""

    t2s_agreement: float = 1.0


TIED_PARAMETERS = {
    **COMMON,
    **DIVERGENCE_PARAMETERS,
    "space": SPACE,
    "projector_lr": "of P_t2s, default 5e-4",
    "init": "of P_t2s: ideal (default), W_t pinv(W_s), or random, torch's default; P_s2t is computed "
    "either way",
    **ON_POLICY,
}
IDEAL_PARAMETERS = {
    **TIED_PARAMETERS,
    "t2s_agreement": (
        "where the share of agreeing argmaxes is above this, the student-space KD takes all positions; "
        "default 1.0 = only the agreeing ones, always"
    ),
}

ON_POLICY_RELEASED = (
    "on-policy: the released paths fail with a TypeError, so this is as described; they would draw per "
    "micro-batch (here per optimiser step, whatever its micro-batches), mask the EOS that the student wrote "
    "(here supervised) and, for another vocabulary, tokenise the prompt anew without BOS (here it is kept)"
)


@dataclass(frozen=True)
class Rows:
    """The positions that dual-space terms compare: row k pairs ``student[k]`` with ``teacher[k]``.

    None stands for all positions in order. ``predictions`` (P,) are the teacher's argmaxes in the
    student's vocabulary, None where the teacher-space pass is to find them (one vocabulary).
    """

    student: Tensor | None
    teacher: Tensor | None
    predictions: Tensor | None


class IdealDualSpace(DualSpace):
    """The three terms of DSKD v2 over given rows, each a mean over its own rows."""

    Options: ClassVar[type[Any]] = IdealOptions

    @property
    def needs(self) -> Needs:
        return needs_of(self.entry.needs, self.options)

    def build(self, pair: Pair) -> nn.Module:
        from dskd.parts import IdealProjectors

        _teacher_side(pair)
        random, frozen = self.options.init == "random", self.spec.variant == "kdflow"
        return IdealProjectors(pair, random=random, frozen=frozen)

    def three_terms(self, batch: Batch, parts: Any, rows: Rows) -> Loss:
        student, teacher, space = batch.student, teacher_view(batch), self.options.space
        s_hidden = student.hidden if rows.student is None else student.hidden[rows.student]
        t_hidden = (teacher.hidden if rows.teacher is None else teacher.hidden[rows.teacher]).detach()
        each = constant(len(t_hidden), self.weight(batch, len(t_hidden)), student.hidden)
        out, predictions = Sum(), rows.predictions
        if space != "student":
            carried = parts.to_teacher(s_hidden, student.head)
            found = self.teacher_space(out, carried, t_hidden, teacher.head, weights=each, by=self.divergence)
            predictions = found if predictions is None else predictions
        if space == "teacher":
            self.gold_only(out, batch)
            return out.loss()
        predictions = _argmax(t_hidden, teacher.head) if predictions is None else predictions
        projected, head = parts.t2s(t_hidden), parts.student_head(student.head)
        ce = self.projected_ce(out, projected, head, predictions, each)
        kept = self.kept(ce, predictions, s_hidden.detach(), student.head.detach())
        where = kept if rows.student is None else rows.student[kept]
        weights = constant(len(kept), self.weight(batch, len(kept)), student.hidden)
        self.student_space(out, batch, projected[kept], head, weights=weights, positions=where)
        return out.loss()

    def weight(self, batch: Batch, rows: int) -> float:
        """Of each of a term's rows: r N / normaliser, shared evenly; N: the micro-batch's tokens."""
        return float(self.options.rate) * len(batch.student.labels) / batch.normaliser / max(1, rows)

    def kept(self, projected: CrossEntropy, predictions: Tensor, hidden: Tensor, head: Tensor) -> Tensor:
        """Rows of the student-space KD (K,): where the projection kept the teacher's argmax.

        Args: the projected teacher's CE on ``predictions`` (P,); the student's ``hidden`` (P, d), ``head``.
        """
        agree = projected.argmax == predictions
        if self.options.t2s_agreement < 1 and float(agree.double().mean()) > self.options.t2s_agreement:
            agree = torch.ones_like(agree)
        return agree.nonzero().squeeze(-1)


def _argmax(hidden: Tensor, head: Tensor) -> Tensor:
    from dskd import heads

    return heads.argmax(hidden, head)


@register(
    Entry(
        name="dskd-v2",
        title="Dual-space knowledge distillation, second version",
        citation="Zhang et al. 2025 (DSKDv2), same-vocabulary framework; released code dual_space_kd_v2.py",
        formula=(
            "(1 - r) CE + r [ mean over kept of D(q, sg(softmax(h_t P_t2s W_s / T))) "
            "+ CE(argmax p, softmax(h_t P_t2s W_s)) + D(p, softmax(h_s P_s2t W_t / T)) ]; "
            "kept: argmax of the projected teacher = argmax of p; P_t2s starts at W_t pinv(W_s), "
            "P_s2t = sg(W_s) pinv(W_t) at every step"
        ),
        needs=Needs(vocabulary="same"),
        parameters=IDEAL_PARAMETERS,
        reduction=(
            "CE_t2s, teacher-space KD: sum over response tokens / those of the global batch; "
            "student-space KD: mean "
            "over the kept positions of the micro-batch, times the micro-batch's share of the global "
            "batch's tokens"
        ),
        masks="response tokens and the EOS that ends them; student-space KD where the projected argmax "
        "agrees",
        stop_gradients=(
            "teacher states and head; W_s in the projected teacher's logits and in P_s2t; the projected "
            "teacher in "
            "the student-space KD. CE_t2s trains P_t2s only; the teacher-space KD trains the student's states"
        ),
        released=(
            "pinv in float32, here factored in float64; the share that t2s_agreement is compared with is "
            "kept / "
            "global tokens, here kept / tokens of the micro-batch (the same for one micro-batch per step); "
            + ON_POLICY_RELEASED
        ),
        variants={
            "kdflow": (
                "a clone of the student's head, frozen at the start, reads the projected teacher and "
                "makes P_s2t "
                "(KDFlow 2026). KDFlow also clips each projector gradient element to 1, which is left "
                "out here, and "
                "one of its versions divides the student-space KD by all tokens instead of the kept ones"
            )
        },
        divergences=True,
        exceptions={
            "split": OWN_MEAN.format(terms="the student-space KD is"),
            "neighbours": OWN_MEAN.format(terms="the student-space KD is"),
        },
    )
)
class DualSpaceV2(IdealDualSpace):
    """Projectors tied to the heads; the projected teacher learns the teacher's own predictions."""

    def loss(self, batch: Batch, parts: Any) -> Loss:
        self._same_rows(batch)
        return self.three_terms(batch, parts, Rows(None, None, None))
