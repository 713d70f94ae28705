"""Distillation across vocabularies on text that both tokenisations cut alike: ALM, GOLD, SimCT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dskd.batch import Batch, Loss, Pair, Pairs, View
from dskd.lazy import torch
from dskd.method import Entry, Method, MethodError, Needs, Options, Spec, register
from dskd.sorting import descending
from dskd.terms import (
    COMMON,
    DIVERGENCE_PARAMETERS,
    DivergenceMethod,
    Sum,
    constant,
    divergence_factor,
    teacher_view,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dskd.heads import LogitDivergence

NOWHERE = -1e4  #: a logit without any mass, small enough that float32 still tells its neighbours apart
_CUT = (
    "chunks: shortest runs of tokens on both sides that cover the same bytes, EOS with EOS; what a window "
    "cut off is left out"
)
_PER_TOKEN = "the student's response tokens of the global batch"
_T_ONE = "T, default 1.0 as published; divides the logits of both sides"


_EOS_SHARED = (
    "EOS is one of the tokens that both vocabularies know, so it matters which of the student's logits is "
    "that of EOS; that a token without a partner is never taken for it is tested by itself"
)


@dataclass(frozen=True)
class Chunks:
    """Chunks of one model's packed positions: chunk k is ``first[k]`` .. ``last[k]``."""

    first: Tensor  #: (C,) int64, ascending
    last: Tensor  #: (C,) int64, ascending
    of: Tensor  #: (N,) int64, the chunk of each position, -1 for none

    @classmethod
    def between(cls, last: Tensor, offsets: Tensor) -> Chunks:
        """From last positions (C,) and the offsets (B + 1,) of the examples that own the positions.

        A chunk begins after the one before it, or with its example.
        """
        example = torch.bucketize(last, offsets[1:], right=True)
        after = torch.nn.functional.pad(last + 1, (1, 0))[:-1]
        first = torch.maximum(after, offsets[:-1][example])
        place = torch.arange(int(offsets[-1]), device=last.device)
        of = torch.searchsorted(last, place)
        inside = of < len(last)
        inside[inside.clone()] = first[of[inside]] <= place[inside]
        return cls(first, last, of.masked_fill(~inside, -1))

    @property
    def lengths(self) -> Tensor:
        return self.last - self.first + 1

    def sums(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Sum over each chunk of x (N,), or of x (R,) at ``rows`` (R,) only; (C,)."""
        of = self.of if rows is None else self.of[rows]
        inside = of >= 0
        return x.new_zeros(len(self.first)).index_add(0, of[inside], x[inside])

    def followers(self) -> Tensor:
        """Positions (R,) in a chunk that are not its first."""
        later = self.of >= 0
        later[self.first] = False
        return later.nonzero().squeeze(-1)


def both_chunks(batch: Batch, name: str) -> tuple[Chunks, Chunks]:
    """The student's and the teacher's chunks of a batch."""
    pairs, teacher = aligned(batch, name), teacher_view(batch)
    return (
        Chunks.between(pairs.student, batch.student.offsets),
        Chunks.between(pairs.teacher, teacher.offsets),
    )


def aligned(batch: Batch, name: str) -> Pairs:
    """The batch's pairs of positions; a batch without them is a fault of the caller (ValueError)."""
    if batch.pairs is None:
        raise ValueError(f"{name} needs aligned positions, and the batch has none")
    return batch.pairs


# ALM


@dataclass(frozen=True)
class LikelihoodOptions:
    """Options of alm."""

    rate: float = 0.5
    tau: float = 100.0
    f: Literal["kl", "rkl", "tvd"] = "kl"


@register(
    Entry(
        name="alm",
        title="Approximate likelihood matching",
        citation="Minixhofer et al. 2025 (arXiv:2503.20083), binarised f-divergence of chunk likelihoods; "
        "released code tokenkit (losses.py, cross_tokenizer_distill.yaml)",
        formula=(
            "(1 - r) CE + r sum over chunks of tau [ f(P^(1/tau), Q^(1/tau)) + f(1 - P^(1/tau), 1 - "
            "Q^(1/tau)) ], P and Q the products of the probabilities that teacher and student give to the "
            "chunk's tokens, f(x, y) = x log(x / y)"
        ),
        needs=Needs(vocabulary="any", alignment="chunks"),
        parameters={
            "rate": COMMON["rate"],
            "tau": "temperature of the chunk likelihoods, default 100 (tokenkit's bce_temp)",
            "f": "kl (default): x log(x / y); rkl: y log(y / x); tvd: |x - y|",
        },
        temperature="1 on logits; tau on chunk likelihoods. The factor tau keeps the term's size as tau "
        "grows: its limit for kl is b - a + a log(a / b), a = - log P, b = - log Q",
        reduction=f"sum over response tokens (CE) and over chunks (ALM) / {_PER_TOKEN}",
        masks=_CUT,
        stop_gradients="teacher",
        released=(
            "no factor tau (its losses are weighed by their gradients instead); the cross-entropy form "
            "without the teacher's entropy (same gradient); mean over chunks. Its chunks are by default "
            "filtered by the bias of their tokenisation (alm_unbiased) and extended by the probability of a "
            "space after them (append_space); here the unfiltered ones (alm_unconstrained)"
        ),
    )
)
class ApproximateLikelihood(Method):
    """How likely both models find each piece of text, whatever tokens it is made of."""

    Options: ClassVar[type[Any]] = LikelihoodOptions
    FLOOR = 1e-6  #: least surprise of a chunk in nats, tokenkit's epsilon

    def __init__(self, spec: Spec, entry: Entry) -> None:
        super().__init__(spec, entry)
        if not 0 < self.options.tau < float("inf"):
            raise MethodError(f"{spec}: tau is above 0 and finite")

    def loss(self, batch: Batch, parts: nn.Module | None) -> Loss:
        student, teacher, o = batch.student, teacher_view(batch), self.options
        ours, theirs = both_chunks(batch, "alm")
        nll = _surprise(student)
        with torch.no_grad():
            target = theirs.sums(_surprise(teacher))
        values = self.binarised(target, ours.sums(nll))
        ce, kd = (1 - o.rate) / batch.normaliser * nll.sum(), o.rate / batch.normaliser * values.sum()
        out = Sum()
        out.add(ce + kd, ce=ce, kd=kd)
        return out.loss()

    def binarised(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The divergence of chunks of these surprises (C,), - log P and - log Q."""
        tau, kind = self.options.tau, self.options.f
        a, b = (x.clamp_min(self.FLOOR) / tau for x in (teacher, student))
        p, q, other_p, other_q = (-a).exp(), (-b).exp(), -(-a).expm1(), -(-b).expm1()
        if kind == "tvd":
            return 2 * tau * (p - q).abs()
        ratio, other = b - a, other_p.log() - other_q.log()
        return tau * (p * ratio + other_p * other if kind == "kl" else -q * ratio - other_q * other)


def _surprise(view: View) -> Tensor:
    """- log probability of each label (N,), differentiable where the view is."""
    from dskd.token_probabilities import log_probs

    return -log_probs(view.hidden, view.head, view.labels[:, None]).squeeze(-1)


# GOLD


class MergedDistance:
    """GOLD's distance of two distributions over a chunk's first token, each times a probability.

    The last logit of a row is the logarithm of that probability: of the chunk's further tokens. Between
    tokens that both vocabularies know it is a generalised Jensen-Shannon divergence of the products, between
    the others the sorted distance of ULD; ``share`` weighs the two.
    """

    TINY = 1e-37  #: smallest mixture inside a logarithm

    def __init__(
        self, known: tuple[Tensor, Tensor], rest: tuple[Tensor, Tensor], beta: float, share: float
    ) -> None:
        """``known``: ids (K,) of equal tokens in both vocabularies; ``rest``: the other ids of each."""
        self.known, self.rest, self.beta, self.share = known, rest, beta, share

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Logits (n, V + 1) and (n, V' + 1) to (n,); differentiable in both."""
        log_q, log_p = _merged(student_logits)[1], _merged(teacher_logits)[1]
        total = log_q.new_zeros(len(log_q))
        if self.share > 0:
            total = total + self.share * self._mixed(log_q[:, self.known[0]], log_p[:, self.known[1]])[0]
        if self.share < 1:
            q, p = (x.exp().sort(-1, descending=True).values for x in self._others(log_q, log_p))
            q, p = _padded(q, p)
            total = total + (1 - self.share) * (q - p).abs().sum(-1)
        return total

    def value_and_grad(self, student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Values (n,) and their gradient in the student's logits, the last one included (n, V + 1).

        With u the gradient in Q = a q: dD/dz = Q u - q sum(Q u) and dD/dlog a = sum(Q u).
        """
        with torch.no_grad():
            (q, log_q), log_p = _merged(student_logits), _merged(teacher_logits)[1]
            value, u = log_q.new_zeros(len(log_q)), torch.zeros_like(log_q)
            if self.share > 0:
                mixed, slope = self._mixed(log_q[:, self.known[0]], log_p[:, self.known[1]])
                value += self.share * mixed
                u[:, self.known[0]] = self.share * slope
            if self.share < 1:
                mine, order = log_q[:, self.rest[0]].exp().sort(-1, descending=True)
                other = descending(log_p[:, self.rest[1]].exp())
                size = mine.shape[-1]
                gap = torch.sub(*_padded(mine, other))
                value += (1 - self.share) * gap.abs().sum(-1)
                signs = torch.empty_like(mine).scatter_(-1, order, gap[:, :size].sign())
                u[:, self.rest[0]] = (1 - self.share) * signs
            moved = log_q.exp_().mul_(u)
            total = moved.sum(-1, keepdim=True)
            return value, torch.cat([moved - q * total, total], -1)

    def _mixed(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """beta P log(P / M) + (1 - beta) Q log(Q / M), M = beta P + (1 - beta) Q, and its slope in Q."""
        q, p, beta = log_q.exp(), log_p.exp(), self.beta
        log_m = (beta * p + (1 - beta) * q).clamp_min(self.TINY).log()
        slope = (1 - beta) * (log_q - log_m)
        return (beta * p * (log_p - log_m)).sum(-1) + (q * slope).sum(-1), slope

    def _others(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        return log_q[:, self.rest[0]], log_p[:, self.rest[1]]


def _merged(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities q (n, V) and log(a q), a the exponential of the last logit."""
    log_q = logits[:, :-1].log_softmax(-1)
    return log_q.exp(), log_q + logits[:, -1:]


def _padded(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both with zeros after them to the longer one's columns."""
    size = max(a.shape[-1], b.shape[-1])
    x, y = (torch.nn.functional.pad(x, (0, size - x.shape[-1])) for x in (a, b))
    return x, y


@dataclass(frozen=True)
class GoldOptions(Options):
    """Options of gold."""

    temperature: float = 1.0
    beta: float = 0.5


@register(
    Entry(
        name="gold",
        title="General online logit distillation across vocabularies",
        citation="Patino et al. 2025, Unlocking On-Policy Distillation for Any Model Family; TRL's "
        "GOLDTrainer (gold_trainer.py, ULDLoss), after Boizard et al. 2024 (arXiv:2402.12030)",
        formula=(
            "(1 - r) CE + r sum over chunks of [ w JSD_beta(P, Q) over tokens both vocabularies know + "
            "(1 - w) sum_k |P_(k) - Q_(k)| over the others, sorted ], P = p a and Q = q b: the distribution "
            "at the chunk's first position times the probability of its further tokens; w = share of the "
            "teacher's vocabulary that both know; JSD as jsd@gkd, without normalising P and Q"
        ),
        needs=Needs(vocabulary="any", alignment="chunks"),
        parameters={
            **COMMON,
            "temperature": _T_ONE,
            "beta": "the teacher's share of the mixture in JSD, default 0.5",
        },
        temperature="1 (an option can raise it); no T^2 factor",
        reduction=f"sum over response tokens (CE) and over chunks (GOLD) / {_PER_TOKEN}",
        masks=_CUT,
        stop_gradients="teacher",
        released=(
            "TRL's default is @uld; the mixture is its uld_use_hybrid_loss. No cross-entropy (r = 1) and no "
            "EOS by default (uld_skip_student_eos), and a last group of all that is left where the ends do "
            "not meet; mean over an example's chunks, then over examples; tokens are the same where their "
            "strings are, so GPT-2's and LLaMA's words with a space mark never match. On-policy there, here "
            "on the training text. beta 0 and 1 stand for kl and rkl there; here they are refused"
        ),
        variants={"uld": "the sorted distance of all tokens of P and Q (w = 0), TRL's default"},
        exceptions={"untranslatable": _EOS_SHARED},
    )
)
class GeneralOnlineLogit(Method):
    """Merged chunks compared token by token where both know the token, and by shape elsewhere."""

    Options: ClassVar[type[Any]] = GoldOptions

    def __init__(self, spec: Spec, entry: Entry) -> None:
        super().__init__(spec, entry)
        if not 0 < self.options.beta < 1:
            raise MethodError(f"{spec}: beta lies strictly between 0 and 1")

    def build(self, pair: Pair) -> nn.Module:
        known = shared_ids(pair)
        if self.spec.variant == "uld":
            known = (known[0][:0], known[1][:0])
        sizes = pair.student.vocabulary.size, _teacher(pair, "gold").vocabulary.size
        every = (torch.arange(size, device=known[0].device) for size in sizes)
        rest = [ids[~torch.isin(ids, taken)] for ids, taken in zip(every, known, strict=True)]
        return _constants(known=known[0], known_t=known[1], rest=rest[0], rest_t=rest[1])

    def loss(self, batch: Batch, parts: Any) -> Loss:
        from dskd import heads

        student, teacher, o = batch.student, teacher_view(batch), self.options
        ours, theirs = both_chunks(batch, "gold")
        share = len(parts.known_t) / (len(parts.known_t) + len(parts.rest_t))
        by = MergedDistance((parts.known, parts.known_t), (parts.rest, parts.rest_t), o.beta, share)
        with torch.no_grad():
            further = self._further(teacher, theirs)
        kd = constant(len(ours.first), o.rate * divergence_factor(o) / batch.normaliser, student.hidden)
        ce = constant(len(student.labels), (1 - o.rate) / batch.normaliser, student.hidden)
        made = heads.distil(
            student.hidden, student.head, teacher.hidden[theirs.first], teacher.head, by,
            temperature=o.temperature, weights=kd, positions=ours.first,
            labels=student.labels, label_weights=ce, extra=(self._further(student, ours), further),
        )  # fmt: skip
        assert made.nll is not None
        out = Sum()
        out.add(made.loss, ce=(ce * made.nll).sum(), kd=(kd * made.values).sum())
        return out.loss()

    def _further(self, view: View, chunks: Chunks) -> Tensor:
        """T log probability (C,) of the tokens of each chunk after its first; logits are divided by T."""
        from dskd.token_probabilities import log_probs

        rows, t = chunks.followers(), self.options.temperature
        found = log_probs(view.hidden[rows], view.head, view.labels[rows][:, None], temperature=t)
        return t * chunks.sums(found.squeeze(-1), rows)


def shared_ids(pair: Pair) -> tuple[Tensor, Tensor]:
    """Ids (K,) of the tokens both vocabularies know, the student's and the teacher's."""
    device = pair.student.head.device
    if pair.vocabulary.same:
        every = torch.arange(pair.student.vocabulary.size, device=device)
        return every, every
    ours, theirs = (torch.from_numpy(ids).to(device) for ids in pair.vocabulary.overlap)
    return ours, theirs


def _teacher(pair: Pair, name: str) -> Any:
    if pair.teacher is None:
        raise MethodError(f"{name} compares two vocabularies, and the pair has no teacher")
    return pair.teacher


def _constants(**buffers: Tensor) -> nn.Module:
    """A module that only remembers."""
    from torch import nn

    parts = nn.Module()
    for name, value in buffers.items():
        parts.register_buffer(name, value, persistent=False)
    return parts


# SimCT and its forerunner


class SharedTokens:
    """A divergence over the tokens both vocabularies know, and over the last logit if there is one more."""

    def __init__(self, student: Tensor, teacher: Tensor, by: LogitDivergence, *, more: bool) -> None:
        """``student``, ``teacher``: ids (K,) of equal tokens. ``more``: rows end with an extra logit."""
        self.ids, self.by, self.more = (student, teacher), by, more

    def _columns(self, side: int, logits: Tensor) -> Tensor:
        ids = self.ids[side]
        return torch.nn.functional.pad(ids, (0, 1), value=logits.shape[-1] - 1) if self.more else ids

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        columns = [self._columns(n, x) for n, x in enumerate((student_logits, teacher_logits))]
        return self.by(student_logits[:, columns[0]], teacher_logits[:, columns[1]])

    def value_and_grad(self, student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        """As of any divergence: values (n,), gradient in all of the student's logits."""
        columns = [self._columns(n, x) for n, x in enumerate((student_logits, teacher_logits))]
        found = self.by.value_and_grad(student_logits[:, columns[0]], teacher_logits[:, columns[1]])
        return found[0], torch.zeros_like(student_logits).index_copy_(-1, columns[0], found[1])


@dataclass(frozen=True)
class SharedOptions(Options):
    """Options of simple-ctkd and simct."""

    temperature: float = 1.0


class SharedVocabulary(DivergenceMethod):
    """Distillation within what the two vocabularies have in common."""

    Options: ClassVar[type[Any]] = SharedOptions

    def build(self, pair: Pair) -> nn.Module:
        _teacher(pair, self.entry.name)
        ours, theirs = shared_ids(pair)
        return _constants(known=ours, known_t=theirs)

    def compare(
        self, batch: Batch, parts: Any, pairs: Pairs, extra: tuple[Tensor, Tensor] | None = None
    ) -> Loss:
        """Gold CE, and the divergence at these pairs of positions."""
        from dskd import heads

        student, teacher, o = batch.student, teacher_view(batch), self.options
        by = SharedTokens(parts.known, parts.known_t, self.divergence, more=extra is not None)
        kd = constant(len(pairs.student), o.rate * divergence_factor(o) / batch.normaliser, student.hidden)
        ce = constant(len(student.labels), (1 - o.rate) / batch.normaliser, student.hidden)
        made = heads.distil(
            student.hidden, student.head, teacher.hidden[pairs.teacher], teacher.head, by,
            temperature=o.temperature, weights=kd, positions=pairs.student,
            labels=student.labels, label_weights=ce, extra=extra,
        )  # fmt: skip
        assert made.nll is not None
        out = Sum()
        out.add(made.loss, ce=(ce * made.nll).sum(), kd=(kd * made.values).sum())
        return out.loss()


_SHARED = "tokens are the same where their bytes are, EOS with EOS"


@register(
    Entry(
        name="simple-ctkd",
        title="Simple cross-tokenizer distillation on shared tokens",
        citation="KDFlow 2026, algorithm simple_ctkd; the shared-vocabulary baseline of SimCT (2026)",
        formula=(
            "(1 - r) CE + r sum over pairs of D(p', q'), p' and q' the softmax over the tokens that both "
            "vocabularies know alone; a pair has the same text before both tokens and the same token text"
        ),
        needs=Needs(vocabulary="any", alignment="spans"),
        parameters={**COMMON, "temperature": _T_ONE, **DIVERGENCE_PARAMETERS},
        reduction=f"sum over response tokens (CE) and over pairs (KD) / {_PER_TOKEN}",
        masks=f"pairs of equal text span, EOS with EOS; {_SHARED}",
        released=(
            "compares token strings, once space marks are one (so tokens outside ASCII of byte-level BPE "
            "never match SentencePiece's), and aligns them greedily without their space marks, over all "
            "examples of a micro-batch as one sequence; here text spans, example by example"
        ),
        exceptions={"untranslatable": _EOS_SHARED},
        divergences=True,
    )
)
class SimpleCrossTokenizer(SharedVocabulary):
    """Where both models are about to write the same token, over the tokens both could write."""

    def loss(self, batch: Batch, parts: Any) -> Loss:
        return self.compare(batch, parts, aligned(batch, "simple-ctkd"))


@register(
    Entry(
        name="simct",
        title="Simple cross-tokenizer distillation with minimal aligned units",
        citation="SimCT 2026, arXiv title Recovering Lost Supervision for Cross-Tokenizer On-Policy "
        "Distillation; released code span_ctkd.py",
        formula=(
            "(1 - r) CE + r sum over chunks of D(p', q'), p' and q' at the chunk's first position the "
            "softmax over the tokens that both vocabularies know and, where the chunk has several tokens on "
            "a side, over the chunk itself as one more token, its logit the mean of its tokens' own logits; "
            "D is rkl unless addressed"
        ),
        needs=Needs(vocabulary="any", alignment="chunks"),
        parameters={**COMMON, "temperature": _T_ONE, **DIVERGENCE_PARAMETERS},
        reduction=f"sum over response tokens (CE) and over chunks (KD) / {_PER_TOKEN}",
        masks=f"{_CUT}; {_SHARED}",
        stop_gradients="teacher, its chunk logits too",
        released=(
            "its units end only with a token that both sides share, so two units that part within a chunk of "
            "unequal tokens are one there; here they are the finest ones, as the paper has it. Distils alone "
            "(r = 1), on the student's own samples; here on the training text"
        ),
        exceptions={"untranslatable": _EOS_SHARED},
        divergences=True,
    )
)
class MinimalUnits(SharedVocabulary):
    """The same, with a chunk that is no token of both as a candidate of its own."""

    default_divergence = "rkl"

    def loss(self, batch: Batch, parts: Any) -> Loss:
        student, teacher = batch.student, teacher_view(batch)
        ours, theirs = both_chunks(batch, "simct")
        span = (ours.lengths > 1) | (theirs.lengths > 1)
        with torch.no_grad():
            target = _own_logit(teacher, theirs, span)
        extra = (_own_logit(student, ours, span), target)
        return self.compare(batch, parts, Pairs(ours.first, theirs.first), extra)


def _own_logit(view: View, chunks: Chunks, span: Tensor) -> Tensor:
    """Mean over each chunk of its tokens' own logits (C,), and no mass where it is no span."""
    wide = torch.promote_types(view.hidden.dtype, torch.float32)
    own = (view.hidden.to(wide) * view.head[view.labels].to(wide)).sum(-1)
    return torch.where(span, chunks.sums(own) / chunks.lengths, NOWHERE)
