"""Distillation on the student's own text: GKD, DistiLLM, ImitKD and MiniLLM, over one vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from baselines.logit import Logit
from dskd import divergences
from dskd.batch import Batch, Loss
from dskd.lazy import torch
from dskd.method import Entry, Method, MethodError, Needs, Options, Spec, register
from dskd.student_text import ON_POLICY, Adaptive, Fixed, Growing, StudentText
from dskd.terms import (
    COMMON,
    DIVERGENCE_PARAMETERS,
    OnPolicyOptions,
    Sum,
    constant,
    gold_term,
    shortest_name,
    teacher_view,
    written_by_student,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

SAMPLED_LABELS = (
    "response tokens and the EOS that ends them; of student text every token it wrote, and its EOS (none "
    "where the text was cut at the longest answer of the evaluation)"
)
COMMON_START = (
    "their students are fine-tuned on the data first; here every method starts from the same student. "
    "Control tokens other than EOS are never sampled"
)


@dataclass(frozen=True)
class GKDOptions(OnPolicyOptions):
    """Options of gkd: no cross-entropy, temperature 1, half of the steps on student text."""

    rate: float = 1.0
    temperature: float = 1.0
    on_policy: float = 0.5


class OnOwnText(Logit):
    """r D(p, q) on the text at hand, with a default divergence of its own."""

    default: ClassVar[str]

    def divergence_name(self) -> str:
        return self.spec.divergence or self.default

    def _named(self, spec: Spec, divergence: str) -> Spec:
        return replace(spec, divergence="" if divergence == shortest_name(self.default) else divergence)


@register(
    Entry(
        name="gkd",
        title="Generalised knowledge distillation",
        citation="Agarwal et al. 2024 (arXiv:2306.13649), Algorithm 1; defaults of TRL's GKDTrainer (lambda "
        "= beta = 0.5)",
        formula=(
            "D(p, q), by default jsd@gkd(beta), on text of the student in a share lambda of the steps, on "
            "the data in the others; with rate < 1: (1 - r) CE on the data + r D"
        ),
        needs=Needs(vocabulary="same", student_samples=StudentText(Fixed(0.5), gold=False)),
        parameters={
            **COMMON,
            **DIVERGENCE_PARAMETERS,
            **ON_POLICY,
            "rate": "r, default 1.0: no cross-entropy, as published",
            "temperature": "T of the divergence, default 1.0; samples are always drawn at 1",
            "on_policy": "lambda, the share of the optimiser steps on student text, default 0.5; 0 is plain "
            "distillation on the data",
        },
        masks=SAMPLED_LABELS,
        stop_gradients="teacher; the sampling itself",
        released=(
            "TRL: T = 0.9 in sampling and divergence; a batch is one device's, here the optimiser step's; "
            "the "
            "divergence of a batch is averaged over its tokens, as here. " + COMMON_START
        ),
        divergences=True,
    )
)
class GKD(OnOwnText):
    """Any divergence, partly on what the student writes."""

    Options: ClassVar[type[Any]] = GKDOptions
    default = "jsd@gkd"


@dataclass(frozen=True)
class DistiLLMOptions(Options):
    """Options of distillm: no cross-entropy, temperature 1."""

    rate: float = 1.0
    temperature: float = 1.0
    increment: float = 0.1
    tolerance: float = 0.1
    capacity: int = 1000
    validations: int = 20
    initial: float = 0.0

    def __post_init__(self) -> None:
        if min(self.capacity, self.validations) < 1 or min(self.increment, self.tolerance) < 0:
            raise MethodError("distillm: capacity and validations are 1 at least, increment and tolerance 0")
        if not 0 <= self.initial <= 1:
            raise MethodError(f"distillm: initial is a share from 0 to 1, not {self.initial}")


@register(
    Entry(
        name="distillm",
        title="DistiLLM: skew divergence, adaptive share of student text, replay",
        citation="Ko et al. 2024 (arXiv:2402.03898), sec. 3.1 (divergence) and 3.2 (adaptive off-policy); "
        "released code finetune.py",
        formula=(
            "D(p, q), by default skl, on text chosen for every step: with probability 1 - phi the data's; "
            "else the student's, fresh with probability phi (1 - t / T) or while the replay buffer has "
            "room, otherwise drawn from the buffer. phi starts at initial and grows by increment, up to 1, "
            "whenever a validation finds the CE tolerance above its reference"
        ),
        needs=Needs(vocabulary="same", student_samples=StudentText(Adaptive(), gold=False)),
        parameters={
            **COMMON,
            **DIVERGENCE_PARAMETERS,
            "rate": "r, default 1.0: no cross-entropy, as published",
            "temperature": "T of the divergence, default 1.0; samples are always drawn at 1",
            "initial": "phi at the start, default 0.0; where the validation CE never rises it stays there, "
            "and at 0 all text is then the data's",
            "increment": "of phi, default 0.1",
            "tolerance": "epsilon, nats per token by which the validation CE must exceed the reference, "
            "default 0.1",
            "capacity": "texts in the replay buffer (first in, first out), default 1000, at most a tenth of "
            "the training set and at least a batch",
            "validations": "over the whole training, evenly spaced, default 20 (the released runs: 20 "
            "epochs, one each)",
        },
        masks=SAMPLED_LABELS,
        stop_gradients="teacher; the sampling itself",
        released=(
            "the reference is the CE before training, of a student that was fine-tuned already, then the CE "
            "at each rise; here the student starts untrained, so the reference follows the CE down. A "
            "language-model loss on OpenWebText is added; here none. Validation on a set of its own; here "
            "on the training file's "
            "examples after those trained on, or on the last twentieth, then not trained on. " + COMMON_START
        ),
        divergences=True,
    )
)
class DistiLLM(OnOwnText):
    """The skew divergences on text that the harness chooses adaptively."""

    Options: ClassVar[type[Any]] = DistiLLMOptions
    default = "skl"

    @property
    def needs(self) -> Needs:
        o = self.options
        schedule = Adaptive(o.increment, o.tolerance, o.capacity, o.validations, o.initial)
        return replace(self.entry.needs, student_samples=StudentText(schedule, gold=o.rate < 1))


@dataclass(frozen=True)
class ImitKDOptions:
    """Options of imitkd: only the schedule."""

    decay: float = 200.0

    def __post_init__(self) -> None:
        if self.decay <= 1:
            raise MethodError(f"imitkd: decay is above 1, not {self.decay}")


@register(
    Entry(
        name="imitkd",
        title="Imitation-based knowledge distillation",
        citation="Lin et al. 2020 (arXiv:2009.07253), Algorithm 1; released code distillation.py",
        formula=(
            "CE(a, q) over response tokens: on text of the student, a is the teacher's argmax (L_opt); on "
            "text of the data, the gold label. An example's text is the data's with probability decay^(-t "
            "/ T), t of T steps, and the student's greedy answer otherwise"
        ),
        needs=Needs(
            vocabulary="same",
            student_samples=StudentText(Growing(), each="example", temperature=0.0, gold=False),
        ),
        parameters={"decay": "base of the exponential schedule, default 200: at the end 1 gold text in 200"},
        temperature="1; no divergence, except @full: KL at 1",
        masks=SAMPLED_LABELS,
        stop_gradients="teacher; the sampling itself",
        released=(
            "encoder-decoder models; the student's EOS is left out, here supervised. DistiLLM's code takes "
            "forward "
            "KL on sampled text alone for ImitKD. " + COMMON_START
        ),
        variants={"full": "KL(p, q) on both kinds of text instead of labels (L_full)"},
    )
)
class ImitKD(Method):
    """The teacher corrects the student's own prefixes, more of them as training goes on."""

    Options: ClassVar[type[Any]] = ImitKDOptions

    @property
    def needs(self) -> Needs:
        sampling = StudentText(Growing(self.options.decay), each="example", temperature=0.0, gold=False)
        return replace(self.entry.needs, student_samples=sampling)

    def loss(self, batch: Batch, parts: nn.Module | None) -> Loss:
        from dskd import heads

        student, teacher, out = batch.student, teacher_view(batch), Sum()
        each = constant(len(student.labels), 1 / batch.normaliser, student.hidden)
        if self.spec.variant == "full":
            made = heads.distil(
                student.hidden, student.head, teacher.hidden, teacher.head, divergences.get("kl"),
                temperature=1.0, weights=each,
            )  # fmt: skip
            nothing = (0 * each).sum()
            out.add(made.loss, ce=nothing, kd=(each * made.values).sum())
            return out.loss()
        written = written_by_student(batch)
        best = heads.argmax(teacher.hidden.detach(), teacher.head)
        labels = torch.where(written, best, student.labels)
        found = heads.cross_entropy(student.hidden, student.head, labels, each)
        of_teacher = (each * found.nll * written).sum()
        out.add(found.loss, ce=found.loss.detach() - of_teacher, ce_teacher=of_teacher)
        return out.loss()


@dataclass(frozen=True)
class MiniLLMOptions:
    """Options of minillm. There is no temperature: text and policy are those at 1."""

    rate: float = 0.5
    teacher_mix: float = 0.2
    clip: float = 0.2
    length_norm: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.teacher_mix < 1 or not 0 < self.clip < 1:
            raise MethodError("minillm: teacher_mix lies in [0, 1), clip strictly between 0 and 1")


DISCOUNT, REWARD_SCALE, REWARD_CLIP = 0.95, 0.5, 100.0  #: of minillm@released


@register(
    Entry(
        name="minillm",
        title="MiniLLM: reverse KL of whole answers by policy gradient",
        citation="Gu et al. 2024 (arXiv:2306.08543), sec. 2.2 and Algorithm 1; released code "
        "minillm/losses.py",
        formula=(
            "(1 - r) CE + r [ sum w_t KL(q_t, p_t) - sum min(w_t R_t, clip(w_t, 1 - eps, 1 + eps) R_t) ] on "
            "text y drawn token by token from m = a p + (1 - a) q; w_t = q(y_t) / sg(m(y_t)), in the first "
            "sum sg(w_t); R_t = sg of the mean over later tokens of log p(y) / q(y), 0 for the last "
            "(length normalisation)"
        ),
        needs=Needs(vocabulary="same", student_samples=StudentText(Fixed(), teacher_mix=0.2)),
        parameters={
            "rate": "r, default 0.5; the gold CE stands where the paper adds a language-model loss of "
            "weight 1 on a pre-training corpus",
            "teacher_mix": "a, the teacher's share in each sampled token's distribution, default 0.2",
            "clip": "eps, default 0.2",
            "length_norm": "false takes the sum of the later log ratios instead of their mean; default true",
        },
        temperature="1 everywhere",
        masks=SAMPLED_LABELS,
        stop_gradients="teacher; the sampling, rewards, and the denominator of w_t",
        released=(
            "text is sampled for every optimiser step and used once (16 or more texts, 4 PPO epochs). m is "
            "taken "
            "from the training pass, where dropout may differ from the sampling. " + COMMON_START
        ),
        variants={
            "released": (
                "R_t = discounted sum of the rewards from t itself on (gamma 0.95, rewards over 0.5, "
                "clipped at 100) / tokens left, then whitened over the micro-batch's tokens; the first sum "
                "has no w_t"
            )
        },
        exceptions={
            "split@released": "the rewards are whitened over the micro-batch",
            "neighbours@released": "the rewards are whitened over the micro-batch",
        },
    )
)
class MiniLLM(Method):
    """Single-step term in closed form, the rest of the return by a clipped policy gradient."""

    Options: ClassVar[type[Any]] = MiniLLMOptions

    @property
    def needs(self) -> Needs:
        o = self.options
        sampling = StudentText(Fixed(), teacher_mix=o.teacher_mix, gold=o.rate < 1)
        return replace(self.entry.needs, student_samples=sampling)

    def loss(self, batch: Batch, parts: nn.Module | None) -> Loss:
        from dskd import heads

        student, teacher, o = batch.student, teacher_view(batch), self.options
        released = self.spec.variant == "released"
        nll = _nll(student.hidden, student.head, student.labels)
        ratio = nll - _nll(teacher.hidden, teacher.head, student.labels)  # log p(y) / q(y)
        weight = 1 / (1 - o.teacher_mix + o.teacher_mix * ratio.exp())  # q / (a p + (1 - a) q)
        returns = _whitened(ratio, student.offsets) if released else self._later(ratio, student.offsets)
        plain, clipped = weight * returns, weight.clamp(1 - o.clip, 1 + o.clip) * returns
        scale = o.rate / batch.normaliser
        # - min(w R, ...) has the slope w R in the negative log-likelihood where it is not clipped.
        slope = scale * torch.where(plain <= clipped, plain, 0.0)
        long = -scale * torch.minimum(plain, clipped).sum()
        single = scale * (torch.ones_like(weight) if released else weight)
        made = heads.distil(
            student.hidden, student.head, teacher.hidden, teacher.head, divergences.get("rkl"),
            temperature=1.0, weights=single, labels=student.labels, label_weights=slope,
        )  # fmt: skip
        out = Sum()
        gold_term(out, batch, 1 - o.rate)
        value = made.loss + (long - (slope * nll).sum())
        out.add(value, kd_single=(single * made.values).sum(), kd_long=long)
        return out.loss()

    def _later(self, ratio: Tensor, offsets: Tensor) -> Tensor:
        """Mean (or sum) of an example's log ratios after each position (N,)."""
        lengths = offsets.diff()
        last = (offsets[1:] - 1).repeat_interleave(lengths)
        running = ratio.double().cumsum(0)
        later = (running[last] - running).to(ratio.dtype)
        left = last - torch.arange(len(ratio), device=last.device)
        return later / left.clamp_min(1) if self.options.length_norm else later


def _nll(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of labels (N,), a constant."""
    from dskd import heads

    found = heads.cross_entropy(hidden.detach(), head.detach(), labels, constant(len(labels), 0.0, hidden))
    return found.nll


def _whitened(ratio: Tensor, offsets: Tensor) -> Tensor:
    """MiniLLM's released advantages (N,)."""
    from dskd.parts import padded_rows

    rows, real = padded_rows(offsets)
    rewards = (ratio / REWARD_SCALE).clamp(-REWARD_CLIP, REWARD_CLIP)[rows] * real
    returns = torch.empty_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    for place in reversed(range(rewards.shape[1])):
        running = rewards[:, place] + DISCOUNT * running
        returns[:, place] = running
    left = offsets.diff()[:, None] - torch.arange(rewards.shape[1], device=rewards.device)
    found = (returns / left.clamp_min(1))[real]
    return (found - found.mean()) * (found.var(unbiased=False) + 1e-8).rsqrt()
