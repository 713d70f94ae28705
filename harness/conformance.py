"""Properties every method must have, each a named check that sees a method only through its contract.

``run(address)`` performs them all on small random pairs in float64. A property that a method breaks by
definition is declared in its ledger entry (``exceptions``) with the reason, and reported as such.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dskd import divergences, heads
from dskd.batch import Batch, Loss, Pair, Pairs, Side, View
from dskd.method import Method, create, entry, names
from dskd.vocabulary import Vocabulary
from harness.synthetic import STUDENT, World, world

CLOSE = 1e-9  #: relative, for numbers that differ by rounding only
SLOPE = 1e-6  #: relative, for a derivative against central differences
STEP = 1e-5  #: half the width of those differences
REPRESENTATIVE = ("rkl", "akl@dskd", "jsd@gkd")  #: divergences that methods taking one are checked with
#: Sizes that no property depends on, made small where an address is checked beside the published ones.
SMALL = {"kq_width": 16}


@dataclass(frozen=True)
class Result:
    """One property of one method."""

    check: str
    status: Literal["pass", "fail", "exception"]
    detail: str = ""


class BrokenError(AssertionError):
    """A property does not hold; the message has the numbers."""


Check = Callable[[Method], None]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Register a property under the function's name."""
    CHECKS[function.__name__] = function
    return function


def addresses() -> list[str]:
    """Every registered name with its variants, and representative divergences and spaces."""
    found = []
    for name in names():
        found += [name, *(f"{name}@{variant}" for variant in entry(name).variants)]
        small = [f"{key}={size}" for key, size in SMALL.items() if key in entry(name).parameters]
        if entry(name).divergences:
            found += [":".join([f"{name}/{divergence}", *small]) for divergence in REPRESENTATIVE]
        if "space" in entry(name).parameters:
            found += [":".join([name, *small, f"space={space}"]) for space in ("student", "teacher")]
        if "on_policy" in entry(name).parameters:
            found += [":".join([name, *small, "on_policy=1"])]
    return found


def run(address: str, only: Iterable[str] | None = None) -> list[Result]:
    """All checks of a method address, or those in ``only``. Raises MethodError for an unknown address."""
    return examine(create(address), only)


def examine(method: Method, only: Iterable[str] | None = None) -> list[Result]:
    """The same for a method that need not be registered."""
    return [_outcome(method, name) for name in (CHECKS if only is None else only)]


def _outcome(method: Method, name: str) -> Result:
    reason = _exception(method, name)
    try:
        with _quiet():
            CHECKS[name](method)
    except BrokenError as broken:
        return Result(name, "fail" if reason is None else "exception", reason or str(broken))
    except Exception as error:
        return Result(name, "fail", f"{type(error).__name__}: {error}")
    return Result(name, "pass")


def _exception(method: Method, name: str) -> str | None:
    declared = method.entry.exceptions
    if method.spec.variant and f"{name}@{method.spec.variant}" in declared:
        return declared[f"{name}@{method.spec.variant}"]
    if name == "slopes" and _divergence(method).startswith("akl"):
        return f"akl detaches {divergences.ENTRIES['akl'].stop_gradients.removeprefix('teacher; ')}"
    return declared.get(name)


def _divergence(method: Method) -> str:
    return str(getattr(getattr(method, "divergence", None), "name", ""))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The caller's random stream is left as it was."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


# Running a method ------------------------------------------------------------------------------------


def build(method: Method, pair: Pair, seed: int = 1) -> nn.Module | None:
    """The method's parts from one seed, without dropout: a loss has the properties, its noise has not."""
    torch.manual_seed(seed)
    parts = method.build(pair)
    return None if parts is None else parts.eval()


@dataclass
class Gradients:
    """A loss and what it does to everything that is trained."""

    loss: Loss
    hidden: Tensor
    head: Tensor
    parts: dict[str, Tensor]
    gold: Tensor | None = None  #: of the gold responses' hidden states, where the batch has them apart

    def all(self) -> dict[str, Tensor]:
        gold = {} if self.gold is None else {"gold": self.gold}
        return {"hidden": self.hidden, "head": self.head, **gold, **self.parts}


def gradients(method: Method, parts: nn.Module | None, batch: Batch) -> Gradients:
    """Loss of one batch and its gradients (zeros where none arrives); frozen parts are constants."""
    every = parts.named_parameters() if parts is not None else ()
    targets = {"hidden": batch.student.hidden, "head": batch.student.head}
    if batch.gold is not None:
        targets["gold"] = batch.gold.view.hidden
    targets |= {name: parameter for name, parameter in every if parameter.requires_grad}
    loss = method.loss(batch, parts)
    found = torch.autograd.grad(loss.total, list(targets.values()), allow_unused=True)
    filled = [torch.zeros_like(t) if g is None else g for t, g in zip(targets.values(), found, strict=True)]
    by_name = dict(zip(targets, filled, strict=True))
    hidden, head, gold = by_name.pop("hidden"), by_name.pop("head"), by_name.pop("gold", None)
    return Gradients(loss, hidden, head, by_name, gold)


def distillation(loss: Loss) -> float:
    """Sum of the divergence terms."""
    return sum(float(value) for name, value in loss.terms.items() if name.startswith("kd"))


def _close(got: Tensor | float, wanted: Tensor | float, what: str, tolerance: float = CLOSE) -> None:
    a, b = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (got, wanted))
    scale = float(b.abs().max()) if b.numel() else 0.0
    gap = float((a - b).abs().max()) if b.numel() else 0.0
    if not gap <= tolerance * max(1.0, scale):
        raise BrokenError(f"{what}: {_show(a)} against {_show(b)}, off by {gap:.3g}")


def _show(value: Tensor) -> str:
    return f"{float(value):.9g}" if value.numel() == 1 else f"a tensor of norm {float(value.norm()):.9g}"


def _same_gradients(got: Gradients, wanted: Gradients, what: str) -> None:
    _close(got.loss.total, wanted.loss.total, f"loss, {what}")
    for name, value in wanted.all().items():
        _close(got.all()[name], value, f"gradient of {name}, {what}")


# The properties (methods.md section 7) ---------------------------------------------------------------


@check
def terms(method: Method) -> None:
    """The named terms are detached, finite, and sum to the total."""
    here = world(method)
    loss = method.loss(here.batch(), build(method, here.pair))
    if "ce" not in loss.terms:
        raise BrokenError("no term is named ce, the student's cross-entropy on gold labels")
    if any(value.requires_grad for value in loss.terms.values()):
        raise BrokenError("a term for the log carries a gradient")
    _close(sum(float(value) for value in loss.terms.values()), loss.total, "sum of terms against total")


@check
def identity(method: Method) -> None:
    """Where the teacher is the student, every divergence is 0 and the gradient finite."""
    if not method.needs.teacher or method.needs.vocabulary == "different":
        return
    here = world(method, same=True, equal=True)
    made = gradients(method, build(method, here.pair), here.batch())
    for name, value in made.all().items():
        if not bool(value.isfinite().all()):
            raise AssertionError(f"gradient of {name} is not finite where teacher and student agree")
    for name, value in made.loss.terms.items():
        if name.startswith("kd"):
            _close(value, 0.0, f"{name} of a student that is its own teacher")


@check
def order(method: Method) -> None:
    """The order of the examples in a batch does not matter."""
    here = world(method)
    parts, rows = build(method, here.pair), [3, 1, 4, 0, 2]
    a = gradients(method, parts, here.batch())
    b = gradients(method, parts, here.batch(rows))
    _close(b.loss.total, a.loss.total, "loss of the examples in another order")
    _close(b.head, a.head, "gradient of the head, examples in another order")
    for place, row in enumerate(rows):
        _close(_of_example(b.hidden, here, rows, place), _of_example(a.hidden, here, range(5), row), "hidden")


def _of_example(hidden: Tensor, here: World, rows: Sequence[int], place: int) -> Tensor:
    lengths = [len(here.examples[row].student.ids) for row in rows]
    return hidden.split(lengths)[place]


@check
def split(method: Method) -> None:
    """Micro-batches of one global batch sum to the whole, in value and gradient."""
    here = world(method)
    parts = build(method, here.pair)
    whole = gradients(method, parts, here.batch())
    pieces = [gradients(method, parts, here.batch(rows)) for rows in ([0], [1, 2], [3, 4])]
    _close(
        sum(float(p.loss.total.detach()) for p in pieces),
        whole.loss.total,
        "loss of three micro-batches, summed",
    )
    _close(torch.cat([p.hidden for p in pieces]), whole.hidden, "gradient of hidden states, split batch")
    _close(torch.stack([p.head for p in pieces]).sum(0), whole.head, "gradient of the head, split batch")


@check
def neighbours(method: Method) -> None:
    """What an example contributes depends on no other example of the batch, nor on their lengths."""
    here, other = world(method), world(method, seed=5)
    parts = build(method, here.pair)
    swapped = replace(here, examples=(here.examples[0], *other.examples[3:]))
    a = gradients(method, parts, here.batch(range(5), normaliser=20.0))
    b = gradients(method, parts, swapped.batch(range(3), normaliser=20.0))
    rows = len(here.examples[0].student.ids)
    _close(b.hidden[:rows], a.hidden[:rows], "gradient of an example whose neighbours changed")


@check
def eos(method: Method) -> None:
    """The position that predicts EOS is supervised, by the gold label and, like others, by the teacher."""
    here = world(method)
    parts, batch = build(method, here.pair), here.batch()
    made = gradients(method, parts, batch)
    nll = _nll(batch)
    weight = float(made.loss.terms["ce"] / nll.detach())
    louder = _by_factor(batch, 1.5)
    again = float(method.loss(louder, parts).terms["ce"] / _nll(louder).detach())
    _close(again, weight, "ce as a multiple of the cross-entropy over all positions, EOS included")
    is_eos = batch.student.labels == here.pair.student.vocabulary.eos
    of_ce = torch.zeros_like(made.hidden)
    if batch.gold is None:
        (of_ce,) = torch.autograd.grad(weight * nll, batch.student.hidden)
    taught = (made.hidden - of_ce).abs().amax(-1) > 1e-12
    if float(taught[~is_eos].double().mean()) > 0.5 and not bool(taught[is_eos].any()):
        raise BrokenError("the teacher teaches most positions, but none that predicts EOS")


def _nll(batch: Batch) -> Tensor:
    """The student's negative log-likelihood of the gold responses, summed over all positions."""
    view = batch.student if batch.gold is None else batch.gold.view
    return torch.nn.functional.cross_entropy(view.hidden @ view.head.T, view.labels, reduction="sum")


def _by_factor(batch: Batch, factor: float) -> Batch:
    """The batch with all of the student's hidden states times a factor."""
    return _with_hidden(batch, *(h * factor for h in _student_hidden(batch)))


def _student_hidden(batch: Batch) -> tuple[Tensor, ...]:
    """The student's states on the text distilled on and, where they are apart, on the gold responses."""
    return (batch.student.hidden,) + (() if batch.gold is None else (batch.gold.view.hidden,))


def _with_hidden(batch: Batch, hidden: Tensor, of_gold: Tensor | None = None) -> Batch:
    moved = replace(batch, student=replace(batch.student, hidden=hidden))
    if batch.gold is None or of_gold is None:
        return moved
    return replace(moved, gold=replace(batch.gold, view=replace(batch.gold.view, hidden=of_gold)))


@check
def samples(method: Method) -> None:
    """The gold cross-entropy knows nothing of text the student wrote, and without gold text there is none."""
    if method.needs.student_samples is None:
        return
    here = world(method)
    parts, batch = build(method, here.pair), here.batch()
    made = gradients(method, parts, batch)
    if batch.gold is None:
        _close(made.loss.terms["ce"], 0.0, "gold cross-entropy of a batch that the student wrote")
        return
    hidden = _student_hidden(batch)
    other = gradients(
        method, parts, _with_hidden(batch, (hidden[0] * 1.5).detach().requires_grad_(), hidden[1])
    )
    _close(other.loss.terms["ce"], made.loss.terms["ce"], "gold cross-entropy beside another sample")
    assert made.gold is not None and other.gold is not None
    _close(other.gold, made.gold, "gradient of the gold responses beside another sample")


@check
def untranslatable(method: Method) -> None:
    """A teacher token without translation never counts as EOS.

    The teacher predicts such a token nearly surely at every position. EOS pairs are left out, and no
    text uses the student's spare control token; then it cannot matter which of the two control ids is
    EOS. It does matter to a method that takes the unknown for EOS.
    """
    if not method.needs.teacher or method.needs.vocabulary == "same":
        return
    here = world(method)
    assert here.pair.teacher is not None
    token = here.pair.teacher.vocabulary.ids[b"zz"]
    head = here.pair.teacher.head.clone()
    head[here.pair.teacher.vocabulary.eos] = 0
    head[token] *= 10
    teacher = replace(here.pair.teacher, head=head)
    sure = head[token] * 80 / head[token].square().sum()  # a logit of 80, all others far below
    as_is, renamed = Pair(here.pair.student, teacher), Pair(_other_eos(here.pair.student), teacher)
    parts, moved = build(method, as_is), build(method, renamed)
    if parts is not None and moved is not None:
        moved.load_state_dict(parts.state_dict())
    here = here.with_pair(as_is)
    batch = here.batch()
    assert batch.teacher is not None and batch.pairs is not None
    no_eos = batch.student.labels[batch.pairs.student] != STUDENT.eos
    batch = replace(
        batch,
        teacher=replace(batch.teacher, head=head, hidden=sure + batch.teacher.hidden * 1e-3),
        pairs=Pairs(batch.pairs.student[no_eos], batch.pairs.teacher[no_eos]),
    )
    assert batch.teacher is not None and bool((heads.argmax(batch.teacher.hidden, head) == token).all())
    a, b = gradients(method, parts, batch), gradients(method, moved, batch)
    _same_gradients(b, a, "where the EOS id alone differs")


def _other_eos(side: Side) -> Side:
    spare = next(i for i in sorted(STUDENT.special) if i != STUDENT.eos)
    return replace(side, vocabulary=Vocabulary(STUDENT.surfaces, eos=spare, special=STUDENT.special))


@check
def tiled(method: Method) -> None:
    """Logits in tiles give the value and the gradients of whole logits."""
    here = world(method)
    parts = build(method, here.pair)
    with heads.reference():
        plain = gradients(method, parts, here.batch())
    with _small_tiles():
        _same_gradients(gradients(method, parts, here.batch()), plain, "in tiles against whole logits")


@contextlib.contextmanager
def _small_tiles() -> Iterator[None]:
    """Tiles of three rows, so that even these batches need several."""
    before = heads.tile_rows
    heads.tile_rows = lambda *_, **__: 3
    try:
        yield
    finally:
        heads.tile_rows = before


@check
def slopes(method: Method) -> None:
    """Gradients of hidden states, head and parts match central differences, constants held."""
    here = world(method)
    parts, batch = build(method, here.pair), here.batch()
    found: dict[str, tuple[float, float]] = {}
    with heads.reference(), _Held() as held:
        made = gradients(method, parts, batch)
        draw = torch.Generator().manual_seed(2)
        for name, gradient in made.all().items():
            way = torch.randn(gradient.shape, generator=draw, dtype=gradient.dtype)
            way /= way.norm()
            above, below = (_moved(method, parts, batch, name, by, held) for by in (STEP * way, -STEP * way))
            found[name] = float((gradient * way).sum()), (above - below) / (2 * STEP)
    for name, (directional, difference) in found.items():
        _close(directional, difference, f"slope along {name}", SLOPE)


def _moved(
    method: Method, parts: nn.Module | None, batch: Batch, name: str, by: Tensor, held: _Held
) -> float:
    """The loss with one thing moved."""
    held.replay()
    hidden = _student_hidden(batch)
    if name == "hidden":
        return method.loss(_with_hidden(batch, hidden[0] + by, *hidden[1:]), parts).total.item()
    if name == "gold":
        return method.loss(_with_hidden(batch, hidden[0], hidden[1] + by), parts).total.item()
    if name == "head":
        return method.loss(_with_head(batch, batch.student.head + by), parts).total.item()
    assert parts is not None
    parameter = parts.get_parameter(name)
    with torch.no_grad():
        parameter.add_(by)
    try:
        return method.loss(batch, parts).total.item()
    finally:
        with torch.no_grad():
            parameter.sub_(by)


def _with_head(batch: Batch, head: Tensor) -> Batch:
    moved = replace(batch, student=replace(batch.student, head=head))
    if batch.gold is None:
        return moved
    return replace(moved, gold=replace(batch.gold, view=replace(batch.gold.view, head=head)))


class _Held:
    """Holds what a method detaches at its first value, so that differences see what autograd sees.

    While active, ``Tensor.detach`` records its results; after ``replay`` it returns them again in the
    order of the calls, which is the same in every evaluation.
    """

    def __init__(self) -> None:
        self.kept: list[Tensor] = []
        self.at: int | None = None

    def __enter__(self) -> _Held:
        plain = torch.Tensor.detach

        def detach(tensor: Tensor) -> Tensor:
            if self.at is None:
                self.kept.append(plain(tensor).clone())
                return plain(tensor)
            self.at += 1
            return self.kept[self.at - 1]

        torch.Tensor.detach = detach  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *_: object) -> None:
        del torch.Tensor.detach

    def replay(self) -> None:
        """From the first recorded value again."""
        self.at = 0


@check
def constants(method: Method) -> None:
    """Nothing of the teacher and no embedding is trained; the student's head only through its own logits.

    With hidden states of zero the student's own logits are zero whatever its head, so a gradient on the
    head can come only through a projected teacher. A projector named t2s carries the teacher over and
    learns from labels, so the student's states are nothing to it.
    """
    here = world(method)
    for side in (here.pair.student, here.pair.teacher):
        if side is not None:
            side.embedding.requires_grad_(True)
    parts, batch = build(method, here.pair), here.batch()
    fixed = {"the student's embedding": batch.student.embedding}
    if batch.teacher is not None:
        loose = replace(
            batch.teacher,
            hidden=batch.teacher.hidden.requires_grad_(True),
            head=batch.teacher.head.detach().clone().requires_grad_(True),
        )
        batch = replace(batch, teacher=loose)
        fixed |= {f"the teacher's {k}": getattr(loose, k) for k in ("hidden", "head", "embedding")}
    total = method.loss(batch, parts).total
    found = torch.autograd.grad(total, list(fixed.values()), allow_unused=True)
    for name, gradient in zip(fixed, found, strict=True):
        if gradient is not None and bool(gradient.any()):
            raise BrokenError(f"{name} gets a gradient of norm {float(gradient.norm()):.3g}")
    made = gradients(method, parts, batch)
    nothing = [torch.zeros_like(h).requires_grad_() for h in _student_hidden(batch)]
    silent = gradients(method, parts, _with_hidden(batch, *nothing))
    _close(silent.head, torch.zeros_like(silent.head), "gradient of the head behind a silent student")
    for name, value in made.parts.items():
        if name.startswith("t2s"):
            _close(silent.parts[name], value, f"gradient of {name} under another student")


@check
def temperature(method: Method) -> None:
    """Logits twice as large at T = 2 have the divergences of T = 1, and with t_squared four times those."""
    if not {"temperature", "t_squared"} <= set(getattr(method.options, "__dataclass_fields__", {})):
        return
    cool = _with_options(method, temperature="1", t_squared="false")
    warm = _with_options(method, temperature="2", t_squared="false")
    squared = _with_options(method, temperature="2", t_squared="true")
    here = world(method)
    single = distillation(cool.loss(here.batch(), build(cool, here.pair)))
    student, teacher = here.pair.student, here.pair.teacher
    louder = None if teacher is None else replace(teacher, head=2 * teacher.head)
    loud = here.with_pair(Pair(replace(student, head=2 * student.head.detach()), louder))
    parts = build(warm, loud.pair)
    _close(distillation(warm.loss(loud.batch(), parts)), single, "divergences of doubled logits at T = 2")
    _close(distillation(squared.loss(loud.batch(), parts)), 4 * single, "the same with t_squared")


def _with_options(method: Method, **options: str) -> Method:
    merged = {**dict(method.spec.options), **options}
    spec = replace(method.spec, options=tuple(sorted(merged.items())))
    return type(method)(spec, method.entry)


@check
def padding(method: Method) -> None:
    """Head rows that no token id reaches change nothing: the harness cuts them, by the function used here."""
    here = world(method)
    parts, batch = build(method, here.pair), here.batch()
    wanted = gradients(method, parts, batch)
    student, padded = _through_harness(here.pair.student)
    teacher = None if here.pair.teacher is None else _through_harness(here.pair.teacher)[0]
    got_batch = replace(
        batch,
        student=_read_by(batch.student, student),
        teacher=None if batch.teacher is None or teacher is None else _read_by(batch.teacher, teacher),
        gold=None if batch.gold is None else replace(batch.gold, view=_read_by(batch.gold.view, student)),
    )
    got = gradients(method, build(method, Pair(student, teacher)), got_batch)
    _same_gradients(got, wanted, "with a padded head, cut")
    (whole,) = torch.autograd.grad(method.loss(got_batch, parts).total, padded)
    if bool(whole[student.vocabulary.size :].any()):
        raise BrokenError("padded rows of the student's head get a gradient")


def _read_by(view: View, side: Side) -> View:
    return replace(view, head=side.head, embedding=side.embedding)


def _through_harness(side: Side) -> tuple[Side, Tensor]:
    """A side cut by the harness from a model whose matrices have eight more, loud rows; and that head."""
    from harness.models import cut_side

    head, embedding = (
        torch.cat([matrix.detach(), torch.full((8, matrix.shape[1]), 30.0, dtype=matrix.dtype)])
        for matrix in (side.head, side.embedding)
    )
    head.requires_grad_(side.head.requires_grad)
    model: Any = SimpleNamespace(
        get_output_embeddings=lambda: SimpleNamespace(weight=head, bias=None),
        get_input_embeddings=lambda: SimpleNamespace(weight=embedding),
        config=SimpleNamespace(),
    )
    return cut_side(model, side.vocabulary), head
