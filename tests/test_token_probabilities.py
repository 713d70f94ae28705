"""Probabilities of chosen tokens against whole logits and autograd, in tiles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dskd import heads
from dskd.token_probabilities import log_probs, mass

ROWS, WIDTH, SIZE = 11, 6, 37


@pytest.fixture(params=[1, 4, 1000], ids=["row", "ragged", "whole"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tiles of this many rows."""
    height: int = request.param
    monkeypatch.setattr(heads, "tile_rows", lambda *_, **__: height)
    return height


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    hidden, head = torch.randn(ROWS, WIDTH).to(dtype), torch.randn(SIZE, WIDTH).to(dtype)
    ids = torch.randint(0, SIZE, (ROWS, 3))
    ids[0] = ids[0, 0]  # one token chosen several times
    return hidden.requires_grad_(), head.requires_grad_(), ids


def plain(hidden: Tensor, head: Tensor, ids: Tensor, temperature: float, standardise: bool) -> Tensor:
    z = (hidden @ head.T).double()
    if standardise:
        centred = z - z.mean(-1, keepdim=True)
        z = z / ((centred.square().sum(-1, keepdim=True) / (SIZE - 1)).sqrt() + 1e-4)
    z = z / temperature
    return torch.stack([z[n, row] - z[n].exp().sum().log() for n, row in enumerate(ids)])


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.usefixtures("tiles")
def test_values_and_gradients_are_the_plain_ones(temperature: float, standardise: bool) -> None:
    hidden, head, ids = problem()
    weights = torch.randn(ids.shape, dtype=torch.float64)
    found = log_probs(hidden, head, ids, temperature=temperature, standardise=standardise)
    want = plain(hidden, head, ids, temperature, standardise)
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)
    with heads.reference():
        reference = log_probs(hidden, head, ids, temperature=temperature, standardise=standardise)
    torch.testing.assert_close(reference, want, rtol=1e-12, atol=1e-12)
    # a function of them that no fixed weights can stand for
    slopes = [torch.autograd.grad((x.exp() * weights).sum().square(), [hidden, head]) for x in (found, want)]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("tiles")
def test_bfloat16_states_give_float32_probabilities() -> None:
    hidden, head, ids = problem(torch.bfloat16)
    found = log_probs(hidden, head, ids)
    assert found.dtype == torch.float32
    exact = log_probs(hidden.double(), head.double(), ids)
    torch.testing.assert_close(found.double(), exact, rtol=0.02, atol=0.05)
    gradients = torch.autograd.grad(found.sum(), [hidden, head])
    assert [g.dtype for g in gradients] == [torch.bfloat16] * 2
    wanted = torch.autograd.grad(exact.sum(), [hidden, head])
    for a, b in zip(gradients, wanted, strict=True):
        assert (a - b).abs().max() < 0.05 * b.abs().max()


def test_equal_logits_have_a_gradient() -> None:
    _, head, ids = problem()
    silent = torch.zeros(ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    found = log_probs(silent, head, ids, standardise=True)
    gradients = torch.autograd.grad(found.sum(), [silent, head])
    assert all(bool(g.isfinite().all()) for g in gradients)


def test_a_frozen_head_gets_none() -> None:
    hidden, head, ids = problem()
    found = log_probs(hidden, head.detach(), ids).sum()
    found.backward()
    assert hidden.grad is not None
    assert head.grad is None


@pytest.mark.usefixtures("tiles")
def test_mass_is_summed_by_example() -> None:
    hidden, head, _ = problem()
    offsets = torch.tensor([0, 4, 5, ROWS])
    probabilities = (hidden @ head.T).softmax(-1)
    want = torch.stack([probabilities[a:b].sum(0) for a, b in ((0, 4), (4, 5), (5, ROWS))])
    torch.testing.assert_close(mass(hidden, head, offsets), want.detach())
    assert not mass(hidden, head, offsets).requires_grad


def test_no_rows() -> None:
    hidden, head, ids = problem()
    found = log_probs(hidden[:0], head, ids[:0])
    assert found.shape == (0, 3)
    assert not bool(torch.autograd.grad(found.sum(), head)[0].any())


def test_shapes_are_checked() -> None:
    hidden, head, ids = problem()
    with pytest.raises(ValueError, match="shapes"):
        log_probs(hidden, head[:, 1:], ids)
    with pytest.raises(ValueError, match="shapes"):
        log_probs(hidden, head, ids[1:])
