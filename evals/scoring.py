"""From generated texts to scores per item, in percent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evals.suites import Item, Suite


@dataclass(frozen=True)
class Scores:
    """``per_item[metric][i]`` in 0..100 belongs to item i; the first metric is the primary one,
    ``metric``."""

    metric: str
    per_item: dict[str, list[float]]

    @property
    def mean(self) -> float:
        """Mean of the primary metric."""
        values = self.per_item[self.metric]
        return sum(values) / len(values)


def score(
    suite: Suite, items: Sequence[Item], texts: Sequence[str], *, workers: int = 1, allow_unsafe: bool = False
) -> Scores:
    """Score one text for each item.

    Args:
        suite: decides the metrics (docstrings of evals/rouge.py, maths.py, programs.py).
        items: as loaded by evals/suites.py.
        texts: generations, in the items' order.
        workers: processes that run candidate programs; only code suites use them. Scores do not depend on it.
        allow_unsafe: run programs although this machine cannot isolate them (evals/sandbox.py).

    Raises:
        ValueError: lists of unequal length, no items, or texts that are not text.
        evals.sandbox.SandboxError: code that may not run here.
        evals.maths.MathsError: a package is missing.
    """
    if len(items) != len(texts):
        raise ValueError(f"{suite.name}: {len(items)} items but {len(texts)} texts")
    if not items:
        raise ValueError(f"{suite.name}: nothing to score")
    for item, text in zip(items, texts, strict=True):
        if not isinstance(text, str):
            raise ValueError(f"{suite.name}: the text of item {item.id} is {type(text).__name__}, not str")
    if suite.kind == "code":
        per_item = _code(suite, items, texts, workers, allow_unsafe)
    else:
        per_item = (_rouge if suite.kind == "rouge" else _maths_scorer(suite))(items, texts)
    if next(iter(per_item)) != suite.metric:
        raise RuntimeError(f"{suite.name}: the first metric is not {suite.metric}")
    return Scores(
        suite.metric, {name: [100.0 * value for value in values] for name, values in per_item.items()}
    )


def _rouge(items: Sequence[Item], texts: Sequence[str]) -> dict[str, list[float]]:
    from evals.rouge import rouge_l

    return {"rougeL": [rouge_l(item.references, text) for item, text in zip(items, texts, strict=True)]}


def _maths_scorer(suite: Suite) -> Callable[[Sequence[Item], Sequence[str]], dict[str, list[float]]]:
    from evals import maths

    return maths.gsm8k if suite.name == "gsm8k" else maths.math500


def _code(
    suite: Suite, items: Sequence[Item], texts: Sequence[str], workers: int, allow_unsafe: bool
) -> dict[str, list[float]]:
    from evals import programs

    verdicts = programs.run(suite, items, texts, workers=workers, allow_unsafe=allow_unsafe)
    return {"pass@1": [float(verdict.passed) for verdict in verdicts]}
