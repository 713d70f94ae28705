"""What every distillation method does alike: options, per-token weights, the sum of named terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from dskd import divergences
from dskd.batch import Batch, Gold, Loss, View
from dskd.lazy import torch
from dskd.method import Entry, Method, MethodError, Needs, Options, Spec, write_value
from dskd.student_text import Fixed, StudentText

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


@dataclass(frozen=True)
class OnPolicyOptions(Options):
    """Options of a method that can distil on student text (DSKDv2's on-policy setting)."""

    on_policy: float = 0.0
    on_policy_after: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.on_policy <= 1:
            raise MethodError(f"on_policy is a share from 0 to 1, not {self.on_policy}")
        if self.on_policy_after < 0:
            raise MethodError(f"on_policy_after is a number of epochs, not {self.on_policy_after}")
        if self.on_policy_after and not self.on_policy:
            raise MethodError("on_policy_after without on_policy: no text of the student is asked for")


def needs_of(needs: Needs, options: OnPolicyOptions) -> Needs:
    """A method's needs with these options: student samples where a share of them is asked for."""
    if not options.on_policy:
        return replace(needs, student_samples=None)
    schedule = Fixed(options.on_policy, options.on_policy_after)
    return replace(needs, student_samples=StudentText(schedule, gold=options.rate < 1))


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


def gold_text(batch: Batch) -> Gold | None:
    """The responses of the data and their normaliser; None where the batch has student text alone."""
    if batch.gold is not None:
        return batch.gold
    return Gold(batch.student, batch.normaliser) if batch.sampled is None else None


def written_by_student(batch: Batch) -> Tensor:
    """(N,) bool: the positions of examples the student wrote."""
    student = batch.student
    if batch.sampled is None:
        return torch.zeros_like(student.labels, dtype=torch.bool)
    return batch.sampled.repeat_interleave(student.offsets.diff())


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


def gold_term(out: Sum, batch: Batch, factor: float) -> None:
    """Add ``factor`` times the CE on the gold labels; where there is no gold text the factor must be 0."""
    found = gold_text(batch)
    if found is None:
        if factor:
            raise ValueError(f"a cross-entropy of weight {factor:g} on gold labels, and the batch has none")
        out.terms.setdefault("ce", constant(1, 0.0, batch.student.hidden).sum())
        return
    ce = gold(found.view, factor / found.normaliser).loss
    out.add(ce, ce=ce)


def distil_beside_gold(
    out: Sum,
    batch: Batch,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    divergence: Divergence,
    *,
    temperature: float,
    weights: Tensor,
    of_ce: float,
    positions: Tensor | None = None,
    term: str = "kd",
) -> None:
    """Add of_ce times the CE on the gold labels, and ``term``: the sum of weights * D over pairs of rows.

    One pass over the student's logits serves both where the text distilled on is the gold one.
    Args: as heads.distil.
    """
    from dskd import heads

    student = batch.student
    together = batch.sampled is None
    ce = constant(len(student.labels), of_ce / batch.normaliser, student.hidden) if together else None
    made = heads.distil(
        student.hidden, student.head, teacher_hidden, teacher_head, divergence,
        temperature=temperature, weights=weights, positions=positions,
        labels=student.labels if together else None, label_weights=ce,
    )  # fmt: skip
    named = {term: (weights * made.values).sum()}
    if ce is not None and made.nll is not None:
        out.add(made.loss, ce=(ce * made.nll).sum(), **named)
    else:
        gold_term(out, batch, of_ce)
        out.add(made.loss, **named)
