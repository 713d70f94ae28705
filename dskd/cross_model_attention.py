"""Dual-space distillation across vocabularies by cross-model attention: dskd-cma (EMNLP 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dskd import divergences
from dskd.batch import Batch, Loss, Pair, Side
from dskd.dual_space import SPACE, DualSpace
from dskd.method import Entry, MethodError, Needs, register
from dskd.terms import COMMON, DIVERGENCE_PARAMETERS, Sum, constant, teacher_view

if TYPE_CHECKING:
    from torch import nn

    from dskd.parts import Attended

_BATCH_STD = "the std of N is taken over all response positions of the micro-batch, so neighbours change it"


@register(
    Entry(
        name="dskd-cma",
        title="Dual-space knowledge distillation with cross-model attention",
        citation="Zhang et al., EMNLP 2024 (arXiv:2406.17328), sec. 3.3; released code "
        "dual_space_kd_with_cross_model_attention.py",
        formula=(
            "(1 - r) CE + r [ D(q, sg(softmax(H W_s / T))) where argmax H W_s = gold + CE(gold, "
            "softmax(H W_s)) "
            "+ KL(p, softmax(G W_t / T)) ], H = softmax(A) P_t2s(N(h_t) + N(e_t(label))) at student "
            "positions, "
            "G = softmax(A^T) P_s2t(h_s) at teacher positions, A = P_q[e_s(input); e_s(label)] "
            "N([e_t(input); e_t(label)])^T / sqrt(2D), within an example, no causal mask; the "
            "teacher-space term is "
            "always forward KL"
        ),
        needs=Needs(vocabulary="any"),
        parameters={
            **COMMON,
            **DIVERGENCE_PARAMETERS,
            "space": SPACE,
            "projector_lr": "of the three projectors, default 1e-3",
        },
        reduction=(
            "every term: sum / the student's response tokens of the global batch. The student-space KD "
            "is not "
            "re-normalised for the positions it leaves out; the teacher-space KD sums over the teacher's "
            "positions"
        ),
        masks=(
            "response tokens and the EOS that ends them, for attention too; student-space KD where the "
            "projected "
            "teacher's argmax is the gold label. N(x) = x / std(x), one unbiased std over all elements "
            "of x at the "
            "response positions of the example, so that no neighbour and no padding enters"
        ),
        stop_gradients=(
            "teacher states and head; all embeddings; W_s in the projected teacher's logits; the "
            "projected teacher "
            "in the student-space KD. CE_t2s trains P_t2s and P_q; the teacher-space KD P_s2t, P_q and "
            "the student"
        ),
        released="one std over the whole padded tensor, prompts and padding included: see @released",
        variants={
            "released": (
                "one std over the whole batch as in the released code; stated deviation: over its response "
                "positions, since prompts and padding never reach a method here"
            )
        },
        divergences=True,
        exceptions={
            "identity": "the projectors start at random, so the two spaces differ at first",
            "split@released": _BATCH_STD,
            "neighbours@released": _BATCH_STD,
        },
    )
)
class CrossModelAttentionKD(DualSpace):
    """Attention finds, for each position of one model, its mixture of the other's positions."""

    def build(self, pair: Pair) -> nn.Module:
        from dskd.parts import CrossModelAttention

        teacher = self.attended(pair)
        return CrossModelAttention(pair.student, teacher, whole_batch=self.spec.variant == "released")

    def attended(self, pair: Pair) -> Side:
        """The pair's teacher, if attention can serve it."""
        if pair.teacher is None:
            raise MethodError(
                f"{self.entry.name} builds its projectors from a teacher, and the pair has none"
            )
        if pair.teacher.embedding.shape[1] != pair.teacher.width:
            raise MethodError(
                f"{self.entry.name} adds the teacher's embeddings to its hidden states; here they are "
                f"{pair.teacher.embedding.shape[1]} and {pair.teacher.width} wide"
            )
        return pair.teacher

    def loss(self, batch: Batch, parts: Any) -> Loss:
        out = Sum()
        self.three_terms(out, batch, parts(batch.student, teacher_view(batch)))
        return out.loss()

    def three_terms(self, out: Sum, batch: Batch, attended: Attended) -> None:
        """Gold CE and the terms of both spaces."""
        student, teacher, o = batch.student, teacher_view(batch), self.options
        projected, carried = attended.at_student, attended.at_teacher
        each = o.rate / batch.normaliser
        if o.space != "teacher":
            weights = constant(len(projected), each, student.hidden)
            best = self.projected_ce(out, projected, student.head, student.labels, weights).argmax
            kept = (best == student.labels).nonzero().squeeze(-1)
            self.student_space(
                out, batch, projected[kept], student.head, weights=weights[kept], positions=kept
            )
        else:
            self.gold_only(out, batch)
        if o.space != "student":
            weights = constant(len(carried), each, student.hidden)
            kl = divergences.get("kl")
            self.teacher_space(out, carried, teacher.hidden, teacher.head, weights=weights, by=kl)
