"""Prompt templates, and prompts as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_HEAD = "Below is an instruction that describes a task"
_REQUEST = "Write a response that appropriately completes the request."


def instruction_prompt(instruction: str, input: str = "") -> str:
    """Alpaca's template with DSKD's and MiniLLM's spacing: the ``prompt`` field of their files."""
    if input:
        head = f"{_HEAD}, paired with an input that provides further context. {_REQUEST}"
        return f"{head}\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    return f"{_HEAD}. {_REQUEST}\n\n### Instruction:\n{instruction}\n\n### Response:\n"


def short_prompt(instruction: str, input: str = "") -> str:
    """The same headings without the preamble, for models whose window is a hundred tokens or two."""
    middle = f"### Input:\n{input}\n\n" if input else ""
    return f"### Instruction:\n{instruction}\n\n{middle}### Response:\n"


def maths_prompt(question: str) -> str:
    """Zero-shot: the question as an instruction, nothing added."""
    return instruction_prompt(question)


def completion_prompt(header: str) -> str:
    """HumanEval: the function's header and docstring as the input of an instruction."""
    return instruction_prompt("Complete the following Python function.", header.strip("\n"))


def function_prompt(text: str, tests: Sequence[str]) -> str:
    """MBPP: the task, and the tests that name the function (Austin et al. 2021, section 3.1)."""
    return instruction_prompt(f"{text.strip()} Your code should pass these tests:", "\n".join(tests))


def bos_prefix(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before every text by itself: BOS for LLaMA, nothing for GPT-2."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start]
    return []


def encode_prompts(tokenizer: Any, prompts: Sequence[str], max_prompt: int) -> list[list[int]]:
    """Token ids of each prompt, at most ``max_prompt`` of them, cut from the left.

    The end of a prompt says what to do, so the front goes; a BOS that the tokenizer adds by itself stays.

    Raises:
        ValueError: ``max_prompt`` leaves no room for one token of text.
    """
    prefix = bos_prefix(tokenizer)
    room = max_prompt - len(prefix)
    if room < 1:
        raise ValueError(
            f"max_prompt={max_prompt} leaves no room for text after the tokenizer's prefix {prefix}"
        )
    if not prompts:
        return []
    encoded = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    return [prefix + list(ids)[-room:] for ids in encoded]
