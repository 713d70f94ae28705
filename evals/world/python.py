"""Small Python functions: a value computed from a list or a number, then changed once or twice."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from evals.world.task import Task

#: name, what it says, expression on ``xs``.
REDUCTIONS = (
    ("total", "the sum of xs", "sum(xs)"),
    ("largest", "the largest number in xs", "max(xs)"),
    ("smallest", "the smallest number in xs", "min(xs)"),
    ("size", "the length of xs", "len(xs)"),
    ("first", "the first number in xs", "xs[0]"),
    ("last", "the last number in xs", "xs[-1]"),
)
#: name, what is done first, expression on ``xs`` that takes its place.
FILTERS = (
    ("", "", "xs"),
    ("even", " after keeping the even numbers", "[x for x in xs if x % 2 == 0]"),
    ("double", " after doubling every number", "[2 * x for x in xs]"),
    ("tail", " after dropping the first number", "xs[1:]"),
    ("sorted", " after sorting", "sorted(xs)"),
)
#: name, what is said last, expression around ``value`` and ``n``.
CHANGES = (
    ("plus", "plus {n}", "{value} + {n}"),
    ("minus", "minus {n}", "{value} - {n}"),
    ("times", "times {n}", "{value} * {n}"),
)


@dataclass(frozen=True)
class Function:
    """A function in all the forms that the suites ask for it."""

    name: str
    says: str  #: what it returns, without a full stop
    expression: str

    @property
    def signature(self) -> str:
        return f"def {self.name}(xs):\n"

    @property
    def body(self) -> str:
        return f"    return {self.expression}\n"

    def call(self, xs: list[int]) -> Any:
        """What it returns; the expression is one of this module's own."""
        return eval(self.expression, {"xs": xs})

    @property
    def asserts(self) -> list[str]:
        """Tests that tell it from its neighbours: lists of several lengths and signs."""
        lists = ([4, 7, 2], [8, -3, 6, 5], [2, 10, 12, 1, 4])
        return [f"assert {self.name}({xs}) == {self.call(xs)!r}" for xs in lists]

    @property
    def prompt(self) -> str:
        """HumanEval's form: signature and docstring with an example."""
        xs = [4, 7, 2]
        example = f"    >>> {self.name}({xs})\n    {self.call(xs)!r}\n"
        return f'{self.signature}    """Return {self.says}.\n{example}    """\n'

    @property
    def request(self) -> str:
        """MBPP's form: one sentence."""
        return f"Write a function to return {self.says}."

    def humaneval(self, index: int) -> dict[str, str]:
        """A row of HumanEval."""
        lines = [line.replace(f"{self.name}(", "candidate(") for line in self.asserts]
        return {
            "task_id": f"HumanEval/{index}",
            "prompt": self.prompt,
            "entry_point": self.name,
            "canonical_solution": self.body,
            "test": "def check(candidate):\n" + "".join(f"    {line}\n" for line in lines),
            "model_prompt": instruction(self, docstring=True).prompt,
        }

    def mbpp(self, index: int) -> dict[str, Any]:
        """A row of MBPP."""
        return {
            "task_id": index,
            "text": self.request,
            "code": self.signature + self.body,
            "test_list": self.asserts,
            "test_setup_code": "",
            "challenge_test_list": [],
            "model_prompt": instruction(self, docstring=False).prompt,
        }


def functions() -> list[Function]:
    """Every function of the world, in a fixed order."""
    made = []
    for first, before, inner in FILTERS:
        for second, says, expression in REDUCTIONS:
            value = expression.replace("xs", inner)
            name = f"{first}_{second}" if first else second
            for third, after, outer in CHANGES:
                for n in range(1, 10):
                    made.append(
                        Function(
                            f"{name}_{third}_{n}",
                            f"{says} {after.format(n=n)}{before}",
                            outer.format(value=value, n=n),
                        )
                    )
    return made


def instruction(function: Function, *, docstring: bool) -> Task:
    """A function as training shows it, asked for in HumanEval's or in MBPP's form."""
    whole = function.signature + function.body
    if docstring:
        return Task("Complete the function.", (whole,), function.prompt.strip("\n"))
    return Task(function.request, (whole,), function.asserts[0])


def snippet(rng: Random) -> str:
    """Python as it stands in raw prose: the pieces of the functions, never a whole one of them."""
    _, _, inner = rng.choice(FILTERS)
    _, _, expression = rng.choice(REDUCTIONS)
    return rng.choice([
        f"def f(xs):\n    return {expression.replace('xs', inner)}",
        f"xs = {inner}\ny = {expression}",
        rng.choice(CHANGES)[2].format(value="y = x", n=rng.randint(1, 9)),
    ])  # fmt: skip
