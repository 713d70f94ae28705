"""Logit distillation between two vocabularies by optimal transport on two levels: MultiLevelOT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from baselines.cross_tokenizer import paired_from_start
from dskd.batch import Batch, Loss, View
from dskd.lazy import torch
from dskd.method import Entry, Method, MethodError, Needs, Spec, register
from dskd.terms import Sum, gold, teacher_view

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class TransportOptions:
    """The published weights and sizes."""

    weight: float = 0.15
    log_weight: float = 0.1
    sinkhorn_weight: float = 0.1
    top: int = 50
    epsilon: float = 0.1
    iterations: int = 20


@register(
    Entry(
        name="multilevel-ot",
        title="Multi-level optimal transport",
        citation="Cui et al. 2025, MultiLevelOT (AAAI 2025, arXiv:2412.14528); released code "
        "distillation_model.py; weights 0.15, 0.1 and 0.1 as papers that re-ran it have them",
        formula=(
            "CE + weight [ sum_i |t_i - s_i| + log_weight sum_i sum_k t_ik log(t_ik / s_ik) + "
            "sinkhorn_weight sum_ij P_ij |t_i - s_j| ]: t_i and s_i the probabilities, at the i-th position "
            "of either model, of its top tokens, those with the most probability over the example, in that "
            "order; P the Sinkhorn plan between the example's positions, uniform on both sides, from "
            "exp(-cost / epsilon). Logits are divided by their standard deviation over the vocabulary first"
        ),
        needs=Needs(vocabulary="any"),
        parameters={
            "weight": "of the three terms beside CE, default 0.15",
            "log_weight": "of the sequential logarithmic term, default 0.1",
            "sinkhorn_weight": "of the Sinkhorn distance, default 0.1",
            "top": "tokens kept, default 50",
            "epsilon": "entropic regularisation, default 0.1",
            "iterations": "rounds of Sinkhorn, rows then columns, default 20",
        },
        temperature="none; logits are standardised instead",
        reduction="CE and the first two terms: sum over tokens or pairs / the student's response tokens of "
        "the global batch; the Sinkhorn distance of an example counts as many times as it has such tokens",
        masks=(
            "first two terms: the i-th response position of both, up to the shorter of the two; CE and the "
            "Sinkhorn distance: response tokens and the EOS that ends them"
        ),
        stop_gradients="teacher; which tokens are the top ones, and their order",
        released=(
            "ranks tokens over the whole micro-batch, so neighbours change the loss; here over the example. "
            "Its logarithmic term is a cross-entropy of softmaxes of the probabilities with student and "
            "teacher exchanged, its Sinkhorn distance one between such softmaxes at T = 2, of zero-padded "
            "sides of one length, weighed by another 0.001; here both are of the probabilities, the first "
            "less the teacher's entropy (same gradient)"
        ),
    )
)
class MultiLevelTransport(Method):
    """Tokens paired by rank within an example, positions paired by order and by transport."""

    Options: ClassVar[type[Any]] = TransportOptions

    def __init__(self, spec: Spec, entry: Entry) -> None:
        super().__init__(spec, entry)
        o = self.options
        if o.top < 1 or o.iterations < 1 or not 0 < o.epsilon < float("inf"):
            raise MethodError(f"{spec}: top >= 1, iterations >= 1 and epsilon > 0 are needed")

    def loss(self, batch: Batch, parts: nn.Module | None) -> Loss:
        student, teacher, o, each = batch.student, teacher_view(batch), self.options, 1 / batch.normaliser
        kept = min(o.top, len(student.head), len(teacher.head))
        log_s = ranked(student, kept)
        with torch.no_grad():
            log_t = ranked(teacher, kept)
        s, t = log_s.exp(), log_t.exp()
        i, j = paired_from_start(student, teacher)
        ce = gold(student, each).loss
        kd = o.weight * each * (s[i] - t[j]).abs().sum()
        kd_log = o.weight * o.log_weight * each * (t[j] * (log_t[j] - log_s[i])).sum()
        lengths = student.offsets.diff()
        distance = sinkhorn(s, t, student.offsets, teacher.offsets, o.epsilon, o.iterations)
        moved = o.weight * o.sinkhorn_weight * each * (lengths * distance).sum()
        out = Sum()
        out.add(ce + kd + kd_log + moved, ce=ce, kd=kd, kd_log=kd_log, sinkhorn=moved)
        return out.loss()


def ranked(view: View, kept: int) -> Tensor:
    """Log-probabilities (N, kept) of each example's likeliest tokens, most likely over the example first."""
    from dskd.token_probabilities import log_probs, mass

    hidden, head = view.hidden.detach(), view.head.detach()
    top = mass(hidden, head, view.offsets, standardise=True).topk(kept, -1).indices
    ids = top.repeat_interleave(view.offsets.diff(), 0)
    return log_probs(view.hidden, view.head, ids, standardise=True)


def sinkhorn(s: Tensor, t: Tensor, of_s: Tensor, of_t: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Entropic transport cost (B,) between the rows of each example, uniform marginals, L1 costs.

    Args: s (N, K) and t (M, K), offsets (B + 1,) of their examples.
    """
    from dskd.parts import padded_rows

    (s_rows, s_real), (t_rows, t_real) = padded_rows(of_s), padded_rows(of_t)
    cost = torch.cdist(s[s_rows], t[t_rows], p=1.0)
    # Places that are none get a logarithm whose exponential is exactly 0, and no infinity to be subtracted.
    none = -1e9
    plan = (-cost / epsilon).masked_fill(~(s_real[:, :, None] & t_real[:, None]), none)
    of_row = -s_real.sum(-1).to(plan.dtype).log()[:, None, None]
    of_column = -t_real.sum(-1).to(plan.dtype).log()[:, None, None]
    for _ in range(iterations):
        plan = plan - plan.logsumexp(2, keepdim=True) + of_row.masked_fill(~s_real[:, :, None], none)
        plan = plan - plan.logsumexp(1, keepdim=True) + of_column.masked_fill(~t_real[:, None], none)
    return (plan.exp() * cost).sum((1, 2))
