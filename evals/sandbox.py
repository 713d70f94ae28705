"""Running programs that a model wrote, where they can do no harm and cannot vouch for themselves.

Two levels. ``namespaces``: Linux namespaces (mount, pid, network, IPC, and user when we are not root) around
a root that holds Python's library read-only and one small scratch folder; no network, no other files, no
other processes, no capabilities. ``rlimits``: the same limits on time, memory, processes and files, an own
session, an empty environment and a scratch folder, but the file system and the network stay in reach, and
the other processes of a user who is not root.
Programs run at the first only, unless the caller says ``allow_unsafe``. The inside is evals/jail.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from evals.apart import send

Level = Literal["namespaces", "rlimits", "none"]

#: Programs run at this level or not at all, unless ``allow_unsafe``.
FLOOR: Level = "namespaces"


class SandboxError(RuntimeError):
    """Programs may not, or cannot, be run on this machine."""


@dataclass(frozen=True)
class Program:
    """A candidate and its tests, which see what it defines (evals/apart.py); it passes if neither raises."""

    code: str
    tests: str
    given: str = ""  #: code that the tests rely on and the candidate must not replace
    names: tuple[str, ...] = ()  #: what the candidate is asked to define, where that is a built-in's name


@dataclass(frozen=True)
class Limits:
    """What one candidate may use. CPU time decides on endless loops, so a busy machine changes no verdict."""

    cpu_seconds: int = 5
    wall_seconds: float = 60.0
    memory_bytes: int = 1 << 30  #: address space of each process
    file_bytes: int = 16 << 20  #: each file, and in a namespace all files
    processes: int = 8


@dataclass(frozen=True)
class Verdict:
    """``reason`` says why a program failed; partly the program's own word, it decides nothing."""

    passed: bool
    reason: str = ""


@cache
def level() -> Level:
    """The strongest isolation that works here, found by trying it."""
    if os.name != "posix":
        return "none"
    for candidate in ("namespaces", "rlimits"):
        worker = _Worker(candidate)
        try:
            if worker.judge(Program("x = 1", "assert x == 1"), Limits()).passed:
                return candidate  # type: ignore[return-value]
        except SandboxError:
            continue
        finally:
            worker.close()
    return "none"


def require(allow_unsafe: bool = False) -> Level:
    """The level that programs will run at; SandboxError when it is below the floor and not allowed."""
    found = level()
    if found == "none":
        raise SandboxError("this machine has no way to limit a program; code suites cannot be scored on it")
    if found != FLOOR and not allow_unsafe:
        raise SandboxError(
            f"programs written by a model would run with {found} only: they would reach the files "
            "and the network. Allow it with --allow-unsafe, or use a machine or container that has them"
        )
    return found


def run(
    programs: Sequence[Program], limits: Limits | None = None, *, workers: int = 1, allow_unsafe: bool = False
) -> list[Verdict]:
    """Judge programs, each in a fresh process that is gone afterwards with all it started.

    Args:
        programs: candidates with tests.
        limits: for each of them; ``Limits()`` when None.
        workers: how many run at a time.
        allow_unsafe: run below the floor.

    Raises:
        SandboxError: below the floor, or the sandbox cannot be started.
    """
    return _run(programs, limits or Limits(), workers, require(allow_unsafe))


def _run(programs: Sequence[Program], limits: Limits, workers: int, at: Level) -> list[Verdict]:
    verdicts: dict[int, Verdict] = {}
    errors: list[BaseException] = []
    queue = iter(enumerate(programs))
    lock = threading.Lock()

    def work() -> None:
        worker = _Worker(at)
        try:
            while not errors:
                with lock:
                    job = next(queue, None)
                if job is None:
                    return
                verdicts[job[0]] = worker.judge(job[1], limits)
        except BaseException as error:
            errors.append(error)
        finally:
            worker.close()

    threads = [threading.Thread(target=work) for _ in range(max(1, min(workers, len(programs))))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [verdicts[n] for n in range(len(programs))]


class _Worker:
    """A jail server and the way to talk with it; started at the first job, again when it was lost."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.process: subprocess.Popen[bytes] | None = None
        self.stage = ""
        self.buffer = b""

    def judge(self, program: Program, limits: Limits) -> Verdict:
        """One verdict; a jail that does not answer in time is killed, and the program has failed."""
        process = self.process or self._start()
        assert process.stdin is not None
        job = {"code": program.code, "limits": asdict(limits)}
        try:
            for part in (job, (program.given, program.tests, program.names)):
                send(process.stdin.fileno(), json.dumps(part).encode())
            reply = self._read(limits.wall_seconds + 30)
        except BrokenPipeError:
            reply = None
        if reply is None:
            self.close()
            return Verdict(False, "the jail was lost")
        return Verdict(reply["passed"] is True, str(reply["reason"]))

    def _start(self) -> subprocess.Popen[bytes]:
        self.stage = tempfile.mkdtemp(prefix="jail-")
        os.chmod(self.stage, 0o711)  # the candidate's own user passes through
        root = str(Path(__file__).resolve().parent.parent)
        start = "import sys; sys.path.insert(0, sys.argv.pop(1)); from evals.jail import main; main()"
        self.process = subprocess.Popen(
            # -P: what a candidate leaves in its folder is no module of the checker's
            [sys.executable, "-P", "-S", "-s", "-B", "-c", start, root, self.at, self.stage],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # hash order is fixed, so that a program that leans on it has one verdict
            env={"PYTHONHASHSEED": "0"},
            cwd="/",
            start_new_session=True,
        )
        ready = self._read(30)
        if ready is None or not ready["ready"]:
            self.close()
            raise SandboxError(
                f"no {self.at} here: {ready['reason'] if ready else 'the jail does not start'}"
            )
        return self.process

    def _read(self, seconds: float) -> dict[str, Any] | None:
        """The next line of the jail, or None when it ends or is late."""
        assert self.process is not None
        assert self.process.stdout is not None
        fd, deadline = self.process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                return None
            data = os.read(fd, 65536)
            if not data:
                return None
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return dict(json.loads(line))

    def close(self) -> None:
        """End the jail and remove its folder."""
        if self.process is not None:
            self.process.kill()
            with contextlib.suppress(OSError):
                self.process.communicate()
            self.process, self.buffer = None, b""
        if self.stage:
            shutil.rmtree(self.stage, ignore_errors=True)
            self.stage = ""
