"""What is held out, the endless streams that are trained on, and the files.

A prompt of a suite is never in a stream or a training file: streams skip what ``held_out`` holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from evals.world import chronicle, instructions, maths, python
from evals.world.task import Task

#: Suite -> prompts in it.
SIZES = {"dolly": 260, "self-inst": 240, "vicuna": 120, "s-ni": 300, "unni": 300}
MATHS, PYTHON = 160, 80  #: GSM8K problems; functions, in HumanEval's and again as many in MBPP's form
TRAIN = {"instructions": 400, "maths": 400, "code": 80}
#: Parts of a teacher's instructions in each manner.
MIXTURE = {"dolly": 45, "self-inst": 14, "vicuna": 8, "s-ni": 16, "unni": 17}


def _distinct(make: Iterator[Task], count: int, taken: set[str]) -> list[Task]:
    """The first ``count`` tasks whose prompts are new; they are added to ``taken``."""
    tasks: list[Task] = []
    while len(tasks) < count:
        task = next(make)
        if task.prompt not in taken:
            taken.add(task.prompt)
            tasks.append(task)
    return tasks


def _endless(manner: str, rng: Random) -> Iterator[Task]:
    while True:
        yield instructions.make(manner, rng)


def _problems(rng: Random) -> Iterator[Task]:
    while True:
        yield maths.problem(rng)


@cache
def suites() -> dict[str, tuple[Task, ...]]:
    """The instruction suites and ``gsm8k``; no prompt is in two of them."""
    taken: set[str] = set()
    made = {
        name: tuple(_distinct(_endless(name, Random(f"suite {name}")), count, taken))
        for name, count in SIZES.items()
    }
    made["gsm8k"] = tuple(_distinct(_problems(Random("suite gsm8k")), MATHS, taken))
    return made


@cache
def _functions() -> tuple[tuple[python.Function, ...], tuple[python.Function, ...]]:
    """All functions, shuffled and parted into those of the suites and those that may be trained on."""
    every = python.functions()
    Random("functions").shuffle(every)
    return tuple(every[: 2 * PYTHON]), tuple(every[2 * PYTHON :])


@cache
def held_out() -> frozenset[str]:
    """The prompts of every suite."""
    prompts = {task.prompt for tasks in suites().values() for task in tasks}
    for function in _functions()[0]:
        prompts |= {python.instruction(function, docstring=flag).prompt for flag in (True, False)}
    return frozenset(prompts)


def instruction_stream(seed: str) -> Iterator[Task]:
    """Instructions in all five manners without end, for teachers; the same for the same seed."""
    rng = Random(f"instructions {seed}")
    names, weights = list(MIXTURE), list(MIXTURE.values())
    while True:
        task = instructions.make(rng.choices(names, weights)[0], rng)
        if task.prompt not in held_out():
            yield task


def maths_stream(seed: str) -> Iterator[Task]:
    """Word problems without end."""
    return (task for task in _problems(Random(f"maths {seed}")) if task.prompt not in held_out())


def python_stream(seed: str) -> Iterator[Task]:
    """Functions in both forms without end, none of them from a suite."""
    rng = Random(f"python {seed}")
    while True:
        yield python.instruction(rng.choice(_functions()[1]), docstring=rng.random() < 0.5)


def prose(seed: str) -> Iterator[str]:
    """Raw text of the town without end: passages, and talk in which the same things are asked."""
    rng = Random(f"prose {seed}")
    talk = (instruction_stream(f"talk {seed}"), maths_stream(f"talk {seed}"), python_stream(f"talk {seed}"))
    while True:
        if rng.random() < 0.3:
            yield chronicle.passage(rng)
        else:
            yield chronicle.dialogue(rng, next(rng.choices(talk, (8, 1, 1))[0]))


def training() -> dict[str, list[Task]]:
    """The few hundred tasks that students are distilled on, by group."""
    taken = set(held_out())
    return {
        "instructions": _distinct(
            _endless("dolly", Random("train instructions")), TRAIN["instructions"], taken
        ),
        "maths": _distinct(_problems(Random("train maths")), TRAIN["maths"], taken),
        "code": _distinct(python_stream("train"), TRAIN["code"], taken),
    }


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def write(root: Path) -> None:
    """All suites and training files under ``root``, in the layout of the real ones; always the same bytes."""
    for name in SIZES:
        _write(root / name / "test.jsonl", [task.row(references=name == "s-ni") for task in suites()[name]])
    problems = [
        {"question": task.instruction, "answer": task.outputs[0], "model_prompt": task.prompt}
        for task in suites()["gsm8k"]
    ]
    _write(root / "gsm8k" / "test.jsonl", problems)
    functions = _functions()[0]
    _write(root / "humaneval" / "test.jsonl", [f.humaneval(i) for i, f in enumerate(functions[:PYTHON])])
    _write(root / "mbpp" / "mbpp.jsonl", [f.mbpp(i) for i, f in enumerate(functions[PYTHON:], 11)])
    for name, tasks in training().items():
        _write(root / "train" / f"{name}.jsonl", [task.row() for task in tasks])
