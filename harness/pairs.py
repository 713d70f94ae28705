"""Which teacher and which student stand for a pair at each scale, and what is known of each model.

A model reference is ``tiny:NAME`` (built here), ``small:NAME`` (fetched by ``--fetch small``), a hub
name ``org/name``, or the path of a local folder.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.cells import Group

Recipe = Literal["table1-same", "table1-cross", "table2-same", "table2-cross", "maths", "code"]
ARROW = "->"


class PairError(ValueError):
    """A pair that does not exist; the message has the nearest names."""


@dataclass(frozen=True)
class PairSpec:
    """A teacher, a student, and the published setting (methods.md section 6) they are trained in."""

    name: str
    scale: str
    teacher: str  #: model reference
    student: str
    same_vocabulary: bool | None  #: None: only the tokenizers can tell
    recipe: Recipe
    group: Group = "instructions"


@dataclass(frozen=True)
class ModelFacts:
    """What an estimate needs to know of a model; figures from its configuration."""

    parameters: float
    layers: int
    width: int
    vocabulary: int
    licence: str
    note: str = ""  #: what the published runs did to it first, when that is not the bare model


def _tiny(name: str, teacher: str, student: str, same: bool, recipe: Recipe, group: Group = "instructions") -> PairSpec:
    return PairSpec(f"tiny-{name}", "tiny", f"tiny:{teacher}", f"tiny:{student}", same, recipe, group)


def _small(name: str, teacher: str, student: str, same: bool, recipe: Recipe, group: Group = "instructions") -> PairSpec:
    return PairSpec(f"small-{name}", "small", f"small:{teacher}", f"small:{student}", same, recipe, group)


def _paper(name: str, teacher: str, student: str, same: bool, recipe: Recipe, group: Group = "instructions") -> PairSpec:
    return PairSpec(name, "paper", teacher, student, same, recipe, group)


_GPT2, _TINYLLAMA = "openai-community/gpt2", "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T"
_QWEN25, _LLAMA32 = "Qwen/Qwen2.5-1.5B", "meta-llama/Llama-3.2-1B"
_MATHS, _CODE = "Qwen/Qwen2.5-Math-7B", "Qwen/Qwen2.5-Coder-7B"

_ALL = (
    _tiny("bpe-same", "teacher-bpe", "student-bpe", True, "table1-same"),
    _tiny("bpe-cross", "teacher-sp", "student-bpe", False, "table1-cross"),
    _tiny("sp-same", "teacher-sp", "student-sp", True, "table2-same"),
    _tiny("sp-cross", "teacher-bpe", "student-sp", False, "table2-cross"),
    _tiny("maths-same", "teacher-maths", "student-bpe", True, "maths", "maths"),
    _tiny("maths-cross", "teacher-maths", "student-sp", False, "maths", "maths"),
    _tiny("code-same", "teacher-code", "student-bpe", True, "code", "code"),
    _tiny("code-cross", "teacher-code", "student-sp", False, "code", "code"),
    _small("smollm2-same", "smollm2-135m", "smollm2-10l", True, "table1-same"),
    _small("smollm2-minimind2", "smollm2-135m", "minimind2-small", False, "table1-cross"),
    _small("tinyllama-stories", "tinyllama-1.1b-chat", "stories15m", True, "table2-same"),
    _small("smollm2-stories", "smollm2-135m", "stories15m", False, "table2-cross"),
    _small("maths-cross", "qwen2.5-coder-1.5b", "smollm2-135m", False, "maths", "maths"),
    _small("code-cross", "qwen2.5-coder-1.5b", "smollm2-135m", False, "code", "code"),
    _paper("gpt2xl-gpt2", "openai-community/gpt2-xl", _GPT2, True, "table1-same"),
    _paper("qwen1.5-gpt2", "Qwen/Qwen1.5-1.8B", _GPT2, False, "table1-cross"),
    _paper("llama2-tinyllama", "meta-llama/Llama-2-7b-hf", _TINYLLAMA, True, "table2-same"),
    _paper("mistral-tinyllama", "mistralai/Mistral-7B-v0.1", _TINYLLAMA, False, "table2-cross"),
    _paper("qwen2.5-math-same", _MATHS, _QWEN25, True, "maths", "maths"),
    _paper("qwen2.5-math-llama3.2", _MATHS, _LLAMA32, False, "maths", "maths"),
    _paper("qwen2.5-coder-same", _CODE, _QWEN25, True, "code", "code"),
    _paper("qwen2.5-coder-llama3.2", _CODE, _LLAMA32, False, "code", "code"),
)
PAIRS: dict[str, PairSpec] = {pair.name: pair for pair in _ALL}

_DOLLY_TEACHER = "the published runs fine-tuned it on Dolly first"
MODELS: dict[str, ModelFacts] = {
    "openai-community/gpt2": ModelFacts(124e6, 12, 768, 50257, "MIT"),
    "openai-community/gpt2-xl": ModelFacts(1.56e9, 48, 1600, 50257, "MIT", "MiniLLM's Dolly checkpoint is the published teacher"),
    "Qwen/Qwen1.5-1.8B": ModelFacts(1.84e9, 24, 2048, 151936, "Tongyi Qianwen research", _DOLLY_TEACHER),
    "meta-llama/Llama-2-7b-hf": ModelFacts(6.74e9, 32, 4096, 32000, "Llama 2 community, gated", _DOLLY_TEACHER),
    "mistralai/Mistral-7B-v0.1": ModelFacts(7.24e9, 32, 4096, 32000, "Apache-2.0", _DOLLY_TEACHER),
    _TINYLLAMA: ModelFacts(1.1e9, 22, 2048, 32000, "Apache-2.0"),
    _MATHS: ModelFacts(7.62e9, 28, 3584, 152064, "Apache-2.0"),
    _CODE: ModelFacts(7.62e9, 28, 3584, 152064, "Apache-2.0"),
    _QWEN25: ModelFacts(1.54e9, 28, 1536, 151936, "Apache-2.0"),
    _LLAMA32: ModelFacts(1.24e9, 16, 2048, 128256, "Llama 3.2 community, gated"),
}


def get(name: str) -> PairSpec:
    """A pair by name; a user's own pair is named by ``own_name``. Raises PairError with the nearest names."""
    if name in PAIRS:
        return PAIRS[name]
    if ARROW in name:
        return _parse_own(name)
    near = difflib.get_close_matches(name, PAIRS, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; known: {', '.join(PAIRS)}"
    raise PairError(f"no pair is named {name!r}{hint}")


def of_scale(scale: str) -> list[PairSpec]:
    """The named pairs of a scale."""
    return [pair for pair in PAIRS.values() if pair.scale == scale]


def own(teacher: str, student: str, scale: str, group: Group) -> PairSpec:
    """A user's own pair; its name says everything, so that a worker can find it by the name alone."""
    return _parse_own(f"{scale}/{group}:{_absolute(teacher)}{ARROW}{_absolute(student)}")


def is_local(ref: str) -> bool:
    """Whether a reference is a folder on this machine."""
    return Path(ref).is_dir()


def _parse_own(name: str) -> PairSpec:
    head, _, models = name.partition(":")
    scale, _, group = head.partition("/")
    teacher, _, student = models.partition(ARROW)
    if scale not in ("tiny", "small", "paper") or group not in ("instructions", "maths", "code") or not (teacher and student):
        raise PairError(f"{name!r} is no pair (SCALE/GROUP:TEACHER{ARROW}STUDENT)")
    same = _same_vocabulary(teacher, student)
    recipe: Recipe = {"maths": "maths", "code": "code"}.get(group, "table1-same" if same else "table1-cross")  # type: ignore[assignment]
    return PairSpec(name, scale, teacher, student, same, recipe, group)  # type: ignore[arg-type]


def _absolute(ref: str) -> str:
    return str(Path(ref).resolve()) if is_local(ref) else ref


def _same_vocabulary(teacher: str, student: str) -> bool | None:
    """Whether two models share a vocabulary, as far as names, known pairs and tokenizer files can tell."""
    if teacher == student:
        return True
    for pair in _ALL:
        if {pair.teacher, pair.student} == {teacher, student}:
            return pair.same_vocabulary
    found = [_vocabulary(ref) for ref in (teacher, student)]
    return None if None in found else found[0] == found[1]


def _vocabulary(ref: str) -> dict[str, int] | None:
    """Token -> id from a local tokenizer.json, or None."""
    try:
        data = json.loads((Path(ref) / "tokenizer.json").read_text(encoding="utf-8"))
        vocabulary = data["model"]["vocab"]
        added: Iterable[dict[str, object]] = data.get("added_tokens", ())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if isinstance(vocabulary, list):  # Unigram: [[token, score], ...]
        vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
    return {**vocabulary, **{str(token["content"]): int(str(token["id"])) for token in added}}
