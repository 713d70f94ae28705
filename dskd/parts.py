"""The trainable parts of the DSKD methods. Imports torch; the method files import it when they build.

Projectors live and compute in float32 (float64 where the models do) and hand their result back in the
dtype of what they were given, so a bfloat16 run keeps full-precision projector weights.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import leaky_relu, normalize, softplus

from dskd.projectors import CHUNK, PseudoInverse, ideal_projector, transfer

if TYPE_CHECKING:
    from torch import Tensor

    from dskd.batch import Pair, Side, View


def parts_dtype(head: Tensor) -> torch.dtype:
    """float64 for float64 models, float32 for all others."""
    return torch.float64 if head.dtype == torch.float64 else torch.float32


class Projector(nn.Linear):
    """A linear map in its own precision, also under autocast; output in the dtype of the input."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def projector(width: int, to: int, like: Tensor, *, bias: bool) -> Projector:
    """torch's default initialisation, on the device of ``like``."""
    return Projector(width, to, bias=bias, device=like.device, dtype=parts_dtype(like))


class TrainedProjectors(nn.Module):
    """DSKD v1: both maps are trained, with bias, from torch's default initialisation."""

    def __init__(self, student: Side, teacher: Side) -> None:
        super().__init__()
        self.t2s = projector(teacher.width, student.width, teacher.head, bias=True)
        self.s2t = projector(student.width, teacher.width, student.head, bias=True)


class IdealProjectors(nn.Module):
    """DSKD v2: t2s is trained from the ideal start, s2t follows the student's current head.

    ``student_rows`` and ``teacher_rows`` hold the ids of the tokens both vocabularies know, row by row
    (both None where there is one vocabulary). ``frozen`` keeps a clone of the student's head of the
    start and uses it for good (KDFlow).
    """

    student_rows: Tensor | None
    frozen_head: Tensor | None
    inverse: Tensor  #: pinv(W_t).T over the common tokens, (rows, D), in the dtype of W_t
    probe: Tensor  #: (d,) random, tells whether a head has changed
    translation: Tensor | None  #: (V_t,) student id of each teacher id or -1; None: one vocabulary

    def __init__(self, pair: Pair, *, random: bool, frozen: bool) -> None:
        super().__init__()
        assert pair.teacher is not None
        student, teacher = pair.student.head.detach(), pair.teacher.head.detach()
        dtype = parts_dtype(student)
        student_rows = teacher_rows = None
        if not pair.vocabulary.same:
            overlap = pair.vocabulary.overlap
            student_rows, teacher_rows = (torch.from_numpy(ids).to(student.device) for ids in overlap)
        self.register_buffer("student_rows", student_rows, persistent=False)
        self.register_buffer("frozen_head", student.clone() if frozen else None)
        common_teacher = teacher if teacher_rows is None else teacher[teacher_rows]
        self.t2s = projector(pair.teacher.width, pair.student.width, teacher, bias=False)
        if not random:
            ideal = ideal_projector(common_teacher.to(dtype), self._common(student).to(dtype))
            with torch.no_grad():
                self.t2s.weight.copy_(ideal.T)
        self.register_buffer("inverse", PseudoInverse(common_teacher).rows(), persistent=False)
        translation = None
        if not pair.vocabulary.same:
            translation = torch.from_numpy(pair.vocabulary.translation).to(student.device)
        self.register_buffer("translation", translation, persistent=False)
        draw = torch.Generator().manual_seed(0)
        probe = torch.randn(pair.student.width, generator=draw, dtype=torch.float64).to(student.device, dtype)
        self.register_buffer("probe", probe, persistent=False)
        self._built: tuple[Tensor, Tensor] | None = None  #: what the probe saw of the head, and the map

    def _common(self, student_head: Tensor) -> Tensor:
        return student_head if self.student_rows is None else student_head[self.student_rows]

    def student_head(self, current: Tensor) -> Tensor:
        """The head that projected teachers are read with: the current one, constant, or the frozen clone."""
        return current.detach() if self.frozen_head is None else self.frozen_head

    def to_teacher(self, hidden: Tensor, head: Tensor) -> Tensor:
        """h_s sg(W_s) pinv(W_t) (n, D). Args: hidden (n, d), the current student head (V, d)."""
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = self._matrix(self.student_head(head))
            return (hidden.to(matrix.dtype) @ matrix).to(hidden.dtype)

    @torch.no_grad()
    def _matrix(self, head: Tensor) -> Tensor:
        """sg(W_s) pinv(W_t) (d, D), rebuilt only when the head has changed.

        Building costs V d D multiply-adds, as much as a thousand or so tokens through both heads. It is
        kept over the micro-batches of a step and, where the head is frozen (LoRA, KDFlow), for good. A
        changed head shows in its product with a random vector, V d multiply-adds; its version counter
        does not tell, since fused optimisers leave that alone.
        """
        rows = head.split(CHUNK)  # of a bfloat16 head, only a few thousand are widened at a time
        seen = torch.cat([part.to(self.probe.dtype) @ self.probe for part in rows])
        if self._built is None or not torch.equal(seen, self._built[0]):
            self._built = seen, transfer(self._common(head), self.inverse)
        return self._built[1]


class Attended(NamedTuple):
    """What cross-model attention makes of a batch, and what it attended with."""

    at_student: Tensor  #: (N, d) the teacher at the student's positions
    at_teacher: Tensor  #: (M, D) the student at the teacher's positions
    queries: Tensor  #: (N, 2D) in the projectors' precision
    keys: Tensor  #: (M, 2D) likewise, constant


class CrossModelAttention(nn.Module):
    """DSKD v1 for two vocabularies: attention between the two models' positions of one example.

    ``whole_batch`` takes every std over all positions of the batch instead of the example's (@released).
    """

    def __init__(self, student: Side, teacher: Side, *, whole_batch: bool) -> None:
        super().__init__()
        self.whole_batch = whole_batch
        widths = 2 * student.embedding.shape[1], 2 * teacher.embedding.shape[1]
        self.query = projector(*widths, student.head, bias=True)
        self.t2s = projector(teacher.width, student.width, teacher.head, bias=True)
        self.s2t = projector(student.width, teacher.width, student.head, bias=True)

    def forward(self, student: View, teacher: View) -> Attended:
        """Attention of every example, both ways."""
        with torch.autocast(student.hidden.device.type, enabled=False):
            made, dtype = self._attend(student, teacher), student.hidden.dtype
        return made._replace(at_student=made.at_student.to(dtype), at_teacher=made.at_teacher.to(dtype))

    def _attend(self, student: View, teacher: View) -> Attended:
        dtype = self.query.weight.dtype
        asked, known = _token_states(student, dtype), _token_states(teacher, dtype)
        target = known[:, known.shape[1] // 2 :]  # e_t(label)
        hidden = teacher.hidden.detach().to(dtype)
        values = self.t2s(self._scale(hidden, teacher) + self._scale(target, teacher))
        s_rows, s_mask = padded_rows(student.offsets)
        t_rows, t_mask = padded_rows(teacher.offsets)
        queries, keys = self.query(asked), self._scale(known, teacher)
        # (B, S, T); the keys are 2D wide
        scores = queries[s_rows] @ keys[t_rows].mT / math.sqrt(keys.shape[-1])
        scores = scores.masked_fill(~(s_mask[:, :, None] & t_mask[:, None]), torch.finfo(dtype).min)
        at_student = scores.softmax(-1) @ values[t_rows]
        at_teacher = scores.mT.softmax(-1) @ self.s2t(student.hidden.to(dtype))[s_rows]
        return Attended(at_student[s_mask], at_teacher[t_mask], queries, keys)

    def _scale(self, x: Tensor, view: View) -> Tensor:
        """N(x) = x / std(x), over all elements of an example's rows of x, or of the whole batch's."""
        return x / (x.std() if self.whole_batch else example_std(x, view.offsets))


def _token_states(view: View, dtype: torch.dtype) -> Tensor:
    """[e(input); e(label)] (N, 2 width), constant."""
    embedding = view.embedding.detach()
    return torch.cat([embedding[view.inputs], embedding[view.labels]], -1).to(dtype)


def padded_rows(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Packed row of every place of a padded batch: rows (B, L) int64 and which places are real (B, L)."""
    lengths = offsets.diff()
    places = torch.arange(int(lengths.max()), device=offsets.device)
    real = places < lengths[:, None]
    return (offsets[:-1, None] + places).masked_fill(~real, 0), real


def example_std(x: Tensor, offsets: Tensor) -> Tensor:
    """Unbiased standard deviation over all elements of an example's rows: x (N, w) to (N, 1)."""
    rows, real = padded_rows(offsets)
    count = real.sum(-1) * x.shape[1]
    mean = (x.sum(-1)[rows] * real).sum(-1) / count
    lengths = offsets.diff()
    centred = x - mean.repeat_interleave(lengths)[:, None]
    variance = (centred.square().sum(-1)[rows] * real).sum(-1) / (count - 1)
    return variance.sqrt().repeat_interleave(lengths)[:, None]


def example_mean(x: Tensor, offsets: Tensor) -> Tensor:
    """Mean of each example's rows: x (N,) to (B,)."""
    lengths = offsets.diff()
    of_row = torch.arange(len(lengths), device=x.device).repeat_interleave(lengths)
    return x.new_zeros(len(lengths)).index_add(0, of_row, x) / lengths


class _Reversed(torch.autograd.Function):
    """The identity whose gradient changes its sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


def gradient_reversal(x: Tensor) -> Tensor:
    """x, but whatever is before it ascends what everything after it descends (Ganin & Lempitsky 2015)."""
    reversed_: Tensor = _Reversed.apply(x)
    return reversed_


class _Tower(nn.Module):
    """Two linear layers with LeakyReLU between, behind a highway layer and dropout where ``gated``."""

    DROPOUT, SLOPE = 0.1, 0.1

    def __init__(self, width: int, inner: int, out: int, like: Tensor, *, gated: bool) -> None:
        super().__init__()
        self.highway = projector(width, width, like, bias=True) if gated else None
        self.dropout = nn.Dropout(self.DROPOUT if gated else 0.0)
        self.first = projector(width, inner, like, bias=True)
        self.second = projector(inner, out, like, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.highway is not None:
            moved = self.highway(x)
            gate = moved.sigmoid()
            x = gate * moved.relu() + (1 - gate) * x
        out: Tensor = self.second(leaky_relu(self.first(self.dropout(x)), self.SLOPE))
        return out


class AdversarialMatching(nn.Module):
    """A discriminator of keys (real) from queries (fake), which the queries are to deceive."""

    def __init__(self, width: int, inner: int, like: Tensor, *, released: bool) -> None:
        super().__init__()
        self.released = released
        self.discriminator = _Tower(width, inner, 1, like, gated=True)

    def forward(self, queries: Tensor, keys: Tensor, of_queries: Tensor, of_keys: Tensor) -> Tensor:
        """Binary cross-entropy, a value per example (B,), or () over the batch as released.

        Args: queries (N, 2D), keys (M, 2D), and the offsets (B + 1,) of their examples.
        """
        reached = queries.detach() if self.released else gradient_reversal(queries)
        real = softplus(-self.discriminator(keys).squeeze(-1))
        fake = softplus(self.discriminator(reached).squeeze(-1))
        if self.released:
            return real.mean() + fake.mean()
        return example_mean(real, of_keys) + example_mean(fake, of_queries)


class TransportMatching(nn.Module):
    """Conditional transport between keys and queries, over tokens and over the critic's features.

    Queries and navigators lower the cost that the critics raise (Zheng & Zhou 2021).
    """

    def __init__(self, width: int, inner: int, like: Tensor, *, released: bool) -> None:
        super().__init__()
        self.released = released
        self.critic, self.critic_features = (_Tower(width, inner, inner, like, gated=True) for _ in "12")
        self.navigator, self.navigator_features = (
            _Tower(width, inner, inner, like, gated=False) for _ in "12"
        )

    def forward(self, queries: Tensor, keys: Tensor, of_queries: Tensor, of_keys: Tensor) -> Tensor:
        """Cost, a value per example (B,), or () over the batch as released. Args as AdversarialMatching."""
        (q_rows, q_real), (k_rows, k_real) = padded_rows(of_queries), padded_rows(of_keys)

        def seen(by: _Tower, x: Tensor, rows: Tensor, real: Tensor, *, rival: bool) -> Tensor:
            out = normalize(by(gradient_reversal(x)), dim=-1) if rival else normalize(by(x), dim=-1)
            out = gradient_reversal(out) if rival else out
            return out[rows] * real[..., None]

        def both(by: _Tower, *, rival: bool) -> tuple[Tensor, Tensor]:
            return (
                seen(by, keys, k_rows, k_real, rival=rival),
                seen(by, queries, q_rows, q_real, rival=rival),
            )

        tokens = _transport(
            *both(self.critic, rival=True), *both(self.navigator, rival=False), k_real, q_real
        )
        k, q = (x.mT for x in _one_length(*both(self.critic_features, rival=True)))
        to_k, to_q = (x.mT for x in _one_length(*both(self.navigator_features, rival=False)))
        everywhere = torch.ones(k.shape[:2], dtype=torch.bool, device=k.device)
        features = _transport(k, q, to_k, to_q, everywhere, everywhere)
        if self.released:  # means over the batch's tokens, not over examples first
            counts = k_real.sum(-1), q_real.sum(-1)
            per_token = [(half * n).sum() / n.sum() for half, n in zip(tokens, counts, strict=True)]
            return (per_token[0] + per_token[1]) / 2 + (features[0] + features[1]).mean() / 2
        return (tokens[0] + tokens[1] + features[0] + features[1]) / 2


def _one_length(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both padded with zeros to the longer one's places: (B, T, H), (B, S, H) to (B, max, H) twice.

    A feature's distance to another does not notice places at which both are zero.
    """
    longer = max(a.shape[1], b.shape[1])
    x, y = (nn.functional.pad(x, (0, 0, 0, longer - x.shape[1])) for x in (a, b))
    return x, y


def _transport(
    k: Tensor, q: Tensor, to_k: Tensor, to_q: Tensor, k_real: Tensor, q_real: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean cost (B,) of keys to queries and of queries to keys.

    Args: k (B, T, H) and q (B, S, H) say what a step costs, to_k and to_q (likewise) who goes where, k_real
    (B, T) and q_real (B, S) which places count.
    """
    tiny = torch.finfo(k.dtype).tiny
    square = k.square().sum(-1)[:, :, None] + q.square().sum(-1)[:, None] - 2 * k @ q.mT
    cost = square.clamp_min(tiny).sqrt()
    pull = to_k @ to_q.mT
    nowhere = torch.finfo(k.dtype).min
    forward = pull.masked_fill(~q_real[:, None], nowhere).softmax(-1)  # a key's choice among the queries
    backward = pull.masked_fill(~k_real[:, :, None], nowhere).softmax(-2)  # a query's choice among the keys
    of_keys = ((cost * forward).sum(-1) * k_real).sum(-1) / k_real.sum(-1)
    of_queries = ((cost * backward).sum(-2) * q_real).sum(-1) / q_real.sum(-1)
    return of_keys, of_queries


class MatchedAttention(CrossModelAttention):
    """Cross-model attention whose queries are brought to the distribution of its keys.

    As released, the matching's own layers are frozen: that code never gives them to its optimiser.
    """

    def __init__(
        self,
        student: Side,
        teacher: Side,
        matching: type[AdversarialMatching] | type[TransportMatching],
        inner: int,
        *,
        released: bool,
    ) -> None:
        super().__init__(student, teacher, whole_batch=released)
        width = 2 * teacher.embedding.shape[1]
        self.matching = matching(width, inner, teacher.head, released=released)
        self.matching.requires_grad_(not released)

    def match(self, attended: Attended, student: View, teacher: View) -> Tensor:
        """The matching's loss, per example (B,), or () as released."""
        with torch.autocast(student.hidden.device.type, enabled=False):
            value: Tensor = self.matching(attended.queries, attended.keys, student.offsets, teacher.offsets)
            return value
