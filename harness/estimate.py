"""What a cell will cost, from what earlier cells of its kind did cost or from its arithmetic."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dskd.method import MethodError, create
from dskd.student_text import StudentText
from harness.cells import UNTRAINED, Cell
from harness.folder import FolderError, ModelFolder
from harness.pairs import MODELS, ModelFacts, PairSpec, is_local
from harness.scales import DATA

#: A teacher's hidden states on one text set that are larger than this are recomputed instead of kept (bytes).
DISK_BUDGET = 20 * 2**30

#: How the GPU hours are reckoned.
BASIS = (
    "2 FLOPs per parameter and token forward, 4 backward (2 under LoRA), the teacher forward once "
    "(every epoch where its states are too many to keep); "
    "training at 35 % and decoding at 2 % of an A100's 312 TFLOP/s"
)
PEAK_FLOPS = 312e12
TRAIN_SHARE, DECODE_SHARE = 0.35, 0.02
ANSWER_TOKENS, PROMPT_TOKENS, SUITE_ITEMS = 120, 120, 500
ITEMS = {
    "dolly": 500, "self-inst": 242, "vicuna": 80, "s-ni": 1694, "unni": 10_000,
    "gsm8k": 1319, "math500": 500, "humaneval": 164, "mbpp": 500,
}  # fmt: skip

#: Seconds of a tiny cell on one core before any record says better.
TINY_TRAINING, TINY_SCORING, TINY_TEXT = 30.0, 5.0, 0.015

#: The same for small, on two cores: the FLOPs above at a sustained rate and, for every token that is written,
#: what does not grow with the model (sampling, Python, starting many small products). Set by the costs in
#: results/records/small, half of them of an idle machine; within a factor of three of four in five.
CPU_FLOPS = 200e9
CPU_TOKEN = 0.002
#: A model of unknown size is taken for the smallest one that answers in sentences (SmolLM2-135M).
UNKNOWN_SIZE = 135e6

#: Answers in training are written a global batch at a time, in scoring many more side by side.
SLOWER_IN_TRAINING = 2.0


@dataclass
class Spent:
    """Seconds of finished cells of one kind."""

    total: list[float] = field(default_factory=list)
    per_text: list[float] = field(
        default_factory=list
    )  #: to write an answer and train on one, without a teacher


@dataclass
class History:
    """Seconds that finished cells took, by what they have in common with the next one."""

    seconds: dict[tuple[str, ...], Spent] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[dict[str, Any]]) -> History:
        """Gather from finished records; those without a cost say nothing."""
        history = cls()
        for record in records:
            cost, spec = record.get("cost") or {}, record["spec"]
            train, decode = (float(cost.get(f"{part}_seconds") or 0) for part in ("train", "decode"))
            if record["status"] == "done" and train + decode > 0:
                alone, *shared = _keys(spec)
                for key in [alone] if _own_text(spec["method"]) else [alone, *shared]:
                    spent = history.seconds.setdefault(key, Spent())
                    spent.total.append(train + decode)
                    if train and (steps := (record.get("training") or {}).get("steps")):
                        trained = train / (steps * spec["training"]["batch"])
                        spent.per_text.append(SLOWER_IN_TRAINING * decode / _answers(record) + trained)
        return history

    def guess(self, cell: Cell, pair: PairSpec) -> float:
        """Seconds: the median of the most similar finished cells, else a first guess."""
        own, *others = _keys(cell.as_dict())
        if own in self.seconds:
            return statistics.median(self.seconds[own].total)
        for key in others:
            if key in self.seconds:
                known = statistics.median(self.seconds[key].total) * _samples(cell)
                return known + self.text_guess(cell, pair)
        return first_guess(cell, pair) + self.text_guess(cell, pair)

    def text_guess(self, cell: Cell, pair: PairSpec) -> float:
        """Seconds that student text adds: to write an answer and train on it, by cells without such text."""
        texts = student_texts(cell)
        for key in _keys(cell.as_dict())[1:]:
            if texts and key in self.seconds and self.seconds[key].per_text:
                return texts * statistics.median(self.seconds[key].per_text)
        return first_text_guess(cell, pair)


def first_guess(cell: Cell, pair: PairSpec) -> float:
    """Seconds without student text, by no record; 0 at paper, which is reckoned in GPU hours."""
    if cell.scale == "tiny":
        return TINY_SCORING + (TINY_TRAINING if cell.training is not None else 0.0)
    if cell.scale != "small":
        return 0.0
    student, teacher = size(pair.student), size(pair.teacher)
    scored = _answers_of(cell) * _writing(cell, teacher if cell.method == "teacher" else student)
    trained = _train_flops(cell, student, teacher) if cell.training is not None else 0.0
    return scored + trained / CPU_FLOPS


def first_text_guess(cell: Cell, pair: PairSpec) -> float:
    """Seconds that student text adds, likewise."""
    if cell.scale == "tiny":
        return TINY_TEXT * student_texts(cell)
    asked, texts = _own_text(cell.method), student_texts(cell)
    if asked is None or cell.scale != "small":
        return 0.0
    student, teacher = size(pair.student), size(pair.teacher)
    written = texts * SLOWER_IN_TRAINING * _writing(cell, student + (teacher if asked.teacher_mix else 0))
    return written + _text_read_flops(cell, student, teacher) / CPU_FLOPS


def _writing(cell: Cell, parameters: float) -> float:
    """Seconds on two cores to read a prompt and write an answer of full length, among others."""
    new = cell.decoding.max_new_tokens
    tokens = min(PROMPT_TOKENS + new, cell.decoding.max_length)
    return tokens * 2 * parameters / CPU_FLOPS + new * CPU_TOKEN


def size(ref: str) -> float:
    """Parameters of a model, known or in a local folder; UNKNOWN_SIZE otherwise."""
    if ref in MODELS:
        return MODELS[ref].parameters
    try:
        return (is_local(ref) and ModelFolder(Path(ref)).parameters) or UNKNOWN_SIZE
    except FolderError:
        return UNKNOWN_SIZE


def student_texts(cell: Cell) -> float:
    """Answers that the student writes over a training, in the mean; at most, where that is not known."""
    asked = _own_text(cell.method)
    if asked is None or cell.training is None:
        return 0.0
    return _examples(cell) * cell.training.epochs * asked.schedule.mean(cell.training.epochs)


def _own_text(address: str) -> StudentText | None:
    """What a row asks of the student; nothing where the method is not known here (a plugin's)."""
    try:
        return None if address in UNTRAINED else create(address).needs.student_samples
    except MethodError:
        return None


def _answers(record: Mapping[str, Any]) -> int:
    """Answers decoded for a record."""
    return max(1, sum(int(s["items"]) * len(s["seeds"]) for s in record["scores"].values()))


def _keys(spec: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """From the most to the least similar; the amount of work is always the same."""
    training = spec["training"] or {}
    work = [training.get(name) for name in ("examples", "epochs", "lora", "max_length")]
    work += [run["limit"] for run in spec["suites"]]
    work += [len(spec["decoding"]["seeds"]), spec["decoding"]["max_new_tokens"], spec["data"]]
    same = (spec["scale"], json.dumps(work, sort_keys=True))  # a record's mappings come back sorted
    found = [(*same, spec["pair"], spec["method"]), (*same, spec["pair"]), same]
    return found if spec["scale"] == "tiny" else found[:2]  # tiny models are of one size, others are not


def gpu_hours(cell: Cell, pair: PairSpec) -> float | None:
    """A100 hours of one cell; None for models whose size is not known here."""
    student, teacher = MODELS.get(pair.student), MODELS.get(pair.teacher)
    if student is None or teacher is None:
        return None
    flops = 0.0
    if cell.training is not None:
        passes = cell.training.epochs if states_bytes(cell, teacher.width) > DISK_BUDGET else 1
        flops += _train_flops(cell, student.parameters, teacher.parameters, passes) / TRAIN_SHARE
        flops += _text_flops(cell, student, teacher)
        if cell.training.checkpoint != "last":
            flops += _decode_flops(DATA["dolly-dev"].examples * cell.training.epochs, student.parameters)
    writer = teacher if cell.method == "teacher" else student
    flops += _decode_flops(_answers_of(cell), writer.parameters)
    return flops / PEAK_FLOPS / 3600


def text_gpu_hours(cell: Cell, pair: PairSpec) -> float:
    """A100 hours of ``gpu_hours`` that go to text the student writes."""
    student, teacher = MODELS.get(pair.student), MODELS.get(pair.teacher)
    if student is None or teacher is None:
        return 0.0
    return _text_flops(cell, student, teacher) / PEAK_FLOPS / 3600


def _text_flops(cell: Cell, student: ModelFacts, teacher: ModelFacts) -> float:
    """To write the answers, have the teacher read them and, beside gold ones, train on them as well."""
    asked, texts = _own_text(cell.method), student_texts(cell)
    if asked is None or not texts:
        return 0.0
    voices = student.parameters + (teacher.parameters if asked.teacher_mix else 0)
    read = _text_read_flops(cell, student.parameters, teacher.parameters)
    return _decode_flops(texts, voices) + read / TRAIN_SHARE


def _text_read_flops(cell: Cell, student: float, teacher: float) -> float:
    """For the teacher to read the student's texts and, beside gold ones, the student to train on them."""
    asked = _own_text(cell.method)
    trained = _flops_per_token(cell, student) if asked is not None and asked.gold else 0.0
    return student_texts(cell) * _tokens(cell) * (2 * teacher + trained)


def _train_flops(cell: Cell, student: float, teacher: float, passes: int = 1) -> float:
    """To train a student of so many parameters, the teacher reading all ``passes`` times."""
    assert cell.training is not None
    per_token = _flops_per_token(cell, student) * cell.training.epochs
    per_token += 2 * teacher * passes if _reads_teacher(cell) else 0
    return _examples(cell) * _samples(cell) * _tokens(cell) * per_token


def _flops_per_token(cell: Cell, parameters: float) -> float:
    lora = cell.training is not None and cell.training.lora is not None
    return (4 if lora else 6) * parameters


def _answers_of(cell: Cell) -> int:
    """Answers that a cell writes to be scored."""
    items = sum(run.limit or ITEMS.get(run.name, SUITE_ITEMS) for run in cell.suites)
    return items * len(cell.decoding.seeds)


def _examples(cell: Cell) -> int:
    """Examples of the training set that a cell trains on."""
    facts = DATA.get(cell.data)
    limit = cell.training.examples if cell.training is not None else None
    return limit or (facts.examples if facts else 10_000)


def _tokens(cell: Cell) -> int:
    """Mean tokens of an example."""
    facts = DATA.get(cell.data)
    mean = facts.tokens if facts else 200
    return min(mean, cell.training.max_length) if cell.training is not None else mean


def _samples(cell: Cell) -> int:
    """Training examples that a method makes of one prompt."""
    return 1 if cell.method in UNTRAINED else create(cell.method).sampling.samples


def _decode_flops(answers: float, parameters: float) -> float:
    return answers * (ANSWER_TOKENS + PROMPT_TOKENS) * 2 * parameters / DECODE_SHARE


def gpu_gib(cell: Cell, pair: PairSpec, gpus: int = 1, *, read: bool = False) -> float | None:
    """GiB on each of ``gpus`` GPUs that share one training (FSDP); None for models of unknown size.

    Sharded evenly: the teacher at 2 bytes a parameter, the student at 16 (fp32 weights, gradients, two
    moments), or 4 under LoRA. On every GPU: the teacher's head and embedding (bf16), the student's as they
    are gathered (fp32) with the head's gradient, and 34 bytes a token, layer and unit of width for what the
    backward pass keeps of a micro-batch. The teacher reads before the student trains, unless its hidden
    states are too many to keep or the student writes text: then both are there at once. Text is written by
    whole models: that teacher, and beside a student in shards a copy of it (fp32), which a checkpoint rule
    that scores epochs needs as well. ``read``: the teacher has read before, in a pass of its own
    (harness/teacher_pass.py).
    """
    student, teacher = MODELS.get(pair.student), MODELS.get(pair.teacher)
    if student is None or teacher is None:
        return None
    reading = _reading_bytes(cell, teacher, gpus)
    if cell.training is None:  # decoding is not sharded
        return 2 * (teacher if cell.method == "teacher" else student).parameters / 2**30
    training = (4 if cell.training.lora else 16) * student.parameters / gpus
    training += 34 * cell.training.micro_batch * cell.training.max_length * student.layers * student.width
    training += 4 * teacher.vocabulary * teacher.width + 12 * student.vocabulary * student.width
    writes = _own_text(cell.method) is not None
    if gpus > 1 and (writes or cell.training.checkpoint != "last"):
        training += 4 * student.parameters
    if writes:
        return (training + 2 * teacher.parameters) / 2**30
    if not _reads_teacher(cell) or read:
        return training / 2**30
    together = states_bytes(cell, teacher.width) > DISK_BUDGET
    return (training + reading if together else max(training, reading)) / 2**30


def teacher_gib(cell: Cell, pair: PairSpec, gpus: int = 1) -> float | None:
    """GiB on each of ``gpus`` GPUs for a pass of the teacher alone."""
    teacher = MODELS.get(pair.teacher)
    return None if teacher is None else _reading_bytes(cell, teacher, gpus) / 2**30


def _reading_bytes(cell: Cell, teacher: ModelFacts, gpus: int) -> float:
    """Bytes on each GPU while a teacher reads, in shards with whole head and embedding, or writes, whole."""
    if cell.method not in UNTRAINED and create(cell.method).needs.teacher_text:
        return 2 * teacher.parameters
    return 2 * (teacher.parameters / gpus + teacher.vocabulary * teacher.width)


def _reads_teacher(cell: Cell) -> bool:
    needs = create(cell.method).needs
    return needs.teacher or needs.teacher_text


def states_bytes(cell: Cell, width: int) -> float:
    """Size of the teacher's hidden states on the training set, in bf16."""
    facts = DATA.get(cell.data)
    if cell.training is None or facts is None:
        return 0.0
    return _examples(cell) * facts.response * width * 2.0


def duration(seconds: float) -> str:
    """As a person says it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
