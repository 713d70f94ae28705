"""Which of a training's weights are scored, as a named rule (DomainBed's model selection)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from harness.train import load_checkpoint, save_checkpoint


class CheckpointRule(Protocol):
    """Told of every epoch's end; at the end of training it leaves the chosen weights in the model."""

    name: str

    def at_epoch_end(self, epoch: int) -> None: ...

    def resumes(self) -> bool:
        """Whether a training may go on from its own checkpoint, so far as this rule is concerned."""
        ...

    def finish(self) -> str:
        """Put the chosen weights into the model; says which were chosen."""
        ...


@dataclass
class Last:
    """The weights after the last step."""

    name: str = "last"

    def at_epoch_end(self, epoch: int) -> None:
        """Nothing to do."""

    def resumes(self) -> bool:
        """See CheckpointRule."""
        return True

    def finish(self) -> str:
        """See CheckpointRule."""
        return "last step"


@dataclass
class BestDevRouge:
    """The weights of the epoch with the best sampled Rouge-L on the dev set (DSKD's released code)."""

    model: nn.Module
    score: Callable[[], float]  #: samples the dev set and scores it
    file: Path
    name: str = "best-dev-rouge"

    def at_epoch_end(self, epoch: int) -> None:
        """Score this epoch; keep its weights when they are the best so far (a tie keeps the earlier)."""
        self.model.eval()
        score = self.score()
        self.model.train()
        known = load_checkpoint(self.file)
        if known is None or score > known["score"] or known["epoch"] == epoch:
            save_checkpoint(self.file, {"score": score, "epoch": epoch, "weights": self._weights()})

    def resumes(self) -> bool:
        """Not without the best weights so far: an epoch that is over is not scored again."""
        return load_checkpoint(self.file) is not None

    def _weights(self) -> dict[str, Any]:
        names = {name for name, p in self.model.named_parameters() if p.requires_grad}
        return {name: value for name, value in self.model.state_dict().items() if name in names}

    def finish(self) -> str:
        """See CheckpointRule."""
        best = load_checkpoint(self.file)
        if best is None:
            raise OSError(f"{self.file}: the best checkpoint is missing or damaged")
        self.model.load_state_dict(best["weights"], strict=False)
        return f"epoch {best['epoch']} (dev Rouge-L {best['score']:.2f})"
