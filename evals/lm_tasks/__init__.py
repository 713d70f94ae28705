"""Our maths and code suites as tasks of lm-eval's own command line.

    lm_eval run --model hf --model_args pretrained=MODEL,max_length=512 --include_path evals/lm_tasks
        --tasks dskd_gsm8k,dskd_math500,dskd_humaneval,dskd_mbpp --metadata '{"data": "DIR"}'
        --confirm_run_unsafe_code

Prompts, items and scorers are those of evals/suites.py, evals/maths.py and evals/programs.py, so a model that
writes the same answers has the same scores here and there. ``data`` is a folder in the layout of
evals/suites.py; without it HumanEval comes from its package, and the other files from the hub. ``max_length``
less ``max_gen_toks`` is where lm-eval cuts prompts from the left, our ``max_prompt``.

Programs run in our sandbox whatever lm-eval's flag says, and not at all where there is none, unless
``"allow_unsafe": true`` stands in the metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask

from evals import maths, programs, suites
from evals.suites import Item

Docs = Sequence[dict[str, Any]]

#: Where the files are when no folder is given: the hub's data set, configuration and split.
HUB = {
    "gsm8k": ("openai/gsm8k", "main", "test"),
    "math500": ("HuggingFaceH4/MATH-500", None, "test"),
    "humaneval": ("openai/openai_humaneval", None, "test"),
    "mbpp": ("google-research-datasets/mbpp", "full", "test"),
}


def _items(name: str, data: str | None) -> list[Item]:
    suite = suites.get(name)
    if data is not None:
        return suites.load(suite, Path(data))
    try:
        return suites.load(suite, None)
    except suites.SuiteError:
        pass  # no package carries it
    from datasets import load_dataset

    path, config, split = HUB[name]
    return suites.read(suite, enumerate(load_dataset(path, config, split=split), 1), path)


def _documents(name: str, /, data: str | None = None, allow_unsafe: bool = False, **_: Any) -> dict[str, Any]:
    """The suite's items as lm-eval's documents; called with the metadata, of which it takes two."""
    import datasets

    rows = [
        {
            "id": item.id,
            "model_prompt": item.prompt,
            "references": list(item.references),
            "allow_unsafe": allow_unsafe,
            **item.extra,
        }
        for item in _items(name, data)
    ]
    return {"test": datasets.Dataset.from_list(rows)}


gsm8k, math500, humaneval, mbpp = (partial(_documents, name) for name in HUB)


def _item(doc: dict[str, Any]) -> Item:
    own = ("id", "model_prompt", "references", "allow_unsafe")
    extra = {key: value for key, value in doc.items() if key not in own}
    return Item(doc["id"], doc["model_prompt"], tuple(doc["references"]), extra)


class Gsm8k(ConfigurableTask):  # type: ignore[misc]
    """The installed lm-eval's GSM8K with our prompts; the YAML file says what else differs."""

    def __init__(self, config: dict[str, Any]) -> None:
        own = {key: value for key, value in config.items() if key != "class"}
        stock = maths.gsm8k_config()
        own["generation_kwargs"] = {**stock["generation_kwargs"], **own.get("generation_kwargs", {})}
        super().__init__(config={**stock, **own, "custom_dataset": gsm8k})


# Filters: from all answers of a task to what its process_results takes, so that one sandbox or one judge
# serves all documents.


def judge_maths(answers: Iterable[Sequence[str]], docs: Docs) -> list[dict[str, float]]:
    """Each document's scores, 0 or 1, from its first answer."""
    scores = maths.math500([_item(doc) for doc in docs], [texts[0] for texts in answers])
    return [{name: values[n] for name, values in scores.items()} for n in range(len(docs))]


def _run(name: str, answers: Iterable[Sequence[str]], docs: Docs) -> list[list[bool]]:
    """Which of each document's answers pass its tests."""
    samples = [list(texts) for texts in answers]
    flat = [(_item(doc), text) for doc, texts in zip(docs, samples, strict=True) for text in texts]
    verdicts = iter(
        programs.run(
            suites.get(name),
            [item for item, _ in flat],
            [text for _, text in flat],
            allow_unsafe=any(doc["allow_unsafe"] for doc in docs),
        )
    )
    return [[next(verdicts).passed for _ in texts] for texts in samples]


run_humaneval: Callable[..., list[list[bool]]] = partial(_run, "humaneval")
run_mbpp: Callable[..., list[list[bool]]] = partial(_run, "mbpp")


def maths_scores(doc: dict[str, Any], results: Sequence[dict[str, float]]) -> dict[str, float]:
    """``math_verify`` and ``hendrycks`` of one document."""
    return {name.replace("-", "_"): value for name, value in results[0].items()}


def pass_at_k(doc: dict[str, Any], results: Sequence[Sequence[bool]]) -> dict[str, float]:
    """pass@1 of one document and, with ten answers to it, pass@10."""
    passed = results[0]
    ks = (1, 10) if len(passed) >= 10 else (1,)
    return {f"pass@{k}": programs.pass_at_k([len(passed)], [sum(passed)], k)[0] for k in ks}
