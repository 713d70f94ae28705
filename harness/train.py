"""The one training loop: AdamW, cosine, clipping, one normaliser per optimiser step, exact resume."""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dskd.batch import Batch, Gold, Loss, Side, View
from dskd.method import Method
from harness.cells import Training
from harness.data import (
    Encoded,
    PairedData,
    Text,
    epoch_batches,
    micro_batches,
    pack,
    pack_pairs,
    steps_per_epoch,
)
from harness.models import LoadedModel, Progress, autocast, trainable
from harness.on_policy import OnPolicy
from harness.teacher import HiddenStates, read

CURVE_POINTS = 50
CHECKPOINT = "checkpoint.pt"
#: A kill costs at most so much training; more on a slow disk, less in a test.
SECONDS_BETWEEN_CHECKPOINTS = float(os.environ.get("DSKD_CHECKPOINT_SECONDS", "20"))


#: A training that ends is said to have diverged when its mean loss over the last tenth of its steps is more
#: than so many times that over the first tenth. The score stands, with the word beside it.
DIVERGENCE = 2.0


class DivergedError(RuntimeError):
    """The loss or the weights stopped being numbers; the message has the step, the terms and the examples."""


@dataclass
class Trained:
    """What a record says of a training."""

    steps: int = 0
    tokens: int = 0  #: response tokens trained on; of text the student wrote, those distilled on
    read_tokens: int = 0  #: tokens the student read, prompts included
    seconds: float = 0.0
    curve: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    first_loss: float = 0.0  #: mean over the first tenth of the steps
    last_loss: float = 0.0  #: mean over the last tenth
    written: dict[str, float] = field(default_factory=dict)  #: of student text, see on_policy.Tally

    @property
    def divergence(self) -> str:
        """In what way the training diverged, by the rule of ``DIVERGENCE``; empty where it did not."""
        if not 0 < self.first_loss * DIVERGENCE < self.last_loss:
            return ""
        ends = f"{self.last_loss:.3g} over the last tenth of the steps, {self.first_loss:.3g} over the first"
        return f"mean loss {ends}"


@dataclass
class Trainer:
    """One student under one method. ``teacher`` and ``states`` are None for methods without a teacher."""

    student: LoadedModel
    method: Method
    parts: nn.Module | None
    data: PairedData
    settings: Training
    seed: int
    teacher: Side | None
    states: HiddenStates | None
    work: Path  #: the checkpoint lives here
    progress: Progress
    at_epoch_end: Callable[[int], None] | None = None  #: for checkpoint rules that score a dev set
    on_policy: OnPolicy | None = None  #: writes the text of methods that need student samples

    def __post_init__(self) -> None:
        self.trained = Trained()
        self.side = self.student.side()
        self.steps_per_epoch = steps_per_epoch(len(self.data), self.settings.batch)
        self.total_steps = self.steps_per_epoch * self.settings.epochs
        self.optimizer = self._optimizer()
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._factors())

    def _optimizer(self) -> torch.optim.Optimizer:
        groups = [{"params": trainable(self.student.lm), "lr": self.settings.lr}]
        if parts := trainable(self.parts):
            groups.append({"params": parts, "lr": self.method.part_lr() or self.settings.lr})
        return torch.optim.AdamW(groups, weight_decay=self.settings.weight_decay, fused=True)

    def _factors(self) -> list[Callable[[int], float]]:
        """Cosine from each group's rate to min_lr, without warm-up (methods.md section 6)."""

        def factor(lr: float) -> Callable[[int], float]:
            floor = min(1.0, self.settings.min_lr / lr)
            return lambda step: (
                floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.total_steps)))
            )

        return [factor(group["lr"]) for group in self.optimizer.param_groups]

    def run(self) -> Trained:
        """Train to the end, from the last checkpoint if there is one."""
        self.student.lm.train()
        started = saved = time.monotonic()
        before = self._restore()
        for step, rows in self._schedule(self.trained.steps):
            terms = self._step(step, rows)
            self.trained.steps = step + 1
            if (step + 1) % max(1, self.total_steps // CURVE_POINTS) == 0 or step == 0:
                self.trained.curve.append((step + 1, {name: value.item() for name, value in terms.items()}))
            self.progress("train", (step + 1) / self.total_steps)
            if self.at_epoch_end is not None and (step + 1) % self.steps_per_epoch == 0:
                self.at_epoch_end((step + 1) // self.steps_per_epoch)
            if time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                self.trained.seconds = before + time.monotonic() - started
                self._save()
                saved = time.monotonic()
        self.trained.seconds = before + time.monotonic() - started
        if self.on_policy is not None:
            self.trained.written = dict(vars(self.on_policy.tally))
        self._check_weights()
        self.student.lm.eval()
        return self.trained

    def _schedule(self, done: int) -> Iterator[tuple[int, list[int]]]:
        """(step, global batch) from step ``done`` on."""
        for epoch in range(done // self.steps_per_epoch, self.settings.epochs):
            batches = epoch_batches(len(self.data), self.settings.batch, self.seed, epoch)
            for index, rows in enumerate(batches):
                step = epoch * self.steps_per_epoch + index
                if step >= done:
                    yield step, rows

    def _step(self, step: int, rows: list[int]) -> dict[str, Tensor]:
        """One optimiser step. Every micro-batch is normalised by the global batch's token count."""
        texts = None if self.on_policy is None else self.on_policy.texts(step, rows)
        sums: dict[str, Tensor] = {}
        total = 0.0
        for micro, loss in self._losses(rows) if texts is None else self._text_losses(rows, texts):
            self._check_loss(step, loss, micro)
            loss.total.backward()
            for name, value in loss.terms.items():
                sums[name] = sums[name] + value if name in sums else value
            total += loss.total.item()
        parameters = trainable(self.student.lm) + trainable(self.parts)
        norm = nn.utils.clip_grad_norm_(parameters, self.settings.clip)
        if not math.isfinite(norm.item()):
            raise DivergedError(f"step {step + 1}: gradient norm is {norm.item()} ({self._told(sums, rows)})")
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._count(step, total)
        self._count_tokens(rows, texts)
        return sums

    def _check_loss(self, step: int, loss: Loss, rows: Sequence[int]) -> None:
        """Raise DivergedError before a loss that is no number reaches the weights."""
        total = loss.total.item()
        if not all(math.isfinite(value) for value in (total, *(v.item() for v in loss.terms.values()))):
            raise DivergedError(f"step {step + 1}: the loss is {total} ({self._told(loss.terms, rows)})")

    def _told(self, terms: Mapping[str, Tensor], rows: Sequence[int]) -> str:
        shown = ", ".join(f"{name}={value.item():g}" for name, value in terms.items())
        return f"{shown}; examples {', '.join(self.data.examples[row].id for row in rows)}"

    def _check_weights(self) -> None:
        """Raise DivergedError where the last step broke the student, whose loss nobody computes any more."""
        broken = [name for name, p in self.student.lm.named_parameters() if not torch.isfinite(p).all()]
        if broken:
            raise DivergedError(
                f"after step {self.trained.steps}: {broken[0]} holds numbers that are not finite"
            )

    def _count(self, step: int, loss: float) -> None:
        """Keep the mean loss at both ends of the training."""
        tenth = max(1, self.total_steps // 10)
        self.trained.first_loss += loss / tenth if step < tenth else 0.0
        self.trained.last_loss += loss / tenth if step >= self.total_steps - tenth else 0.0

    def _count_tokens(self, rows: Sequence[int], texts: Sequence[Text] | None) -> None:
        """Add up the tokens of a step."""
        gold = [self.data.student[row] for row in rows]
        distilled = gold if texts is None else [text.student for text in texts]
        self.trained.tokens += sum(len(sequence.response.ids) for sequence in distilled)
        beside = gold if texts is not None and self._reads_gold() else []
        self.trained.read_tokens += sum(len(sequence) - 1 for sequence in [*distilled, *beside])

    def _losses(self, rows: Sequence[int]) -> Iterator[tuple[list[int], Loss]]:
        """The micro-batches of a global batch of the data's text, each with its examples."""
        normaliser = self.data.response_tokens(rows)
        for micro in self._gold_rows(rows):
            yield micro, self.loss(micro, normaliser)

    def _gold_rows(self, rows: Sequence[int]) -> Iterator[list[int]]:
        lengths = [len(sequence) for sequence in self.data.student]
        return micro_batches(rows, lengths, self.settings.micro_batch)

    def _text_losses(self, rows: Sequence[int], texts: Sequence[Text]) -> Iterator[tuple[list[int], Loss]]:
        """The same for text that the student wrote at least in part, gold responses beside it."""
        lengths = [len(text.student) for text in texts]
        tokens = sum(len(text.student.response.ids) for text in texts)
        gold_tokens = self.data.response_tokens(rows)
        micro_texts = micro_batches(range(len(texts)), lengths, self.settings.micro_batch)
        for places, beside in zip(micro_texts, self._gold_rows(rows), strict=True):
            with autocast(self.student, self.settings.precision):
                micro = [texts[place] for place in places]
                batch = self._text_batch(micro, tokens)
                if self._reads_gold():
                    view = self._student_view([self.data.student[row] for row in beside])
                    batch = replace(batch, gold=Gold(view, gold_tokens))
                loss = self.method.loss(batch, self.parts)
            yield [text.row for text in micro], loss

    def _reads_gold(self) -> bool:
        """Whether steps on student text read the data's responses too."""
        return self.on_policy is not None and self.on_policy.asked.gold

    def loss(self, rows: Sequence[int], normaliser: float) -> Loss:
        """Forward one micro-batch and hand both views to the method."""
        with autocast(self.student, self.settings.precision):
            batch = self._batch(rows, normaliser)
            return self.method.loss(batch, self.parts)

    def _batch(self, rows: Sequence[int], normaliser: float) -> Batch:
        student = self._student_view([self.data.student[row] for row in rows])
        teacher = pairs = None
        if self.teacher is not None and self.states is not None and self.data.teacher is not None:
            sequences = [self.data.teacher[row] for row in rows]
            teacher = self._teacher_view(self.teacher, sequences, self.states.rows(rows))
        if self.data.pairs is not None and teacher is not None:
            pairs = pack_pairs([self.data.pairs[row] for row in rows], student.offsets, teacher.offsets)
        return Batch(student, teacher, pairs, normaliser)

    def _text_batch(self, texts: Sequence[Text], normaliser: float) -> Batch:
        """As ``_batch``, of text that the student wrote at least in part; the teacher reads it now."""
        student = self._student_view([text.student for text in texts])
        sampled = torch.tensor([text.sampled for text in texts])
        teacher = pairs = None
        sequences = [text.teacher for text in texts if text.teacher is not None]
        if self.teacher is not None and sequences:
            teacher = self._teacher_view(self.teacher, sequences, self._text_states(texts))
            found = [text.pairs for text in texts if text.pairs is not None]
            pairs = pack_pairs(found, student.offsets, teacher.offsets) if found else None
        return Batch(student, teacher, pairs, normaliser, sampled)

    def _text_states(self, texts: Sequence[Text]) -> Tensor:
        """The teacher's states (N, width): computed now on sampled text, as stored on the data's."""
        assert self.on_policy is not None
        fresh = [text.teacher for text in texts if text.sampled and text.teacher is not None]
        made = read(self.on_policy.sides.teacher, fresh) if fresh else torch.empty(0)
        counts = [len(sequence.response.ids) for sequence in fresh]
        own = iter(made.split(counts))
        return torch.cat([next(own) if text.sampled else self._stored(text.row) for text in texts])

    def _stored(self, row: int) -> Tensor:
        assert self.states is not None
        return self.states.rows([row])

    def _student_view(self, sequences: Sequence[Encoded]) -> View:
        packed = pack(sequences)
        hidden = self.student.hidden(packed.ids).flatten(0, 1).index_select(0, packed.positions)
        if self.settings.precision == "bf16":
            hidden = hidden.to(torch.bfloat16)
        return View(hidden, self.side.head, self.side.embedding, packed.inputs, packed.labels, packed.offsets)

    def _teacher_view(self, side: Side, sequences: Sequence[Encoded], states: Tensor) -> View:
        packed = pack(sequences)
        hidden = states.to(torch.bfloat16 if self.settings.precision == "bf16" else torch.float32)
        return View(hidden, side.head, side.embedding, packed.inputs, packed.labels, packed.offsets)

    def _state(self) -> dict[str, Any]:
        names = {name for name, p in self.student.lm.named_parameters() if p.requires_grad}
        weights = {name: value for name, value in self.student.lm.state_dict().items() if name in names}
        return {
            "student": weights,
            "parts": self.parts.state_dict() if self.parts is not None else {},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {"last_epoch": self.scheduler.last_epoch, "_step_count": self.scheduler._step_count},
            "rng": torch.get_rng_state(),
            "trained": vars(self.trained),
            "on_policy": {} if self.on_policy is None else self.on_policy.state(),
        }

    def _save(self) -> None:
        save_checkpoint(self.work / CHECKPOINT, self._state())

    def _restore(self) -> float:
        """Load the checkpoint, if an intact one exists; returns the seconds already spent."""
        state = load_checkpoint(self.work / CHECKPOINT)
        if state is None:
            return 0.0
        self.student.lm.load_state_dict(state["student"], strict=False)
        if self.parts is not None:
            self.parts.load_state_dict(state["parts"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.__dict__.update(state["scheduler"])
        torch.set_rng_state(state["rng"])
        self.trained = Trained(**state["trained"])
        if self.on_policy is not None:
            self.on_policy.restore(state["on_policy"])
        return self.trained.seconds


def save_checkpoint(file: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint behind its own SHA-256, atomically: a kill leaves the older one whole."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getbuffer()
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    with part.open("wb") as stream:
        stream.write(hashlib.sha256(payload).digest())
        stream.write(payload)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, file)


def load_checkpoint(file: Path) -> dict[str, Any] | None:
    """A checkpoint whose hash holds (tensors and plain data only, never pickled code), else None."""
    try:
        raw = file.read_bytes()
        if hashlib.sha256(raw[32:]).digest() != raw[:32]:
            return None
        state: dict[str, Any] = torch.load(io.BytesIO(raw[32:]), weights_only=True)
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError):
        return None
    return state
