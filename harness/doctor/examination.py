"""A plan, examined: models, texts, settings and machine, each once, with the cells a finding concerns."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dskd.method import Spec
from harness import locate, plan, run, scales, sources, tiny
from harness.cells import Decoding
from harness.doctor import machine, texts
from harness.doctor.findings import SEVERITIES, Finding
from harness.doctor.models import Model, check_model, check_pair
from harness.doctor.texts import Reader
from harness.examples import Example
from harness.files import write_whole
from harness.folder import ModelFolder
from harness.plan import Plan, PlanError, Step
from harness.sources import catalogue


class DoctorError(PlanError):
    """An input that no cell could be run with."""


def examine(planned: Plan, settings: run.Settings, jobs: int, *, glance: bool) -> list[Finding]:
    """All findings about a plan, worst first. ``glance``: of the cells to run only, counting some texts."""
    refused = [] if glance else planned.of("refused")
    steps = planned.of("run") if glance else planned.steps
    look = _Look(planned, settings, steps, glance)
    found = [
        *machine.writable(settings),
        *(_refusal(step) for step in refused),
        *look.models(),
        *look.texts(),
        *look.settings(),
        *machine.room(steps, look.folders, look.states, settings, jobs),
    ]
    return sorted(_merged(found), key=lambda finding: SEVERITIES.index(finding.severity))


def _refusal(step: Step) -> Finding:
    remedy = "do what it says, or leave the cell out"
    return Finding("error", step.pair.label, step.reason, remedy, frozenset({step.cell.id}))


def _merged(found: Iterable[Finding]) -> list[Finding]:
    """Equal findings once, with the cells of all."""
    by_words: dict[Finding, frozenset[str]] = {}
    for finding in found:
        words = dataclasses.replace(finding, cells=frozenset())
        by_words[words] = by_words.get(words, frozenset()) | finding.cells
    return [dataclasses.replace(words, cells=cells) for words, cells in by_words.items()]


@dataclass
class _Look:
    """One examination: what was read so far, so that nothing is read twice."""

    planned: Plan
    run: run.Settings
    steps: Sequence[Step]
    glance: bool

    def __post_init__(self) -> None:
        self.request = self.planned.request
        self.folders: dict[str, ModelFolder] = {}
        self.licences: dict[str, str | None] = {}
        self.states = 0  #: bytes of hidden states, one set for each teacher and training file
        for ref in dict.fromkeys(ref for step in self.steps for ref in self._refs(step)):
            self._find(ref)

    def _refs(self, step: Step) -> tuple[str, ...]:
        return plan.model_refs(step.cell.method, step.pair)

    def _find(self, ref: str) -> None:
        """The folder of a model, if it is here; a tiny one may not be built yet."""
        if ref.startswith("tiny:"):
            path: Path | None = tiny.place(ref, self.run.cache)
            self.licences[ref] = "Apache-2.0 (made by this project)"
        else:
            found = sources.resolve(ref, self.run.cache)
            path, self.licences[ref] = found.path, found.licence
        if path is not None and path.is_dir():
            self.folders[ref] = ModelFolder(path)

    def _cells(self, steps: Iterable[Step]) -> frozenset[str]:
        return frozenset(step.cell.id for step in steps)

    # models

    def models(self) -> Iterator[Finding]:
        """Findings about every model and every pair."""
        known = {ref: self._model(ref) for ref in self.folders}
        ill = set()
        for model in known.values():
            found = check_model(model)
            ill |= {model.ref for finding in found if finding.severity == "error"}
            yield from found
        for pair in dict.fromkeys(step.pair for step in self.steps):
            if pair.teacher in known and pair.student in known:
                own = self.request.teacher is not None
                yield from check_pair(known[pair.teacher], known[pair.student], own, pair.same_vocabulary)
        for ref in ill:  # nothing more can be learnt from it
            del self.folders[ref]

    def _model(self, ref: str) -> Model:
        mine = [step for step in self.steps if ref in self._refs(step)]
        precisions = {step.cell.training.precision for step in mine if step.cell.training is not None}
        return Model(
            ref,
            self.folders[ref],
            self.licences[ref],
            self._cells(mine),
            "bf16" if "bf16" in precisions else "fp32",
            self.run.trust_remote_code,
        )

    # texts

    def texts(self) -> Iterator[Finding]:
        """Findings about every training file and suite, as each model of the pair reads it."""
        read: dict[tuple[str, int | None], list[Example]] = {}
        for (name, limit), steps in self._grouped_by_training().items():
            path = self._file(locate.training_name(name))
            if path is None:
                continue
            cells = self._cells(steps)
            read[name, limit], found = texts.read_training(name, path, limit, cells)
            yield from found
            yield from self._ledger(locate.training_name(name), cells)
            if read[name, limit]:
                yield from self._readings(name, read[name, limit], steps)
        yield from self._suites()

    def _grouped_by_training(self) -> dict[tuple[str, int | None], list[Step]]:
        groups: dict[tuple[str, int | None], list[Step]] = {}
        for step in self.steps:
            if step.cell.training is not None:
                groups.setdefault((step.cell.data, step.cell.training.examples), []).append(step)
        return groups

    def _readings(self, name: str, examples: Sequence[Example], steps: Sequence[Step]) -> Iterator[Finding]:
        for (ref, student), mine in self._grouped_by_reader(steps).items():
            reads = self._reader(ref, mine[0], student=student)
            if reads is None:
                continue
            yield from texts.check_training(name, examples, reads, self._cells(mine), self.glance)
            if not student:
                some = examples[: texts.GLANCE]
                tokens = sum(reads.lengths([e.response for e in some])) * len(examples) // len(some)
                self.states += (tokens + len(examples)) * self.folders[ref].width * 2

    def _grouped_by_reader(self, steps: Sequence[Step]) -> dict[tuple[str, bool], list[Step]]:
        groups: dict[tuple[str, bool], list[Step]] = {}
        for step in steps:
            for ref in self._refs(step):
                groups.setdefault((ref, ref == step.pair.student), []).append(step)
        return groups

    def _reader(self, ref: str, step: Step, *, student: bool) -> Reader | None:
        if ref not in self.folders:
            return None
        training = step.cell.training or scales.setting(step.pair, step.cell.group).training
        try:
            return texts.reader(ref, self.folders[ref], training, student=student)
        except Exception:  # the library's own; an unreadable tokenizer is told of as the model's fault
            return None

    def _suites(self) -> Iterator[Finding]:
        for suite in dict.fromkeys(suite for step in self.steps for suite in step.cell.suites):
            mine = [step for step in self.steps if suite in step.cell.suites]
            path = self._file(plan.suite_file(suite.name))
            if path is None:
                continue
            items, found = texts.read_suite(suite, path, self._cells(mine))
            yield from found
            yield from self._ledger(plan.suite_file(suite.name), self._cells(mine))
            for (ref, decoding), steps in self._grouped_by_writer(mine).items():
                reads = self._reader(ref, steps[0], student=True)
                if reads is not None and items:
                    yield from texts.check_suite(suite, items, reads, decoding, self._cells(steps))

    def _grouped_by_writer(self, steps: Sequence[Step]) -> dict[tuple[str, Decoding], list[Step]]:
        groups: dict[tuple[str, Decoding], list[Step]] = {}
        for step in steps:
            writer = step.pair.teacher if step.cell.method == "teacher" else step.pair.student
            groups.setdefault((writer, step.cell.decoding), []).append(step)
        return groups

    def _file(self, name: str) -> Path | None:
        """Where a data file lies; None for one that is not here (the plan tells of that)."""
        if self.request.scale == "tiny":
            file = tiny.world_place(self.run.cache) / f"{name}.jsonl"
            return file if file.is_file() else None
        return plan.data_file(name, self.run.cache, self.request.data)[0]

    def _ledger(self, name: str, cells: frozenset[str]) -> Iterator[Finding]:
        if self.request.scale == "tiny" or Path(name).is_absolute():
            return
        (file,) = sources.data_files([name], self.run.cache, self.request.data)
        entry = catalogue.load().data.get(name)
        published = entry is not None and (bool(entry.exact) or entry.state == "exact")
        yield from texts.check_ledger(file, published, cells)

    # settings

    def settings(self) -> Iterator[Finding]:
        """Findings about batch, number format and the sandbox."""
        for step in self.steps:
            if step.cell.training is not None:
                paper, name = dataclasses.replace(step.pair, scale="paper"), Spec.parse(step.cell.method).name
                published = scales.setting(paper, step.cell.group, name).training.batch
                yield from machine.batch(step, published)
                yield from machine.number_format(step.cell.training, self._cells([step]))
        code = [step for step in self.steps if step.cell.group == "code"]
        if code:
            yield from machine.code_level(self._cells(code), self.run.allow_unsafe)


def triage(planned: Plan, findings: Sequence[Finding]) -> None:
    """Mark cells that an error concerns as refused.

    Raises DoctorError where that leaves no cell to run, or where the input is the user's own.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    todo = planned.of("run")
    ill = {
        step.cell.id: finding
        for finding in reversed(errors)
        for step in todo
        if finding.concerns(step.cell.id)
    }
    own = planned.request.teacher is not None or planned.request.data is not None
    if ill and (own or len(ill) == len(todo)):
        more = f" (and {len(errors) - 1} more, see --doctor)" if len(errors) > 1 else ""
        raise DoctorError(f"{errors[0]}{more}")
    for step in todo:
        if step.cell.id in ill:
            step.state, step.reason = "refused", str(ill[step.cell.id])


def said_first(findings: Sequence[Finding], results: Path) -> list[Finding]:
    """Errors, and the warnings that were not said in this results folder yet; they are remembered there."""
    memory = results / "work" / "doctor.json"
    try:
        known = set(json.loads(memory.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = set()
    warnings = {_mark(finding): finding for finding in findings if finding.severity == "warning"}
    new = [finding for mark, finding in warnings.items() if mark not in known]
    if new:
        write_whole(memory, json.dumps(sorted(known | set(warnings))).encode())
    return [finding for finding in findings if finding.severity == "error"] + new


def _mark(finding: Finding) -> str:
    return hashlib.sha256(str(finding).encode()).hexdigest()[:16]
