"""Linear maps that carry hidden states from one model's space into the other's.

Convention: hidden states are rows, ``h`` (n, w); a head is (V, w) with logits ``h @ head.T``.
Source: DSKD v2 (2025), same-vocabulary framework: t2s starts at W_t pinv(W_s), s2t is rebuilt as
sg(W_s) pinv(W_t) at every step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

RTOL = 1e-6  #: singular values below this share of the largest are zero
CHUNK = 4096  #: vocabulary rows converted to another precision at a time


class PseudoInverse:
    """The Moore-Penrose inverse of a head, factored once.

    With G = head.T head, pinv(head.T) = head G^+, where G^+ comes from an eigendecomposition in
    float64. Forming G squares the condition number, so directions with a singular value below
    ``rtol`` times the largest are cut: at 1e-6 that is far above what float64 loses in G (about 1e-8)
    and below the rounding of a float32 head (about 1e-7 times the root of the width, or more).
    """

    def __init__(self, head: Tensor, rtol: float = RTOL) -> None:
        """Args: head (V, w), any float type; it is read now and again by ``rows``."""
        if head.ndim != 2:
            raise ValueError(f"a head is (V, width), not {tuple(head.shape)}")
        self.head = head.detach()
        values, vectors = torch.linalg.eigh(_product(self.head, self.head))
        top = values[-1].clamp_min(0) if len(values) else values.new_zeros(())
        keep = (values > top * rtol**2) & (values > 0)
        self.rank = int(keep.sum())
        basis = vectors[:, keep]
        self.inverse_gram = (basis / values[keep]) @ basis.T  #: (w, w) float64, G^+

    def project(self, source_head: Tensor) -> Tensor:
        """P = source_head.T head G^+ (D, w) in float64: h -> h P keeps the source's logits best.

        Args: source_head (V, D), its rows matching the rows of this head.
        """
        if source_head.shape[0] != self.head.shape[0]:
            raise ValueError(f"heads of {len(source_head)} and {len(self.head)} rows; pass matching rows")
        return _product(source_head.detach(), self.head) @ self.inverse_gram

    def rows(self, dtype: torch.dtype | None = None) -> Tensor:
        """head G^+ (V, w), that is pinv(head).T, in ``dtype`` (default: the head's)."""
        out = torch.empty_like(self.head, dtype=dtype or self.head.dtype)
        for start in range(0, len(out), CHUNK):
            part = slice(start, start + CHUNK)
            out[part] = (self.head[part].double() @ self.inverse_gram).to(out.dtype)
        return out


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left.T @ right in float64, converting a few thousand rows at a time."""
    out = torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64, device=left.device)
    for start in range(0, len(left), CHUNK):
        part = slice(start, start + CHUNK)
        out.addmm_(left[part].double().T, right[part].double())
    return out


def ideal_projector(source_head: Tensor, target: PseudoInverse | Tensor) -> Tensor:
    """The P (D, d) that minimises |P target_head.T - source_head.T|: W_source pinv(W_target).

    ``h @ P`` has, under the target's head, the logits nearest to those of ``h`` under the source's;
    they agree exactly where the column space of the source's head lies in that of the target's.

    Args: source_head (V, D); target head (V, d) or its PseudoInverse. For two vocabularies pass the
    rows of the tokens both know. Returns the dtype of source_head.
    """
    inverse = target if isinstance(target, PseudoInverse) else PseudoInverse(target)
    return inverse.project(source_head).to(source_head.dtype)


@torch.no_grad()
def transfer(head: Tensor, inverse_rows: Tensor) -> Tensor:
    """sg(W_s) pinv(W_t) (d, D), the map from the student's space to the teacher's; no graph is recorded.

    Products run in the dtype of ``inverse_rows``, a few thousand rows of the vocabulary at a time, and are
    summed in float32 (float64 for float64). With a bfloat16 teacher the rounding of its inverse errs no
    more than the rounding its head has already gone through, and takes half the time of float32.

    Args: head (V, d); inverse_rows (V, D) = ``PseudoInverse(teacher head).rows()``.
    """
    if head.shape[0] != inverse_rows.shape[0]:
        raise ValueError(f"heads of {len(head)} and {len(inverse_rows)} rows; pass matching rows")
    precision = torch.float64 if inverse_rows.dtype == torch.float64 else torch.float32
    out = torch.zeros(head.shape[1], inverse_rows.shape[1], dtype=precision, device=head.device)
    for start in range(0, len(head), CHUNK):
        part = slice(start, start + CHUNK)
        out += head[part].to(inverse_rows.dtype).T @ inverse_rows[part]
    return out
