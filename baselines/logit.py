"""Distillation over one vocabulary without projectors on the outputs: logits, and final hidden states."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dskd import divergences
from dskd.batch import Batch, Loss, Pair
from dskd.divergences import ENTRIES
from dskd.lazy import torch
from dskd.method import Entry, Method, MethodError, Needs, Options, Spec, register
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
    needs_of,
    teacher_view,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dskd.divergences import Divergence

#: Divergences whose papers know no temperature; as methods they keep to that.
_AT_ONE = ("abkd", "csd")
_T_ONE = "T, default 1.0 as published; divides the logits of both sides"


def _entry(divergence: Entry) -> Entry:
    """The ledger page of a logit method is that of its divergence within the common objective."""
    own = {**COMMON, "temperature": _T_ONE} if divergence.name in _AT_ONE else COMMON
    return dataclasses.replace(
        divergence,
        title=f"Logit distillation: {divergence.title}",
        formula=f"(1 - r) CE + r D,  D = {divergence.formula}",
        needs=Needs(vocabulary="same"),
        parameters={**own, **divergence.parameters, **ON_POLICY},
    )


def logit_terms(
    out: Sum, batch: Batch, by: Divergence, temperature: float, of_ce: float, of_kd: float
) -> None:
    """Adds of_ce times the gold CE and of_kd times D(p, q), each a sum over tokens / the normaliser."""
    student, teacher = batch.student, teacher_view(batch)
    weights = constant(len(student.labels), of_kd / batch.normaliser, student.hidden)
    distil_beside_gold(
        out, batch, teacher.hidden, teacher.head, by, temperature=temperature, weights=weights, of_ce=of_ce
    )


@register(*(_entry(page) for name, page in ENTRIES.items() if name not in _AT_ONE))
class Logit(DivergenceMethod):
    """(1 - r) CE + r D(p, q), both from one pass over the student's logits where they are of one text."""

    Options: ClassVar[type[Any]] = OnPolicyOptions

    @property
    def needs(self) -> Needs:
        return needs_of(self.entry.needs, self.options)

    def divergence_name(self) -> str:
        return f"{self.spec.name}@{self.spec.variant}" if self.spec.variant else self.spec.name

    def _named(self, spec: Spec, divergence: str) -> Spec:
        return dataclasses.replace(spec, variant=divergence.partition("@")[2])

    def loss(self, batch: Batch, parts: nn.Module | None) -> Loss:
        o, out = self.options, Sum()
        logit_terms(out, batch, self.divergence, o.temperature, 1 - o.rate, o.rate * divergence_factor(o))
        return out.loss()


@dataclass(frozen=True)
class AtOne(OnPolicyOptions):
    """The common options at the temperature of papers that have none."""

    temperature: float = 1.0


@register(*(_entry(ENTRIES[name]) for name in _AT_ONE))
class LogitAtOne(Logit):
    """The same at temperature 1."""

    Options: ClassVar[type[Any]] = AtOne


@dataclass(frozen=True)
class ToolkitOptions:
    """The toolkit's own: a rate for each label, no r."""

    temperature: float = 10.0
    t_squared: bool = True
    hard: float = 1.0
    soft: float = 1.0


@register(
    Entry(
        name="glmkd-kd",
        title="Knowledge distillation as in the GKD toolkit",
        citation="Tan et al. 2023, GKD (arXiv:2306.06629), method KD, after Hinton et al. 2015; command and "
        "code of its repository GLMKD",
        formula="hard CE + soft T^2 KL(p, q) at T = 10",
        needs=Needs(vocabulary="same"),
        parameters={
            "temperature": "T, default 10.0 as in the toolkit's command; divides the logits of both sides",
            "t_squared": "true (default) multiplies the KL by T^2, the toolkit's distill_ft_soft_kl; false "
            "is the gradient of the command it prints for KD, which leaves that flag out",
            "hard": "factor of the cross-entropy, default 1.0 (distill_hard_rate)",
            "soft": "factor of the divergence, default 1.0 (distill_soft_rate)",
        },
        temperature="logits / T on both sides; factor T^2 on the divergence, so that its gradient keeps "
        "its size as T grows (Hinton et al. 2015, sec. 2)",
        released=(
            "with distill_ft_soft_kl: KL times T^2. Without, as its command for KD has it: - sum p log q at "
            "T and no T^2, a hundredth of the gradient at T = 10. Logits of masked positions are set to "
            "zero there and count in the mean; here only response tokens do"
        ),
    )
)
class ToolkitKD(Method):
    """Hard and soft labels, the soft ones at a high temperature."""

    Options: ClassVar[type[Any]] = ToolkitOptions
    divergence = divergences.get("kl")

    def loss(self, batch: Batch, parts: nn.Module | None) -> Loss:
        o, out = self.options, Sum()
        soft = o.soft * divergence_factor(o)
        logit_terms(out, batch, self.divergence, o.temperature, o.hard, soft)
        return out.loss()


@dataclass(frozen=True)
class HiddenOptions(Options):
    """Options of hidden-mse."""

    hidden_weight: float = 1.0
    projector_lr: float = 1e-3


@register(
    Entry(
        name="hidden-mse",
        title="Logit distillation with matching of final hidden states",
        citation="Jiao et al. 2020, TinyBERT (arXiv:1909.10351), eq. 7, as in the GKD toolkit (Tan et al. "
        "2023, arXiv:2306.06629), class TinyBERT",
        formula=(
            "(1 - r) CE + r [ D(p, q) + w mean_k (h_s P_fit - h_t)_k^2 ],  the mean over the teacher's "
            "width, P_fit linear with bias from torch's default initialisation"
        ),
        needs=Needs(vocabulary="same"),
        parameters={
            **COMMON,
            **DIVERGENCE_PARAMETERS,
            "hidden_weight": "w, default 1.0; 0 is distillation of the logits alone",
            "projector_lr": "of P_fit, default 1e-3",
        },
        stop_gradients="teacher states and head. The squared distance trains P_fit and the student's states",
        released=(
            "TinyBERT and the toolkit match embeddings, every n-th layer and attention scores too, in a "
            "stage before the soft labels; here the states after the last norm only (all that a method sees "
            "of a model), with both terms at once"
        ),
        divergences=True,
    )
)
class HiddenMatching(DivergenceMethod):
    """The teacher's final states as a regression target beside its logits."""

    Options: ClassVar[type[Any]] = HiddenOptions

    def build(self, pair: Pair) -> nn.Module:
        from torch import nn

        from dskd.parts import projector

        if pair.teacher is None:
            raise MethodError("hidden-mse fits the teacher's states, and the pair has no teacher")
        parts = nn.Module()
        parts.fit = projector(pair.student.width, pair.teacher.width, pair.student.head, bias=True)
        return parts

    def loss(self, batch: Batch, parts: Any) -> Loss:
        o, out = self.options, Sum()
        logit_terms(out, batch, self.divergence, o.temperature, 1 - o.rate, o.rate * divergence_factor(o))
        each = o.rate * o.hidden_weight / batch.normaliser
        distance = each * squared_distance(parts.fit(batch.student.hidden), teacher_view(batch).hidden)
        out.add(distance, hidden=distance)
        return out.loss()


def squared_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Sum over rows of the mean squared difference, in float32 or better; (n, D) twice to ()."""
    wide = torch.promote_types(found.dtype, torch.float32)
    return (found.to(wide) - wanted.detach().to(wide)).square().mean(-1).sum()
