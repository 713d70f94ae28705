"""The one training loop: AdamW, cosine, clipping, one normaliser per optimiser step, exact resume."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dskd.batch import Batch, Gold, Loss, Pairs, Side, View
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
from harness.distributed import Computed, Whole, World, own_tensor
from harness.models import LoadedModel, Progress, autocast, trainable
from harness.on_policy import OnPolicy
from harness.teacher import HiddenStates, read
from harness.tracking import Log

CURVE_POINTS = 50
CHECKPOINT = "checkpoint.pt"
#: A kill costs about so much training; 0, for tests of kills, has a checkpoint after every step.
SECONDS_BETWEEN_CHECKPOINTS = float(os.environ.get("DSKD_CHECKPOINT_SECONDS", "20"))
#: Checkpoints take no more of the time than this, however slow the disk.
CHECKPOINT_SHARE = 1 / 20

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


@dataclass(frozen=True)
class Micro:
    """A micro-batch that is still to be computed."""

    rows: list[int]  #: its examples
    compute: Callable[[], Computed]


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
    world: World = field(default_factory=World)
    log: Log | None = None  #: takes every step's losses, for a tracker

    def __post_init__(self) -> None:
        self.trained = Trained()
        self.rows = self.student.side().vocabulary.size
        self.steps_per_epoch = steps_per_epoch(len(self.data), self.settings.batch)
        self.total_steps = self.steps_per_epoch * self.settings.epochs
        self.whole = Whole(self.student.lm, self.parts)
        self.compute, self.optimizer = self.world.prepare(
            self.whole, self._optimizer, self.seed, self.settings.clip
        )
        if self.teacher is not None:
            self.teacher = on_device(self.teacher, self.world.device)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._factors())

    def _optimizer(self) -> torch.optim.Optimizer:
        groups = [{"params": trainable(self.student.lm), "lr": self.settings.lr}]
        if parts := trainable(self.parts):
            groups.append({"params": parts, "lr": self.method.part_lr() or self.settings.lr})
        return torch.optim.AdamW(groups, weight_decay=self.settings.weight_decay, fused=True)

    def _factors(self) -> list[Callable[[int], float]]:
        """Cosine from each group's rate to min_lr, without warm-up (methods.md section 6)."""

        total = self.total_steps  # of the trainer itself it would make a ring, and models outlive their use

        def factor(lr: float) -> Callable[[int], float]:
            floor = min(1.0, self.settings.min_lr / lr)
            return lambda step: floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))

        return [factor(group["lr"]) for group in self.optimizer.param_groups]

    def run(self) -> Trained:
        """Train to the end, from the last checkpoint if there is one."""
        self.student.lm.train()
        started = saved = time.monotonic()
        cost = 0.0
        before = self._restore()
        for step, rows in self._schedule(self.trained.steps):
            lr = float(self.scheduler.get_last_lr()[0])
            terms = self._step(step, rows)
            self.trained.steps = step + 1
            if (step + 1) % max(1, self.total_steps // CURVE_POINTS) == 0 or step == 0:
                self.trained.curve.append((step + 1, {name: value.item() for name, value in terms.items()}))
            self._track(terms, lr)
            self.progress("train", (step + 1) / self.total_steps)
            if self.at_epoch_end is not None and (step + 1) % self.steps_per_epoch == 0:
                self.at_epoch_end((step + 1) // self.steps_per_epoch)
            if self.world.told(partial(_due, saved, cost)):
                begun = time.monotonic()
                self.trained.seconds = before + begun - started
                self._save()
                saved = time.monotonic()
                cost = saved - begun
        self.trained.seconds = before + time.monotonic() - started
        if self.on_policy is not None:
            self.trained.written = dict(vars(self.on_policy.tally))
        self._check_weights()
        self.student.lm.eval()
        return self.trained

    def _track(self, terms: Mapping[str, Tensor], lr: float) -> None:
        if self.log is not None:
            losses = {f"train/{name}": value.item() for name, value in terms.items()}
            self.log({**losses, "train/lr": lr}, self.trained.steps)

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
        losses = self._losses(rows) if texts is None else self._text_losses(rows, texts)
        total, sums = self._gradient(step, losses)
        parameters = trainable(self.student.lm) + trainable(self.parts)
        norm = self.world.clip(parameters, self.settings.clip)
        if not math.isfinite(norm):
            raise DivergedError(f"step {step + 1}: gradient norm is {norm} ({self._told(sums, rows)})")
        self.world.step(self.optimizer)
        self.scheduler.step()
        self._count(step, total)
        self._count_tokens(rows, texts)
        return sums

    def _gradient(self, step: int, losses: Iterable[Micro]) -> tuple[float, dict[str, Tensor]]:
        """Gradients of a step's micro-batches; their loss and its terms over all processes."""
        sums: dict[str, Tensor] = {}
        total = 0.0
        shares = list(self.world.shares(list(losses)))
        for place, (micro, counts) in enumerate(shares, 1):
            loss, terms = self.compute(micro.compute)
            self._check_loss(step, Loss(loss, terms), micro.rows)
            self.world.backward(loss, counts, place == len(shares))
            if counts:
                for name, value in terms.items():
                    sums[name] = sums[name] + value if name in sums else value
                total += loss.item()
        return self.world.summed(total, sums)

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
        weights = self.student.lm.named_parameters()
        broken = [name for name, p in weights if not torch.isfinite(own_tensor(p)).all()]
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

    def _losses(self, rows: Sequence[int]) -> Iterator[Micro]:
        """The micro-batches of a global batch of the data's text."""
        normaliser = self.data.response_tokens(rows)
        for micro in self._gold_rows(rows):
            yield Micro(micro, partial(self._computed, self.loss, micro, normaliser))

    def _gold_rows(self, rows: Sequence[int]) -> Iterator[list[int]]:
        lengths = [len(sequence) for sequence in self.data.student]
        return micro_batches(rows, lengths, self.settings.micro_batch)

    def _text_losses(self, rows: Sequence[int], texts: Sequence[Text]) -> Iterator[Micro]:
        """The same for text that the student wrote at least in part, gold responses beside it."""
        lengths = [len(text.student) for text in texts]
        tokens = sum(len(text.student.response.ids) for text in texts)
        gold_tokens = self.data.response_tokens(rows)
        micro_texts = micro_batches(range(len(texts)), lengths, self.settings.micro_batch)
        for places, beside in zip(micro_texts, self._gold_rows(rows), strict=True):
            micro = [texts[place] for place in places]
            rest = (micro, tokens, beside, gold_tokens)
            yield Micro([text.row for text in micro], partial(self._computed, self._text_loss, *rest))

    @staticmethod
    def _computed(make: Callable[..., Loss], *given: Any) -> Computed:
        loss = make(*given)
        return loss.total, loss.terms

    def _text_loss(
        self, texts: Sequence[Text], normaliser: float, beside: Sequence[int], gold_tokens: float
    ) -> Loss:
        """As ``loss``, of text that the student wrote at least in part."""
        with autocast(self.student, self.settings.precision):
            batch = self._text_batch(texts, normaliser)
            if self._reads_gold():
                view = self._student_view([self.data.student[row] for row in beside])
                batch = replace(batch, gold=Gold(view, gold_tokens))
            return self.method.loss(batch, self.parts)

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
            pairs = self._pairs([self.data.pairs[row] for row in rows], student, teacher)
        return Batch(student, teacher, pairs, normaliser)

    def _text_batch(self, texts: Sequence[Text], normaliser: float) -> Batch:
        """As ``_batch``, of text that the student wrote at least in part; the teacher reads it now."""
        student = self._student_view([text.student for text in texts])
        sampled = torch.tensor([text.sampled for text in texts], device=self.world.device)
        teacher = pairs = None
        sequences = [text.teacher for text in texts if text.teacher is not None]
        if self.teacher is not None and sequences:
            teacher = self._teacher_view(self.teacher, sequences, self._text_states(texts))
            found = [text.pairs for text in texts if text.pairs is not None]
            pairs = self._pairs(found, student, teacher) if found else None
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
        return self.states.rows([row]).to(self.world.device)

    def _pairs(self, found: Sequence[np.ndarray], student: View, teacher: View) -> Pairs:
        pairs = pack_pairs(found, student.offsets.cpu(), teacher.offsets.cpu())
        return Pairs(pairs.student.to(self.world.device), pairs.teacher.to(self.world.device))

    def _student_view(self, sequences: Sequence[Encoded]) -> View:
        packed = pack(sequences).to(self.world.device)
        hidden = self.student.hidden(packed.ids).flatten(0, 1).index_select(0, packed.positions)
        if self.settings.precision == "bf16":
            hidden = hidden.to(torch.bfloat16)
        lm = self.student.lm  # asked now: between calls its weights may be shards
        head, embedding = lm.get_output_embeddings().weight, lm.get_input_embeddings().weight
        matrices = head[: self.rows], embedding[: self.rows]
        return View(hidden, *matrices, packed.inputs, packed.labels, packed.offsets)

    def _teacher_view(self, side: Side, sequences: Sequence[Encoded], states: Tensor) -> View:
        packed = pack(sequences).to(self.world.device)
        dtype = torch.bfloat16 if self.settings.precision == "bf16" else torch.float32
        hidden = states.to(self.world.device, dtype)
        return View(hidden, side.head, side.embedding, packed.inputs, packed.labels, packed.offsets)

    def _save(self) -> None:
        self.world.save(
            self.work / CHECKPOINT,
            self.whole,
            self.optimizer,
            {
                "scheduler": {
                    "last_epoch": self.scheduler.last_epoch,
                    "_step_count": self.scheduler._step_count,
                },
                "trained": vars(self.trained),
                "on_policy": {} if self.on_policy is None else self.on_policy.state(),
            },
        )

    def _restore(self) -> float:
        """Load the checkpoint, if an intact one exists; returns the seconds already spent."""
        state = self.world.load(self.work / CHECKPOINT, self.whole, self.optimizer)
        if state is None:
            return 0.0
        self.scheduler.__dict__.update(state["scheduler"])
        self.trained = Trained(**state["trained"])
        if self.on_policy is not None:
            self.on_policy.restore(state["on_policy"])
        return self.trained.seconds


def _due(saved: float, cost: float) -> bool:
    """Whether it is time for a checkpoint; the last one was at ``saved`` and took ``cost`` seconds."""
    wanted = SECONDS_BETWEEN_CHECKPOINTS
    return time.monotonic() - saved > (max(wanted, cost / CHECKPOINT_SHARE) if wanted else 0)


def on_device(side: Side, device: torch.device) -> Side:
    """A side with its matrices there; one matrix stays one."""
    head = side.head.to(device)
    tied = side.embedding.data_ptr() == side.head.data_ptr()
    return Side(head, head if tied else side.embedding.to(device), side.vocabulary)
