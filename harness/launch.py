"""Whether this process is one of several that ``accelerate launch`` (or torchrun) started. Without torch."""

from __future__ import annotations

import os


class LaunchError(ValueError):
    """Processes were launched in a way that cannot train a cell; the message says what to change."""


class AbandonedError(RuntimeError):
    """A process of several failed, and the others cannot go on; the message says why."""


def size() -> int:
    """Processes that were launched together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among them."""
    return int(os.environ.get("RANK", "0"))


def together() -> bool:
    """Whether there are others."""
    return size() > 1


def deepspeed() -> bool:
    """Whether they were launched for DeepSpeed."""
    return _set("ACCELERATE_USE_DEEPSPEED")


def check() -> None:
    """Raise LaunchError for settings of a launch that this project would silently not follow."""
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no":
        raise LaunchError("the cell says in what precision it trains; launch with mixed_precision: 'no'")
    if _set("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") != "2":
        raise LaunchError("only the second version of FSDP is used here; launch with fsdp_version: 2")
    if os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") not in ("", "1"):
        raise LaunchError(
            "accumulation follows from the cell's global batch; launch with gradient_accumulation_steps: 1"
        )


def _set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")
