"""Logit distillation between two vocabularies without projectors: ULD and minimum edit distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dskd import divergences
from dskd.batch import Batch, Loss, Pair, View
from dskd.lazy import torch
from dskd.method import Entry, Method, MethodError, Needs, Options, register
from dskd.sorting import descending
from dskd.terms import COMMON, Sum, constant, divergence_factor, teacher_view

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dskd.divergences import Divergence


class SortedDistance:
    """Sum of |p_(k) - q_(k)|, both sorted descending, the smaller vocabulary padded with zeros (ULD)."""

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Logits (n, V) and (n, V') to (n,); differentiable in both."""
        q = student_logits.softmax(-1).sort(-1, descending=True).values
        p = teacher_logits.softmax(-1).sort(-1, descending=True).values
        common = min(q.shape[-1], p.shape[-1])
        rest = q[:, common:].sum(-1) + p[:, common:].sum(-1)  # against zeros; at most one is not empty
        return (q[:, :common] - p[:, :common]).abs().sum(-1) + rest

    def value_and_grad(self, student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Values (n,), their gradient in the student's logits q (g - sum q g), g = sign(q_(k) - p_(k))."""
        with torch.no_grad():
            q, order = student_logits.softmax(-1).sort(-1, descending=True)
            p = descending(teacher_logits.softmax(-1))
            common = min(q.shape[-1], p.shape[-1])
            gap = q.clone()
            gap[:, :common] -= p[:, :common]
            value = gap.abs().sum(-1) + p[:, common:].sum(-1)
            g = gap.sign_()
            grad = q * (g - (q * g).sum(-1, keepdim=True))
            return value, torch.empty_like(grad).scatter_(-1, order, grad)


@dataclass(frozen=True)
class PlainULD(Options):
    """ULD within (1 - r) CE + r ULD; no temperature in the source."""

    temperature: float = 1.0


@dataclass(frozen=True)
class OriginalULD:
    """CE + weight ULD, the objective of the ULD paper; there is no rate."""

    temperature: float = 1.0
    t_squared: bool = False
    weight: float = 1.5


@register(
    Entry(
        name="uld",
        title="Universal logit distillation",
        citation="Boizard et al. 2024 (arXiv:2402.12030), sec. 3; weights and pairing as in DSKD's "
        "released code",
        formula="(1 - r) CE + r sum over pairs of sum_k |p_(k) - q_(k)|, sorted descending, zeros where "
        "one has no k-th",
        needs=Needs(vocabulary="any"),
        parameters={
            **COMMON,
            "temperature": "T, default 1.0 as published; divides the logits of both sides",
            "weight": "@original only, instead of rate: the factor of ULD, default 1.5",
        },
        temperature="1 (an option can raise it); no T^2 factor",
        reduction="sum over response tokens (CE) and over pairs (ULD) / the student's response tokens of "
        "the global batch",
        masks=(
            "CE: response tokens and the EOS that ends them. ULD: the k-th response position of the "
            "student with "
            "the k-th of the teacher, up to the shorter of the two; the rest of the longer one is left out"
        ),
        released=(
            "DSKD: the same. The authors of ULD average over an example's pairs, then over examples; "
            "here one sum "
            "over pairs / global tokens, so that the number does not depend on how the batch was split"
        ),
        variants={"original": "CE + 1.5 ULD, the paper's weights, instead of (1 - r) CE + r ULD"},
    )
)
class UniversalLogit(Method):
    """Compares the shapes of the two distributions, never which token has which mass."""

    Options: ClassVar[type[Any]] = PlainULD
    divergence = SortedDistance()

    def parse_options(self, given: dict[str, str]) -> Any:
        from dskd.method import read_options

        cls = OriginalULD if self.spec.variant == "original" else PlainULD
        return read_options(cls, given, str(self.spec))

    def weights(self) -> tuple[float, float]:
        """Weights of CE and of ULD."""
        if isinstance(self.options, OriginalULD):
            return 1.0, self.options.weight
        return 1 - self.options.rate, self.options.rate

    def loss(self, batch: Batch, parts: nn.Module | None) -> Loss:
        from dskd import heads

        student, teacher, o = batch.student, teacher_view(batch), self.options
        i, j = paired_from_start(student, teacher)
        of_ce, of_uld = self.weights()
        kd = constant(len(i), of_uld * divergence_factor(o) / batch.normaliser, student.hidden)
        ce = constant(len(student.labels), of_ce / batch.normaliser, student.hidden)
        made = heads.distil(
            student.hidden, student.head, teacher.hidden[j], teacher.head, self.divergence,
            temperature=o.temperature, weights=kd, positions=i, labels=student.labels, label_weights=ce,
        )  # fmt: skip
        assert made.nll is not None
        out = Sum()
        out.add(made.loss, ce=(ce * made.nll).sum(), kd=(kd * made.values).sum())
        return out.loss()


def paired_from_start(student: View, teacher: View) -> tuple[Tensor, Tensor]:
    """The k-th position of each example in both models, for every k that both have: (P,) and (P,)."""
    shorter = torch.minimum(student.offsets.diff(), teacher.offsets.diff())
    ends = shorter.cumsum(0)
    place = torch.arange(int(shorter.sum()), device=ends.device) - (ends - shorter).repeat_interleave(shorter)
    starts = (side.offsets[:-1].repeat_interleave(shorter) for side in (student, teacher))
    i, j = (start + place for start in starts)
    return i, j


class Reindexed:
    """Forward KL to the teacher's logits re-indexed into the student's vocabulary (MinED).

    ``mapping`` (V',) int64 gives the student id of each teacher id. A student id takes the largest
    logit of the teacher ids mapped to it, and -1e5 (no mass) where there is none.
    """

    NONE = -1e5

    def __init__(self, mapping: Tensor, kl: Divergence) -> None:
        self.mapping, self.kl = mapping, kl

    def reindex(self, teacher_logits: Tensor, size: int) -> Tensor:
        """(n, V') to (n, size)."""
        mapped = self.mapping >= 0
        # Unmapped ids go to a spare column.
        index = torch.where(mapped, self.mapping, size).expand_as(teacher_logits)
        out = teacher_logits.new_full((len(teacher_logits), size + 1), self.NONE)
        return out.scatter_reduce(-1, index, teacher_logits, "amax", include_self=True)[:, :size]

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return self.kl(student_logits, self.reindex(teacher_logits, student_logits.shape[-1]))

    def value_and_grad(self, student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        return self.kl.value_and_grad(student_logits, self.reindex(teacher_logits, student_logits.shape[-1]))


@register(
    Entry(
        name="mined",
        title="Minimum edit distance alignment",
        citation="Wan et al. 2024, FuseLLM (arXiv:2401.10491), sec. 3.2; within DSKD's objective, "
        "released code "
        "min_edit_dis_kld.py",
        formula=(
            "(1 - r) CE + r KL(p', q), p' = softmax(z' / T), z' = teacher logits re-indexed by the "
            "minimum-edit-distance "
            "vocabulary map (maximum over candidates, -1e5 without any) at one-to-one aligned positions; "
            "elsewhere p' "
            "is one-hot at the gold label, which makes KL(p', q) the cross-entropy of the student at "
            "temperature T"
        ),
        needs=Needs(vocabulary="any", alignment="edit-distance"),
        parameters=COMMON,
        masks="response tokens and the EOS that ends them; aligned: matched one-to-one by dynamic time "
        "warping",
        released=(
            "DSKD aligns the input tokens and also requires the mapped id of the teacher's input to "
            "equal the student's; "
            "here the tokens that are predicted are aligned, one-to-one matches suffice, and every "
            "teacher id has a "
            "place in the map (DSKD's maps of 151,646 -> 43,262 and 32,000 -> 24,520 ids are not complete)"
        ),
    )
)
class MinimumEditDistance(Method):
    """Where two tokens match, the teacher's logits under translated names; elsewhere the gold label."""

    divergence = divergences.get("kl")

    def build(self, pair: Pair) -> nn.Module:
        from torch import nn

        if pair.teacher is None:
            raise MethodError("mined maps the teacher's vocabulary, and the pair has no teacher")
        parts = nn.Module()
        mapping = torch.from_numpy(pair.vocabulary.edit_distance).to(pair.student.head.device)
        parts.register_buffer("mapping", mapping, persistent=False)
        return parts

    def loss(self, batch: Batch, parts: Any) -> Loss:
        from dskd import heads

        student, teacher, o = batch.student, teacher_view(batch), self.options
        if batch.pairs is None:
            raise ValueError("mined needs aligned positions, and the batch has none")
        i, j = batch.pairs.student, batch.pairs.teacher
        each = o.rate * divergence_factor(o) / batch.normaliser
        kd = constant(len(i), each, student.hidden)
        ce = constant(len(student.labels), (1 - o.rate) / batch.normaliser, student.hidden)
        matched = heads.distil(
            student.hidden, student.head, teacher.hidden[j], teacher.head,
            Reindexed(parts.mapping, self.divergence),
            temperature=o.temperature, weights=kd, positions=i, labels=student.labels, label_weights=ce,
        )  # fmt: skip
        assert matched.nll is not None
        unmatched = torch.ones_like(student.labels, dtype=torch.bool).index_fill_(0, i, False)
        alone = unmatched.nonzero().squeeze(-1)
        one_hot = heads.cross_entropy(  # logits / T = (h / T) W_s
            student.hidden[alone] / o.temperature, student.head, student.labels[alone],
            constant(len(alone), each, student.hidden),
        )  # fmt: skip
        out = Sum()
        out.add(matched.loss, ce=(ce * matched.nll).sum(), kd=(kd * matched.values).sum())
        out.add(one_hot.loss, kd_unmatched=one_hot.loss)
        return out.loss()
