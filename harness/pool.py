"""Worker processes that take one job after another, report progress, and may die one by one.

Unlike concurrent.futures, a killed worker costs its own job only: the job is tried once more in a new
worker, then reported as failed. Workers lead their own process groups, so that Ctrl-C reaches the parent
alone and the parent can end everything a worker started.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

#: What torch says when memory runs out, on a CPU and on a GPU.
_EXHAUSTED = ("can't allocate memory", "out of memory")

ATTEMPTS = 2  #: a job whose worker dies is tried once more
BUSY_WAIT = 1.0  #: seconds until a job that another command holds is asked for again
PROGRESS_EVERY = 0.2
STOP_GRACE = 2.0

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Busy(Exception):  # noqa: N818 (a state, not an error)
    """Raised by a job that another process is working on; it is put back and asked for again."""


@dataclass(frozen=True)
class Job:
    """A function, named ``module:function``, with its arguments; ``progress`` comes last."""

    key: str
    title: str
    function: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Outcome:
    """How a job ended. ``reason`` is one line, empty when all went well."""

    ok: bool
    reason: str = ""
    value: Any = None


class Listener(Protocol):
    """Told what happens, for display."""

    def started(self, worker: int, job: Job) -> None: ...

    def progress(self, worker: int, stage: str, fraction: float) -> None: ...

    def finished(self, worker: int, job: Job, outcome: Outcome) -> None: ...

    def waiting(self, job: Job) -> None: ...


@dataclass
class _Worker:
    number: int
    process: BaseProcess
    pipe: Connection
    job: Job | None = None


@dataclass
class Pool:
    """Up to ``size`` workers of ``threads`` threads; of ``gpus`` devices, worker n gets n modulo gpus."""

    size: int
    threads: int
    logs: Path
    gpus: int = 0
    _workers: dict[int, _Worker] = field(default_factory=dict)

    def run(self, jobs: Sequence[Job], listener: Listener) -> dict[str, Outcome]:
        """Run all jobs; the outcome of each by its key. Interrupts pass through after ``stop``."""
        queue = deque((job, 0.0) for job in jobs)
        attempts: dict[str, int] = {}
        outcomes: dict[str, Outcome] = {}
        try:
            while len(outcomes) < len(jobs):
                self._assign(queue, listener)
                for worker in self._speaking():
                    self._hear(worker, queue, attempts, outcomes, listener)
        except BaseException:
            self.stop()
            raise
        return outcomes

    def _assign(self, queue: deque[tuple[Job, float]], listener: Listener) -> None:
        """Give jobs that are due to idle workers, starting workers as long as there is room."""
        now = time.monotonic()
        for _ in range(len(queue)):
            idle = next((w for w in self._workers.values() if w.job is None), None)
            if idle is None and len(self._workers) >= self.size:
                return
            job, due = queue.popleft()
            if due > now:
                queue.append((job, due))
                continue
            worker = idle or self._start()
            worker.job = job
            listener.started(worker.number, job)
            with contextlib.suppress(OSError):  # it died just now: heard of as end of file
                worker.pipe.send((job.function, job.arguments))

    def _speaking(self) -> list[_Worker]:
        """Workers that sent something or ended, waiting a moment for one."""
        workers = self._workers.values()
        sources = {w.pipe: w for w in workers} | {w.process.sentinel: w for w in workers}
        if not sources:
            time.sleep(PROGRESS_EVERY)
            return []
        ready = wait(list(sources), timeout=PROGRESS_EVERY)
        return list({sources[source].number: sources[source] for source in ready}.values())  # type: ignore[index]

    def _hear(
        self,
        worker: _Worker,
        queue: deque[tuple[Job, float]],
        attempts: dict[str, int],
        outcomes: dict[str, Outcome],
        listener: Listener,
    ) -> None:
        try:
            if not worker.pipe.poll():
                raise EOFError  # only its sentinel spoke
            kind, *rest = worker.pipe.recv()
        except (EOFError, OSError):
            self._bury(worker, queue, attempts, outcomes, listener)
            return
        job = worker.job
        if job is None:
            return
        if kind == "progress":
            listener.progress(worker.number, *rest)
        elif kind == "busy":
            worker.job = None
            listener.waiting(job)
            queue.append((job, time.monotonic() + BUSY_WAIT))
        else:
            worker.job = None
            outcomes[job.key] = Outcome(kind == "done", *rest)
            if kind == "exhausted":
                self._retire(worker)
            listener.finished(worker.number, job, outcomes[job.key])

    def _retire(self, worker: _Worker) -> None:
        """End a worker that ran out of memory: what it could not give back would fail the next job too."""
        del self._workers[worker.number]
        _kill(worker, signal.SIGKILL)
        worker.process.join(STOP_GRACE)
        worker.pipe.close()

    def _bury(
        self,
        worker: _Worker,
        queue: deque[tuple[Job, float]],
        attempts: dict[str, int],
        outcomes: dict[str, Outcome],
        listener: Listener,
    ) -> None:
        """A worker ended by itself: its job goes to the front of the queue once, then counts as failed."""
        worker.process.join(STOP_GRACE)
        _kill(worker, signal.SIGKILL)
        del self._workers[worker.number]
        job = worker.job
        if job is None:
            return
        attempts[job.key] = attempts.get(job.key, 0) + 1
        if attempts[job.key] < ATTEMPTS:
            queue.appendleft((job, 0.0))
            return
        outcomes[job.key] = Outcome(False, f"{_cause(worker.process.exitcode)}, {ATTEMPTS} times")
        listener.finished(worker.number, job, outcomes[job.key])

    def _start(self) -> _Worker:
        number = next(n for n in range(self.size) if n not in self._workers)
        context = multiprocessing.get_context("spawn")  # torch does not survive a fork
        ours, theirs = context.Pipe()
        self.logs.mkdir(parents=True, exist_ok=True)
        log = str(self.logs / f"worker-{number}.log")
        device = str(number % self.gpus) if self.gpus else None
        # A worker that is killed cannot give back its semaphores; the tracker frees them, without a word.
        os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker:UserWarning"
        arguments = (theirs, self.threads, log, device)
        process = context.Process(target=_work, args=arguments, name=f"worker-{number}")
        process.start()
        theirs.close()
        self._workers[number] = _Worker(number, process, ours)
        return self._workers[number]

    def stop(self) -> None:
        """End all workers and whatever they started, first politely. A second Ctrl-C does not disturb it."""
        workers = list(self._workers.values())
        self._workers.clear()
        with _undisturbed():
            for worker in workers:
                _kill(worker, signal.SIGTERM)
            deadline = time.monotonic() + STOP_GRACE
            for worker in workers:
                worker.process.join(max(0.0, deadline - time.monotonic()))
                _kill(worker, signal.SIGKILL)
                worker.process.join(STOP_GRACE)
                worker.pipe.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C and polite kills are let pass for a moment (they can only come to the main thread)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _kill(worker: _Worker, number: signal.Signals) -> None:
    """Signal a worker's whole group; the worker alone where it has not made its group yet."""
    pid = worker.process.pid
    with contextlib.suppress(OSError):
        if pid is not None and hasattr(os, "killpg"):
            os.killpg(pid, number)
            return
    if worker.process.is_alive():
        worker.process.terminate()


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"worker killed by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    return f"worker ended with exit code {code}"


# in the worker


def _work(pipe: Connection, threads: int, log: str, device: str | None) -> None:
    """Take jobs until told to end, or until the parent is gone."""
    if hasattr(os, "setsid"):
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)), TOKENIZERS_PARALLELISM="false")
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    _redirect(log)
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send(do(function, arguments, _reporter(pipe)))
        except OSError:  # the parent is gone
            return


def _redirect(log: str) -> None:
    """Send what libraries print, C code included, to the worker's log."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:  # a full disk, say: the job itself will tell
        handle = os.open(os.devnull, os.O_WRONLY)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def do(function: str, arguments: tuple[Any, ...], progress: Callable[[str, float], None]) -> tuple[Any, ...]:
    """Run a job's function: ("done", "", value), ("busy",), ("failed", reason) or ("exhausted", reason)."""
    try:
        module, _, name = function.partition(":")
        value = getattr(importlib.import_module(module), name)(*arguments, progress)
        return ("done", "", value)
    except Busy:
        return ("busy",)
    except BrokenPipeError:
        raise
    except BaseException as error:
        with contextlib.suppress(OSError):  # the log's disk may be what is full
            traceback.print_exc()
            sys.stderr.flush()
        return _failure(error)


def _failure(error: BaseException) -> tuple[str, str]:
    """How a job failed, in one line; "exhausted" where memory ran out."""
    text = f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"[:500]
    if isinstance(error, MemoryError) or any(words in text for words in _EXHAUSTED):
        return ("exhausted", f"out of memory; fewer cells side by side (--jobs) need less ({text})")
    return ("failed", text)


def _reporter(pipe: Connection) -> Callable[[str, float], None]:
    return throttled(lambda stage, fraction: pipe.send(("progress", stage, float(fraction))))


def throttled(tell: Callable[[str, float], None]) -> Callable[[str, float], None]:
    """Progress a few times a second at most; a new stage at once."""
    last = ("", 0.0)

    def progress(stage: str, fraction: float) -> None:
        nonlocal last
        now = time.monotonic()
        if stage != last[0] or now - last[1] >= PROGRESS_EVERY:
            last = (stage, now)
            tell(stage, fraction)

    return progress
