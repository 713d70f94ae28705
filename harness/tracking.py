"""A training's curve and scores for a tracker that the user asks for, through accelerate's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cells import Cell

if TYPE_CHECKING:
    from harness.distributed import World

TRACKERS = ("tensorboard", "wandb", "trackio")
PROJECT = "dskd-bench"

Log = Callable[[Mapping[str, float], int], None]  #: values by name, and the step they belong to


class TrackerError(ValueError):
    """The tracker that was asked for is not installed; the message has the remedy."""


def check(name: str | None) -> None:
    """Raise TrackerError where a tracker's package is missing, before any work."""
    if name is not None and importlib.util.find_spec(name) is None:
        raise TrackerError(f"--tracker {name} needs a package: pip install 'dskd-bench[trackers]'")


@contextmanager
def tracked(name: str | None, cell: Cell, folder: Path, world: World) -> Iterator[Log | None]:
    """What takes a cell's values; None where nobody asked, or where another process speaks.

    tensorboard writes into ``folder``/CELL; the others keep runs by the cell's name in one project.
    """
    if name is None or not world.main:
        yield None
        return
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState(cpu=world.device.type == "cpu")  # accelerate's trackers ask it who speaks
    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    title = f"{cell.pair} {cell.method} seed {cell.seed} {cell.id}"
    run = kind(cell.id, logging_dir=folder) if name == "tensorboard" else kind(PROJECT, name=title)
    run.start()
    try:
        yield lambda values, step: run.log(dict(values), step=step)
    finally:
        run.finish()
