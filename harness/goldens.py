"""Golden losses: every method on one fixed synthetic batch, in two precisions.

The batch is part of a larger one (its normaliser is 37, it has fewer tokens), so a loss that divides by
its own tokens shows. Values are kept in float64; float32 is held against the same values.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn

from dskd.batch import Side
from dskd.method import create
from harness import conformance, tables
from harness.cells import UNTRAINED
from harness.conformance import Gradients
from harness.synthetic import World, world

ROWS, NORMALISER = (0, 1, 2, 4), 37.0
DTYPES = {"float64": torch.float64, "float32": torch.float32}
#: Options that the tables do not use, under which look-alikes differ.
MORE = ("jsd@gkd:beta=0.9", "jsd@distillm:beta=0.9", "kl:t_squared=true:temperature=3", "rkl:rate=0.9")

Values = dict[str, float]  #: name of a number -> it


def addresses() -> list[str]:
    """What the conformance suite checks, what the tables train, and a few more; each once, in order."""
    trained = [row.method for name in tables.ids() for row in tables.load(name).rows]
    found = [*conformance.addresses(), *MORE, *(a for a in trained if a not in UNTRAINED)]
    return sorted({str(create(address).canonical()) for address in found})


def values(address: str, dtype: str = "float64") -> Values:
    """Terms of a method's loss and the norms of its gradients, by name."""
    made = _gradients(address, DTYPES[dtype])
    terms = {name: float(value) for name, value in made.loss.terms.items()}
    norms = {f"gradient of {name}": float(value.norm()) for name, value in made.all().items()}
    return {**terms, "loss": float(made.loss.total.detach()), **norms}


def _gradients(address: str, dtype: torch.dtype) -> Gradients:
    method = create(address)
    exact = world(method)
    parts = conformance.build(method, exact.pair)
    here = exact if dtype == torch.float64 else _in(dtype, exact)
    if parts is not None and here is not exact:
        drawn = parts.state_dict()  # in float64; another precision would draw other numbers
        parts = conformance.build(method, here.pair)
        assert isinstance(parts, nn.Module)
        parts = parts.to(dtype)
        parts.load_state_dict(drawn)
    if parts is not None:
        parts.eval()  # dropout draws other masks on other machines
    return conformance.gradients(method, parts, here.batch(ROWS, NORMALISER))


def _in(dtype: torch.dtype, here: World) -> World:
    """The same models and states in another precision."""
    pair = here.pair
    teacher = None if pair.teacher is None else _side(dtype, pair.teacher)
    examples = tuple(
        replace(e, student_hidden=e.student_hidden.to(dtype), teacher_hidden=e.teacher_hidden.to(dtype))
        for e in here.examples
    )
    return replace(
        here, pair=replace(pair, student=_side(dtype, pair.student), teacher=teacher), examples=examples
    )


def _side(dtype: torch.dtype, side: Side) -> Side:
    head = side.head.detach().to(dtype).requires_grad_(side.head.requires_grad)
    return replace(side, head=head, embedding=side.embedding.to(dtype))


def all_values(chosen: Iterable[str], dtype: str = "float64") -> dict[str, Values]:
    """``values`` of many addresses; the caller's random stream is left as it was."""
    with torch.random.fork_rng(devices=[]):
        return {address: values(address, dtype) for address in chosen}


def tolerance(dtype: str) -> float:
    """Relative error that rounding may make, and no more.

    The error of a sum of n products grows like sqrt(n) eps (Higham and Mary 2019); here n is below 2^14.
    Another factor of 8 is for what is ill-conditioned: 2^10 eps.
    """
    return float(2**10 * torch.finfo(DTYPES[dtype]).eps)
