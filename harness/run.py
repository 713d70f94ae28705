"""Runs the cells of a plan: models first, then cells, each finished record kept at once."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import Timeout

from harness import merging, pairs
from harness.cells import Cell
from harness.cluster import Cluster
from harness.files import write_whole
from harness.plan import Plan, Step
from harness.pool import Busy, Job, Listener, Outcome, Pool
from harness.provenance import cores, gpus, memory_bytes, provenance
from harness.store import SCHEMA, Store, StoreError, check_relative, references

if TYPE_CHECKING:
    from harness.cell import Context
    from harness.distributed import World
    from harness.launched import Together
    from harness.tracking import Log

Progress = Callable[[str, float], None]
Compute = Callable[[Cell, "Settings", Progress], dict[str, Any]]
Engine = Literal["local", "ray", "launched"]
Delivery = tuple[str, dict[str, bytes]]
Entry = dict[str, Any] | str | None  #: a record, why there will be none, or nothing yet

#: What computes a cell: ``module:function`` of (cell, settings, progress) -> record.
COMPUTE = "harness.run:compute"
BUILD = "harness.run:build"
READ_AHEAD = "harness.run:read_ahead"
GIB_PER_CELL = {"tiny": 1.5, "small": 8.0, "paper": 16.0}
#: Cores that a cell asks of a cluster.
CLUSTER_THREADS = {"tiny": 1, "small": 4, "paper": 8}


@dataclass(frozen=True)
class Settings:
    """What a worker must know beside the cell."""

    results: Path
    cache: Path
    data: Path | None = None
    reference: bool = False
    allow_unsafe: bool = False  #: run code of models although this machine has no namespaces
    trust_remote_code: bool = False  #: run Python files that model folders bring
    command: str = ""
    plugins: tuple[str, ...] = ()
    keep_students: bool = False
    tracker: str | None = None  #: see harness/tracking.py
    compute: str = COMPUTE


def default_jobs(scale: str, engine: Engine = "local") -> int:
    """Cells side by side that this machine can bear; a cluster shares them out itself."""
    if engine != "local":
        return 10_000 if engine == "ray" else 1
    room = int(memory_bytes() / 2**30 / GIB_PER_CELL[scale]) or 1
    if scale == "tiny":
        return max(1, min(len(cores()), room))
    if gpus():
        return len(gpus())
    return max(1, min(len(cores()) // 4, room))


def pool(scale: str, jobs: int, settings: Settings) -> Pool:
    """Workers for a scale. At tiny each has one thread everywhere, so that sums are added in one order."""
    threads = 1 if scale == "tiny" else max(1, len(cores()) // jobs)
    return Pool(jobs, threads, settings.results / "work" / "logs", 0 if scale == "tiny" else len(gpus()))


def cluster(scale: str, jobs: int, settings: Settings) -> Cluster:
    """The same on a Ray cluster; finished cells enter the store of this machine."""
    receive = partial(receive_cell, Store(settings.results))
    return Cluster(jobs, CLUSTER_THREADS[scale], scale != "tiny", receive)


def together(scale: str, jobs: int, settings: Settings) -> Together:
    """The launched processes, which take one cell at a time."""
    from harness.launched import Together

    def failed(job: Job, reason: str) -> None:
        if job.function not in (BUILD, READ_AHEAD):
            _keep_failure(Cell.from_dict(job.arguments[0]), reason, settings)

    return Together(scale, failed)


#: Engine -> what makes its workers, and what they do with a cell.
_WAYS: dict[Engine, tuple[Callable[[str, int, Settings], Pool | Cluster | Together], str]] = {
    "local": (pool, "harness.run:finish"),
    "ray": (cluster, "harness.run:deliver"),
    "launched": (together, "harness.launched:finish"),
}


def execute(
    plan: Plan,
    settings: Settings,
    jobs: int,
    listener: Listener,
    engine: Engine = "local",
    *,
    teacher_alone: bool = False,
) -> dict[str, Outcome]:
    """Run what is to run. Outcomes by cell id; a failed build fails the cells that need it.

    ``teacher_alone``: only what the teacher does before; no cell has a record afterwards, failed or not.
    """
    steps = plan.of("run")
    if not steps:
        return {}
    if engine == "launched":  # where a failure ends the launch, so what failed before comes last
        steps.sort(key=lambda step: bool(step.reason))
    make, function = _WAYS[engine]
    function = READ_AHEAD if teacher_alone else function
    with make(plan.request.scale, min(jobs, len(steps)), settings) as workers:
        builds = plan.builds if settings.compute == COMPUTE else []
        built = workers.run([_build_job(ref, settings) for ref in builds], listener)
        broken = {key: outcome.reason for key, outcome in built.items() if not outcome.ok}
        blocked = {step.cell.id: reason for step in steps if (reason := _broken_model(step, broken))}
        ready = [_cell_job(step, settings, function) for step in steps if step.cell.id not in blocked]
        outcomes = workers.run(ready, listener)
    outcomes |= {key: Outcome(False, reason) for key, reason in blocked.items()}
    if not teacher_alone:
        _keep_failures(steps, outcomes, settings)
    return outcomes


def _keep_failures(steps: Sequence[Step], outcomes: Mapping[str, Outcome], settings: Settings) -> None:
    """A record for every failed cell, with the reason; the cell's next run replaces it."""
    for step in steps:
        outcome = outcomes[step.cell.id]
        if not outcome.ok:
            _keep_failure(step.cell, outcome.reason, settings)


def _keep_failure(cell: Cell, reason: str, settings: Settings) -> None:
    # no room for it, or another command has finished the cell meanwhile
    with contextlib.suppress(OSError, StoreError):
        Store(settings.results).put(failed_record(cell, reason, settings.command))


def failed_record(cell: Cell, reason: str, command: str) -> dict[str, Any]:
    """The record of a cell that has no scores."""
    return {
        "schema": SCHEMA,
        "cell": cell.id,
        "spec": cell.as_dict(),
        "status": "failed",
        "reason": reason,
        "scores": {},
        "training": None,
        "models": {},
        "data": [],
        "provenance": provenance(command),
        "cost": {},
    }


def _build_job(ref: str, settings: Settings) -> Job:
    return Job(ref, f"build {ref}", BUILD, (ref, settings))


def _cell_job(step: Step, settings: Settings, function: str) -> Job:
    return Job(step.cell.id, step.title, function, (step.cell.as_dict(), settings))


def _broken_model(step: Step, broken: Mapping[str, str]) -> str:
    needed = (step.pair.teacher, step.pair.student)
    return next((f"{ref} could not be built: {broken[ref]}" for ref in needed if ref in broken), "")


def receive_cell(store: Store, delivery: Delivery | None) -> str | None:
    """Check what ``deliver`` sent and put it into the store; the note. StoreError where it does not fit."""
    if delivery is None:  # a model was built
        return None
    note, files = delivery
    with tempfile.TemporaryDirectory() as folder:
        for path, data in files.items():
            check_relative(path, "delivery")
            write_whole(Path(folder) / path, data)
        merge = merging.plan(store, [Path(folder)])
        if merge.faults:
            raise StoreError("; ".join(merge.faults))
        merge.carry_out()
    return note


# in the worker


def build(ref: str, settings: Settings, progress: Progress) -> None:
    """Make a model of scale tiny, if it is not there."""
    from harness import tiny

    tiny.build(ref, settings.cache, progress)


def read_ahead(spec: dict[str, Any], settings: Settings, progress: Progress) -> str:
    """Have a cell's teacher write and read what there is before training; what a user should hear of it."""
    from harness import cell as cells
    from harness import distributed, methods

    methods.load(settings.plugins)
    cell = Cell.from_dict(spec)
    kept = cells.read_ahead(cell, context(cell, settings, progress, distributed.world(cell.scale)))
    return "" if kept else "too many hidden states to keep: the teacher will read at every step"


def finish(spec: dict[str, Any], settings: Settings, progress: Progress) -> str:
    """See that a cell's record is in the store; what a user should hear of it, if anything.

    Raises Busy while another process works on it.
    """
    cell, store, unkept = Cell.from_dict(spec), Store(settings.results), ""
    with held(store, cell.id):
        known = store.get(cell.id)
        if known is None or known["status"] != "done":
            known = produce(cell, settings, progress)
            unkept = put(cell, known, settings, progress)
        shutil.rmtree(store.work(cell.id), ignore_errors=True)
    return note_of(known, unkept)


def put(cell: Cell, record: dict[str, Any], settings: Settings, progress: Progress) -> str:
    """Store a record, then its student where that is asked for; why the latter could not be, if so."""
    Store(settings.results).put(record)
    if not settings.keep_students or cell.training is None:
        return ""
    from harness import students

    return students.try_to_keep(cell.id, settings, progress)


def produce(cell: Cell, settings: Settings, progress: Progress) -> dict[str, Any]:
    """A cell's record, by the settings' way of computing it."""
    return _function(settings.compute)(cell, settings, progress)


def note_of(record: Mapping[str, Any], unkept: str) -> str:
    """What a user should hear of a finished cell beside its scores; ``unkept`` is why it has no student."""
    diverged = (record["training"] or {}).get("diverged")
    return "; ".join(filter(None, (f"training diverged: {diverged}" if diverged else "", unkept)))


@contextlib.contextmanager
def held(store: Store, cell_id: str) -> Iterator[None]:
    """Hold a cell for this process. Raises Busy while another one has it."""
    lock = store.lock(cell_id, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise Busy from None
    try:
        yield
    finally:
        lock.release()


def deliver(spec: dict[str, Any], settings: Settings, progress: Progress) -> Delivery:
    """As ``finish``, and the cell's files by their path in the store: the disk may be this node's own."""
    note = finish(spec, settings, progress)
    store, cell = Store(settings.results), Cell.from_dict(spec).id
    record = store.get(cell) or {}
    paths = [store.record_path(cell).relative_to(store.root).as_posix()]
    paths += [reference["path"] for reference in references(record)]
    return note, {path: (store.root / path).read_bytes() for path in paths}


def compute(cell: Cell, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Train, decode and score a cell; the record."""
    from harness import cell as cells
    from harness import distributed, methods, tracking

    methods.load(settings.plugins)
    world = distributed.world(cell.scale)
    with tracking.tracked(settings.tracker, cell, settings.results / "tracked", world) as log:
        return cells.run(cell, context(cell, settings, progress, world, log))


def context(
    cell: Cell, settings: Settings, progress: Progress, world: World, log: Log | None = None
) -> Context:
    """Where a cell finds things, by the settings of a command."""
    from harness.cell import Context

    return Context(
        store=Store(settings.results),
        cache=settings.cache,
        pair=pairs.get(cell.pair),
        data=settings.data,
        progress=progress,
        reference=settings.reference,
        allow_unsafe=settings.allow_unsafe,
        trust_remote_code=settings.trust_remote_code,
        command=settings.command,
        world=world,
        log=log,
    )


def _function(name: str) -> Compute:
    module, _, attribute = name.partition(":")
    found: Compute = getattr(importlib.import_module(module), attribute)
    return found


# what the report needs


def entries(plan: Plan, store: Store, outcomes: Mapping[str, Outcome]) -> dict[str, dict[str, list[Entry]]]:
    """Table id -> row key -> one entry per training seed, as verdict.judge takes them."""
    found: dict[str, dict[str, list[Entry]]] = {table.id: {} for table in plan.tables}
    for step in sorted(plan.steps, key=lambda step: step.cell.seed):
        entry = _entry(step, store, outcomes.get(step.cell.id))
        for place in step.rows:
            table, _, row = place.partition(" ")
            found[table].setdefault(row, []).append(entry)
    return found


def _entry(step: Step, store: Store, outcome: Outcome | None) -> Entry:
    if step.state == "refused":
        return step.reason
    if outcome is not None and not outcome.ok:
        return {"status": "failed", "reason": outcome.reason, "spec": step.cell.as_dict()}
    return store.get(step.cell.id)


def failures(plan: Plan, outcomes: Mapping[str, Outcome]) -> Sequence[tuple[Step, str]]:
    """The cells that failed in this run, with the reason."""
    return [
        (step, outcomes[step.cell.id].reason)
        for step in plan.steps
        if step.cell.id in outcomes and not outcomes[step.cell.id].ok
    ]


def default_cache() -> Path:
    """Where models, teacher states and maps are kept: $DSKD_CACHE, else ``.cache`` beside the code."""
    given = os.environ.get("DSKD_CACHE")
    return Path(given).expanduser() if given else Path(__file__).resolve().parent.parent / ".cache"
