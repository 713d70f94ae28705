"""Probabilities of chosen tokens, differentiable, with logits in tiles.

``heads`` fuses losses whose weights are known beforehand. A loss that is no weighted sum over tokens, say
one of the likelihood of several tokens together, needs the probabilities themselves first. They come from
here; the backward pass computes the logits again, tile by tile, instead of keeping them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dskd import heads

if TYPE_CHECKING:
    from torch import Tensor

SPREAD_FLOOR = 1e-4  #: added to a row's standard deviation, as MultiLevelOT's code does


def log_probs(
    hidden: Tensor, head: Tensor, ids: Tensor, *, temperature: float = 1.0, standardise: bool = False
) -> Tensor:
    """log softmax(hidden head.T / T) of chosen tokens, differentiable in hidden and head.

    Args: hidden (N, d), head (V, d), ids (N, K) int64. ``standardise`` divides the logits of each row by
    their standard deviation first (MultiLevelOT). Returns (N, K) in float32 (float64 for float64).
    """
    if (
        hidden.ndim != 2
        or head.ndim != 2
        or hidden.shape[1] != head.shape[1]
        or ids.shape[:1] != hidden.shape[:1]
    ):
        shapes = tuple(hidden.shape), tuple(head.shape), tuple(ids.shape)
        raise ValueError(f"hidden, head and ids of shapes {shapes}: not (N, d), (V, d) and (N, K)")
    if heads.is_reference():
        logits = _scaled(hidden @ head.to(hidden.dtype).T, temperature, standardise)
        return logits.log_softmax(-1).gather(-1, ids)
    found: Tensor = _Chosen.apply(hidden, head, ids, temperature, standardise)
    return found


@torch.no_grad()
def mass(hidden: Tensor, head: Tensor, offsets: Tensor, *, standardise: bool = False) -> Tensor:
    """Probabilities summed over each example's rows (B, V), constant. Args: as above; offsets (B + 1,)."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    out = torch.zeros(len(offsets) - 1, len(head), dtype=wide, device=hidden.device)
    lengths = offsets.diff()
    of_row = torch.arange(len(lengths), device=hidden.device).repeat_interleave(lengths)
    head = head.to(hidden.dtype)
    for start, stop in heads.tile_bounds(len(hidden), [len(head)], hidden.element_size()):
        logits = _scaled(hidden[start:stop] @ head.T, 1.0, standardise)
        out.index_add_(0, of_row[start:stop], logits.softmax(-1))
    return out


def _scaled(logits: Tensor, temperature: float, standardise: bool) -> Tensor:
    """Logits over T in the precision of losses, over their standard deviation first if asked for."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if standardise:
        logits = logits / (logits.std(-1, keepdim=True) + SPREAD_FLOOR)
    return logits / temperature


class _Chosen(torch.autograd.Function):
    """``log_probs`` in tiles."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, ids: Tensor, temperature: float, standardise: bool
    ) -> Tensor:
        ctx.save_for_backward(hidden, head, ids)
        ctx.how = temperature, standardise
        cast = head.to(hidden.dtype)
        out = torch.zeros(
            ids.shape, dtype=torch.promote_types(hidden.dtype, torch.float32), device=ids.device
        )
        for start, stop in heads.tile_bounds(len(hidden), [len(head)], hidden.element_size()):
            logits = _scaled(hidden[start:stop] @ cast.T, *ctx.how)
            out[start:stop] = logits.gather(-1, ids[start:stop]) - logits.logsumexp(-1, keepdim=True)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, head, ids = ctx.saved_tensors
        temperature, standardise = ctx.how
        gradients = heads.HeadGradients(hidden, head, ctx.needs_input_grad[:2])
        bounds = heads.tile_bounds(len(hidden), [len(head)], hidden.element_size())
        for start, stop in bounds:
            raw = hidden[start:stop] @ gradients.head.T
            logits = _scaled(raw, temperature, standardise)
            g = upstream[start:stop]
            grad = logits.softmax(-1).mul_(-g.sum(-1, keepdim=True)).scatter_add_(-1, ids[start:stop], g)
            grad.div_(temperature)
            if standardise:
                grad = _through_spread(grad, raw)
            gradients.add(grad.to(hidden.dtype), start, stop, alone=len(bounds) == 1)
        return *gradients.result(), None, None, None


def _through_spread(grad: Tensor, raw: Tensor) -> Tensor:
    """Gradient in the logits z of a function with gradient ``grad`` in z / (std(z) + floor)."""
    z = raw.to(grad.dtype)
    spread = z.std(-1, keepdim=True)
    scale = spread + SPREAD_FLOOR
    slope = z - z.mean(-1, keepdim=True)
    slope /= (z.shape[-1] - 1) * spread.clamp_min(
        torch.finfo(z.dtype).tiny
    )  # d std / dz; 0 where all are equal
    return grad / scale - (grad * z).sum(-1, keepdim=True) / scale.square() * slope
