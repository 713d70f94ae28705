"""GSM8K by lm-eval's own task, and MATH-500 by mathematical equivalence.

GSM8K: the task, filters and metric of the installed lm-eval (its ``gsm8k.yaml``), zero-shot, with our prompt
and a model that replays stored texts. ``flexible-extract`` (the last number in the text) is primary:
zero-shot, nothing tells a teacher of GSM8K's ``#### N``, nor a student of that teacher's texts.
``strict-match`` (the number after ``####``), which holds whoever never saw that form at 0, stands beside it.

MATH-500: ``math-verify`` (Kydlicek et al. 2025; lm-eval's ``math_verify`` metric of minerva_math) is primary:
gold solution and whole answer are parsed, the answers compared as mathematics. ``hendrycks`` beside it is
lm-eval's hendrycks_math: its normalisation of the LaTeX, then equality; on the last ``\\boxed`` when there is
one.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from evals.suites import Item

#: A comparison that takes longer counts as wrong: sympy may try to write out 10^10^10.
SECONDS_PER_ANSWER = 20.0


class MathsError(RuntimeError):
    """A maths suite cannot be scored here; the message says what to install."""


def gsm8k(items: Sequence[Item], texts: Sequence[str]) -> dict[str, list[float]]:
    """Per item 0 or 1: ``flexible-extract`` (primary) and ``strict-match``."""
    _go_offline()
    from lm_eval import evaluator

    task = _gsm8k_task(items)
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars over work that takes a second
        result = evaluator.evaluate(
            lm=_replay()(texts), task_dict={"gsm8k": task}, bootstrap_iters=0, log_samples=True
        )
    if result is None:
        raise MathsError("lm-eval returned nothing")
    scores: dict[str, list[float]] = {
        name: [0.0] * len(items) for name in ("flexible-extract", "strict-match")
    }
    for sample in result["samples"]["gsm8k"]:
        scores[sample["filter"]][sample["doc_id"]] = float(sample["exact_match"])
    return scores


def _go_offline() -> None:
    # Everything is local; without this lm-eval's libraries may still ask a model hub.
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "HF_EVALUATE_OFFLINE"):
        os.environ.setdefault(name, "1")


@cache
def _stock_gsm8k() -> dict[str, Any]:
    """The task file of the installed lm-eval."""
    import lm_eval.tasks
    import yaml

    path = Path(lm_eval.tasks.__file__).parent / "gsm8k" / "gsm8k.yaml"
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def gsm8k_config() -> dict[str, Any]:
    """lm-eval's task, zero-shot, on rows with our prompt in ``model_prompt``; ``custom_dataset`` to come."""
    config = {
        **copy.deepcopy(_stock_gsm8k()),
        "dataset_path": "json",
        "dataset_name": None,
        "training_split": None,
        "fewshot_split": None,
        "num_fewshot": 0,
        "doc_to_text": "{{model_prompt}}",
    }
    config.pop("tag", None)
    return config


def _gsm8k_task(items: Sequence[Item]) -> Any:
    """lm-eval's task over our rows, read from memory."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    rows = [{**item.extra, "model_prompt": item.prompt} for item in items]
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return ConfigurableTask(
        config={**gsm8k_config(), "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)}}
    )


@cache
def _replay() -> Callable[[Sequence[str]], Any]:
    from lm_eval.api.model import LM

    class Replay(LM):
        """Answers document n with text n, cut at the task's stop strings like a live model's answer."""

        def __init__(self, texts: Sequence[str]) -> None:
            super().__init__()
            self.texts = texts

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [cut(self.texts[request.doc_id], request.args[1].get("until", [])) for request in requests]

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            raise NotImplementedError("stored texts have no likelihood")

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            raise NotImplementedError("stored texts have no likelihood")

    return Replay


def cut(text: str, stops: Sequence[str] | str) -> str:
    """``text`` up to the first of the stop strings."""
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop, 1)[0]
    return text


def math500(items: Sequence[Item], texts: Sequence[str]) -> dict[str, list[float]]:
    """Per item 0 or 1: ``math-verify`` (primary) and ``hendrycks``."""
    judge = Judge()
    try:
        verified = [
            judge.equal(item.extra["solution"], text) for item, text in zip(items, texts, strict=True)
        ]
    finally:
        judge.close()
    compared = [_hendrycks(item, text) for item, text in zip(items, texts, strict=True)]
    return {"math-verify": [float(v) for v in verified], "hendrycks": [float(v) for v in compared]}


def _hendrycks(item: Item, text: str) -> bool:
    _go_offline()
    from lm_eval.tasks.hendrycks_math import utils

    boxed = utils.last_boxed_only_string(text)
    try:
        answer = utils.remove_boxed(boxed) if boxed else _between_dollars(text)
    except AssertionError:  # a \boxed without its brace
        answer = text
    return bool(utils.is_equiv(answer, item.extra["answer"]))


def _between_dollars(text: str) -> str:
    """hendrycks_math's rule for an answer without a box: from first dollar to last, or everything."""
    first, last = text.find("$"), text.rfind("$")
    return text[first + 1 : last] if first < last else text


class Judge:
    """math-verify in a process of its own, which is killed when one comparison takes too long.

    Its own timeouts are signals between bytecodes, and one power of large integers never comes to the next.
    """

    def __init__(self, seconds: float = SECONDS_PER_ANSWER) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[str] | None = None

    def equal(self, gold: str, answer: str) -> bool:
        """Is the answer found in one LaTeX text that of the other? False when it cannot be told in time."""
        if not answer.strip():
            return False
        process = self._process or self._start()
        timer = threading.Timer(self.seconds, process.kill)
        timer.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps([gold, answer]) + "\n")
            process.stdin.flush()
            reply = process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        finally:
            timer.cancel()
        if not reply.endswith("\n"):
            self.close()
            return False
        return bool(json.loads(reply))

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _JUDGE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self.close()
            raise MathsError(
                "MATH-500 is scored with math-verify, which does not load: pip install math-verify"
            )
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


#: The judge's program. Replies go to a copy of stdout, since libraries print; time is limited from outside.
_JUDGE = """
import json, logging, os, sys
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
logging.disable(logging.CRITICAL)
import resource
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from math_verify import parse, verify
print("ready", file=out, flush=True)
golds = {}
for line in sys.stdin:
    gold, answer = json.loads(line)
    try:
        if gold not in golds:
            golds[gold] = parse(gold, parsing_timeout=None)
        target = parse(answer, parsing_timeout=None)
        equal = bool(verify(gold=golds[gold], target=target, timeout_seconds=None))
    except Exception:
        equal = False
    print(json.dumps(equal), file=out, flush=True)
"""
