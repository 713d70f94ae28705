"""The benchmarks compare like with like: every computation of a shape yields the same loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch

from benchmarks import losses, report, train
from benchmarks.losses import CROSS, CROSS_ULD, KL, SAME, Problem, Shape

SMALL = {"batch": 2, "length": 24, "tokens": 7}


def shrunk(shape: Shape) -> Shape:
    overlap = 300 if shape.overlap else 0
    return dataclasses.replace(
        shape, **SMALL, student=(400, 24), teacher=(600 if overlap else 400, 40), overlap=overlap
    )


@pytest.mark.parametrize("shape", [SAME, KL, CROSS, CROSS_ULD], ids=lambda shape: shape.method)
def test_ours_is_the_plain_formula(shape: Shape) -> None:
    """Value and gradient of the hidden states, in float32."""
    found = {}
    for kind in ("ours", "response-only", "padded"):
        problem = Problem(shrunk(shape), full_precision=True)
        total = problem.step(kind)
        total.backward()
        found[kind] = total.detach(), problem.h_s.grad, problem.w_s.grad
    for kind in ("response-only", "padded"):
        for ours, plain in zip(found["ours"], found[kind], strict=True):
            assert ours is not None and plain is not None
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def test_peer_computes_the_same_divergence() -> None:
    pytest.importorskip("trl", reason="the peers are an extra")
    problem = Problem(shrunk(KL), full_precision=True)
    torch.testing.assert_close(problem.ours(), problem.trl_chunked(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lengths", [(3, 5), (4, 2)])
def test_collate_masks_prompts_and_padding(lengths: Sequence[int]) -> None:
    rows = [{"input_ids": list(range(1, n + 4)), "prompt": 3} for n in lengths]
    made = train.collate(rows)
    assert (made["labels"] != -100).sum(-1).tolist() == list(lengths)
    assert made["attention_mask"].sum(-1).tolist() == [n + 3 for n in lengths]
    kept = made["labels"] != -100
    assert torch.equal(made["labels"][kept], made["input_ids"][kept])


def test_the_page_is_rendered_from_the_measurements() -> None:
    assert (report.FOLDER / "README.md").read_text(encoding="utf-8") == report.render()


def test_table_puts_ours_at_one() -> None:
    ours = losses.Measurement(SAME, "ours", 1.0, 2.0, 10.0, 3.0)
    other = dataclasses.replace(ours, kind="padded", seconds=20.0, cpu_seconds=30.0, extra_mib=250.0)
    assert "| padded | 20.00 | 20.00 | 30.00 | 15.00 | 250 | 25.0 |" in losses.table([ours, other])
