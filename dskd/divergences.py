"""Divergences between a teacher's and a student's next-token distributions.

Notation of the ledger: p is the teacher's distribution, q the student's, each the softmax of logits
already divided by the temperature; z are the student's logits. Every divergence has a closed-form
gradient with respect to z, derived from

    dD/dz_i = q_i (g_i - sum_j q_j g_j),   g_i = dD/dq_i   up to a constant in i,

so a caller that sees the logits tile by tile needs no autograd graph over the vocabulary. Loading
this module does not load torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from dskd.lazy import torch
from dskd.method import Entry, MethodError

if TYPE_CHECKING:
    from torch import Tensor

_TINY = 1e-37  #: smallest mixture probability inside a logarithm; its term is zero to every printed digit


class Divergence:
    """One divergence with its parameters. Subclasses give the formula and its gradient.

    ``name`` is the address, ``entry`` the ledger page, ``parameters`` the values in use.
    """

    entry: ClassVar[Entry]
    defaults: ClassVar[Mapping[str, float]] = {}

    def __init__(self, name: str, parameters: Mapping[str, float]) -> None:
        self.name = name
        self.parameters = {**self.defaults, **parameters}
        for key, value in self.parameters.items():
            self._check(key, value)

    def _check(self, key: str, value: float) -> None:
        """Refuse a parameter outside its range."""
        if not 0 < value < 1:
            raise MethodError(f"{self.name}: {key} lies strictly between 0 and 1 not {value}")

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Divergence of each row, differentiable by autograd in both arguments.

        Args: logits (n, V) over T, in float32 or float64. Returns (n,).
        """
        return self._value(student_logits.log_softmax(-1), teacher_logits.log_softmax(-1))

    def value_and_grad(self, student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Divergence of each row (n,) and its gradient with respect to the student's logits (n, V).

        Args: logits (n, V) over T, in float32 or float64; they are not changed. No graph is recorded.
        """
        with torch.no_grad():
            return self._value_and_grad(student_logits.log_softmax(-1), teacher_logits.log_softmax(-1))

    def _value(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        raise NotImplementedError

    def _value_and_grad(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """May overwrite both arguments."""
        raise NotImplementedError

    def __repr__(self) -> str:
        given = "".join(f", {k}={v}" for k, v in self.parameters.items())
        return f"Divergence({self.name}{given})"


def _through_softmax(q: Tensor, g: Tensor) -> Tensor:
    """q (g - sum q g), the gradient in the logits of a function with gradient g in q. Overwrites g."""
    return g.sub_((q * g).sum(-1, keepdim=True)).mul_(q)


class ForwardKL(Divergence):
    entry = Entry(
        name="kl",
        title="Forward Kullback-Leibler divergence",
        citation="Hinton et al. 2015 (arXiv:1503.02531), sec. 2; per token Kim & Rush (arXiv:1606.07947)",
        formula="KL(p, q) = sum_i p_i (log p_i - log q_i)",
        released="DistiLLM, MiniLLM: - sum p log q, without the teacher's entropy; same gradient",
    )

    def _value(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    def _value_and_grad(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        p = log_p.exp()
        value = log_p.sub_(log_q).mul_(p).sum(-1)
        return value, log_q.exp_().sub_(p)


class ReverseKL(Divergence):
    entry = Entry(
        name="rkl",
        title="Reverse Kullback-Leibler divergence",
        citation="Gu et al. 2024, MiniLLM (arXiv:2306.08543), eq. 1, there over sequences; here per token",
        formula="KL(q, p) = sum_i q_i (log q_i - log p_i)",
        released="same in DSKD, DistiLLM and GKD up to the reduction",
    )

    def _value(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return (log_q.exp() * (log_q - log_p)).sum(-1)

    def _value_and_grad(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        # g = log q - log p, and sum q g is the value itself.
        q = log_q.exp()
        g = log_q.sub_(log_p)
        value = (q * g).sum(-1)
        return value, g.sub_(value[:, None]).mul_(q)


class Mixture(Divergence):
    """w KL(p, m) + (1 - w) KL(q, m), m = w p + (1 - w) q: both Jensen-Shannon families."""

    def teacher_share(self) -> float:
        """w, the teacher's share of the mixture."""
        raise NotImplementedError

    def _value(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        w = self.teacher_share()
        p, q = log_p.exp(), log_q.exp()
        log_m = (w * p + (1 - w) * q).clamp_min(_TINY).log()
        return (w * p * (log_p - log_m) + (1 - w) * q * (log_q - log_m)).sum(-1)

    def _value_and_grad(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        # The derivatives of the two halves through m cancel, which leaves g = (1 - w) log(q / m).
        w = self.teacher_share()
        p, q = log_p.exp(), log_q.exp()
        log_m = torch.lerp(q, p, w).clamp_min_(_TINY).log_()
        of_teacher = log_p.sub_(log_m).mul_(p).sum(-1)
        g = log_q.sub_(log_m)
        of_student = (q * g).sum(-1)
        grad = g.sub_(of_student[:, None]).mul_(q).mul_(1 - w)
        return of_teacher.mul_(w).add_(of_student, alpha=1 - w), grad


class JS(Mixture):
    entry = Entry(
        name="js",
        title="Jensen-Shannon divergence",
        citation="Lin 1991, IEEE Trans. Inf. Theory 37(1); DSKD (arXiv:2406.17328), table 1",
        formula="KL(p, m) / 2 + KL(q, m) / 2,  m = (p + q) / 2",
        released="DSKD adds 1e-9 inside the logarithms of p, q and m; here nothing is added",
    )

    def teacher_share(self) -> float:
        return 0.5


class JSD(Mixture):
    entry = Entry(
        name="jsd",
        title="Generalised Jensen-Shannon divergence",
        citation="Agarwal et al. 2024, GKD (arXiv:2306.13649), sec. 2; @distillm: DistiLLM's released code",
        formula="beta KL(p, m) + (1 - beta) KL(q, m),  m = beta p + (1 - beta) q",
        parameters={"beta": "0 < beta < 1, default 0.5; teacher's share of m (@distillm: the student's)"},
        released="TRL and Liger take kl and rkl at beta = 0 and 1, where the formula is 0; here refused",
        variants={
            "gkd": "beta is the teacher's share (Agarwal, TRL, Liger); the default",
            "distillm": "the mirror: (1 - beta) KL(p, m) + beta KL(q, m), m = (1 - beta) p + beta q",
        },
    )
    defaults: ClassVar[Mapping[str, float]] = {"beta": 0.5}

    def teacher_share(self) -> float:
        beta = self.parameters["beta"]
        return 1 - beta if self.name.endswith("@distillm") else beta


_ALPHA = {"alpha": 0.1}


class SkewKL(Divergence):
    entry = Entry(
        name="skl",
        title="Skew forward Kullback-Leibler divergence",
        citation="Ko et al. 2024, DistiLLM (arXiv:2402.03898), sec. 3.1",
        formula="KL(p, m),  m = alpha p + (1 - alpha) q",
        parameters={"alpha": "0 < alpha < 1, default 0.1; teacher's share of the mixture; alpha -> 0 is kl"},
        released="DistiLLM: - sum p log m, without the teacher's entropy; other value, same gradient",
    )
    defaults: ClassVar[Mapping[str, float]] = _ALPHA

    def _value(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        a = self.parameters["alpha"]
        p = log_p.exp()
        log_m = (a * p + (1 - a) * log_q.exp()).clamp_min(_TINY).log()
        return (p * (log_p - log_m)).sum(-1)

    def _value_and_grad(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        # g = - (1 - a) p / m; p / m <= 1 / a, so no ratio can overflow.
        a = self.parameters["alpha"]
        p, q = log_p.exp(), log_q.exp_()
        m = torch.lerp(q, p, a).clamp_min_(_TINY)
        ratio = p / m
        value = log_p.sub_(m.log_()).mul_(p).sum(-1)
        return value, _through_softmax(q, ratio.mul_(a - 1))


class SkewReverseKL(Divergence):
    entry = Entry(
        name="srkl",
        title="Skew reverse Kullback-Leibler divergence",
        citation="Ko et al. 2024, DistiLLM (arXiv:2402.03898), sec. 3.1",
        formula="KL(q, m),  m = (1 - alpha) p + alpha q",
        parameters={"alpha": "0 < alpha < 1, default 0.1; student's share of the mixture; alpha -> 0 is rkl"},
        released="same in DistiLLM and DSKD: the mixture is mostly teacher",
    )
    defaults: ClassVar[Mapping[str, float]] = _ALPHA

    def _value(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        a = self.parameters["alpha"]
        q = log_q.exp()
        log_m = ((1 - a) * log_p.exp() + a * q).clamp_min(_TINY).log()
        return (q * (log_q - log_m)).sum(-1)

    def _value_and_grad(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        # g = log(q / m) - a q / m, up to a constant; q / m <= 1 / a.
        a = self.parameters["alpha"]
        q = log_q.exp()
        m = torch.lerp(log_p.exp_(), q, a).clamp_min_(_TINY)
        ratio = q / m
        g = log_q.sub_(m.log_())
        value = (q * g).sum(-1)
        return value, _through_softmax(q, g.sub_(ratio, alpha=a))


class AdaptiveKL(Divergence):
    entry = Entry(
        name="akl",
        title="Adaptive Kullback-Leibler divergence",
        citation="Wu et al. 2024 (arXiv:2404.02657), sec. 4, with the mass mu = 0.5",
        formula=(
            "(g_head KL(p, q) + g_tail KL(q, p)) / (g_head + g_tail),  g = sum |p - q| over the head and "
            "over the tail of p, detached. Head: the likeliest tokens of p whose cumulative mass is at most "
            "0.5, and always the first; among equal p the lower id comes first"
        ),
        stop_gradients="teacher; the weights g_head and g_tail",
        released="0 / 0 = NaN in released codes where student equals teacher; here 0 with a zero gradient",
        variants={
            "official": "descending sort; the token that crosses 0.5 is tail (the authors); the default",
            "dskd": "ascending sort, tail = mass <= 0.5 (DSKD's code: <); the token crossing 0.5 is head",
        },
    )

    def _weights(self, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of forward and reverse KL (n, 1); a half each where p equals q and both are 0 / 0."""
        with torch.no_grad():
            gap = (p - q).abs_()
            total = gap.sum(-1, keepdim=True)
            head = _head_sum(p, gap, crossing=self.name.endswith("@dskd"))
            share = torch.where(total > 0, head / total.clamp_min(_TINY), 0.5).clamp_(0, 1)
            return share, 1 - share

    def _value(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        p, q = log_p.exp(), log_q.exp()
        forward, reverse = self._weights(p, q)
        return ((log_p - log_q) * (forward * p - reverse * q)).sum(-1)

    def _value_and_grad(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        p, q = log_p.exp(), log_q.exp()
        forward, reverse = self._weights(p, q)
        ratio = log_q.sub_(log_p)  # log(q / p)
        rkl = (q * ratio).sum(-1, keepdim=True)
        kl = (p * ratio).sum(-1, keepdim=True).neg_()
        grad = ratio.sub_(rkl).mul_(reverse).add_(forward).mul_(q).sub_(p.mul_(forward))
        return (forward * kl + reverse * rkl).squeeze(-1), grad


_HEAD_TRY = 64  #: tokens looked at before sorting: half of a language model's mass is usually in fewer


def _head_sum(p: Tensor, gap: Tensor, crossing: bool) -> Tensor:
    """Sum of ``gap`` over the head of ``p`` (n, 1). ``crossing``: the token that crosses 0.5 is head."""
    size = p.shape[-1]
    top, ids = p.topk(min(_HEAD_TRY, size), dim=-1)
    unfinished = (top.double().sum(-1) <= 0.5) & (top.shape[-1] < size)
    out = _head_sum_sorted(p, gap, top, ids, crossing)
    rows = unfinished.nonzero().squeeze(-1)
    if len(rows):
        top, ids = p[rows].sort(dim=-1, descending=True)
        out[rows] = _head_sum_sorted(p[rows], gap[rows], top, ids, crossing)
    return out


def _head_sum_sorted(p: Tensor, gap: Tensor, top: Tensor, ids: Tensor, crossing: bool) -> Tensor:
    """The same where the first values of ``p`` in descending order, ``top`` at ``ids``, hold the head.

    Equal values straddling the end of the head make the sort's order matter; those rows take the
    lower ids, so the result depends on neither the sort nor how many values were looked at.
    """
    mass = top.double().cumsum(-1)
    inside = mass - top < 0.5 if crossing else mass <= 0.5
    count = inside.sum(-1, keepdim=True).clamp_min_(1)
    rank = torch.arange(top.shape[-1], device=p.device)
    out = (gap.gather(-1, ids) * (rank < count)).sum(-1, keepdim=True)
    last = top.gather(-1, count - 1)
    beyond = (p >= last).sum(-1, keepdim=True) > count
    rows = beyond.squeeze(-1).nonzero().squeeze(-1)
    if len(rows):
        q, edge = p[rows], last[rows]
        strict, equal = q > edge, q == edge
        left = count[rows] - strict.sum(-1, keepdim=True)
        chosen = strict | (equal & (equal.cumsum(-1) <= left))
        out[rows] = (gap[rows] * chosen).sum(-1, keepdim=True)
    return out


class TotalVariation(Divergence):
    entry = Entry(
        name="tvd",
        title="Total variation distance",
        citation="Wen et al. 2023, f-DISTILL (arXiv:2307.15190), sec. 3; per token",
        formula="1/2 sum_i |p_i - q_i|",
        released="DistiLLM: the same; the subgradient at p_i = q_i is 0",
    )

    def _value(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2

    def _value_and_grad(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        q = log_q.exp_()
        gap = q - log_p.exp_()
        value = gap.abs().sum(-1).div_(2)
        return value, _through_softmax(q, gap.sign_().div_(2))


class AlphaBeta(Divergence):
    entry = Entry(
        name="abkd",
        title="Alpha-beta divergence",
        citation="Wang et al. 2025, ABKD (arXiv:2505.04560), after Cichocki et al. 2011, Entropy 13(1)",
        formula=(
            "sum_i [ p_i^s / (beta s) + q_i^s / (alpha s) - p_i^alpha q_i^beta / (alpha beta) ],  s = alpha "
            "+ beta; its limit where a parameter is 0. kl: (1, 0); rkl: (0, 1); half the squared distance: "
            "(1, 1); 2 sum (sqrt p - sqrt q)^2: (0.5, 0.5); sum (log p - log q)^2 / 2: (0, 0)"
        ),
        parameters={
            "alpha": "at least 0, default 0.2; power of the teacher's probabilities",
            "beta": "at least 0, default 0.7; power of the student's",
        },
        released=(
            "the same for alpha, beta > 0; its limits at alpha = 0 or beta = 0 divide by the other "
            "parameter once instead of twice, so they equal kl and rkl at 1 only. The defaults are those "
            "of CSD's code for this baseline; ABKD's own script could not be read"
        ),
    )
    defaults: ClassVar[Mapping[str, float]] = {"alpha": 0.2, "beta": 0.7}

    def _check(self, key: str, value: float) -> None:
        if not 0 <= value < float("inf"):  # a negative power of the tail of a vocabulary overflows
            raise MethodError(f"{self.name}: {key} is at least 0 and finite, not {value}")

    def _value(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        a, b = self.parameters["alpha"], self.parameters["beta"]
        if a == 0 and b == 0:
            return (log_p - log_q).square().sum(-1) / 2
        if b == 0:
            return ((log_p * a).exp() * (a * (log_p - log_q) - 1) + (log_q * a).exp()).sum(-1) / a**2
        if a == 0:
            return ((log_q * b).exp() * (b * (log_q - log_p) - 1) + (log_p * b).exp()).sum(-1) / b**2
        s = a + b
        cross = (a * log_p + b * log_q).exp() / (a * b)
        return ((log_p * s).exp() / (b * s) + (log_q * s).exp() / (a * s) - cross).sum(-1)

    def _value_and_grad(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        # q dD/dq = q^beta (q^alpha - p^alpha) / alpha, whose limit at alpha = 0 is q^beta log(q / p).
        a, b = self.parameters["alpha"], self.parameters["beta"]
        value = self._value(log_q, log_p)
        if a == 0:
            moved = (log_q * b).exp_().mul_(log_q - log_p)
        else:
            moved = (log_q * (a + b)).exp_().sub_((a * log_p + b * log_q).exp_()).div_(a)
        return value, moved.sub_(log_q.exp_().mul_(moved.sum(-1, keepdim=True)))


class ConcreteScore(Divergence):
    entry = Entry(
        name="csd",
        title="Concrete score distillation",
        citation="Kim et al. 2025 (arXiv:2509.25837), table 1 and figure 3b",
        formula=(
            "1/4 sum_ij u_i v_j (d_i - d_j)^2,  d = student logits - teacher logits over T, u and v detached "
            "weights that sum to 1. @ss: both the student's probabilities, which makes it half the variance "
            "of d under q"
        ),
        stop_gradients="teacher; the weights u and v",
        released=(
            "the same gradient, written as a product of detached factors and the logits, so that its "
            "value means nothing; its temperature divides the logits of the weights only, and is 1. "
            "Its scripts distil alone (r = 1)"
        ),
        variants={
            "ss": "u and v: the student's probabilities (S, S); the default",
            "us": "u uniform, v the student's (U, S)",
            "ts": "u the teacher's, v the student's (T, S)",
        },
    )

    def _weights(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        q = log_q.detach().exp()
        kind = self.name.partition("@")[2]
        if kind == "us":
            return torch.full_like(q, 1 / q.shape[-1]), q
        return (log_p.detach().exp() if kind == "ts" else q), q

    def _parts(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, ...]:
        """Weights u and v, the difference d, and its means under both."""
        (u, v), d = self._weights(log_q, log_p), log_q - log_p
        return u, v, d, (u * d).sum(-1, keepdim=True), (v * d).sum(-1, keepdim=True)

    def _value(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        # A quarter of both variances and the squared distance of the means: a sum without cancellation.
        u, v, d, mean_u, mean_v = self._parts(log_q, log_p)
        spread = (u * (d - mean_u).square() + v * (d - mean_v).square()).sum(-1)
        return (spread + (mean_u - mean_v).squeeze(-1).square()) / 4

    def _value_and_grad(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        u, v, d, mean_u, mean_v = self._parts(log_q, log_p)
        return self._value(log_q, log_p), (u * (d - mean_v) + v * (d - mean_u)) / 2


_CLASSES: tuple[type[Divergence], ...] = (
    ForwardKL, ReverseKL, JS, JSD, SkewKL, SkewReverseKL, AdaptiveKL, TotalVariation, AlphaBeta,
    ConcreteScore,
)  # fmt: skip
_BY_BASE = {cls.entry.name: cls for cls in _CLASSES}

#: Ledger pages by base name.
ENTRIES: dict[str, Entry] = {name: cls.entry for name, cls in _BY_BASE.items()}

#: Every address: a base name, or one with its variant.
NAMES: tuple[str, ...] = (
    "kl", "rkl", "js", "jsd@gkd", "jsd@distillm", "skl", "srkl", "akl@official", "akl@dskd", "tvd", "abkd",
    "csd@ss", "csd@us", "csd@ts",
)  # fmt: skip


def get(name: str, **parameters: float) -> Divergence:
    """The divergence behind an address; a bare name is its first variant (``jsd`` is ``jsd@gkd``).

    Parameters: ``beta`` for jsd, ``alpha`` for skl and srkl, both for abkd. Raises MethodError, naming
    the nearest names, for a name or parameter that does not exist or a value outside its range.
    """
    base, _, variant = name.partition("@")
    cls = _BY_BASE.get(base)
    if cls is None or (variant and variant not in cls.entry.variants) or name.endswith("@"):
        raise MethodError(f"no divergence is named {name!r}{_nearest(name)}")
    for key in parameters:
        if key not in cls.defaults:
            known = ", ".join(cls.defaults) or "none"
            raise MethodError(f"{name} has no parameter {key!r}; it takes {known}")
    variant = variant or next(iter(cls.entry.variants), "")
    return cls(f"{base}@{variant}" if variant else base, parameters)


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, [*NAMES, *ENTRIES], n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(near)}?" if near else f"; known: {', '.join(NAMES)}"
