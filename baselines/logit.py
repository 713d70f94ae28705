"""Token-level distillation over one vocabulary: cross-entropy plus one divergence of the two outputs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from dskd.batch import Batch, Loss
from dskd.divergences import ENTRIES
from dskd.method import Entry, Needs, Spec, register
from dskd.terms import COMMON, DivergenceMethod, Sum, constant, divergence_factor, teacher_view

if TYPE_CHECKING:
    from torch import nn


def _entry(divergence: Entry) -> Entry:
    """The ledger page of a logit method is that of its divergence within the common objective."""
    return dataclasses.replace(
        divergence,
        title=f"Logit distillation: {divergence.title}",
        formula=f"(1 - r) CE + r D,  D = {divergence.formula}",
        needs=Needs(vocabulary="same"),
        parameters={**COMMON, **divergence.parameters},
    )


@register(*map(_entry, ENTRIES.values()))
class Logit(DivergenceMethod):
    """(1 - r) CE + r D(p, q), both from one pass over the student's logits."""

    def divergence_name(self) -> str:
        return f"{self.spec.name}@{self.spec.variant}" if self.spec.variant else self.spec.name

    def _named(self, spec: Spec, divergence: str) -> Spec:
        return dataclasses.replace(spec, variant=divergence.partition("@")[2])

    def loss(self, batch: Batch, parts: nn.Module | None) -> Loss:
        from dskd import heads

        student, teacher, o = batch.student, teacher_view(batch), self.options
        n = len(student.labels)
        kd = constant(n, o.rate * divergence_factor(o) / batch.normaliser, student.hidden)
        ce = constant(n, (1 - o.rate) / batch.normaliser, student.hidden)
        made = heads.distil(
            student.hidden, student.head, teacher.hidden, teacher.head, self.divergence,
            temperature=o.temperature, weights=kd, labels=student.labels, label_weights=ce,
        )  # fmt: skip
        assert made.nll is not None
        out = Sum()
        out.add(made.loss, ce=(ce * made.nll).sum(), kd=(kd * made.values).sum())
        return out.loss()
