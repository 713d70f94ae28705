"""Word problems with small whole numbers, answered in GSM8K's format."""

from __future__ import annotations

from random import Random

from evals.world.task import Task
from evals.world.town import STRANGERS

PLURALS = ("plums", "pears", "lemons", "kites", "drums", "coats", "hats", "boots")


def problem(rng: Random) -> Task:
    """One or two steps of +, - and * on numbers up to about forty."""
    return rng.choice([_gain, _gain_lose, _lose, _bags, _bags_gain, _together])(rng)


def _step(a: int, sign: str, b: int) -> tuple[str, int]:
    """GSM8K's annotated calculation and its result."""
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return f"{a} {sign} {b} = <<{a}{sign}{b}={result}>>{result}", result


def _answer(lines: list[str], result: int) -> tuple[str, ...]:
    return ("\n".join([*lines, f"#### {result}"]),)


def _slots(rng: Random) -> tuple[str, str, str]:
    first, second = rng.sample(STRANGERS, 2)
    return first, second, rng.choice(PLURALS)


def _gain(rng: Random) -> Task:
    person, other, thing = _slots(rng)
    a, b = rng.randint(2, 15), rng.randint(2, 9)
    step, total = _step(a, "+", b)
    asked = f"{person} has {a} {thing}. {other} brings {b} more. How many {thing} does {person} have now?"
    return Task(asked, _answer([f"{person} has {step} {thing}."], total))


def _lose(rng: Random) -> Task:
    person, other, thing = _slots(rng)
    a = rng.randint(6, 20)
    b = rng.randint(2, a - 2)
    step, left = _step(a, "-", b)
    asked = f"{person} has {a} {thing} and gives {b} of them to {other}. How many {thing} are left?"
    return Task(asked, _answer([f"{person} has {step} {thing} left."], left))


def _gain_lose(rng: Random) -> Task:
    person, other, thing = _slots(rng)
    a, b = rng.randint(2, 12), rng.randint(2, 9)
    c = rng.randint(1, min(9, a + b - 1))
    step, total = _step(a, "+", b)
    last, left = _step(total, "-", c)
    asked = (
        f"{person} has {a} {thing} and buys {b} more. Then {person} gives {c} to {other}. "
        f"How many {thing} does {person} keep?"
    )
    return Task(asked, _answer([f"First there are {step} {thing}.", f"Then {last} {thing} are kept."], left))


def _bags(rng: Random) -> Task:
    person, _, thing = _slots(rng)
    a, b = rng.randint(2, 6), rng.randint(2, 6)
    step, total = _step(a, "*", b)
    asked = f"{person} fills {a} bags with {b} {thing} each. How many {thing} are in the bags?"
    return Task(asked, _answer([f"The bags hold {step} {thing}."], total))


def _bags_gain(rng: Random) -> Task:
    person, other, thing = _slots(rng)
    a, b, c = rng.randint(2, 5), rng.randint(2, 5), rng.randint(1, 9)
    step, held = _step(a, "*", b)
    last, total = _step(held, "+", c)
    asked = (
        f"{person} has {a} bags with {b} {thing} each. {other} has {c} {thing}. "
        f"How many {thing} do they have together?"
    )
    return Task(
        asked, _answer([f"The bags hold {step} {thing}.", f"Together they have {last} {thing}."], total)
    )


def _together(rng: Random) -> Task:
    person, other, thing = _slots(rng)
    a, b = rng.randint(2, 12), rng.randint(2, 8)
    step, more = _step(a, "+", b)
    last, total = _step(a, "+", more)
    asked = (
        f"{person} has {a} {thing}. {other} has {b} more than {person}. "
        f"How many {thing} do they have together?"
    )
    return Task(
        asked, _answer([f"{other} has {step} {thing}.", f"Together they have {last} {thing}."], total)
    )


def note(rng: Random) -> str:
    """A sum as it stands in raw prose: the numbers of the problems, never their questions."""
    a, b = rng.randint(1, 20), rng.randint(1, 12)
    kind = rng.choice("+-*")
    if kind == "*":
        a, b = rng.randint(2, 6), rng.randint(2, 6)
    if kind == "-":
        a = a + b
    return f"{rng.choice(STRANGERS)} wrote on the wall: {_step(a, kind, b)[0]}"
