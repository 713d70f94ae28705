"""Projectors against torch.linalg.lstsq and pinv in float64, on well- and ill-posed heads."""

from __future__ import annotations

import pytest
import torch

from dskd.projectors import PseudoInverse, ideal_projector, transfer

V, NARROW, WIDE = 9000, 12, 20  # more rows than one chunk of the Gram sum


def heads(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(V, NARROW, dtype=dtype), torch.randn(V, WIDE, dtype=dtype)


def deficient(head: torch.Tensor, rank: int) -> torch.Tensor:
    """The same head with only ``rank`` independent columns."""
    torch.manual_seed(1)
    return head[:, :rank] @ torch.randn(rank, head.shape[1], dtype=head.dtype)


def optimum(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Minimum-norm least squares (D, d), by a route that never forms the Gram matrix."""
    return torch.linalg.lstsq(target.double(), source.double(), driver="gelsd", rcond=1e-6).solution.T


@pytest.mark.parametrize("direction", ["t2s", "s2t"])
def test_projector_is_the_least_squares_optimum(direction: str) -> None:
    student, teacher = heads()
    source, target = (teacher, student) if direction == "t2s" else (student, teacher)
    projector = ideal_projector(source, target)
    want = optimum(source, target)
    torch.testing.assert_close(projector, want, rtol=1e-9, atol=1e-11)
    hidden = torch.randn(5, source.shape[1], dtype=torch.float64)
    torch.testing.assert_close(hidden @ projector @ target.T, hidden @ want @ target.T, rtol=1e-9, atol=1e-9)


def test_residual_is_orthogonal_to_the_target_head() -> None:
    student, teacher = heads()
    residual = teacher - student @ ideal_projector(teacher, student).T
    assert (student.T @ residual).abs().max() < 1e-8


def test_logits_are_kept_exactly_inside_the_row_space() -> None:
    # A teacher head that is a linear image of the student's: every teacher logit can be matched.
    student, _ = heads()
    teacher = student @ torch.randn(NARROW, WIDE, dtype=torch.float64)
    hidden = torch.randn(7, WIDE, dtype=torch.float64)
    projected = hidden @ ideal_projector(teacher, student)
    torch.testing.assert_close(projected @ student.T, hidden @ teacher.T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_deficient_head(dtype: torch.dtype) -> None:
    student, teacher = heads(dtype)
    student = deficient(student, 7)
    inverse = PseudoInverse(student)
    assert inverse.rank == 7
    projector = ideal_projector(teacher.double(), inverse)
    torch.testing.assert_close(projector, optimum(teacher, student), rtol=1e-5, atol=1e-7)


def test_ill_conditioned_head_keeps_its_small_directions() -> None:
    # One direction a thousand times the others, as the common offset of language-model heads is.
    student, teacher = heads()
    student = student * torch.logspace(0, -4, NARROW, dtype=torch.float64)
    assert PseudoInverse(student).rank == NARROW
    found, want = ideal_projector(teacher, student), optimum(teacher, student)
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-7)


def test_rows_are_the_pseudo_inverse() -> None:
    student, _ = heads()
    inverse = PseudoInverse(student)
    torch.testing.assert_close(inverse.rows().T, torch.linalg.pinv(student), rtol=1e-9, atol=1e-12)
    assert inverse.rows(torch.bfloat16).dtype == torch.bfloat16


def test_one_head_on_both_sides_is_the_identity() -> None:
    student, _ = heads()
    torch.testing.assert_close(ideal_projector(student, student), torch.eye(NARROW, dtype=torch.float64))


def test_zero_head() -> None:
    _, teacher = heads()
    projector = ideal_projector(teacher, torch.zeros(V, NARROW, dtype=torch.float64))
    assert projector.abs().max() == 0


def test_projector_carries_no_gradient_and_keeps_the_source_dtype() -> None:
    student, teacher = (head.requires_grad_() for head in heads(torch.float32))
    projector = ideal_projector(teacher, student)
    assert not projector.requires_grad
    assert projector.dtype == torch.float32


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 0.01)]
)
def test_transfer_in_the_dtype_of_the_inverse(dtype: torch.dtype, tolerance: float) -> None:
    student, teacher = heads()
    student[:, 0] += 3  # a common offset, as heads of language models have
    teacher = teacher + student @ torch.randn(NARROW, WIDE, dtype=torch.float64)
    found = transfer(student.to(dtype), PseudoInverse(teacher.to(dtype)).rows())
    want = ideal_projector(student, teacher)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert ((found - want).norm() / want.norm()).item() < tolerance


def test_refusals() -> None:
    student, teacher = heads()
    with pytest.raises(ValueError, match="matching rows"):
        transfer(student, teacher[1:])
    with pytest.raises(ValueError, match="matching rows"):
        ideal_projector(teacher[:-1], student)
    with pytest.raises(ValueError, match="width"):
        PseudoInverse(student[0])
