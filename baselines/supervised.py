"""Cross-entropy alone: fine-tuning on the gold responses, or on the teacher's (sequence-level KD)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dskd.batch import Batch, Loss
from dskd.method import Entry, Method, MethodError, Needs, Sampling, Spec, register
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
)
class Supervised(Method):
    """Cross-entropy on the labels of the batch, whoever wrote them."""

    Options: ClassVar[type[Any]] = NoOptions

    def loss(self, batch: Batch, parts: nn.Module | None) -> Loss:
        out = Sum()
        ce = gold(batch.student, 1 / batch.normaliser).loss
        out.add(ce, ce=ce)
        return out.loss()


@register(
    Entry(
        name="seqkd",
        title="Sequence-level knowledge distillation",
        citation="Kim & Rush 2016 (arXiv:1606.07947), sec. 3.2",
        formula="CE = - sum log q(label), labels from the teacher's own responses to the training prompts",
        needs=Needs(teacher=False, teacher_text=True),
        parameters={
            "samples": "answers of the teacher to each prompt, default 1; each is a training example, so an "
            "epoch takes that many times as long",
            "temperature": "of the teacher's sampling, default 0.0: greedy; several samples need more",
            "top_p": "smallest set of tokens with this much mass is sampled from, default 1.0: all",
        },
        temperature="1; no divergence",
        stop_gradients="none needed: the teacher's text is data",
        released="Kim & Rush decode the teacher with beam search; here greedily, and an answer that was cut "
        "has no EOS to learn. MiniLLM's script for this row samples once at temperature 1: "
        "seqkd:temperature=1",
    )
)
class SequenceLevel(Supervised):
    """Fine-tuning on what the teacher wrote; sample n of a prompt is drawn with decoding seed n - 1."""

    Options: ClassVar[type[Any]] = Sampling

    def __init__(self, spec: Spec, entry: Entry) -> None:
        super().__init__(spec, entry)
        o = self.options
        if o.samples < 1 or not 0 <= o.temperature < float("inf") or not 0 < o.top_p <= 1:
            raise MethodError(f"{spec}: samples >= 1, temperature >= 0 and 0 < top_p <= 1 are needed")
        if o.temperature == 0 and (o.samples > 1 or o.top_p < 1):
            raise MethodError(f"{spec}: a greedy teacher writes one answer; add temperature=1 or so")

    @property
    def sampling(self) -> Sampling:
        found: Sampling = self.options
        return found
