"""The settings of each scale, as data: what is trained, for how long, and how it is scored.

``tiny`` runs on any CPU in minutes on a generated world, ``small`` on one machine with real small
models, and ``paper`` is the published protocol (``Settings of the published runs``), point by point.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.cells import Decoding, Group, Lora, Training
from harness.pairs import PairSpec

SCALES = ("tiny", "small", "paper")


class ScaleError(ValueError):
    """A scale or an override that does not exist."""


@dataclass(frozen=True)
class Setting:
    """How the cells of one recipe are trained, decoded and scored at one scale."""

    training: Training
    decoding: Decoding
    data: str  #: name of the training set
    limit: int | None = None  #: items of a suite that are scored; None takes all


@dataclass(frozen=True)
class DataFacts:
    """What an estimate needs to know of a training set."""

    examples: int
    tokens: int  #: mean tokens of prompt and response together (GPT-2's tokenizer, rounded)
    response: int  #: mean tokens of the response alone
    state: str  #: exact, re-sampled, generated or lost
    megabytes: int = 0  #: what has to be downloaded for it
    source: str = ""  #: what is downloaded


#: Training sets by name. The maths and code samples of the papers are lost at source, so another draw
#: of the same size stands in for them and nothing made from it is comparable with the published figures.
DATA: dict[str, DataFacts] = {
    "dolly": DataFacts(11_435, 146, 75, "exact", 11, "the processed data of DSKD's authors"),
    "dolly-dev": DataFacts(1_000, 146, 75, "re-sampled", 1),
    "gsm8k": DataFacts(7_473, 180, 95, "exact", 4),
    "metamathqa-50k": DataFacts(50_000, 300, 200, "re-sampled", 396, "meta-math/MetaMathQA"),
    "magicoder-python-10k": DataFacts(
        10_000, 420, 250, "re-sampled", 203, "ise-uiuc/Magicoder-OSS-Instruct-75K"
    ),
    "mbpp-train": DataFacts(374, 150, 93, "exact", 1),
    "tiny-instructions": DataFacts(400, 40, 20, "generated"),
    "tiny-maths": DataFacts(400, 60, 30, "generated"),
    "tiny-code": DataFacts(80, 60, 30, "generated"),
}

#: Suites that a scale does not have, and why.
ABSENT: dict[tuple[str, str], str] = {
    ("tiny", "math500"): "the generated world has one maths suite, in the manner of GSM8K",
}

#: Training seeds when the command line names none. The papers trained once, with seed 10.
DEFAULT_SEEDS: dict[str, tuple[int, ...]] = {"tiny": (1, 2, 3), "small": (1,), "paper": (10,)}

#: Fixed by the gap between SFT and teacher alone (docs/tiny.md).
_TINY = Training(examples=240, epochs=6, batch=8, micro_batch=8, lr=1e-3, max_length=160, max_prompt=96)
_TINY_LORA = dataclasses.replace(_TINY, lr=3e-3, lora=Lora(rank=32, alpha=32, dropout=0.0))
_TINY_MATHS = dataclasses.replace(_TINY, examples=300, epochs=8)
_TINY_CODE = dataclasses.replace(_TINY, examples=None, epochs=15, lr=5e-4)
#: The regression check: so short that some methods with eight seeds take a minute (docs/regression.md).
_TINY_CHECK = dataclasses.replace(_TINY, epochs=3, lr=4e-3)
_TINY_DECODING = Decoding(max_new_tokens=64, max_length=160)
_TINY_GREEDY = Decoding(temperature=0.0, max_new_tokens=96, max_length=192)

_SMALL = Training(examples=None, epochs=1, batch=16, micro_batch=4, lr=2e-4, precision="bf16")
_SMALL_MATHS = dataclasses.replace(_SMALL, examples=1000)
_SMALL_DECODING = Decoding(max_new_tokens=128, no_repeat_ngram=6)
_SMALL_GREEDY = Decoding(temperature=0.0, max_new_tokens=256)

_PAPER = Training(
    examples=None,
    epochs=20,
    batch=32,
    micro_batch=4,
    lr=5e-4,
    precision="bf16",
    checkpoint="best-dev-rouge",
)
_PAPER_LORA = dataclasses.replace(_PAPER, epochs=10, lr=1e-3, lora=Lora(rank=256, alpha=8, dropout=0.1))
_PAPER_REASONING = dataclasses.replace(_PAPER, epochs=3, batch=128, lr=1e-5, checkpoint="last")
#: Five decoding seeds on one checkpoint; the released scorer forbids repeated 6-grams and takes 512 in all.
_PAPER_DECODING = Decoding(no_repeat_ngram=6, max_new_tokens=512, seeds=(10, 20, 30, 40, 50))
_PAPER_GREEDY = Decoding(temperature=0.0, max_new_tokens=1024, max_length=2048)

SETTINGS: dict[tuple[str, str], Setting] = {
    ("tiny", "table1-same"): Setting(_TINY, _TINY_DECODING, "tiny-instructions"),
    ("tiny", "table1-cross"): Setting(_TINY, _TINY_DECODING, "tiny-instructions"),
    ("tiny", "table2-same"): Setting(_TINY_LORA, _TINY_DECODING, "tiny-instructions"),
    ("tiny", "table2-cross"): Setting(_TINY_LORA, _TINY_DECODING, "tiny-instructions"),
    ("tiny", "maths"): Setting(_TINY_MATHS, _TINY_GREEDY, "tiny-maths"),
    ("tiny", "code"): Setting(_TINY_CODE, _TINY_GREEDY, "tiny-code"),
    ("tiny", "check"): Setting(_TINY_CHECK, _TINY_DECODING, "tiny-instructions", limit=200),
    ("small", "table1-same"): Setting(_SMALL, _SMALL_DECODING, "dolly-dev", limit=100),
    ("small", "table1-cross"): Setting(_SMALL, _SMALL_DECODING, "dolly-dev", limit=100),
    ("small", "table2-same"): Setting(_SMALL, _SMALL_DECODING, "dolly-dev", limit=100),
    ("small", "table2-cross"): Setting(_SMALL, _SMALL_DECODING, "dolly-dev", limit=100),
    ("small", "maths"): Setting(_SMALL_MATHS, _SMALL_GREEDY, "gsm8k", limit=50),
    ("small", "code"): Setting(_SMALL, _SMALL_GREEDY, "mbpp-train", limit=50),
    ("paper", "table1-same"): Setting(_PAPER, _PAPER_DECODING, "dolly"),
    ("paper", "table1-cross"): Setting(_PAPER, _PAPER_DECODING, "dolly"),
    ("paper", "table2-same"): Setting(_PAPER_LORA, _PAPER_DECODING, "dolly"),
    ("paper", "table2-cross"): Setting(_PAPER_LORA, _PAPER_DECODING, "dolly"),
    # dskd_cma_plus_kq_gpt2_base.sh: 4 x 2 examples a step
    ("paper", "kq"): Setting(dataclasses.replace(_PAPER, batch=8), _PAPER_DECODING, "dolly"),
    # kd_1.5B_0.5B.sh of the retention study; its own decoding forbids no repetition
    ("paper", "retention"): Setting(
        dataclasses.replace(_PAPER, epochs=10, batch=16, lr=1e-5, checkpoint="last"),
        dataclasses.replace(_PAPER_DECODING, no_repeat_ngram=0),
        "dolly",
    ),
    ("paper", "maths"): Setting(_PAPER_REASONING, _PAPER_GREEDY, "metamathqa-50k"),
    ("paper", "code"): Setting(
        dataclasses.replace(_PAPER_REASONING, epochs=1), _PAPER_GREEDY, "magicoder-python-10k"
    ),
}

#: Where the released scripts give one method another setting than its table: (scale, recipe, method name).
METHOD_SETTINGS: dict[tuple[str, str, str], Mapping[str, int]] = {
    ("paper", "table1-same", "dskd-v2"): {"batch": 64},
    ("paper", "table1-cross", "dskd-cma-ga"): {"batch": 8},
    ("paper", "code", "dskd-eta"): {"batch": 32},
}

#: Options that the released scripts of a recipe give to every method that has DSKD's defaults.
METHOD_OPTIONS: dict[tuple[str, str], Mapping[str, float]] = {
    ("paper", "maths"): {"temperature": 1.0},
    ("paper", "code"): {"temperature": 1.0},
}


def setting(
    pair: PairSpec, group: Group, method: str = "", overrides: Mapping[str, float] | None = None
) -> Setting:
    """The setting of a pair's cells, as the released script of ``method`` (a bare name) has it."""
    recipe = _recipe(pair, group)
    found = SETTINGS[pair.scale, recipe]
    special: Mapping[str, Any] = METHOD_SETTINGS.get((pair.scale, recipe, method), {})
    found = dataclasses.replace(found, training=dataclasses.replace(found.training, **special))
    for name, value in (overrides or {}).items():
        found = _OVERRIDES[name](found, value)
    return found


def options(pair: PairSpec, group: Group) -> Mapping[str, float]:
    """METHOD_OPTIONS of a pair's cells."""
    return METHOD_OPTIONS.get((pair.scale, _recipe(pair, group)), {})


def _recipe(pair: PairSpec, group: Group) -> str:
    return pair.recipe if group == "instructions" else group


def parse_overrides(text: str) -> dict[str, float]:
    """``examples=200,epochs=1`` as numbers. Raises ScaleError for an unknown name or an unusable value."""
    found: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = item.partition("=")
        if name not in _OVERRIDES:
            near = difflib.get_close_matches(name, _OVERRIDES, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(_OVERRIDES)}"
            raise ScaleError(f"--budget has no {name!r}{hint}")
        if name in found:
            raise ScaleError(f"--budget gives {name} twice")
        found[name] = _number(name, value if equals else "")
    return found


def _number(name: str, text: str) -> float:
    kind = float if name in ("lr", "temperature", "top_p") else int
    try:
        value = kind(text)
    except ValueError:
        raise ScaleError(f"--budget {name} is a number, not {text!r}") from None
    if not 0 < value < float("inf"):
        raise ScaleError(f"--budget {name} must be more than zero")
    if name == "top_p" and value > 1:
        raise ScaleError("--budget top_p is a share of probability, 1 at most")
    return value


def _in_training(name: str) -> Callable[[Setting, float], Setting]:
    def change(found: Setting, value: float) -> Setting:
        changes: dict[str, Any] = {name: value}
        return dataclasses.replace(found, training=dataclasses.replace(found.training, **changes))

    return change


def _prompts(found: Setting, value: float) -> Setting:
    return dataclasses.replace(found, limit=int(value))


def _decodings(found: Setting, value: float) -> Setting:
    seeds = tuple(10 * (number + 1) for number in range(int(value)))
    return dataclasses.replace(found, decoding=dataclasses.replace(found.decoding, seeds=seeds))


def _in_decoding(name: str) -> Callable[[Setting, float], Setting]:
    def change(found: Setting, value: float) -> Setting:
        changes: dict[str, Any] = {name: value}
        return dataclasses.replace(found, decoding=dataclasses.replace(found.decoding, **changes))

    return change


def _new_tokens(found: Setting, value: float) -> Setting:
    return dataclasses.replace(found, decoding=dataclasses.replace(found.decoding, max_new_tokens=int(value)))


_OVERRIDES: dict[str, Callable[[Setting, float], Setting]] = {
    "examples": _in_training("examples"),
    "epochs": _in_training("epochs"),
    "batch": _in_training("batch"),
    "micro_batch": _in_training("micro_batch"),
    "lr": _in_training("lr"),
    "prompts": _prompts,
    "decodings": _decodings,
    "new_tokens": _new_tokens,
    "temperature": _in_decoding("temperature"),
    "top_p": _in_decoding("top_p"),
}
