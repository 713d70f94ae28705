"""Text that the student writes while it is trained: when, how, and what is kept of it.

Everything random depends on the training seed, the optimiser step and the example alone, so that a run
that was stopped goes on as if it had not been; what else there is to remember is in ``state``.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from dskd import heads
from dskd.alignment import Tokens, decode, encode
from dskd.student_text import Adaptive, Source, StudentText
from dskd.vocabulary import Vocabulary
from evals.decoding import Companion, Written, uniforms, write
from harness.cells import Decoding, Training
from harness.data import Encoded, PairedData, Text, align, pack, steps_per_epoch
from harness.distributed import World
from harness.models import LoadedModel, autocast, merged

#: Answers written side by side; decoding keeps no activations, so more fit than in a training step.
ANSWERS_AT_ONCE = 64


@dataclass(frozen=True)
class Sides:
    """Both models of a pair as the writing of text needs them."""

    student: Callable[[], LoadedModel]  #: as it is now, whole; all processes ask together
    teacher: LoadedModel  #: whole on every process
    vocabularies: tuple[Vocabulary, Vocabulary]  #: student's, teacher's
    same: bool  #: one vocabulary


@dataclass(frozen=True)
class Limits:
    """How long text may become, in tokens."""

    answer: int  #: a sampled response
    student: int  #: prompt and response in the student's tokens
    teacher: int  #: and in the teacher's


@dataclass(frozen=True)
class Kept:
    """A text in the replay buffer."""

    row: int
    written: Written


@dataclass
class Tally:
    """What a record says of the text that was written."""

    texts: int = 0
    tokens: int = 0
    ended: int = 0  #: texts that came to their EOS
    replayed: int = 0
    seconds: float = 0.0  #: spent on writing
    threshold: float = 0.0  #: of the adaptive schedule, in the end


@dataclass
class OnPolicy:
    """Chooses the text of every step and has the student write it."""

    asked: StudentText
    sides: Sides
    data: PairedData
    alignment: str
    limits: Limits
    settings: Training
    seed: int
    held_out: Sequence[Encoded] = ()  #: what the adaptive schedule validates on
    world: World = field(default_factory=World)  #: the processes that share the writing
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.steps_per_epoch = steps_per_epoch(len(self.data), self.settings.batch)
        self.steps = self.steps_per_epoch * self.settings.epochs
        student = self.sides.vocabularies[0]
        controls = sorted((student.special | student.holes) - {student.eos})
        self.banned = torch.tensor(controls, dtype=torch.int64)
        self.reference = math.inf  #: validation loss that the adaptive schedule compares with
        schedule = self.asked.schedule
        self.tally.threshold = schedule.initial if isinstance(schedule, Adaptive) else 0.0
        self.buffer: deque[Kept] = deque(maxlen=self._capacity(schedule))

    def _capacity(self, schedule: object) -> int:
        """The paper's 1000 texts are a tenth of its data; a batch is drawn from them without repetition."""
        if not isinstance(schedule, Adaptive):
            return 0
        return max(self.settings.batch, min(schedule.capacity, len(self.data) // 10))

    # what a step distils on

    def texts(self, step: int, rows: Sequence[int]) -> list[Text] | None:
        """One text for each example of a global batch; None where all are the data's."""
        self._validate(step)
        sources = self._sources(step, rows)
        if "replay" in sources:
            return self._replayed(step, len(rows))
        fresh = [row for row, source in zip(rows, sources, strict=True) if source == "fresh"]
        if not fresh:
            return None
        kept = self._write(step, fresh)
        self.buffer.extend(kept)
        written = dict(zip(fresh, self._read(kept), strict=True))
        return [written.get(row) or self.data.text(row) for row in rows]

    def _sources(self, step: int, rows: Sequence[int]) -> list[Source]:
        """Where the text of each example comes from."""
        schedule, progress = self.asked.schedule, step / self.steps
        if isinstance(schedule, Adaptive):
            full = len(self.buffer) == self.buffer.maxlen
            draw = self._draw(step, "batch")
            return [schedule.source(self.tally.threshold, progress, full, draw)] * len(rows)
        share = schedule.at(step // self.steps_per_epoch, progress)
        each = [f"row {row}" if self.asked.each == "example" else "batch" for row in rows]
        return ["fresh" if self._draw(step, what) < share else "gold" for what in each]

    def _draw(self, step: int, what: str) -> float:
        return float(uniforms(self.seed, f"source\x1f{step}\x1f{what}", 1)[0])

    def _replayed(self, step: int, count: int) -> list[Text]:
        order = np.random.default_rng([self.seed, step, 1]).permutation(len(self.buffer))[:count]
        self.tally.replayed += count
        return self._read([self.buffer[place] for place in order])

    # writing

    def _write(self, step: int, rows: Sequence[int]) -> list[Kept]:
        started = time.monotonic()
        student = self.sides.student()
        with merged(student), autocast(student, self.settings.precision):
            answers = self.world.spread(rows, partial(self._answers, student, step))
        self.tally.texts += len(answers)
        self.tally.ended += sum(answer.ended for answer in answers)
        self.tally.tokens += sum(len(answer.ids) + answer.ended for answer in answers)
        self.tally.seconds += time.monotonic() - started
        return [Kept(row, answer) for row, answer in zip(rows, answers, strict=True)]

    def _answers(self, student: LoadedModel, step: int, rows: Sequence[int]) -> list[Written]:
        asked = self.asked
        decoding = Decoding(
            temperature=asked.temperature,
            max_new_tokens=self.limits.answer,
            max_length=self.limits.student,
        )
        return write(
            student.lm,
            [self.data.student[row].prompt.tolist() for row in rows],
            [f"text\x1f{step}\x1f{row}" for row in rows],
            decoding,
            self.seed,
            eos=self.sides.vocabularies[0].eos,
            reachable=self.sides.vocabularies[0].size,
            batch_size=ANSWERS_AT_ONCE,
            banned=self.banned,
            companion=Companion(self.sides.teacher.lm, asked.teacher_mix) if asked.teacher_mix else None,
        )

    def _read(self, kept: Sequence[Kept]) -> list[Text]:
        """Written answers as both models read them: the student its own tokens, the teacher the text."""
        own_words, other_words = self.sides.vocabularies
        decoded = [decode(own_words, k.written.ids, k.written.ended) for k in kept]
        own = [Encoded(self.data.student[k.row].prompt, t) for k, (_, t) in zip(kept, decoded, strict=True)]
        other = own if self.sides.same else self._for_teacher(kept, [text for text, _ in decoded])
        pairs = align(self.alignment, own, other, own_words, other_words)
        return [
            Text(k.row, s, t, None if pairs is None else pairs[n], sampled=True)
            for n, (k, s, t) in enumerate(zip(kept, own, other, strict=True))
        ]

    def _for_teacher(self, kept: Sequence[Kept], texts: Sequence[str]) -> list[Encoded]:
        """The same answers in the teacher's tokens, behind the prompt as the data has it for the teacher."""
        assert self.data.teacher is not None
        found = []
        for k, tokens in zip(kept, encode(self.sides.teacher.tokenizer, texts), strict=True):
            prompt = self.data.teacher[k.row].prompt
            room = min(self.limits.teacher - len(prompt), len(tokens.ids) - (not k.written.ended))
            found.append(Encoded(prompt, Tokens(tokens.ids[:room], tokens.spans[:room])))
        return found

    # the adaptive schedule

    def _validate(self, step: int) -> None:
        """Before a step that a validation falls on, bring the threshold up to date."""
        schedule = self.asked.schedule
        if not isinstance(schedule, Adaptive) or step % max(1, self.steps // schedule.validations):
            return
        student = self.sides.student()
        loss = self.world.told(lambda: self._validation_loss(student))  # one number, or they would part
        self.tally.threshold, self.reference = schedule.updated(self.tally.threshold, self.reference, loss)

    @torch.no_grad()
    def _validation_loss(self, student: LoadedModel) -> float:
        """The student's mean cross-entropy per token of the held-out responses."""
        side, training = student.side(), student.lm.training
        student.lm.eval()
        total, count = 0.0, 0
        order = sorted(self.held_out, key=len)
        with autocast(student, self.settings.precision):
            for start in range(0, len(order), self.settings.batch):
                packed = pack(order[start : start + self.settings.batch]).to(student.device)
                hidden = student.hidden(packed.ids).flatten(0, 1).index_select(0, packed.positions)
                weights = torch.ones(len(packed.labels), device=student.device)
                total += heads.cross_entropy(hidden, side.head, packed.labels, weights).loss.item()
                count += len(packed.labels)
        student.lm.train(training)
        return total / count

    # checkpoints

    def state(self) -> dict[str, Any]:
        """Everything that is not a function of seed and step, as plain data."""
        return {
            "buffer": [(k.row, list(k.written.ids), k.written.ended) for k in self.buffer],
            "reference": self.reference,
            "tally": dict(vars(self.tally)),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state again."""
        self.buffer.clear()
        self.buffer.extend(Kept(row, Written(list(ids), ended)) for row, ids, ended in state["buffer"])
        self.reference = state["reference"]
        self.tally = Tally(**state["tally"])
