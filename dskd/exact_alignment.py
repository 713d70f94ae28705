"""Dual-space distillation across vocabularies on exactly aligned tokens: dskd-eta (DSKDv2, 2025)."""

from __future__ import annotations

from typing import Any

from dskd.batch import Batch, Loss
from dskd.dual_space import IDEAL_PARAMETERS, ON_POLICY_RELEASED, OWN_MEAN, IdealDualSpace, Rows
from dskd.method import Entry, Needs, register
from dskd.terms import teacher_view


@register(
    Entry(
        name="dskd-eta",
        title="Dual-space knowledge distillation with exact token alignment",
        citation="Zhang et al. 2025 (DSKDv2), exact token alignment; released code "
        "dual_space_kd_v2_with_exact_token_alignment.py",
        formula=(
            "(1 - r) CE + r [ mean over agreeing pairs of D(q_i, sg(softmax(h_t,j P_t2s W_s / T))) "
            "+ mean over pairs of CE(translated argmax p_j, softmax(h_t,j P_t2s W_s)) "
            "+ mean over pairs of D(p_j, softmax(h_s,i P_s2t W_t / T)) ]; a pair (i, j) has the same "
            "text before "
            "both tokens, the same token text, and a teacher prediction that the student's vocabulary has. "
            "Both projectors as in dskd-v2, from the rows of the tokens both vocabularies know"
        ),
        needs=Needs(vocabulary="any", alignment="spans"),
        parameters=IDEAL_PARAMETERS,
        reduction=(
            "gold CE: sum over response tokens / those of the global batch; each distillation term: mean "
            "over its "
            "own pairs in the micro-batch, times the micro-batch's share of the global batch's (student) "
            "tokens"
        ),
        masks=(
            "pairs of equal text span, EOS with EOS, whose teacher prediction has a translation (EOS to "
            "EOS, never an "
            "unknown-token id); student-space KD where the projected argmax is that translation"
        ),
        stop_gradients=(
            "teacher states and head; W_s in the projected teacher's logits and in P_s2t; the projected "
            "teacher in "
            "the student-space KD. CE_t2s trains P_t2s only; the teacher-space KD trains the student's states"
        ),
        released=(
            "aligns token strings without their space marks, greedily, and loses step at the first "
            "newline or byte "
            "token; looks a prediction up as a raw string, so an unknown one becomes the unk id, which "
            "for GPT-2 is "
            "EOS. Here: text spans, and a vocabulary map with 'none'; " + ON_POLICY_RELEASED
        ),
        divergences=True,
        exceptions={
            "split": OWN_MEAN.format(terms="every distillation term is"),
            "neighbours": OWN_MEAN.format(terms="every distillation term is"),
        },
    )
)
class ExactTokenAlignment(IdealDualSpace):
    """DSKD v2's three terms on aligned pairs; over one vocabulary it is dskd-v2."""

    def loss(self, batch: Batch, parts: Any) -> Loss:
        from dskd import heads

        teacher = teacher_view(batch)
        if batch.pairs is None:
            raise ValueError(f"{self.entry.name} needs aligned positions, and the batch has none")
        i, j = batch.pairs.student, batch.pairs.teacher
        predictions = heads.argmax(teacher.hidden[j].detach(), teacher.head)
        if parts.translation is not None:
            predictions = parts.translation[predictions]
            known = (predictions >= 0).nonzero().squeeze(-1)
            i, j, predictions = i[known], j[known], predictions[known]
        return self.three_terms(batch, parts, Rows(i, j, predictions))
