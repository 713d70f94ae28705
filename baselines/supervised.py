"""Cross-entropy alone: fine-tuning on the gold responses, or on the teacher's (sequence-level KD)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dskd.batch import Batch, Loss
from dskd.method import Entry, Method, Needs, register
from dskd.terms import Sum, gold

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class NoOptions:
    """Nothing to choose: there is no distillation term to weigh or to soften."""


@register(
    Entry(
        name="sft",
        title="Supervised fine-tuning",
        citation="the lower row of every table of DSKD (arXiv:2406.17328)",
        formula="CE = - sum log q(label)",
        needs=Needs(teacher=False),
        temperature="1; no divergence",
        stop_gradients="none needed",
    ),
    Entry(
        name="seqkd",
        title="Sequence-level knowledge distillation",
        citation="Kim & Rush 2016 (arXiv:1606.07947), sec. 3.2",
        formula="CE = - sum log q(label), labels from the teacher's own responses to the training prompts",
        needs=Needs(teacher=False, teacher_text=True),
        temperature="1; no divergence",
        stop_gradients="none needed: the teacher's text is data",
        released="Kim & Rush decode the teacher with beam search; here greedily, and an answer that was cut "
        "has no EOS to learn",
    ),
)
class Supervised(Method):
    """Cross-entropy on the labels of the batch, whoever wrote them."""

    Options: ClassVar = NoOptions

    def loss(self, batch: Batch, parts: nn.Module | None) -> Loss:
        out = Sum()
        ce = gold(batch.student, 1 / batch.normaliser).loss
        out.add(ce, ce=ce)
        return out.loss()
