"""A method of one's own: `python reproduce.py --plugin examples/my_method.py --table 1 --methods jeffreys`.

Jeffreys' divergence KL(p, q) + KL(q, p) between the two models' next tokens.
"""

from __future__ import annotations

from dskd.batch import Batch, Loss
from dskd.divergences import get
from dskd.method import Entry, Method, Needs, register
from dskd.terms import COMMON, Sum, constant, divergence_factor, teacher_view


class Jeffreys:
    def __call__(self, student, teacher):
        return get("kl")(student, teacher) + get("rkl")(student, teacher)

    def value_and_grad(self, student, teacher):
        (a, da), (b, db) = (get(name).value_and_grad(student, teacher) for name in ("kl", "rkl"))
        return a + b, da + db


ENTRY = Entry("jeffreys", "Logit distillation: Jeffreys' divergence", "Jeffreys 1946, Proc. R. Soc. A 186",
              "(1 - r) CE + r [KL(p, q) + KL(q, p)]", Needs(vocabulary="same"), COMMON)  # fmt: skip


@register(ENTRY)
class JeffreysDistillation(Method):
    def loss(self, batch: Batch, parts: object) -> Loss:
        from dskd import heads

        s, t, o, out = batch.student, teacher_view(batch), self.options, Sum()
        kd = constant(len(s.labels), o.rate * divergence_factor(o) / batch.normaliser, s.hidden)
        ce = constant(len(s.labels), (1 - o.rate) / batch.normaliser, s.hidden)
        made = heads.distil(s.hidden, s.head, t.hidden, t.head, Jeffreys(), temperature=o.temperature,
                            weights=kd, labels=s.labels, label_weights=ce)  # fmt: skip
        out.add(made.loss, ce=(ce * made.nll).sum(), kd=(kd * made.values).sum())
        return out.loss()
