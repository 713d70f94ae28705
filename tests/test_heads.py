"""Fused heads against the plain computation: values, gradients, edge cases, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from dskd import divergences, heads
from dskd.divergences import NAMES

V, V_OTHER, NARROW, WIDE = 211, 307, 12, 17


class SortedDistance:
    """ULD in small: sorted probabilities, the shorter padded with zeros, sum of absolute differences."""

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        q = student_logits.softmax(-1).sort(-1, descending=True).values
        p = teacher_logits.softmax(-1).sort(-1, descending=True).values
        q = torch.nn.functional.pad(q, (0, p.shape[-1] - q.shape[-1]))
        return (q - p).abs().sum(-1)

    def value_and_grad(self, student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = student_logits.detach().requires_grad_()
            values = self(leaf, teacher_logits)
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), gradient


@dataclass
class Problem:
    """Arguments of ``distil`` for N student and M teacher rows."""

    student_hidden: Tensor
    student_head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor
    weights: Tensor
    positions: Tensor | None
    labels: Tensor
    label_weights: Tensor

    @classmethod
    def make(
        cls,
        dtype: torch.dtype = torch.float32,
        rows: int = 23,
        pairs: int | None = None,
        vocabulary: int = V,
    ) -> Problem:
        torch.manual_seed(rows * 31 + (pairs or 0))
        count = rows if pairs is None else pairs
        draw = lambda *shape: torch.randn(*shape, dtype=torch.float64).to(dtype)  # noqa: E731
        return cls(
            draw(rows, NARROW).requires_grad_(),
            draw(V, NARROW).requires_grad_(),
            draw(count, WIDE),
            draw(vocabulary, WIDE),
            torch.rand(count, dtype=torch.float64),
            None if pairs is None else torch.randperm(rows)[:pairs].sort().values,
            torch.randint(0, V, (rows,)),
            torch.rand(rows, dtype=torch.float64),
        )

    def distil(self, divergence: Any, gold: bool = True, **options: Any) -> heads.Distilled:
        labels: dict[str, Any] = {"labels": self.labels, "label_weights": self.label_weights} if gold else {}
        return heads.distil(
            self.student_hidden, self.student_head, self.teacher_hidden, self.teacher_head, divergence,
            temperature=2.0, weights=self.weights, positions=self.positions, **labels, **options,
        )  # fmt: skip

    def cross_entropy(self, **options: Any) -> heads.CrossEntropy:
        return heads.cross_entropy(
            self.student_hidden, self.student_head, self.labels, self.label_weights, **options
        )

    def gradients(self, loss: Tensor) -> list[Tensor | None]:
        inputs = [self.student_hidden, self.student_head]
        return list(torch.autograd.grad(3.0 * loss, inputs, allow_unused=True))


@pytest.fixture(params=[1, 7, 1000], ids=["row", "ragged", "whole"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tiles of this many rows, worked on two rows at a time."""
    height: int = request.param
    monkeypatch.setattr(
        heads, "tile_rows", lambda sizes, budget=0, itemsize=4: 2 if budget == heads._BLOCK_BYTES else height
    )
    return height


def close(found: Tensor | None, want: Tensor | None, tolerance: float) -> None:
    """Equal up to a share of the largest entry."""
    if found is None or want is None:
        assert found is want
        return
    assert found.dtype == want.dtype
    assert found.shape == want.shape
    if want.numel() and want.is_floating_point():
        scale = want.abs().max().clamp_min(1e-30)
        assert ((found - want).abs().max() / scale).item() <= tolerance
    else:
        assert torch.equal(found, want)


def compare(problem: Problem, call: Callable[[], Any], values: float, gradients: float) -> None:
    found = call()
    found_gradients = problem.gradients(found.loss)
    with heads.reference():
        want = call()
    want_gradients = problem.gradients(want.loss)
    for name in vars(want):
        close(getattr(found, name), getattr(want, name), values)
    for got, wanted in zip(found_gradients, want_gradients, strict=True):
        close(got, wanted, gradients)


TOLERANCES = {torch.float32: (1e-5, 1e-4), torch.float64: (1e-12, 1e-11)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("pairs", [None, 9])
def test_distil_equals_reference(name: str, dtype: torch.dtype, pairs: int | None, tiles: int) -> None:
    problem = Problem.make(dtype, pairs=pairs)
    compare(problem, lambda: problem.distil(divergences.get(name)), *TOLERANCES[dtype])


@pytest.mark.parametrize("gold", [True, False])
@pytest.mark.parametrize("head_grad", [True, False])
@pytest.mark.parametrize("pairs", [None, 9])
def test_options(gold: bool, head_grad: bool, pairs: int | None, tiles: int) -> None:
    problem = Problem.make(torch.float64, pairs=pairs)
    call = lambda: problem.distil(divergences.get("kl"), gold=gold, head_grad=head_grad)  # noqa: E731
    compare(problem, call, 1e-12, 1e-11)


@pytest.mark.parametrize("head_grad", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_cross_entropy_equals_reference(dtype: torch.dtype, head_grad: bool, tiles: int) -> None:
    problem = Problem.make(dtype)
    compare(problem, lambda: problem.cross_entropy(head_grad=head_grad), *TOLERANCES[dtype])


@pytest.mark.parametrize("pairs", [None, 9])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_two_vocabularies(pairs: int | None, dtype: torch.dtype, tiles: int) -> None:
    problem = Problem.make(dtype, pairs=pairs, vocabulary=V_OTHER)
    compare(problem, lambda: problem.distil(SortedDistance()), *TOLERANCES[dtype])


@pytest.mark.parametrize(("rows", "pairs"), [(0, 0), (0, None), (5, 0), (5, 5), (1, 1)])
@pytest.mark.parametrize("gold", [True, False])
def test_empty_and_full(rows: int, pairs: int | None, gold: bool, tiles: int) -> None:
    problem = Problem.make(torch.float64, rows=rows, pairs=pairs)
    compare(problem, lambda: problem.distil(divergences.get("akl"), gold=gold), 1e-12, 1e-11)


def test_cross_entropy_without_rows() -> None:
    problem = Problem.make(rows=0)
    compare(problem, problem.cross_entropy, 0, 0)


def test_rows_of_weight_zero_get_no_gradient() -> None:
    problem = Problem.make(torch.float64)
    problem.weights[3], problem.label_weights[3] = 0, 0
    gradient = problem.gradients(problem.distil(divergences.get("rkl")).loss)[0]
    assert gradient is not None
    assert gradient[3].abs().max() == 0
    assert gradient[4].abs().max() > 0


def test_a_negative_label_is_none(tiles: int) -> None:
    problem = Problem.make(torch.float64)
    problem.labels[::4] = -1
    compare(problem, problem.cross_entropy, 1e-12, 1e-11)
    assert problem.cross_entropy().nll[::4].abs().max() == 0


def test_against_finite_differences() -> None:
    problem = Problem.make(torch.float64, rows=4, pairs=2)
    problem.student_head = problem.student_head.detach()[:11].requires_grad_()
    problem.teacher_head, problem.labels = problem.teacher_head[:11], problem.labels % 11
    divergence = divergences.get("srkl")

    def loss(hidden: Tensor, head: Tensor) -> Tensor:
        problem.student_hidden, problem.student_head = hidden, head
        return problem.distil(divergence).loss

    assert torch.autograd.gradcheck(loss, (problem.student_hidden, problem.student_head))


def test_the_sum_is_what_it_says() -> None:
    problem = Problem.make(torch.float64, pairs=9)
    made = problem.distil(divergences.get("kl"))
    assert made.nll is not None
    want = (problem.weights * made.values).sum() + (problem.label_weights * made.nll).sum()
    torch.testing.assert_close(made.loss.detach(), want)
    assert made.loss.requires_grad
    assert not made.values.requires_grad
    assert not made.nll.requires_grad


def test_the_teacher_gets_no_gradient() -> None:
    problem = Problem.make()
    problem.teacher_hidden.requires_grad_()
    problem.teacher_head.requires_grad_()
    for flag in (False, True):
        heads.use_reference(flag)
        problem.distil(divergences.get("kl")).loss.backward()
        heads.use_reference(False)
    assert problem.teacher_hidden.grad is None
    assert problem.teacher_head.grad is None


def test_one_head_on_both_sides() -> None:
    """DSKD's student space: the student's head also reads the teacher's projected states, detached."""
    problem = Problem.make(torch.float64)
    projected = torch.randn(len(problem.student_hidden), NARROW, dtype=torch.float64)
    problem.teacher_hidden, problem.teacher_head = projected, problem.student_head
    compare(problem, lambda: problem.distil(divergences.get("kl")), 1e-12, 1e-11)


def test_backward_twice_with_a_kept_graph() -> None:
    problem = Problem.make(torch.float64)
    loss = problem.distil(divergences.get("kl")).loss
    inputs = [problem.student_hidden, problem.student_head]
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss * 2, inputs)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(2 * a, b)


def test_no_grad_mode() -> None:
    problem = Problem.make()
    with torch.no_grad():
        made = problem.distil(divergences.get("kl"))
    assert not made.loss.requires_grad


def test_bfloat16(tiles: int) -> None:
    """bf16 products, float32 losses: near the float32 result, and the gradients come back in bf16."""
    problem = Problem.make(torch.bfloat16)
    made = problem.distil(divergences.get("kl"))
    gradients = problem.gradients(made.loss)
    exact = Problem.make(torch.float64)
    want = exact.distil(divergences.get("kl"))
    assert made.loss.dtype == torch.float32
    assert made.loss.item() == pytest.approx(want.loss.item(), rel=0.02)
    for found, wanted in zip(gradients, exact.gradients(want.loss), strict=True):
        assert found is not None
        assert wanted is not None
        assert found.dtype == torch.bfloat16
        assert ((found.double() - wanted).norm() / wanted.norm()).item() < 0.03


def test_a_float32_head_under_bfloat16_states() -> None:
    problem = Problem.make(torch.bfloat16)
    problem.student_head = problem.student_head.detach().float().requires_grad_()
    gradients = problem.gradients(problem.distil(divergences.get("kl")).loss)
    assert gradients[1] is not None
    assert gradients[1].dtype == torch.float32


def test_argmax(tiles: int) -> None:
    problem = Problem.make()
    want = (problem.student_hidden @ problem.student_head.T).argmax(-1)
    assert torch.equal(heads.argmax(problem.student_hidden, problem.student_head), want)
    assert heads.argmax(problem.student_hidden[:0], problem.student_head).shape == (0,)
    with heads.reference():
        assert torch.equal(heads.argmax(problem.student_hidden, problem.student_head), want)


def test_reference_is_undone_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="inside"), heads.reference():
        raise RuntimeError("inside")
    assert not heads._switch.reference


def test_tile_rows() -> None:
    assert heads.tile_rows([50_000, 150_000], budget_bytes=8_000_000) == 10
    assert heads.tile_rows([50_000], budget_bytes=1) == 1
    assert heads.tile_rows([50_000], budget_bytes=1_000_000, itemsize=2) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": torch.tensor([2, 1])}, "ascending"),
        ({"positions": torch.tensor([1, 1])}, "ascending"),
        ({"positions": torch.tensor([0, 99])}, "outside"),
        ({"positions": torch.tensor([-1, 2])}, "outside"),
        ({"positions": None}, "no positions"),
        ({"positions": torch.tensor([1])}, "positions"),
        ({"weights": torch.ones(5)}, "weights"),
        ({"labels": torch.ones(5, dtype=torch.int64)}, "labels"),
        ({"labels": torch.full((23,), V)}, "vocabulary"),
        ({"label_weights": torch.ones(5)}, "label weights"),
        ({"label_weights": None}, "together"),
        ({"teacher_head": torch.ones(V, 3)}, "head"),
    ],
)
@pytest.mark.parametrize("plain", [True, False])
def test_refusals(change: dict[str, Any], message: str, plain: bool) -> None:
    problem = Problem.make(pairs=2)
    for key, value in change.items():
        setattr(problem, key, value)
    heads.use_reference(plain)
    try:
        with pytest.raises(ValueError, match=message):
            problem.distil(divergences.get("kl"))
    finally:
        heads.use_reference(False)


_PEAK = """
import sys, torch
from dskd import divergences, heads
torch.manual_seed(0)
heads.TILE_BYTES = 16 * 2**20
N, V, d = 1000, 50257, 16
kl = divergences.get("kl")
h, W = torch.randn(N, d).requires_grad_(), torch.randn(V, d).requires_grad_()
t, TW = torch.randn(N, d), torch.randn(V, d)
labels, w = torch.randint(0, V, (N,)), torch.ones(N) / N
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1024
heads.distil(h[:2], W, t[:2], TW, kl, temperature=2.0, weights=w[:2])
before = peak()
made = heads.distil(h, W, t, TW, kl, temperature=2.0, weights=w, labels=labels, label_weights=w)
made.loss.backward()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_stays_far_under_whole_logits() -> None:
    whole = 1000 * 50257 * 4 / 2**20  # one copy of one model's logits; the plain computation holds several
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, "-c", _PEAK], check=True, capture_output=True, text=True, env=env)
    assert float(out.stdout) < whole / 2


# --- one more logit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [None, 9])
@pytest.mark.usefixtures("tiles")
def test_an_extra_logit_is_a_column_of_its_own(pairs: int | None) -> None:
    """As if both heads had one more row, which only the divergence sees."""
    problem = Problem.make(torch.float64, pairs=pairs)
    count = len(problem.weights)
    extra = torch.randn(count, dtype=torch.float64, requires_grad=True)
    constant = torch.randn(count, dtype=torch.float64)
    by = divergences.get("rkl")
    rows = problem.student_hidden if problem.positions is None else problem.student_hidden[problem.positions]
    q = torch.cat([rows @ problem.student_head.T, extra[:, None]], -1) / 2
    p = torch.cat([problem.teacher_hidden @ problem.teacher_head.T, constant[:, None]], -1) / 2
    nll = torch.nn.functional.cross_entropy(
        problem.student_hidden @ problem.student_head.T, problem.labels, reduction="none"
    )
    want = (problem.weights * by(q, p)).sum() + (problem.label_weights * nll).sum()
    inputs = [problem.student_hidden, problem.student_head, extra]
    wanted = torch.autograd.grad(3 * want, inputs)
    for flag in (False, True):
        heads.use_reference(flag)
        try:
            found = problem.distil(by, extra=(extra, constant))
        finally:
            heads.use_reference(False)
        torch.testing.assert_close(found.loss, want)
        for a, b in zip(torch.autograd.grad(3 * found.loss, inputs), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_extra_logits_belong_to_pairs() -> None:
    problem = Problem.make(pairs=9)
    with pytest.raises(ValueError, match="extra of shape"):
        problem.distil(divergences.get("kl"), extra=(torch.zeros(23), torch.zeros(9)))
