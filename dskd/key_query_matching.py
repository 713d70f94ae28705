"""Cross-model attention whose queries are matched to its keys: dskd-cma-ga and dskd-cma-ct (2026)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dskd.batch import Batch, Loss, Pair
from dskd.cross_model_attention import CrossModelAttentionKD
from dskd.dual_space import DualSpaceOptions
from dskd.method import Entry, MethodError, Spec, entry, register
from dskd.terms import Sum, teacher_view

if TYPE_CHECKING:
    from torch import nn

_CMA = entry("dskd-cma")
_PAPER = "Tsiapali et al. 2026, DSKD-CMA-{} (arXiv:2603.22056)"
_CODE = "; released code dual_space_kd_with_cma_plus_kq_matching.py"
_FROZEN = (
    "every std and every mean is taken over the batch (here over its response positions), L_kq is one mean "
    "added to terms that are sums over tokens, so its weight is kq_rate / tokens, and the layers of the "
    "matching are never given to the optimiser. "
)
_OWN_BATCH = "the std of N and the means of L_kq are taken over the micro-batch, so neighbours change them"


@dataclass(frozen=True)
class KeyQueryOptions(DualSpaceOptions):
    """Options of both."""

    kq_rate: float = 1.0
    kq_width: int = 768


def _page(name: str, title: str, formula: str, trains: str, released: str, reversed_: str) -> Entry:
    """A ledger page: that of dskd-cma with what the matching adds."""
    return dataclasses.replace(
        _CMA,
        name=f"dskd-cma-{name}",
        title=f"DSKD-CMA with key-query matching by {title}",
        citation=_PAPER.format(name.upper()) + _CODE,
        formula=f"dskd-cma + kq_rate L_kq, over its queries q = P_q[e_s(input); e_s(label)] and keys k. "
        f"{formula}",
        parameters={
            **_CMA.parameters,
            "projector_lr": "of the three projectors and of the layers of the matching, default 1e-3",
            "kq_rate": "factor of L_kq, default 1.0; 0 is dskd-cma. It is not multiplied by r",
            "kq_width": "inner width of the layers of the matching, default 768",
        },
        reduction=f"{_CMA.reduction}. L_kq: an example's mean times its share of the global batch's tokens",
        stop_gradients=f"{_CMA.stop_gradients}. {trains}",
        released=released,
        variants={
            "described": "queries not detached, the layers of the matching trained; the default",
            "released": _FROZEN + released,
        },
        exceptions={
            "identity": _CMA.exceptions["identity"],
            "slopes": reversed_,
            "split@released": _OWN_BATCH,
            "neighbours@released": _OWN_BATCH,
        },
    )


class KeyQueryMatching(CrossModelAttentionKD):
    """dskd-cma and a term that draws the queries to where the keys are."""

    Options: ClassVar[type[Any]] = KeyQueryOptions

    def __init__(self, spec: Spec, entry: Entry) -> None:
        super().__init__(spec, entry)
        if self.options.kq_width < 1:
            raise MethodError(f"{spec}: kq_width is at least 1")

    @property
    def as_released(self) -> bool:
        return self.spec.variant == "released"

    def canonical(self) -> Spec:
        """As in dskd-cma; ``@described`` goes without saying."""
        spec = super().canonical()
        return dataclasses.replace(spec, variant="" if spec.variant == "described" else spec.variant)

    def matching(self) -> type[Any]:
        """The module that computes L_kq."""
        raise NotImplementedError

    def build(self, pair: Pair) -> nn.Module:
        from dskd.parts import MatchedAttention

        teacher, o = self.attended(pair), self.options
        return MatchedAttention(pair.student, teacher, self.matching(), o.kq_width, released=self.as_released)

    def loss(self, batch: Batch, parts: Any) -> Loss:
        student, teacher, out = batch.student, teacher_view(batch), Sum()
        attended = parts(student, teacher)
        self.three_terms(out, batch, attended)
        value, rate = parts.match(attended, student, teacher), self.options.kq_rate / batch.normaliser
        kq = rate * (value if self.as_released else (value * student.offsets.diff()).sum())
        out.add(kq, kq=kq)
        return out.loss()


@register(
    _page(
        "ga",
        "adversarial learning",
        "L_kq = mean_k softplus(-f(k)) + mean_q softplus(f(q)): the discriminator f tells keys (real) from "
        "queries (fake), highway layer, dropout 0.1, 2D to 768, LeakyReLU 0.1, to 1",
        "L_kq trains f and, through a gradient reversal, P_q",
        "the queries are detached and f is not trained: L_kq changes nothing but the logged loss and, by its "
        "dropout, the random stream",
        "P_q ascends L_kq by a gradient reversal; tests compare its gradient with the reversed slope",
    )
)
class AdversarialKeyQuery(KeyQueryMatching):
    """Queries that a discriminator cannot tell from keys."""

    def matching(self) -> type[Any]:
        from dskd.parts import AdversarialMatching

        return AdversarialMatching


@register(
    _page(
        "ct",
        "conditional transport",
        "L_kq = C(tokens) + C(features), C = 1/2 mean_k sum_q softmax_q(n_k n_q) c_kq + 1/2 mean_q sum_k "
        "softmax_k(n_k n_q) c_kq, c_kq = |g(k) - g(q)|; critics g: highway layer, dropout 0.1, 2D to 768, "
        "LeakyReLU 0.1, to 768, L2-normalised; navigators n: the same without highway and dropout. Features: "
        "the points are the 768 outputs of a second critic and navigator, their coordinates the positions of "
        "the example, zeros after the shorter side's end",
        "L_kq trains P_q and the navigators downwards and the critics, by gradient reversals, upwards "
        "(conditional transport, Zheng & Zhou 2021)",
        "P_q does get its gradient, from critics and navigators as they were drawn at the start; its "
        "features are compared over all 512 padded positions and the loss is logged with the other sign",
        "the critics ascend L_kq by gradient reversals; tests compare their gradient with the reversed slope",
    )
)
class TransportKeyQuery(KeyQueryMatching):
    """Queries that are cheap to carry to the keys."""

    def matching(self) -> type[Any]:
        from dskd.parts import TransportMatching

        return TransportMatching
