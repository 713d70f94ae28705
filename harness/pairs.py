"""Which teacher and which student stand for a pair at each scale, and what is known of each model.

A model reference is ``tiny:NAME`` (built here), ``small:NAME`` (fetched by ``--fetch small``), a hub
name ``org/name``, or the path of a local folder.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.folder import FolderError, ModelFolder

Recipe = Literal["table1-same", "table1-cross", "table2-same", "table2-cross", "kq", "retention", "check"]
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
    recipe: Recipe  #: for the group instructions; maths and code have one setting each

    @property
    def label(self) -> str:
        """The name, or the two models of a user's own pair."""
        return f"{self.teacher} {ARROW} {self.student}" if ARROW in self.name else self.name


@dataclass(frozen=True)
class ModelFacts:
    """What an estimate needs to know of a model; figures from its configuration."""

    parameters: float
    layers: int
    width: int
    vocabulary: int
    licence: str
    note: str = ""  #: what the published runs did to it first, when that is not the bare model
    stored: int = 2  #: bytes a parameter on the hub

    @property
    def download(self) -> float:
        """Bytes of its weights."""
        return self.parameters * self.stored


def _pair(name: str, models: str, table: Literal["table1", "table2"], *, same: bool) -> PairSpec:
    """``models`` is "teacher -> student"; the name begins with the scale."""
    teacher, student = models.split(f" {ARROW} ")
    recipe: Recipe = f"{table}-{'same' if same else 'cross'}"  # type: ignore[assignment]
    return PairSpec(name, name.partition("/")[0], teacher, student, same, recipe)


_CHECKED = "tiny:check-student-bpe"
_GPT2, _TINYLLAMA = "openai-community/gpt2", "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T"
_QWEN25, _LLAMA32 = "Qwen/Qwen2.5-1.5B", "meta-llama/Llama-3.2-1B"
_MATHS, _CODE = "Qwen/Qwen2.5-Math-7B", "Qwen/Qwen2.5-Coder-7B"
_GPT2_XL, _QWEN15 = "openai-community/gpt2-xl", "Qwen/Qwen1.5-1.8B"
_QWEN25_3B, _QWEN25_HALF = "Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"

_ALL = (
    _pair("tiny/bpe-same", "tiny:teacher-bpe -> tiny:student-bpe", "table1", same=True),
    _pair("tiny/bpe-cross", "tiny:teacher-sp -> tiny:student-bpe", "table1", same=False),
    _pair("tiny/sp-same", "tiny:teacher-sp -> tiny:student-sp", "table2", same=True),
    _pair("tiny/sp-cross", "tiny:teacher-bpe -> tiny:student-sp", "table2", same=False),
    _pair("tiny/maths-same", "tiny:teacher-bpe-maths -> tiny:student-bpe", "table1", same=True),
    _pair("tiny/maths-cross", "tiny:teacher-bpe-maths -> tiny:student-sp", "table1", same=False),
    _pair("tiny/code-same", "tiny:teacher-bpe-code -> tiny:student-bpe", "table1", same=True),
    _pair("tiny/code-cross", "tiny:teacher-bpe-code -> tiny:student-sp", "table1", same=False),
    PairSpec("tiny/check-same", "tiny", "tiny:check-teacher-bpe", _CHECKED, True, "check"),
    PairSpec("tiny/check-cross", "tiny", "tiny:check-teacher-sp", _CHECKED, False, "check"),
    _pair("small/smollm2-same", "small:smollm2-135m -> small:smollm2-10l", "table1", same=True),
    _pair("small/smollm2-stories", "small:smollm2-135m -> small:stories15m", "table1", same=False),
    _pair("small/tinyllama-stories", "small:tinyllama-1.1b -> small:stories15m", "table2", same=True),
    _pair("small/smollm2-minimind2", "small:smollm2-135m -> small:minimind2", "table2", same=False),
    _pair("small/qwen-smollm2", "small:qwen2.5-coder-1.5b -> small:smollm2-135m", "table1", same=False),
    _pair("paper/gpt2-same", f"{_GPT2_XL} -> {_GPT2}", "table1", same=True),
    _pair("paper/gpt2-cross", f"{_QWEN15} -> {_GPT2}", "table1", same=False),
    _pair("paper/tinyllama-same", f"meta-llama/Llama-2-7b-hf -> {_TINYLLAMA}", "table2", same=True),
    _pair("paper/tinyllama-cross", f"mistralai/Mistral-7B-v0.1 -> {_TINYLLAMA}", "table2", same=False),
    _pair("paper/math-same", f"{_MATHS} -> {_QWEN25}", "table1", same=True),
    _pair("paper/math-cross", f"{_MATHS} -> {_LLAMA32}", "table1", same=False),
    _pair("paper/code-same", f"{_CODE} -> {_QWEN25}", "table1", same=True),
    _pair("paper/code-cross", f"{_CODE} -> {_LLAMA32}", "table1", same=False),
    PairSpec("paper/gpt2-kq", "paper", _QWEN15, _GPT2, False, "kq"),
    PairSpec("paper/qwen-retention", "paper", _QWEN25_3B, _QWEN25_HALF, True, "retention"),
)
PAIRS: dict[str, PairSpec] = {pair.name: pair for pair in _ALL}

_DOLLY_TEACHER = "the published runs fine-tuned it on Dolly first"
MODELS: dict[str, ModelFacts] = {
    _GPT2: ModelFacts(124_439_808, 12, 768, 50257, "MIT", stored=4),
    _GPT2_XL: ModelFacts(
        1_557_611_200, 48, 1600, 50257, "MIT", "MiniLLM's Dolly checkpoint was the teacher", stored=4
    ),
    _QWEN15: ModelFacts(1_836_828_672, 24, 2048, 151936, "Tongyi Qianwen research", _DOLLY_TEACHER),
    "meta-llama/Llama-2-7b-hf": ModelFacts(6_738_415_616, 32, 4096, 32000, "Llama 2, gated", _DOLLY_TEACHER),
    "mistralai/Mistral-7B-v0.1": ModelFacts(7_241_732_096, 32, 4096, 32000, "Apache-2.0", _DOLLY_TEACHER),
    _TINYLLAMA: ModelFacts(1_100_048_384, 22, 2048, 32000, "Apache-2.0", stored=4),
    _MATHS: ModelFacts(7_615_616_512, 28, 3584, 152064, "Apache-2.0"),
    _CODE: ModelFacts(7_615_616_512, 28, 3584, 152064, "Apache-2.0"),
    _QWEN25: ModelFacts(1_543_714_304, 28, 1536, 151936, "Apache-2.0"),
    _QWEN25_3B: ModelFacts(3_085_938_688, 36, 2048, 151936, "Qwen research", _DOLLY_TEACHER),
    _QWEN25_HALF: ModelFacts(494_032_768, 24, 896, 151936, "Apache-2.0"),
    _LLAMA32: ModelFacts(1_235_814_400, 16, 2048, 128256, "Llama 3.2, gated"),
    "small:smollm2-135m": ModelFacts(134_515_008, 30, 576, 49152, "Apache-2.0"),
    "small:smollm2-10l": ModelFacts(63_713_088, 10, 576, 49152, "Apache-2.0"),
    "small:stories15m": ModelFacts(15_191_712, 6, 288, 32000, "MIT"),
    "small:minimind2": ModelFacts(25_829_888, 8, 512, 6400, "Apache-2.0"),
    "small:tinyllama-1.1b": ModelFacts(1_100_048_384, 22, 2048, 32000, "Apache-2.0"),
    "small:qwen2.5-coder-1.5b": ModelFacts(1_777_088_000, 28, 1536, 151936, "Apache-2.0"),
}


def get(name: str) -> PairSpec:
    """A pair by name; a user's own pair is named by ``own``. Raises PairError with the nearest names."""
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


def own(teacher: str, student: str, scale: str) -> PairSpec:
    """A user's own pair; its name says everything, so that a worker can find it by the name alone."""
    return _parse_own(f"{scale}:{_absolute(teacher)}{ARROW}{_absolute(student)}")


def is_local(ref: str) -> bool:
    """Whether a reference is a folder on this machine."""
    return Path(ref).is_dir()


def _parse_own(name: str) -> PairSpec:
    scale, _, models = name.partition(":")
    teacher, _, student = models.partition(ARROW)
    if scale not in ("tiny", "small", "paper") or not (teacher and student):
        raise PairError(f"{name!r} is no pair (SCALE:TEACHER{ARROW}STUDENT)")
    same = _same_vocabulary(teacher, student)
    return PairSpec(name, scale, teacher, student, same, "table1-cross" if same is False else "table1-same")


def _absolute(ref: str) -> str:
    return str(Path(ref).resolve()) if is_local(ref) or ref.endswith(".gguf") else ref


def _same_vocabulary(teacher: str, student: str) -> bool | None:
    """Whether two models share a vocabulary, as far as names, known pairs and tokenizer files can tell."""
    if teacher == student:
        return True
    for pair in _ALL:
        if {pair.teacher, pair.student} == {teacher, student}:
            return pair.same_vocabulary
    found = [_vocabulary(ref) for ref in (teacher, student)]
    # Equal tokens may still play other roles (a base model's EOS): only the tokenizers themselves can tell.
    return None if None in found or found[0] == found[1] else False


def _vocabulary(ref: str) -> dict[str, int] | None:
    """Token -> id from a local tokenizer.json, or None."""
    if not (Path(ref) / "tokenizer.json").is_file():
        return None
    try:
        return ModelFolder(Path(ref)).vocabulary
    except (FolderError, AttributeError, KeyError, TypeError, ValueError):
        return None
