"""What a cell will cost, from what earlier cells of its kind did cost or from its arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dskd.method import create
from harness.cells import UNTRAINED, Cell
from harness.pairs import MODELS, PairSpec
from harness.scales import DATA

#: A teacher's hidden states on one text set that are larger than this are recomputed instead of kept (bytes).
DISK_BUDGET = 20 * 2**30

#: How the GPU hours are reckoned.
BASIS = (
    "2 FLOPs per parameter and token forward, 4 backward (2 under LoRA), the teacher forward once; "
    "training at 35 % and decoding at 2 % of an A100's 312 TFLOP/s"
)
PEAK_FLOPS = 312e12
TRAIN_SHARE, DECODE_SHARE = 0.35, 0.02
ANSWER_TOKENS, PROMPT_TOKENS, SUITE_ITEMS = 120, 120, 500
ITEMS = {
    "dolly": 500, "self-inst": 242, "vicuna": 80, "s-ni": 1694, "unni": 10_000,
    "gsm8k": 1319, "math500": 500, "humaneval": 164, "mbpp": 500,
}  # fmt: skip

#: Seconds on one core (tiny) or one machine (small) before any record says better: (training, scoring).
FIRST_GUESS = {"tiny": (30.0, 5.0), "small": (900.0, 600.0)}


@dataclass
class History:
    """Seconds that finished cells took, by what they have in common with the next one."""

    seconds: dict[tuple[str, ...], list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[dict[str, Any]]) -> History:
        """Gather from finished records; those without a cost say nothing."""
        history = cls()
        for record in records:
            cost, spec = record.get("cost") or {}, record["spec"]
            spent = float(cost.get("train_seconds") or 0) + float(cost.get("decode_seconds") or 0)
            if record["status"] == "done" and spent > 0:
                for key in _keys(spec):
                    history.seconds.setdefault(key, []).append(spent)
        return history

    def guess(self, cell: Cell) -> float:
        """Seconds: the median of the most similar finished cells, else a first guess."""
        own, *others = _keys(cell.as_dict())
        if own in self.seconds:
            return statistics.median(self.seconds[own])
        for key in others:
            if key in self.seconds:
                return statistics.median(self.seconds[key]) * _samples(cell)
        train, score = FIRST_GUESS.get(cell.scale, (0.0, 0.0))
        return score + (train if cell.training is not None else 0.0)


def _keys(spec: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """From the most to the least similar; the amount of work is always the same."""
    training = spec["training"] or {}
    work = [training.get(name) for name in ("examples", "epochs", "lora", "max_length")]
    work += [run["limit"] for run in spec["suites"]]
    work += [len(spec["decoding"]["seeds"]), spec["decoding"]["max_new_tokens"], spec["data"]]
    same = (spec["scale"], str(work))
    return [(*same, spec["pair"], spec["method"]), (*same, spec["pair"]), same]


def gpu_hours(cell: Cell, pair: PairSpec) -> float | None:
    """A100 hours of one cell; None for models whose size is not known here."""
    student, teacher = MODELS.get(pair.student), MODELS.get(pair.teacher)
    if student is None or teacher is None:
        return None
    flops = 0.0
    if cell.training is not None:
        facts = DATA.get(cell.data)
        examples = (cell.training.examples or (facts.examples if facts else 10_000)) * _samples(cell)
        tokens = examples * (facts.tokens if facts else 200)
        per_token = (4 if cell.training.lora else 6) * student.parameters
        flops += tokens * (per_token * cell.training.epochs + 2 * teacher.parameters) / TRAIN_SHARE
        if cell.training.checkpoint != "last":
            flops += _decode_flops(DATA["dolly-dev"].examples * cell.training.epochs, student.parameters)
    size = teacher.parameters if cell.method == "teacher" else student.parameters
    items = sum(run.limit or ITEMS.get(run.name, SUITE_ITEMS) for run in cell.suites)
    flops += _decode_flops(items * len(cell.decoding.seeds), size)
    return flops / PEAK_FLOPS / 3600


def _samples(cell: Cell) -> int:
    """Training examples that a method makes of one prompt."""
    return 1 if cell.method in UNTRAINED else create(cell.method).sampling.samples


def _decode_flops(answers: int, parameters: float) -> float:
    return answers * (ANSWER_TOKENS + PROMPT_TOKENS) * 2 * parameters / DECODE_SHARE


def gpu_gib(cell: Cell, pair: PairSpec) -> float | None:
    """GiB on one GPU at the dearer of two moments: the teacher reading, the student training.

    The teacher takes 2 bytes per parameter. The student takes 16 (fp32 weights, gradients, two moments), or
    4 under LoRA, and 34 bytes per token, layer and unit of width for what the backward pass keeps.
    """
    student, teacher = MODELS.get(pair.student), MODELS.get(pair.teacher)
    if student is None or teacher is None:
        return None
    reading = 2 * teacher.parameters
    if cell.training is None:
        return (reading if cell.method == "teacher" else 2 * student.parameters) / 2**30
    kept = cell.training.micro_batch * cell.training.max_length * student.layers * student.width * 34
    training = (4 if cell.training.lora else 16) * student.parameters + kept
    return max(reading, training) / 2**30


def duration(seconds: float) -> str:
    """As a person says it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
