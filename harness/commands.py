"""One function per command. Results go to stdout, everything said on the way to stderr."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dskd import method
from harness import launch, merging, methods, origins, pairs, plan, protocol, run, tables, teacher_pass
from harness.estimate import duration
from harness.files import write_whole
from harness.plan import Plan, Request
from harness.pool import Job, Outcome
from harness.shards import Shard
from harness.store import Store, StoreError


@dataclass(frozen=True)
class Options:
    """How to run and show, whatever is asked."""

    settings: run.Settings
    jobs: int
    export: str | None
    engine: run.Engine = "local"


def reproduce(request: Request, options: Options) -> int:
    """Run what is missing, then print the tables, even when cells failed. 1 unless every cell is there."""
    planned, store = _plan(request, options)
    outcomes: dict[str, Outcome] = {}
    if planned.of("run"):
        _check_imports(store, request.scale)
        _look_first(planned, options)
    todo = planned.of("run")
    if todo:
        _say(_intention(planned, options))
        try:
            outcomes = execute(planned, options)
        except KeyboardInterrupt:
            finished = sum(store.has(step.cell.id) for step in todo)
            _say(f"stopped; {finished} of {len(todo)} cells done; run the same command to go on")
            return 130
    if launch.rank():
        return 0
    if request.shard is None:
        _report(planned, store, outcomes, options)
    else:
        _say(_share(planned, store, request.shard))
    for step, reason in run.failures(planned, outcomes):
        _say(f"failed: {step.title}: {reason}")
    whole = not run.failures(planned, outcomes) and not planned.of("refused")
    return 0 if whole else 1


def teacher_first(request: Request, options: Options) -> int:
    """Have the teachers of a request write and read, and keep it; 1 unless all of it was done."""
    if options.engine == "ray":
        raise plan.PlanError("--teacher-pass fills this machine's --cache; run it without --engine ray")
    planned, _ = _plan(request, options)
    tasks = {teacher_pass.task(step.cell): step for step in planned.of("run")}
    tasks.pop(None, None)
    todo = [step for step in tasks.values() if not teacher_pass.ready(step.cell, request.cache)]
    work = dataclasses.replace(planned, steps=todo)
    try:
        outcomes = execute(work, options, teacher_alone=True)
    except KeyboardInterrupt:
        _say("stopped; run the same command to go on")
        return 130
    if launch.rank():
        return 0
    undone = {step.reason: step for step in planned.of("refused") if _of_other_task(step, tasks)}
    undone |= {reason: step for step, reason in run.failures(work, outcomes)}
    for reason, step in undone.items():  # one of each kind
        _say(f"not done: {step.title}: {reason}")
    ready = sum(teacher_pass.ready(step.cell, request.cache) for step in tasks.values())
    here = f"{ready} of {len(tasks)}"
    print(f"{here} text sets were read or written by their teachers, and are kept in {request.cache}")
    return 1 if undone or ready < len(tasks) else 0


def _of_other_task(step: plan.Step, tasks: Mapping[str | None, plan.Step]) -> bool:
    """Whether the teacher has something to do for a step that it does for none of these."""
    task = teacher_pass.task(step.cell)
    return task is not None and task not in tasks


def _check_imports(store: Store, scale: str) -> None:
    """The tables show what was imported; StoreError for a damaged file is due now, not after hours."""
    from harness import external

    for _ in external.kept(store.root, scale):
        pass


def _look_first(planned: Plan, options: Options) -> None:
    """Say what is new of what the doctor finds; cells with an error are not started.

    Raises DoctorError where that leaves none, or where the input is the user's own.
    """
    from harness import doctor as doctors

    found = doctors.examine(planned, options.settings, options.jobs, glance=True)
    doctors.triage(planned, found)
    for finding in doctors.said_first(found, options.settings.results):
        _say(f"{finding.severity}: {finding}")


def doctor(request: Request | None, options: Options) -> int:
    """Everything the doctor finds, about the machine or about a request; 1 if there is an error."""
    from harness import doctor as doctors

    if request is None:
        found = doctors.survey(options.settings)
    else:
        planned, _ = _plan(request, options)
        found = doctors.examine(planned, options.settings, options.jobs, glance=False)
    for finding in found:
        print(f"{finding.severity}: {finding.about}\n  {finding.reason}\n  remedy: {finding.remedy}")
    counts = Counter(finding.severity for finding in found)
    print(", ".join(f"{counts[severity]} {severity}s" for severity in doctors.SEVERITIES))
    return 1 if counts["error"] else 0


def _share(planned: Plan, store: Store, shard: Shard) -> str:
    """What became of a share; the tables are printed when all of them are together."""
    cells = [step.cell.id for step in planned.steps]
    finished = sum(store.has(cell) for cell in cells)
    return (
        f"share {shard}: {finished} of its {len(cells)} cells have a record in {store.root}; the command "
        "without --shard prints the tables, after --merge where shares have folders of their own"
    )


def _plan(request: Request, options: Options) -> tuple[Plan, Store]:
    methods.load(options.settings.plugins)
    store = Store(options.settings.results)
    return plan.make(request, store), store


def _intention(planned: Plan, options: Options) -> str:
    todo, done = planned.of("run"), planned.of("done")
    words = f"scale {planned.request.scale}: {len(todo)} cells to run, {len(done)} done before"
    return f"{words}, {_time(planned, options)}"


def _time(planned: Plan, options: Options) -> str:
    seconds = [step.seconds for step in planned.of("run")]
    if not sum(seconds):
        return "time unknown"
    jobs = min(options.jobs, len(seconds))
    if options.engine == "ray":
        return f"about {duration(sum(seconds))} of work in all"
    together = max(sum(seconds) / jobs, *seconds)
    return f"about {duration(together)} with {jobs} side by side"


def execute(planned: Plan, options: Options, *, teacher_alone: bool = False) -> dict[str, Outcome]:
    from harness.screen import Screen

    settings = options.settings
    total = len(planned.of("run")) + (len(planned.builds) if settings.compute == run.COMPUTE else 0)
    log = f"process-{launch.rank()}.log" if launch.rank() else "run.log"
    with Screen(total, settings.results / "work" / log) as screen:
        return run.execute(
            planned, settings, options.jobs, screen, options.engine, teacher_alone=teacher_alone
        )


def _report(planned: Plan, store: Store, outcomes: Mapping[str, Outcome], options: Options) -> None:
    """Print every table; a whole one is also kept beside the records, with its figure."""
    from harness import rendering, report

    request, style = planned.request, options.export or "terminal"
    width = shutil.get_terminal_size((100, 24)).columns
    whole = not (request.methods or request.pairs or request.seeds or request.budget or request.teacher)
    for judged in rendering.judged(planned, store, outcomes):
        print(report.render_verdict(judged.result, judged.info, style, width, color=_colour(style)))
        if whole and judged.measured:
            rendering.keep(rendering.files(judged, store.root))
    for line in planned.absent:
        _say(f"not run: {line}")
    unseen = [step for step in planned.of("done") if step.lacking]
    if unseen:
        names = ", ".join(sorted({name for step in unseen for name in step.lacking}))
        _say(f"{len(unseen)} records were found by all but the hashes of what is not here: {names}")


def _colour(style: str) -> bool:
    return style == "terminal" and sys.stdout.isatty()


def dry_run(request: Request, options: Options) -> int:
    """Say what would be done, and what stands in the way. Loads no model."""
    from harness import tiny

    planned, _ = _plan(request, options)
    print(f"scale {request.scale}, {len(planned.steps)} cells")
    for step in planned.steps:
        said = {"done": _found(step), "run": _cost(step), "refused": f"not run: {step.reason}"}[step.state]
        print(f"  {step.cell.id}  {step.title}  {said}")
    for line in planned.absent:
        print(f"  not run: {line}")
    for ref in planned.builds:
        print(f"  {ref}: {'built' if tiny.place(ref, request.cache).is_dir() else 'to be built, minutes'}")
    for line in origins.lines(planned):
        print(f"  {line}")
    if request.scale == "paper":
        for line in protocol.lines(planned):
            print(line)
    states = Counter(step.state for step in planned.steps)
    counts = f"{states['run']} to run, {states['done']} done, {states['refused']} cannot run"
    print(counts + (f"; {_time(planned, options)}" if states["run"] else ""))
    return 0


def _found(step: plan.Step) -> str:
    return f"done (not here: {', '.join(step.lacking)})" if step.lacking else "done"


def _cost(step: plan.Step) -> str:
    said = f"to run, about {duration(step.seconds)}" if step.seconds else "to run"
    if step.text_seconds:
        said += f", {duration(step.text_seconds)} of them for student text"
    return f"{said}; {step.reason}" if step.reason else said


def rescore(request: Request, options: Options) -> int:
    """Score stored answers again: check finished cells, write those that only lack a suite's new version."""
    from evals.suites import SuiteError
    from harness import rescoring

    planned, store = _plan(request, options)
    root = rescoring.data_root(request.scale, request.cache, request.data)
    renewed, faults = 0, []
    for step in (*planned.of("run"), *planned.of("done")):
        try:
            if step.state == "done":
                faults += rescoring.differences(step.cell, store, root, options.settings.allow_unsafe)
            elif old := rescoring.predecessor(step.cell, store):
                rescoring.renew(
                    step.cell, old, store, root, options.settings.command, options.settings.allow_unsafe
                )
                renewed += 1
        except (rescoring.RescoreError, StoreError, SuiteError) as error:
            faults.append(str(error))
    print("".join(f"{fault}\n" for fault in faults), end="")
    checked = len(planned.of("done"))
    print(f"{checked} cells checked, {len(faults)} differences; {renewed} written anew from older answers")
    return 1 if faults or not (checked or renewed) else 0


def listing(plugins: Sequence[str]) -> int:
    """Methods with citation and needs, tables, suites and pairs."""
    from evals.suites import SUITES

    methods.load(plugins)
    print("methods (--explain NAME for the formula and the conventions)")
    for name in method.names():
        entry = method.entry(name)
        print(f"  {name:<16} {entry.title}. {entry.citation}")
        print(f"  {'':<16} needs {_needs(entry)}{_variants(entry)}")
    print("\ntables")
    for table in map(tables.load, tables.ids()):
        print(f"  {table.id:<6} {table.title} ({', '.join(table.aliases)})")
        print(f"  {'':<6} {len(table.rows)} rows on {', '.join(table.suites)}")
    print("\nsuites")
    for suite in SUITES.values():
        print(f"  {suite.name:<10} {suite.title}, {suite.metric}, version {suite.version}")
    print("\npairs (teacher -> student)")
    for pair in pairs.PAIRS.values():
        print(f"  {pair.name:<24} {pair.teacher} -> {pair.student}")
    return 0


_ALIGNMENTS = {
    "none": "",
    "spans": "aligned spans",
    "edit-distance": "edit-distance alignment",
    "chunks": "aligned chunks",
}


def _needs(entry: method.Entry) -> str:
    needs = entry.needs
    parts = [
        "a teacher" if needs.teacher else "",
        {"same": "one vocabulary", "different": "two vocabularies", "any": ""}[needs.vocabulary],
        _ALIGNMENTS[needs.alignment],
        "teacher texts" if needs.teacher_text else "",
        "student samples" if needs.student_samples else "",
    ]
    return ", ".join(part for part in parts if part) or "nothing but data"


def _variants(entry: method.Entry) -> str:
    divergence = "; takes /divergence" if entry.divergences else ""
    return divergence + (f"; variants @{', @'.join(entry.variants)}" if entry.variants else "")


def explain(address: str, plugins: Sequence[str]) -> int:
    """A method's page of the ledger."""
    from harness.explain import explain as page

    methods.load(plugins)
    print(page(address))
    return 0


def conformance(address: str, plugins: Sequence[str]) -> int:
    """Check a method, or all, against the contract; 1 if any breaks it."""
    from harness import conformance as suite

    methods.load(plugins)
    broken = 0
    for checked in [address] if address else suite.addresses():
        results = suite.run(checked)
        failed = [result for result in results if result.status == "fail"]
        broken += len(failed)
        print(f"{checked}: {len(results) - len(failed)} of {len(results)} hold", flush=True)
        for result in results:
            if result.status != "pass":
                word = "BROKEN" if result.status == "fail" else "by definition"
                print(f"  {word} {result.check}: {result.detail}")
    return 1 if broken else 0


def leaderboard(
    results: Path, target: Path, cache: Path, *, scale: str | None, data: Path | None, plugins: Sequence[str]
) -> int:
    """Write the page of all records (of one scale) and say what it holds and what not."""
    from harness import leaderboard as pages
    from harness.statistics import StatisticsError

    methods.load(plugins)
    store = Store(results)
    try:
        made = pages.make(store, target, cache, scale=scale, data=data)
    except StatisticsError as error:
        raise StoreError(str(error)) from None
    if not made.records + made.external:
        raise plan.PlanError(f"{results} holds no records" + (f" of scale {scale}" if scale else ""))
    text = made.html.encode()
    write_whole(target, text)
    boards = f"{made.boards} board{'s' if made.boards != 1 else ''}"
    more = f" and {made.external} external" if made.external else ""
    print(f"{target}: {made.records} records{more} on {boards}, {len(text) / 1e6:.1f} MB")
    for line in made.left_out:
        _say(f"not in the page: {line}")
    return 0


def fetch(wanted: str, cache: Path) -> int:
    """Fetch models and data; 1, and a line for each, where something could not be had."""
    from harness import sources

    shown = ""

    def progress(stage: str, fraction: float) -> None:
        nonlocal shown
        if stage != shown:
            shown = stage
            _say(stage)

    try:
        sources.fetch(wanted.split(","), cache, progress)
    except sources.SourceError as error:
        _say(str(error))
        return 1
    print(f"{wanted} is under {cache}")
    return 0


def merge(sources: Sequence[Path], results: Path) -> int:
    """Bring the records of other stores into this one; 2, and every reason, where that cannot be done."""
    merged = merging.plan(Store(results), sources)
    if merged.faults:
        for fault in merged.faults:
            _say(fault)
        _say(f"nothing was merged: {len(merged.faults)} faults")
        return 2
    new, count = len(merged.new), merged.imported
    merged.carry_out()
    imported = f"; {count} imported record{'s' * (count > 1)} new" if count else ""
    print(f"{merged.read} records read, {new} of them new in {results}{imported}")
    return 0


def save_student(cell_id: str, output: Path | None, settings: run.Settings, jobs: int | None) -> int:
    """Save the student of a finished cell: the kept one, else trained again; 1 if that gives another."""
    from harness import students

    methods.load(settings.plugins)
    record = students.find(Store(settings.results), cell_id)
    kept = students.kept(settings.results, cell_id)
    output = (output or kept).resolve()
    if output.exists() and (output == kept or not output.is_dir() or any(output.iterdir())):
        raise students.StudentError(f"{output} is there already; remove it, or name another with --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    if kept.is_dir():
        shutil.copytree(kept, output, dirs_exist_ok=True)
        print(f"{output}: the student kept when its record was made")
        return 0
    students.check_repeatable(record, settings)
    outcome = _train_again(record, output, settings, jobs)
    if not outcome.ok:
        _say(f"not saved: {outcome.reason}")
        return 1
    print(f"{output}: trained again, {outcome.value}")
    return 0


def _train_again(
    record: Mapping[str, Any], output: Path, settings: run.Settings, jobs: int | None
) -> Outcome:
    from harness.screen import Screen

    scale, key = record["spec"]["scale"], record["cell"]
    job = Job(key, f"student {key}", "harness.students:save", (key, output, settings))
    workers = run.pool(scale, jobs or run.default_jobs(scale), settings)
    with Screen(1, settings.results / "work" / "run.log") as screen, workers:
        return workers.run([job], screen)[key]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
