"""Which of a training's weights are scored, as a named rule (DomainBed's model selection)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import nn

from harness.distributed import World
from harness.models import LoadedModel
from harness.saving import load_checkpoint, save_checkpoint


class CheckpointRule(Protocol):
    """Told of every epoch's end; at the end of training it leaves the chosen weights in the student.

    The student it is given is whole, whatever number of processes train it.
    """

    name: str

    def at_epoch_end(self, epoch: int, student: LoadedModel) -> None: ...

    def resumes(self) -> bool:
        """Whether a training may go on from its own checkpoint, so far as this rule is concerned."""
        ...

    def finish(self, student: LoadedModel) -> str:
        """Put the chosen weights into the student; says which were chosen."""
        ...


@dataclass
class Last:
    """The weights after the last step."""

    name: str = "last"

    def at_epoch_end(self, epoch: int, student: LoadedModel) -> None:
        """Nothing to do."""

    def resumes(self) -> bool:
        """See CheckpointRule."""
        return True

    def finish(self, student: LoadedModel) -> str:
        """See CheckpointRule."""
        return "last step"


@dataclass
class BestDevRouge:
    """The weights of the epoch with the best sampled Rouge-L on the dev set (DSKD's released code)."""

    score: Callable[[LoadedModel], float]  #: samples the dev set and scores it, all processes together
    file: Path
    world: World = field(default_factory=World)
    name: str = "best-dev-rouge"

    def at_epoch_end(self, epoch: int, student: LoadedModel) -> None:
        """Score this epoch; keep its weights when they are the best so far (a tie keeps the earlier)."""
        training = student.lm.training
        student.lm.eval()
        score = self.score(student)
        student.lm.train(training)
        self.world.told(lambda: self._keep(epoch, score, student.lm))

    def _keep(self, epoch: int, score: float, lm: nn.Module) -> None:
        known = load_checkpoint(self.file)
        if known is None or score > known["score"] or known["epoch"] == epoch:
            names = {name for name, p in lm.named_parameters() if p.requires_grad}
            weights = {name: value for name, value in lm.state_dict().items() if name in names}
            save_checkpoint(self.file, {"score": score, "epoch": epoch, "weights": weights})

    def resumes(self) -> bool:
        """Not without the best weights so far: an epoch that is over is not scored again."""
        return self.world.told(lambda: load_checkpoint(self.file) is not None)

    def finish(self, student: LoadedModel) -> str:
        """See CheckpointRule."""
        best = load_checkpoint(self.file)
        if best is None:
            raise OSError(f"{self.file}: the best checkpoint is missing or damaged")
        student.lm.load_state_dict(best["weights"], strict=False)
        return f"epoch {best['epoch']} (dev Rouge-L {best['score']:.2f})"
