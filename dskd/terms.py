"""What every distillation method does alike: options, per-token weights, the sum of named terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from dskd import divergences
from dskd.batch import Batch, Loss, View
from dskd.lazy import torch
from dskd.method import Entry, Method, MethodError, Spec, write_value

if TYPE_CHECKING:
    from torch import Tensor

    from dskd.divergences import Divergence
    from dskd.heads import CrossEntropy

#: Ledger text of the options in dskd.method.Options.
COMMON: Mapping[str, str] = {
    "rate": "r in (1 - r) CE + r L_kd, default 0.5; 0 is plain fine-tuning",
    "temperature": "T, default 2.0; divides the logits of both sides in every divergence, never in a "
    "cross-entropy",
    "t_squared": "true multiplies the divergences (no cross-entropy) by T^2, as DistillKit and axolotl "
    "do; default false",
}
#: Ledger text of the parameters of a divergence given after the slash.
DIVERGENCE_PARAMETERS: Mapping[str, str] = {
    "beta": "for jsd, default 0.5; @gkd: the teacher's share of the mixture, @distillm: the student's; for "
    "abkd the student's power, default 0.7",
    "alpha": "for skl (teacher's share of the mixture) and srkl (student's share), default 0.1; for abkd the "
    "teacher's power, default 0.2",
}


class DivergenceMethod(Method):
    """A method that compares two distributions by a divergence chosen in its address."""

    divergence: Divergence
    default_divergence: ClassVar[str] = "kl"  #: where the address names none

    def __init__(self, spec: Spec, entry: Entry) -> None:
        super().__init__(spec, entry)
        given = {k: _number(v, f"{spec}: {k}") for k, v in spec.options if k in DIVERGENCE_PARAMETERS}
        self.divergence = divergences.get(self.divergence_name(), **given)

    def divergence_name(self) -> str:
        """The divergence's address; the default unless the method's address says otherwise."""
        return self.spec.divergence or self.default_divergence

    def canonical(self) -> Spec:
        """As in Method; the divergence too without its defaults (itself, ``@gkd`` of jsd, parameters)."""
        spec, own = super().canonical(), self.divergence
        given = {k: v for k, v in own.parameters.items() if v != own.defaults[k]}
        options = sorted([*spec.options, *((k, write_value(v)) for k, v in given.items())])
        return self._named(replace(spec, options=tuple(options)), shortest_name(own.name))

    def _named(self, spec: Spec, divergence: str) -> Spec:
        """``spec`` with the divergence in its place."""
        return replace(spec, divergence="" if divergence == self.default_divergence else divergence)

    def parse_options(self, given: dict[str, str]) -> Any:
        """The method's own options; the divergence checks and keeps its parameters itself."""
        return super().parse_options({k: v for k, v in given.items() if k not in DIVERGENCE_PARAMETERS})


def shortest_name(divergence: str) -> str:
    """A divergence's name without a variant that is the default."""
    base = divergence.partition("@")[0]
    return base if divergences.get(base).name == divergences.get(divergence).name else divergence


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise MethodError(f"{what} is a number, not {text!r}") from None


def teacher_view(batch: Batch) -> View:
    """The teacher's view; a batch without one is a fault of the caller (ValueError)."""
    if batch.teacher is None:
        raise ValueError("this method needs the teacher's hidden states, and the batch has none")
    return batch.teacher


def divergence_factor(options: Any) -> float:
    """T^2 where that convention is asked for, else 1."""
    return float(options.temperature) ** 2 if options.t_squared else 1.0


def constant(rows: int, value: float, like: Tensor) -> Tensor:
    """(rows,) of one weight, in the precision of losses: float64 where ``like`` has it, else float32."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.full((rows,), value, dtype=dtype, device=like.device)


def gold(student: View, weight: float) -> CrossEntropy:
    """The student's cross-entropy on its gold labels, ``weight`` each."""
    from dskd import heads

    return heads.cross_entropy(
        student.hidden, student.head, student.labels, constant(len(student.labels), weight, student.hidden)
    )


@dataclass
class Sum:
    """Adds up a loss and its named terms; several additions under one name accumulate."""

    total: Tensor | None = None
    terms: dict[str, Tensor] = field(default_factory=dict)

    def add(self, loss: Tensor, **terms: Tensor) -> None:
        """``loss`` is differentiated; ``terms`` name its parts and sum to it."""
        self.total = loss if self.total is None else self.total + loss
        for name, value in terms.items():
            value = value.detach()
            self.terms[name] = self.terms[name] + value if name in self.terms else value

    def loss(self) -> Loss:
        if self.total is None:
            raise ValueError("a loss without a term")
        return Loss(self.total, self.terms)
