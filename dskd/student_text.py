"""On-policy: when a method distils on text that the student wrote, and how that text is written.

A method states a ``StudentText`` among its needs; the harness writes the text and keeps the state. Nothing
here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

#: The text a step distils on: the data's, the student's of now, or the student's of an earlier step.
Source = Literal["gold", "fresh", "replay"]


@dataclass(frozen=True)
class Fixed:
    """A fixed share of student text, from epoch ``after`` on (0: from the start)."""

    share: float = 1.0
    after: int = 0

    def at(self, epoch: int, progress: float) -> float:
        """Probability of student text in an epoch (from 0), ``progress`` (0..1) through the training."""
        return self.share if epoch >= self.after else 0.0

    def mean(self, epochs: int) -> float:
        """Share of student text over a training of so many epochs."""
        return self.share * max(0, epochs - self.after) / epochs


@dataclass(frozen=True)
class Growing:
    """ImitKD's schedule: gold text with probability base^-progress, student text otherwise."""

    base: float = 200.0

    def at(self, epoch: int, progress: float) -> float:
        """See Fixed."""
        return float(1 - self.base**-progress)

    def mean(self, epochs: int) -> float:
        """See Fixed."""
        return 1 - (1 - 1 / self.base) / math.log(self.base)


@dataclass(frozen=True)
class Adaptive:
    """DistiLLM's schedule: more student text whenever the validation loss rises, part of it replayed.

    The threshold phi starts at ``initial`` and grows by ``increment`` when a validation finds the loss
    ``tolerance`` above the reference, which follows the loss down and is set to it after a rise. With
    probability phi a step distils on student text: fresh with probability phi (1 - progress), or while
    the replay buffer has room; else replayed.
    """

    increment: float = 0.1
    tolerance: float = 0.1  #: nats per token
    capacity: int = 1000  #: texts in the replay buffer
    validations: int = 20  #: over the whole training
    initial: float = 0.0

    def source(self, threshold: float, progress: float, full: bool, draw: float) -> Source:
        """What a step distils on; ``draw`` is uniform in [0, 1), ``full`` tells of the replay buffer."""
        if draw >= threshold:
            return "gold"
        return "fresh" if draw < threshold * (1 - progress) or not full else "replay"

    def updated(self, threshold: float, reference: float, loss: float) -> tuple[float, float]:
        """Threshold and reference after a validation."""
        if loss < reference + self.tolerance:
            return threshold, min(reference, loss)
        return min(1.0, threshold + self.increment), loss

    def mean(self, epochs: int) -> float:
        """At most: the threshold grows at every validation."""
        steps = range(1, self.validations + 1)
        return sum(min(1.0, self.initial + self.increment * n) for n in steps) / self.validations


@dataclass(frozen=True)
class StudentText:
    """Student text in training: how often, whose words, and what is read beside it."""

    schedule: Fixed | Growing | Adaptive = field(default_factory=Fixed)
    each: Literal["batch", "example"] = "batch"  #: what one draw decides on, within an optimiser step
    temperature: float = 1.0  #: 0 is greedy
    teacher_mix: float = 0.0  #: words come from mix p + (1 - mix) q (MiniLLM); needs one vocabulary
    gold: bool = True  #: the gold responses are read too, for a cross-entropy on them

    @property
    def always(self) -> bool:
        """Whether every step distils on student text, so that the teacher never reads the data's."""
        return self.schedule == Fixed()

    def unfit(self, epochs: int) -> str:
        """Why a training of so many epochs cannot serve; empty if it can."""
        schedule = self.schedule
        if isinstance(schedule, Fixed) and schedule.after >= epochs:
            return f"student text from epoch {schedule.after + 1} on, but the training has {epochs}"
        return ""


#: Ledger text of the options that put a method on student text.
ON_POLICY: Mapping[str, str] = {
    "on_policy": "share of the optimiser steps whose distillation terms are computed on text the student "
    "writes, default 0; the gold CE stays on the data. Not 0: the method needs student samples",
    "on_policy_after": "epochs before the first student text, default 0",
}
