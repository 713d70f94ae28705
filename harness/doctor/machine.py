"""Findings about this machine: room, memory, number formats, the sandbox, and what lies in its folders."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from evals import sandbox
from harness import run, tiny
from harness.cells import Training
from harness.doctor.findings import Finding, Severity, size
from harness.estimate import DISK_BUDGET
from harness.folder import ModelFolder
from harness.plan import Step
from harness.provenance import cores, gpus, memory_bytes
from harness.scales import SCALES
from harness.store import Store

#: Python, torch and transformers without any model.
_BASE_MEMORY = 700 << 20
_BF16 = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}


def survey(settings: run.Settings) -> list[Finding]:
    """What there is to say without any cell: the machine, the cache and the store."""
    here = platform.node() or "this machine"
    found = [f"{len(cores())} cores", f"{size(memory_bytes())} of memory free"]
    found += [f"{name} {mib // 1024} GiB" for name, mib in gpus()] or ["no GPU"]
    jobs = ", ".join(f"{run.default_jobs(scale)} at {scale}" for scale in SCALES)
    python = f"Python {platform.python_version()}"
    return [
        Finding("note", here, f"{python}, {', '.join(found)}", f"nothing to do; cells side by side: {jobs}"),
        *writable(settings),
        *code_level(frozenset(), settings.allow_unsafe),
        *_tiny_models(settings.cache),
        *_damaged_records(Store(settings.results)),
    ]


def writable(settings: run.Settings) -> Iterator[Finding]:
    """Whether results and cache can be written, found without leaving anything behind."""
    for option, folder in (("--results", settings.results), ("--cache", settings.cache)):
        if reason := unwritable(folder):
            yield Finding("error", f"{option} {folder}", reason, f"give a folder of yours with {option} DIR")


def unwritable(folder: Path) -> str:
    """Why nothing can be written under a folder, whether it exists or not; empty if it can."""
    above = folder
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir():
        return f"{above} is a file, so no folder can be made there"
    try:
        trial = above / f".dskd-trial-{os.getpid()}"
        trial.touch()
        trial.unlink()
    except OSError as error:
        return f"{above} cannot be written ({error.strerror})"
    return ""


def code_level(cells: frozenset[str], allowed: bool) -> Iterator[Finding]:
    """At which level programs that a model wrote would run; an error where they would not run at all."""
    level = sandbox.level()
    about = "programs written by models"
    if level == sandbox.FLOOR:
        yield Finding("note", about, f"they run with {level}", "nothing to do", cells)
    elif level == "none":
        yield Finding("error", about, "nothing here can limit them", "score code suites on Linux", cells)
    elif allowed:
        reason = f"they run with {level} only and reach files and network"
        yield Finding("warning", about, reason, "leave --allow-unsafe away where that matters", cells)
    else:
        reason = f"they could run with {level} only, so they do not run"
        remedy = "allow it with --allow-unsafe, or use a machine or container that has namespaces"
        yield Finding("error", about, reason, remedy, cells)


def number_format(training: Training, cells: frozenset[str]) -> Iterator[Finding]:
    """bf16 on a processor without instructions for it."""
    if training.precision == "bf16" and not gpus() and not _BF16 & _flags():
        reason = "this processor has no instructions for bf16, so training is several times slower"
        yield Finding("warning", "number format", reason, "nothing to do but wait: numbers are right", cells)


def _flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {"bf16"} if sys.platform == "darwin" else set()
    words = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return set(next(words, ()))


def room(
    steps: Sequence[Step], folders: dict[str, ModelFolder], states: int, settings: run.Settings, jobs: int
) -> Iterator[Finding]:
    """Disk and memory needed against what there is. ``states``: bytes of hidden states to be computed."""
    cells = frozenset(step.cell.id for step in steps)
    kept = max((_checkpoints(step, folders) for step in steps), default=0) * min(jobs, len(steps))
    yield from _disk("--results", settings.results, kept, "checkpoints", cells)
    free = _free(settings.cache)
    if states > min(DISK_BUDGET, free // 2):
        reason = f"{size(states)} of hidden states do not fit {size(free)} free; teachers run at every step"
        about = f"--cache {settings.cache}"
        yield Finding("warning", about, reason, "make room, or give a larger --cache", cells)
    else:
        yield from _disk("--cache", settings.cache, states, "hidden states", cells)
    yield from _memory(steps, folders, jobs, cells)


def _disk(option: str, folder: Path, needed: int, what: str, cells: frozenset[str]) -> Iterator[Finding]:
    free, about = _free(folder), f"{option} {folder}"
    said = f"{what} take about {size(needed)}, {size(free)} are free"
    if needed > free:
        yield Finding("error", about, said, f"make room, or give another folder with {option}", cells)
    elif 2 * needed > free:
        yield Finding("warning", about, said, "make room before other things take it", cells)
    else:
        yield Finding("note", about, said, "nothing to do", cells)


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _checkpoints(step: Step, folders: dict[str, ModelFolder]) -> int:
    """Bytes in a cell's work folder: weights and two moments in fp32, twice while one replaces another."""
    student = folders.get(step.pair.student)
    if student is None or step.cell.training is None:
        return 0
    moving = _moving(student, step.cell.training)
    return 2 * 4 * (3 * moving + student.parameters)


def _moving(student: ModelFolder, training: Training) -> int:
    """Parameters that are trained; adapters have about ``rank`` times 16 widths a block."""
    if training.lora is None:
        return student.parameters
    return training.lora.rank * 16 * student.width * student.layers


def _memory(
    steps: Sequence[Step], folders: dict[str, ModelFolder], jobs: int, cells: frozenset[str]
) -> Iterator[Finding]:
    needs = sorted((_cell_memory(step, folders) for step in steps), reverse=True)
    needed, free = sum(needs[:jobs]), memory_bytes()
    if not needed or not free:
        return
    said = f"{min(jobs, len(needs))} cells side by side need about {size(needed)}, {size(free)} are free"
    if needed > free:
        fewer = f"run fewer side by side: --jobs {_bearable(needs, free)}"
        yield Finding("warning", "memory", said, fewer, cells)
    else:
        yield Finding("note", "memory", said, "nothing to do", cells)


def _bearable(needs: Iterable[int], free: int) -> int:
    jobs = 0
    for need in needs:
        free -= need
        if free < 0:
            break
        jobs += 1
    return max(1, jobs)


def _cell_memory(step: Step, folders: dict[str, ModelFolder]) -> int:
    """Bytes at the dearer of two moments: the teacher reads, the student trains (as estimate.gpu_gib)."""
    training, student = step.cell.training, folders.get(step.pair.student)
    teacher = folders.get(step.pair.teacher)
    per_number = 2 if training is not None and training.precision == "bf16" else 4
    reading = per_number * teacher.parameters if teacher is not None else 0
    if training is None or student is None:
        return _BASE_MEMORY + max(reading, 4 * student.parameters if student is not None else 0)
    window = min(training.max_length, student.window or training.max_length)
    kept = training.micro_batch * window * student.layers * student.width * 34
    weights = 4 * student.parameters + 12 * _moving(student, training)
    return _BASE_MEMORY + max(reading, weights + kept)


def batch(step: Step, published: int) -> Iterator[Finding]:
    """The global batch against the published one, and the accumulation that restores it."""
    training = step.cell.training
    assert training is not None
    if training.batch == published:
        return
    parts = -(-published // training.micro_batch)
    reason = f"the global batch is {training.batch}, the published one {published}"
    remedy = f"--budget batch={published} restores it by accumulation over {parts} micro-batches"
    severity: Severity = "note" if step.cell.scale == "tiny" else "warning"
    about = f"training of {step.pair.label}"
    yield Finding(severity, about, reason, remedy, frozenset({step.cell.id}))


def _tiny_models(cache: Path) -> Iterator[Finding]:
    here = [ref for ref in tiny.REFS if tiny.place(ref, cache).is_dir()]
    missing = [ref for ref in tiny.REFS if ref not in here]
    reason = f"{len(here)} of {len(tiny.REFS)} tiny models are built"
    remedy = f"nothing to do: {', '.join(missing)} are built on first use" if missing else "nothing to do"
    yield Finding("note", f"--cache {cache}", reason, remedy)


def _damaged_records(store: Store) -> Iterator[Finding]:
    faults = store.check()
    for fault in faults:
        yield Finding("error", "a record", fault, "take it away, or bring it back from where it is whole")
    if not faults:
        whole = f"{len(store.paths())} records, all whole"
        yield Finding("note", f"--results {store.root}", whole, "nothing to do")
