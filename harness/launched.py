"""Cells under ``accelerate launch``: one after the other, each by all launched processes together.

What harness/pool.py is for processes of one's own. Every process runs this same code; the main one speaks,
scores and writes for all.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from harness import distributed, launch
from harness.cells import Cell
from harness.distributed import World
from harness.pool import BUSY_WAIT, Busy, Job, Listener, Outcome, throttled
from harness.run import Progress, Settings, held, note_of, produce, put
from harness.store import Store


class Together:
    """The launched processes. ``failed`` keeps the reason of a cell that could not be computed."""

    def __init__(self, scale: str, failed: Callable[[Job, str], None]) -> None:
        self.world, self.failed = distributed.world(scale), failed

    def __enter__(self) -> Together:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        import torch

        if kind is None:
            torch.distributed.destroy_process_group()

    def run(self, jobs: Sequence[Job], listener: Listener) -> dict[str, Outcome]:
        """Run all jobs; the outcome of each by its key. A failure ends them all (launch.AbandonedError)."""
        if len({tuple(keys) for keys in self.world.gathered([job.key for job in jobs])}) > 1:
            raise launch.LaunchError(
                "the processes see different cells; results, models and data must be the same for all"
            )
        outcomes = {}
        for job in jobs:
            listener.started(0, job)
            outcomes[job.key] = Outcome(True, "", self._value(job, listener))
            listener.finished(0, job, outcomes[job.key])
        return outcomes

    def _value(self, job: Job, listener: Listener) -> Any:
        module, _, name = job.function.partition(":")
        function = getattr(importlib.import_module(module), name)
        while True:
            try:
                return function(*job.arguments, throttled(lambda *said: listener.progress(0, *said)))
            except Busy:
                listener.waiting(job)
                time.sleep(BUSY_WAIT)
            except Exception as error:
                # The others wait for what this process will not send: nothing can go on without it.
                traceback.print_exc()
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
                self.failed(job, reason)
                raise launch.AbandonedError(f"{job.title}: {reason} (process {self.world.rank})") from None


def finish(spec: dict[str, Any], settings: Settings, progress: Progress) -> str:
    """As run.finish, by all processes: raises Busy on all of them, or on none."""
    cell, store, unkept = Cell.from_dict(spec), Store(settings.results), ""
    world = distributed.world(cell.scale)
    with _held(world, store, cell.id):
        known = world.told(lambda: store.get(cell.id))
        if known is None or known["status"] != "done":
            known = produce(cell, settings, progress)
            unkept = world.told(lambda: put(cell, known, settings, progress))
        world.told(lambda: shutil.rmtree(store.work(cell.id), ignore_errors=True))
    return note_of(known, unkept)


@contextlib.contextmanager
def _held(world: World, store: Store, cell_id: str) -> Iterator[None]:
    """Hold a cell for all processes. Raises Busy while another command has it."""
    with contextlib.ExitStack() as stack:

        def taken() -> bool:
            try:
                stack.enter_context(held(store, cell_id))
            except Busy:
                return False
            return True

        if not world.told(taken):
            raise Busy
        yield
