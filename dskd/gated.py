"""Dual-space distillation that asks the projected teacher only where it knows more: dskd-gated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dskd.batch import Batch
from dskd.dual_space import TIED_PARAMETERS, TiedOptions
from dskd.exact_alignment import ExactTokenAlignment
from dskd.lazy import torch
from dskd.method import Entry, Needs, register
from dskd.terms import constant

if TYPE_CHECKING:
    from torch import Tensor

    from dskd.heads import CrossEntropy


@dataclass(frozen=True)
class GatedOptions(TiedOptions):
    """Options of dskd-gated."""

    gate: Literal["knows-more", "agrees"] = "knows-more"


@register(
    Entry(
        name="dskd-gated",
        title="Dual-space distillation, student space only where the teacher predicts better",
        citation=(
            "own method of this benchmark, published nowhere else; built on DSKDv2 (Zhang et al. 2025). Why: "
            "after short training the projected teacher predicts worse than the student it teaches "
            "(docs/tiny.md, dual-space methods), so it is asked only where it predicts better"
        ),
        formula=(
            "(1 - r) CE + r / tokens [ sum over kept pairs of D(q_i, sg(s_j)) + sum over pairs of "
            "CE(a_j, s_j) + sum over pairs of D(p_j, softmax(h_s,i P_s2t W_t / T)) ]; "
            "s_j = softmax(h_t,j P_t2s W_s / T), a_j the translated argmax p_j, pairs as in dskd-eta; kept: "
            "a_j is the projected teacher's argmax too, and the projected teacher gives a_j more probability "
            "than the student does, both at temperature 1"
        ),
        needs=Needs(vocabulary="any", alignment="spans"),
        parameters={
            **TIED_PARAMETERS,
            "gate": "knows-more (default), or agrees: kept wherever the argmaxes agree, as in DSKDv2",
        },
        reduction=(
            "every term: sum over its rows / response tokens of the global batch, so a term of few rows "
            "weighs little (DSKDv2's means over a term's own rows give it full weight)"
        ),
        masks=(
            "pairs as in dskd-eta (over one vocabulary all response tokens and EOS); student-space KD: the "
            "kept ones"
        ),
        stop_gradients="as dskd-eta; both probabilities in the gate are constants",
        divergences=True,
    )
)
class GatedDualSpace(ExactTokenAlignment):
    """dskd-eta's pairs and terms; a projection that has not caught up with the student stays silent."""

    Options: ClassVar[type[Any]] = GatedOptions

    def weight(self, batch: Batch, rows: int) -> float:
        return float(self.options.rate) / batch.normaliser

    def kept(self, projected: CrossEntropy, predictions: Tensor, hidden: Tensor, head: Tensor) -> Tensor:
        from dskd import heads

        kept = projected.argmax == predictions
        if self.options.gate == "knows-more":
            with torch.no_grad():
                own = heads.cross_entropy(hidden, head, predictions, constant(len(hidden), 0.0, hidden))
            kept = kept & (projected.nll < own.nll)
        return kept.nonzero().squeeze(-1)
