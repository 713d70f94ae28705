"""Jobs on a Ray cluster (``--engine ray``): what harness/pool.py does on one machine, on many.

Every node needs this checkout (or the installed package) and the pair's models under the same paths.
The results folder may be shared or each node's own: finished cells come back with their answers, and
are checked again before they enter the store.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.pool import ATTEMPTS, BUSY_WAIT, THREAD_VARIABLES, Job, Listener, Outcome, do, throttled
from harness.provenance import ROOT

POLL = 0.5  #: seconds between looks at the cluster


class EngineError(ValueError):
    """Cells cannot be run where they were asked to be; the message says what is missing."""


@dataclass
class _Running:
    job: Job
    worker: int = -1  #: line of the display; -1 until it has begun


@dataclass
class Cluster:
    """At most ``size`` jobs at once, each with so many cores, and a GPU where wanted and there are any.

    ``receive`` turns what a job returned into the value of its outcome, on this machine.
    """

    size: int
    threads: int
    gpu: bool
    receive: Callable[[Any], Any]
    _running: dict[Any, _Running] = field(default_factory=dict)

    def __enter__(self) -> Cluster:
        self._ray = _connect(self.threads)
        resources = {"num_cpus": self.threads, "max_retries": 0}  # jobs are tried again here, see _lost
        if self.gpu and self._ray.cluster_resources().get("GPU", 0) >= 1:
            resources["num_gpus"] = 1
        self._task = self._ray.remote(**resources)(_work)
        self._board = self._ray.remote(num_cpus=0, max_restarts=-1)(_Board).remote()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the cluster; what still runs is ended."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
        self._ray.shutdown()

    def run(self, jobs: Sequence[Job], listener: Listener) -> dict[str, Outcome]:
        """Run all jobs; the outcome of each by its key."""
        queue = deque((job, 0.0) for job in jobs)
        attempts: dict[str, int] = {}
        outcomes: dict[str, Outcome] = {}
        while len(outcomes) < len(jobs):
            self._submit(queue)
            ready = self._ray.wait(list(self._running), timeout=POLL)[0] if self._running else []
            self._show(listener)
            for reference in ready:
                self._settle(reference, queue, attempts, outcomes, listener)
            if not self._running:
                time.sleep(POLL)
        return outcomes

    def _submit(self, queue: deque[tuple[Job, float]]) -> None:
        """Hand over jobs that are due, as long as there is room."""
        now = time.monotonic()
        for _ in range(len(queue)):
            job, due = queue.popleft()
            if due > now or len(self._running) >= self.size:
                queue.append((job, due))
                continue
            reference = self._task.remote(self._board, job)
            self._running[reference] = _Running(job)

    def _settle(
        self,
        reference: Any,
        queue: deque[tuple[Job, float]],
        attempts: dict[str, int],
        outcomes: dict[str, Outcome],
        listener: Listener,
    ) -> None:
        running = self._running[reference]
        job = running.job
        kind, *rest = self._result(reference)
        if kind == "busy":
            del self._running[reference]
            listener.waiting(job)
            queue.append((job, time.monotonic() + BUSY_WAIT))
            return
        if kind == "lost":
            attempts[job.key] = attempts.get(job.key, 0) + 1
            if attempts[job.key] < ATTEMPTS:
                del self._running[reference]
                queue.appendleft((job, 0.0))
                return
            rest = [f"{rest[0]}, {ATTEMPTS} times"]
        self._begin(running, listener)
        del self._running[reference]
        outcomes[job.key] = self._outcome(kind, *rest)
        listener.finished(running.worker, job, outcomes[job.key])

    def _result(self, reference: Any) -> tuple[Any, ...]:
        """What ``do`` returned; "lost" where a worker or its node went away."""
        errors = self._ray.exceptions
        try:
            found: tuple[Any, ...] = self._ray.get(reference)
            return found
        except errors.RayTaskError as error:  # the node cannot even import the code
            return ("failed", f"on the node: {_last_line(error)}")
        except errors.RayError as error:
            return ("lost", f"{type(error).__name__}: worker or node lost")

    def _outcome(self, kind: str, reason: str, value: Any = None) -> Outcome:
        if kind != "done":
            return Outcome(False, reason)
        try:
            return Outcome(True, "", self.receive(value))
        except (OSError, ValueError, RuntimeError) as error:
            return Outcome(False, f"its record cannot be taken: {_last_line(error)}")

    def _show(self, listener: Listener) -> None:
        """Tell the listener what the board has heard."""
        try:
            heard: dict[str, tuple[str, float]] = self._ray.get(self._board.read.remote(), timeout=POLL)
        except self._ray.exceptions.RayError:  # its node is gone, and with it nothing but the display
            return
        for running in self._running.values():
            if running.job.key in heard:
                self._begin(running, listener)
                listener.progress(running.worker, *heard[running.job.key])

    def _begin(self, running: _Running, listener: Listener) -> None:
        if running.worker < 0:
            taken = {other.worker for other in self._running.values()}
            running.worker = next(number for number in range(len(taken) + 1) if number not in taken)
            listener.started(running.worker, running.job)


def _connect(threads: int) -> Any:
    """Ray, connected to the cluster of $RAY_ADDRESS or of this machine."""
    try:
        import ray
    except ImportError:
        raise EngineError(
            "--engine ray needs the package ray: python -m pip install 'dskd-bench[ray]'"
        ) from None
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    variables = {**dict.fromkeys(THREAD_VARIABLES, str(threads)), "TOKENIZERS_PARALLELISM": "false"}
    environment = {"env_vars": {**variables, "PYTHONPATH": path}}
    before = signal.getsignal(signal.SIGTERM)
    try:
        _knock(os.environ.get("RAY_ADDRESS", ""))
        ray.init(address="auto", runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR)
    except OSError as error:  # ConnectionError is one
        said = f"no Ray cluster answers ({_last_line(error)}); `ray start --head`, or set RAY_ADDRESS"
        raise EngineError(said) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray takes it for itself
    return ray


def _knock(address: str) -> None:
    """OSError unless something listens at ``[ray://]host:port``; Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:500]


# on the nodes


class _Board:
    """Keeps the latest progress of every job until it is asked for."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[str, float]] = {}

    def tell(self, key: str, stage: str, fraction: float) -> None:
        self._latest[key] = (stage, fraction)

    def read(self) -> dict[str, tuple[str, float]]:
        latest, self._latest = self._latest, {}
        return latest


def _work(board: Any, job: Job) -> tuple[Any, ...]:
    def tell(stage: str, fraction: float) -> None:
        board.tell.remote(job.key, stage, float(fraction))

    tell("starting", 0.0)
    return do(job.function, job.arguments, throttled(tell))
