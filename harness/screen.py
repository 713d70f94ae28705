"""What a run shows while it goes on: bars on a terminal, plain lines elsewhere, and a log file always."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from harness.estimate import duration
from harness.pool import Job, Outcome

#: Without a terminal, how often a long cell says where it is.
SIGN_OF_LIFE = 300.0


class Screen:
    """A listener of the pool, used as a context manager."""

    def __init__(self, total: int, log: Path, stream: TextIO | None = None) -> None:
        self.total, self.done = total, 0
        self.stream = stream or sys.stderr
        self._began: dict[str, float] = {}
        self._heard: dict[int, tuple[float, str]] = {}  #: worker -> when it last said something; its job
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("a", encoding="utf-8")
        self._waited: set[str] = set()
        self._bars = _Bars(total, self.stream) if self.stream.isatty() else None

    def started(self, worker: int, job: Job) -> None:
        """See pool.Listener."""
        self._began[job.key] = time.monotonic()
        self._heard[worker] = self._began[job.key], job.title
        if self._bars:
            self._bars.show(worker, job.title, "starting", 0.0)
        self._say(f"start {job.title}", shown=self._bars is None)

    def progress(self, worker: int, stage: str, fraction: float) -> None:
        """See pool.Listener."""
        if self._bars:
            self._bars.show(worker, None, stage, fraction)
            return
        now, (heard, title) = time.monotonic(), self._heard.get(worker, (math.inf, ""))
        if now - heard >= SIGN_OF_LIFE:
            self._heard[worker] = now, title
            self._say(f"{title}: {stage}, {fraction:.0%}")

    def waiting(self, job: Job) -> None:
        """See pool.Listener."""
        if job.key not in self._waited:
            self._waited.add(job.key)
            self._say(f"{job.title}: another command is on it; its record will be taken")

    def finished(self, worker: int, job: Job, outcome: Outcome) -> None:
        """See pool.Listener."""
        self.done += 1
        took = duration(time.monotonic() - self._began.get(job.key, time.monotonic()))
        if self._bars:
            self._bars.finish(worker)
        end = f"done in {took}" if outcome.ok else f"FAILED: {outcome.reason}"
        if outcome.ok and outcome.value:
            end += f"; {outcome.value}"
        self._say(f"[{self.done}/{self.total}] {job.title}: {end}")

    def _say(self, line: str, *, shown: bool = True) -> None:
        with contextlib.suppress(OSError):  # a full disk takes no log, but that ends no run
            print(time.strftime("%Y-%m-%d %H:%M:%S"), line, file=self._log, flush=True)
        if shown and self._bars:
            self._bars.say(line)
        elif shown:
            print(line, file=self.stream, flush=True)

    def __enter__(self) -> Screen:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()
        with contextlib.suppress(OSError):
            self._log.close()


class _Bars:
    """One bar for all, one line per worker."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            console=Console(file=stream),
            transient=True,
        )
        self._total = total
        self._all = self._progress.add_task("all", total=total, count=f"0/{total}")
        self._workers: dict[int, TaskID] = {}
        self._titles: dict[int, str] = {}
        self._count = 0

    def show(self, worker: int, title: str | None, stage: str, fraction: float) -> None:
        if title is not None:
            self._titles[worker] = title
        if worker not in self._workers:
            self._workers[worker] = self._progress.add_task("", total=1.0, count="")
        task, text = self._workers[worker], self._titles.get(worker, "")
        if title is not None:
            self._progress.reset(task)
        self._progress.update(task, description=f"  {text}", completed=fraction, count=stage, visible=True)

    def finish(self, worker: int) -> None:
        self._count += 1
        self._progress.update(self._all, completed=self._count, count=f"{self._count}/{self._total}")
        if worker in self._workers:
            self._progress.update(self._workers[worker], visible=False)

    def say(self, line: str) -> None:
        self._progress.console.print(Text(line))

    def start(self) -> None:
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()
