"""Sorted probabilities are torch's, to the last bit."""

from __future__ import annotations

import math

import pytest
import torch

from dskd.sorting import descending


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 1000), (0, 4), (3, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_as_torch_sorts(shape, dtype):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)).softmax(-1).to(dtype)
    before = values.clone()
    assert torch.equal(descending(values), values.sort(dim=-1, descending=True).values)
    assert torch.equal(values, before)


def test_ties_zeros_and_what_is_no_number():
    values = torch.tensor([[0.5, 0.0, 0.5, 0.0], [math.inf, 1.0, 0.0, 2.0]])
    assert descending(values).tolist() == [[0.5, 0.5, 0.0, 0.0], [math.inf, 2.0, 1.0, 0.0]]
    found = descending(torch.tensor([[1.0, math.nan, 2.0]]))
    assert found.isnan().any()


def test_of_every_layout():
    values = torch.randn(6, 40).t()[::2]
    assert torch.equal(descending(values), values.sort(dim=-1, descending=True).values)
