"""Methods broken on purpose, in the ways that happened in released code: each is caught by name.

A copy differs from the real method in one detail. Conformance alone catches what breaks a property;
what is a different but consistent method (a swapped direction) only the formulas can catch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from goldens import GOLDENS, compare
from torch import Tensor

from baselines.cross_tokenizer import MinimumEditDistance, UniversalLogit
from baselines.logit import Logit
from dskd import divergences, dual_space, heads
from dskd.batch import Batch, Loss, Pair
from dskd.cross_model_attention import CrossModelAttentionKD
from dskd.dual_space import DualSpaceV1, DualSpaceV2
from dskd.exact_alignment import ExactTokenAlignment
from dskd.method import Method, Spec, entry
from dskd.terms import Sum
from harness import conformance, methods

methods.load()


def _make(cls: type[Method], address: str) -> Method:
    spec = Spec.parse(address)
    return cls(spec, entry(spec.name))


class _Swapped:
    """KL(q, p) under the name of KL(p, q)."""

    def __init__(self, real: Any) -> None:
        self.name, self.parameters = "kl", {}
        self.real = divergences.get("rkl")

    def __call__(self, q: Tensor, p: Tensor) -> Tensor:
        return self.real(q, p)

    def value_and_grad(self, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return self.real.value_and_grad(q, p)


class SwappedDirection(Logit):
    def __init__(self, spec: Spec, page: Any) -> None:
        super().__init__(spec, page)
        self.divergence = _Swapped(self.divergence)  # type: ignore[assignment]


class SwappedInDualSpace(DualSpaceV2):
    def __init__(self, spec: Spec, page: Any) -> None:
        super().__init__(spec, page)
        self.divergence = _Swapped(self.divergence)  # type: ignore[assignment]


class WrongGradient(Logit):
    """The right value with the gradient of another divergence."""

    def loss(self, batch: Batch, parts: Any) -> Loss:
        right = self.divergence
        self.divergence = _Mixed(right, divergences.get("rkl"))  # type: ignore[assignment]
        made = super().loss(batch, parts)
        self.divergence = right
        return made


class _Mixed:
    def __init__(self, value: Any, grad: Any) -> None:
        self.value, self.grad = value, grad

    def __call__(self, q: Tensor, p: Tensor) -> Tensor:
        return self.value(q, p)

    def value_and_grad(self, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(q, p), self.grad.value_and_grad(q, p)[1]


class LooseHead(DualSpaceV1):
    """CE of the projected teacher trains the student's head too: the missing detach of sg(W_s)."""

    def projected_ce(
        self, out: Sum, projected: Tensor, head: Tensor, labels: Tensor, weights: Tensor
    ) -> Tensor:
        made = heads.cross_entropy(projected, head, labels, weights)
        out.add(made.loss, ce_t2s=made.loss)
        return made.argmax


class LooseProjectedTeacher(DualSpaceV1):
    """The student-space KD pulls the projected teacher toward the student."""

    def student_space(self, out: Sum, batch: Batch, projected: Tensor, head: Tensor, **how: Any) -> None:
        super().student_space(out, batch, projected, head, **how)
        pull = (how["weights"] * (projected @ head.detach().T).log_softmax(-1)[:, 0]).sum()
        pull = pull * batch.student.hidden.detach().square().mean()
        out.add(pull - pull.detach())


class LooseTeacher(Logit):
    """Forward KL computed plainly, the teacher's logits left in the graph."""

    def loss(self, batch: Batch, parts: Any) -> Loss:
        s, t, o = batch.student, batch.teacher, self.options
        assert t is not None
        z, target = s.hidden @ s.head.T, t.hidden @ t.head.T
        ce = (1 - o.rate) / batch.normaliser * torch.nn.functional.cross_entropy(z, s.labels, reduction="sum")
        kd = o.rate / batch.normaliser * self.divergence(z / o.temperature, target / o.temperature).sum()
        out = Sum()
        out.add(ce + kd, ce=ce, kd=kd)
        return out.loss()


def _without_eos(batch: Batch) -> Batch:
    """Labels of EOS become 'none', as where pad == eos and padding is masked."""
    labels = batch.student.labels
    eos = labels[batch.student.offsets[1:] - 1]
    return replace(
        batch, student=replace(batch.student, labels=torch.where(torch.isin(labels, eos), -1, labels))
    )


class MaskedEos(Logit):
    def loss(self, batch: Batch, parts: Any) -> Loss:
        return super().loss(_without_eos(batch), parts)


class EosWithoutTeacher(Logit):
    """Gold CE sees EOS, the divergence does not."""

    def loss(self, batch: Batch, parts: Any) -> Loss:
        assert batch.teacher is not None
        s, t = batch.student, batch.teacher
        full = super().loss(batch, parts)
        ends = s.offsets[1:] - 1
        weights = torch.full((len(ends),), self.options.rate / batch.normaliser, dtype=s.hidden.dtype)
        made = heads.distil(
            s.hidden[ends], s.head, t.hidden[ends], t.head, self.divergence,
            temperature=self.options.temperature, weights=weights,
        )  # fmt: skip
        return Loss(full.total - made.loss, {**full.terms, "kd": full.terms["kd"] - made.loss.detach()})


class TemperatureSquared(Logit):
    def loss(self, batch: Batch, parts: Any) -> Loss:
        real, plain = self.options, super().loss(batch, parts)
        self.options = replace(real, rate=0.0)
        kd = plain.total - (1 - real.rate) * super().loss(batch, parts).total
        self.options, factor = real, real.temperature**2
        return Loss(plain.total + (factor - 1) * kd, {**plain.terms, "kd": factor * plain.terms["kd"]})


class SquaredInDualSpace(DualSpaceV2):
    def teacher_space(self, out: Sum, *what: Any, weights: Tensor, by: Any) -> Tensor:
        return super().teacher_space(out, *what, weights=weights * self.options.temperature**2, by=by)


class UnknownIsEos(ExactTokenAlignment):
    """The released look-up: what the student's vocabulary lacks becomes its EOS."""

    def build(self, pair: Pair) -> Any:
        parts: Any = super().build(pair)
        if parts.translation is not None:
            eos = pair.student.vocabulary.eos
            parts.translation = torch.where(parts.translation < 0, eos, parts.translation)
        return parts


class UnknownIsEosInMap(MinimumEditDistance):
    def build(self, pair: Pair) -> Any:
        parts: Any = super().build(pair)
        missing = torch.from_numpy(pair.vocabulary.translation) < 0
        parts.mapping = torch.where(missing, pair.student.vocabulary.eos, parts.mapping)
        return parts


class PlainMean(Logit):
    """Divides by the micro-batch's own tokens, so the number depends on how a batch was split."""

    def loss(self, batch: Batch, parts: Any) -> Loss:
        return super().loss(replace(batch, normaliser=float(len(batch.student.labels))), parts)


def _as_one_example(batch: Batch) -> Batch:
    assert batch.teacher is not None
    ends = torch.tensor([0, len(batch.student.labels)]), torch.tensor([0, len(batch.teacher.labels)])
    student, teacher = replace(batch.student, offsets=ends[0]), replace(batch.teacher, offsets=ends[1])
    return replace(batch, student=student, teacher=teacher)


class PairedByPlace(UniversalLogit):
    """Pairs positions by their place in the packed batch instead of in the example."""

    def loss(self, batch: Batch, parts: Any) -> Loss:
        return super().loss(_as_one_example(batch), parts)


class AttentionOverTheBatch(CrossModelAttentionKD):
    """Attends to the neighbours' positions."""

    def loss(self, batch: Batch, parts: Any) -> Loss:
        return super().loss(_as_one_example(batch), parts)


class MaskIgnored(DualSpaceV2):
    """The student-space KD at every position."""

    def kept(self, projected: Any, predictions: Tensor, hidden: Tensor, head: Tensor) -> Tensor:
        return torch.arange(len(predictions))


class GoldForPredictions(DualSpaceV2):
    """v2 with v1's labels."""

    def three_terms(self, batch: Batch, parts: Any, rows: dual_space.Rows) -> Loss:
        return super().three_terms(batch, parts, replace(rows, predictions=batch.student.labels))


class Noisy(Logit):
    """Adds random noise: neither order nor split nor slope holds."""

    def loss(self, batch: Batch, parts: Any) -> Loss:
        made = super().loss(batch, parts)
        return Loss(made.total + torch.rand(()), made.terms)


BY_PROPERTY: list[tuple[type[Method], str, str]] = [
    (WrongGradient, "kl", "tiled"),
    (LooseHead, "dskd-v1", "constants"),
    (LooseProjectedTeacher, "dskd-v1", "constants"),
    (LooseTeacher, "kl", "constants"),
    (MaskedEos, "kl", "eos"),
    (EosWithoutTeacher, "kl", "eos"),
    (TemperatureSquared, "kl", "temperature"),
    (SquaredInDualSpace, "dskd-v2", "temperature"),
    (UnknownIsEos, "dskd-eta", "untranslatable"),
    (UnknownIsEosInMap, "mined", "untranslatable"),
    (PlainMean, "kl", "split"),
    (PairedByPlace, "uld", "split"),
    (AttentionOverTheBatch, "dskd-cma", "neighbours"),
    (Noisy, "kl", "terms"),
]


@pytest.mark.parametrize(("cls", "address", "check"), BY_PROPERTY)
def test_a_broken_property_is_named(cls: type[Method], address: str, check: str) -> None:
    (result,) = conformance.examine(_make(cls, address), [check])
    assert result.status == "fail", result
    (real,) = conformance.run(address, [check])
    assert real.status == "pass"


BY_FORMULA: list[tuple[Callable[..., Method], str]] = [
    (SwappedDirection, "kl"),
    (SwappedInDualSpace, "dskd-v2"),
    (WrongGradient, "kl"),
    (LooseHead, "dskd-v1"),
    (LooseProjectedTeacher, "dskd-v1"),
    (MaskedEos, "kl"),
    (EosWithoutTeacher, "kl"),
    (TemperatureSquared, "kl"),
    (SquaredInDualSpace, "dskd-v2"),
    (UnknownIsEos, "dskd-eta"),
    (PairedByPlace, "uld"),
    (AttentionOverTheBatch, "dskd-cma"),
    (MaskIgnored, "dskd-v2"),
    (GoldForPredictions, "dskd-v2"),
]


@pytest.mark.parametrize(("cls", "address"), BY_FORMULA)
def test_a_wrong_number_is_caught(cls: type[Method], address: str) -> None:
    with pytest.raises(AssertionError):
        compare(_make(cls, address), GOLDENS[address])
