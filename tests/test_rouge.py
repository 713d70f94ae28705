"""evals/rouge.py against the rouge-score package."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from evals import suites
from evals.rouge import lcs_length, rouge_l

SCORER = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


def theirs(references: tuple[str, ...], text: str) -> float:
    return float(SCORER.score_multi(references, text)["rougeL"].fmeasure)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from("abcd"), max_size=12), st.lists(st.sampled_from("abcd"), max_size=12))
def test_lcs_length_is_that_of_the_table(first: list[str], second: list[str]) -> None:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    assert lcs_length(first, second) == table[-1][-1]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=3), st.text(max_size=60))
def test_any_text(references: list[str], text: str) -> None:
    assert rouge_l(tuple(references), text) == theirs(tuple(references), text)


def test_known_values() -> None:
    assert rouge_l(("The geese were running.",), "the goose runs") == theirs(
        ("The geese were running.",), "the goose runs"
    )
    assert rouge_l(("a b", "c d e"), "c d e") == 1.0
    assert rouge_l(("",), "x") == rouge_l(("x",), "") == rouge_l(("x",), "…") == 0.0
    with pytest.raises(ValueError, match="at least one reference"):
        rouge_l((), "x")


@pytest.mark.parametrize("name", ["dolly", "self-inst", "vicuna", "s-ni"])
def test_same_as_the_package_on_real_references(shared_data: Path, name: str) -> None:
    items = suites.load(suites.get(name), shared_data)
    rng = random.Random(0)
    pool = [reference for item in items for reference in item.references]
    for item in sorted(items, key=lambda i: -len(i.references))[:20] + rng.sample(items, 40):
        words = item.references[-1].split()
        shuffled = " ".join(rng.sample(words, len(words)))
        for text in (rng.choice(pool)[:400], shuffled[:400], item.references[0]):
            assert rouge_l(item.references, text) == theirs(item.references, text)
