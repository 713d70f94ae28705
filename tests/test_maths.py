"""evals/maths.py: GSM8K through lm-eval's task, MATH-500 by equivalence."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from evals import maths, suites
from evals.scoring import score
from evals.suites import Item

GSM8K = suites.get("gsm8k")
MATH = suites.get("math500")


def gsm(answer: str) -> Item:
    return Item(f"gsm8k/{answer}", "Q", (answer,), {"question": "?", "answer": f"So.\n#### {answer}"})


def problem(answer: str) -> Item:
    return Item(
        "math500/0", "Q", (), {"problem": "?", "solution": f"So $\\boxed{{{answer}}}$.", "answer": answer}
    )


@pytest.mark.parametrize(
    ("gold", "text", "strict", "flexible"),
    [
        ("18", "9 * 2 = 18\n#### 18", 100, 100),
        ("18", "The answer is 18.", 0, 100),
        ("18", "#### 18 and then 19", 100, 0),
        ("1,234", "#### 1234", 100, 100),
        ("1234", "it costs $1,234", 0, 100),
        ("-3", "#### -3", 100, 100),
        ("18", "#### 17", 0, 0),
        ("18", "", 0, 0),
        ("18", "#### 18\nQuestion: what is 5?\n#### 5", 100, 100),  # cut at the task's stop string
        ("18", "No number here ####", 0, 0),
    ],
)
def test_gsm8k_filters(gold: str, text: str, strict: float, flexible: float) -> None:
    result = score(GSM8K, [gsm(gold)], [text])
    assert result.metric == "flexible-extract"
    assert result.per_item == {"strict-match": [strict], "flexible-extract": [flexible]}


def test_gsm8k_is_lm_evals_own_task_with_our_prompt() -> None:
    task = maths._gsm8k_task([gsm("1"), gsm("2")])
    assert task.doc_to_text(next(iter(task.test_docs()))) == "Q"
    assert task.config.num_fewshot == 0
    assert [f.name for f in task._filters] == ["strict-match", "flexible-extract"]


def test_gsm8k_keeps_order_and_repeated_rows() -> None:
    items = [gsm("1"), gsm("2"), gsm("1"), gsm("3")]
    result = score(GSM8K, items, ["#### 1", "#### 1", "#### 2", "#### 3"])
    assert result.per_item["strict-match"] == [100, 0, 0, 100]
    assert result.mean == 50


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert score(GSM8K, [gsm("4")], ["#### 4"]).mean == 100


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        ("\\frac{1}{2}", "So it is $\\boxed{0.5}$.", True),
        ("\\frac{1}{2}", "The answer is $\\frac{2}{4}$.", True),
        ("x^2+2x+1", "$\\boxed{(x+1)^2}$", True),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "$\\boxed{(3, \\pi/2)}$", True),
        ("10", "$\\boxed{11}$", False),
        ("10", "", False),
        ("10", "I do not know.", False),
        ("10", "\\boxed{10", False),
        ("10", "line\nbreaks\r\nand \u2028 others: $\\boxed{10}$", True),
    ],
)
def test_math_equivalence(gold: str, text: str, right: bool) -> None:
    result = score(MATH, [problem(gold)], [text])
    assert result.metric == "math-verify"
    assert result.per_item["math-verify"] == [100.0 * right]


def test_hendrycks_beside_it() -> None:
    items, texts = (
        [problem("\\frac{1}{2}")] * 3,
        ["$\\boxed{\\frac12}$", "so $\\frac{1}{2}$", "\\boxed{0.51}"],
    )
    assert score(MATH, items, texts).per_item["hendrycks"] == [100, 100, 0]


def test_an_answer_that_never_ends_is_wrong_and_the_next_is_judged() -> None:
    judge = maths.Judge(seconds=3)
    try:
        assert judge.equal("$2$", "$2$")
        start = time.monotonic()
        assert not judge.equal("$2$", "$10^{10^{10^{10}}}$")
        assert time.monotonic() - start < 15
        assert judge.equal("$2$", "$\\frac{4}{2}$")
    finally:
        judge.close()


def test_gold_answers_score_in_full(shared_data: Path) -> None:
    items = suites.load(GSM8K, shared_data, 100)
    assert score(GSM8K, items, [item.references[0] for item in items]).mean == 100
    items = suites.load(MATH, shared_data, 30)
    result = score(MATH, items, [item.references[0] for item in items])
    assert result.mean == 100
    assert min(result.per_item["hendrycks"]) == 100
    shifted = score(MATH, items, [items[n - 1].references[0] for n in range(len(items))])
    assert shifted.mean < 5


@pytest.mark.slow
@pytest.mark.parametrize("suite", [GSM8K, MATH], ids=lambda s: s.name)
def test_all_gold_answers(shared_data: Path, suite: suites.Suite) -> None:
    items = suites.load(suite, shared_data)
    result = score(suite, items, [item.references[0] for item in items])
    assert {metric: min(values) for metric, values in result.per_item.items()} == dict.fromkeys(
        result.per_item, 100
    )
