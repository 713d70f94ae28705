"""From a request to cells: which there are, which are finished, and which cannot run and why.

Nothing here loads a model or torch, so a plan is made in well under a second.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dskd import method as methods
from dskd.divergences import ENTRIES as DIVERGENCES
from dskd.method import Method, MethodError, Spec
from harness import estimate, launch, locate, pairs, scales, tables, teacher_pass, versions
from harness.cells import UNTRAINED, Cell, SuiteRun, Training
from harness.estimate import History
from harness.methods import plugin_file
from harness.pairs import PairSpec
from harness.provenance import gpus, started
from harness.shards import Shard
from harness.store import Store, StoreError
from harness.tables import Row, Side, Table


class PlanError(ValueError):
    """A request that names something which does not exist."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    scale: str
    tables: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()  #: rows to keep (addresses, names, labels), or the rows of an own pair
    pairs: tuple[str, ...] = ()  #: pairs to keep: names or sides
    seeds: tuple[int, ...] = ()  #: training seeds; empty takes the scale's
    budget: Mapping[str, float] = field(default_factory=dict)
    teacher: str | None = None  #: a pair of the user's own
    student: str | None = None
    data: Path | None = None
    cache: Path = Path(".cache")
    reference: bool = False  #: plain heads instead of tiled ones
    shard: Shard | None = None  #: the share of the cells that this command is to see to
    teacher_pass: bool = False  #: only what the teacher can do before the cells run


State = Literal["done", "run", "refused"]


@dataclass
class Step:
    """A cell with its state."""

    cell: Cell
    pair: PairSpec
    state: State
    reason: str = ""  #: why a refused one cannot run, or how the last run of an open one failed
    seconds: float = 0.0  #: estimate; 0 where there is nothing to do or to go by
    text_seconds: float = 0.0  #: of these, for text that the student writes
    rows: list[str] = field(default_factory=list)  #: "table side/method", wherever it is shown
    unseen: tuple[SuiteRun, ...] = ()  #: suites left out because their files are not here
    lacking: tuple[str, ...] = ()  #: models and data not here, where a record was found all the same

    @property
    def title(self) -> str:
        """The cell in a few words; an own pair without the paths of its folders."""
        own = pairs.ARROW in self.pair.name
        short = pairs.ARROW.join(Path(ref).name for ref in (self.pair.teacher, self.pair.student))
        return f"{short if own else self.pair.name} {self.cell.method} seed {self.cell.seed}"


@dataclass
class Plan:
    """All cells of a request, each once, in the order they should run."""

    request: Request
    tables: list[Table]
    steps: list[Step]
    absent: list[str]  #: sides and suites that no cell stands for, with the reason

    def of(self, state: State) -> list[Step]:
        """The steps in one state."""
        return [step for step in self.steps if step.state == state]

    @property
    def builds(self) -> list[str]:
        """Models of scale tiny that the cells to run need, each once."""
        refs = [ref for step in self.of("run") for ref in model_refs(step.cell.method, step.pair)]
        return [ref for ref in dict.fromkeys(refs) if ref.startswith("tiny:")]

    def cells(self, table: Table, side: Side, address: str) -> list[Step]:
        """The steps behind a row, by seed."""
        return [step for step in self.steps if f"{table.id} {side}/{address}" in step.rows]


def make(request: Request, store: Store) -> Plan:
    """The plan of a request. PlanError, MethodError, TableError or PairError where it names what is not."""
    chosen = _tables(request)
    rows = _select(chosen, () if request.teacher else request.methods)
    steps: dict[str, Step] = {}
    absent: list[str] = []
    used: set[str] = set()
    for table, row in rows:
        pair = _pair_of(table, row.side, request, absent)
        if pair is None or not _wanted(pair, row.side, request.pairs, used):
            continue
        for step in _steps(table, row, pair, request, absent):
            if request.shard is not None and not request.shard.holds(step.cell.id):
                continue
            known = steps.setdefault(step.cell.id, step)
            known.rows.append(f"{table.id} {row.key}")
    unused = [name for name in request.pairs if name not in used]
    if unused:
        raise PlanError(_no_pair(unused[0], request.scale, chosen))
    _settle(steps.values(), store, request)
    lost = {run.name for step in steps.values() for run in step.unseen if run not in step.cell.suites}
    absent.extend(f"suite {name}: {_suite_missing(name, request)}" for name in sorted(lost))
    return Plan(request, chosen, _ordered(list(steps.values())), list(dict.fromkeys(absent)))


# which tables, rows and pairs


def _tables(request: Request) -> list[Table]:
    named = [_extended(tables.load(name), request.methods) for name in request.tables]
    chosen = list({table.id: table for table in named}.values())
    if request.teacher is None or request.student is None:
        return chosen
    if len(chosen) > 1:
        raise PlanError("an own pair is scored on the suites of one table at a time")
    return [own_table(request, chosen[0] if chosen else tables.load("1"), bool(chosen))]


def own_table(request: Request, base: Table, rows_of_base: bool) -> Table:
    """A table for a user's own pair: the suites of ``base``, the methods asked for (or the base's rows)."""
    pair = pairs.own(str(request.teacher), str(request.student), request.scale)
    side: Side = "cross" if pair.same_vocabulary is False else "same"
    if request.methods:
        asked = [Row(text, row_address(text), side, ()) for text in request.methods]
    elif rows_of_base:
        asked = [Row(row.label, row.method, side, ()) for row in base.rows if row.side == side]
    else:
        raise PlanError("an own pair needs --methods (say sft,dskd-v2/kl) or --table, whose rows it takes")
    ends = [Row("Teacher", "teacher", side, ()), Row("Student before training", "student", side, ())]
    rows = {row.method: row for row in (*ends, *asked)}
    return dataclasses.replace(
        base,
        id="own",
        title=f"{request.teacher} to {request.student}, suites of table {base.id}",
        paper="",
        aliases=(),
        pairs={scale: {side: pair.name} for scale in scales.SCALES},
        absent={scale: {} for scale in scales.SCALES},
        rows=tuple(rows.values()),
        claims=(),
        budget={},
        seeds={},
    )


def _extended(table: Table, wanted: Sequence[str]) -> Table:
    """The table with a row for every method asked for that it lacks: a plugin's, or other options."""
    new: dict[str, Row] = {}
    for word in wanted:
        if any(_names(word, row) for row in table.rows):
            continue
        try:
            method = methods.create(word)
        except MethodError:
            continue  # perhaps a label of another table; _select refuses what no table has
        if side := _side_for(method, table.sides):
            new.setdefault(row_address(word), Row(word, row_address(word), side, ()))
    return dataclasses.replace(table, rows=(*table.rows, *new.values())) if new else table


def _side_for(method: Method, sides: Sequence[Side]) -> Side | None:
    """The side of a method without a row, two vocabularies if it can serve them; None where it fits none."""
    wanted = method.needs.vocabulary
    if wanted == "any":
        return "cross" if "cross" in sides else sides[0]
    side: Side = "same" if wanted == "same" else "cross"
    return side if side in sides else None


def row_address(text: str) -> str:
    """The one address of a row, so that one computation has one cell id. The method must exist.

    It is what a table writes for this computation. What no table has is written in canonical form, with
    the divergence said where tables say it: ``dskd-cma:rate=0.30`` is ``dskd-cma/kl:rate=0.3``.
    """
    if text in UNTRAINED:
        return text
    spec, written = methods.create(text).canonical(), _in_tables(tables.TABLES)
    if str(spec) in written:
        return written[str(spec)]
    usual = Spec.parse(written.get(spec.name, spec.name)).divergence
    return str(dataclasses.replace(spec, divergence=spec.divergence or usual))


@functools.cache
def _in_tables(folder: Path) -> dict[str, str]:
    """Canonical address -> the address in the tables of a folder, by which records know their cells."""
    rows = [row for path in sorted(folder.glob("*.yaml")) for row in tables.read(path).rows]
    found = {}
    for text in {row.method for row in rows if row.trained}:
        try:
            found[str(methods.create(text).canonical())] = text
        except MethodError:
            continue  # of a plugin that is not loaded
    return found


def _select(chosen: Sequence[Table], wanted: Sequence[str]) -> list[tuple[Table, Row]]:
    """Rows that a word names, by label, address or the method's bare name, and what they are told in."""
    rows = [(table, row) for table in chosen for row in table.rows]
    if not wanted:
        return rows
    kept: set[int] = set()
    for word in wanted:
        hits = [number for number, (_, row) in enumerate(rows) if _names(word, row)]
        if not hits:
            raise PlanError(_no_row(word, [row for _, row in rows]))
        kept.update(hits)
    keys = {table.id: table.needed(rows[n][1].key for n in kept if rows[n][0] is table) for table in chosen}
    return [(table, row) for table, row in rows if row.key in keys[table.id]]


def _no_row(word: str, rows: Sequence[Row]) -> str:
    try:
        wanted = methods.create(word).needs.vocabulary
    except MethodError:
        names = {text for row in rows for text in (row.method, row.label)}
        return f"no row is {word!r}" + tables.nearest(word, names)
    needed = "one vocabulary" if wanted == "same" else "two vocabularies"
    return f"{word} needs pairs of {needed}, and these tables have none"


def _names(word: str, row: Row) -> bool:
    if word.casefold() == row.label.casefold() or word == row.method:
        return True
    try:
        method = methods.create(word)
    except MethodError:
        return False
    bare = word == method.spec.name and word == Spec.parse(row.method).name
    return bare or row_address(word) == row.method


def _pair_of(table: Table, side: Side, request: Request, absent: list[str]) -> PairSpec | None:
    name = table.pair(request.scale, side)
    if name is None:
        absent.append(f"table {table.id}, {side} vocabulary: {table.absent[request.scale][side]}")
        return None
    return pairs.get(name)


def _wanted(pair: PairSpec, side: Side, wanted: Sequence[str], used: set[str]) -> bool:
    names = {pair.name, pair.name.partition("/")[2], side}
    used.update(names & set(wanted))
    return not wanted or bool(names & set(wanted))


def _no_pair(name: str, scale: str, chosen: Sequence[Table]) -> str:
    known = {pair for table in chosen for pair in table.pairs[scale].values()} | {"same", "cross"}
    return f"no pair of these tables at scale {scale} is {name!r}" + tables.nearest(name, known)


# cells


def _steps(table: Table, row: Row, pair: PairSpec, request: Request, absent: list[str]) -> Iterable[Step]:
    """The cells of a row: one per training seed, or one alone where nothing is trained."""
    row = dataclasses.replace(row, method=_published(row.method, scales.options(pair, table.group)))
    seeds = (request.seeds or _default_seeds(table, request.scale)) if row.trained else (0,)
    budget = {**table.budget.get(request.scale, {}), **request.budget}
    setting = scales.setting(pair, table.group, Spec.parse(row.method).name, budget)
    method, refusal = _method(row.method, pair, setting.training)
    suites, unseen, missing = _suites(table, setting, request)
    absent.extend(missing)
    data = _training_set(setting.data, request) if row.trained else ""
    files = [suite_file(run.name) for run in suites] + ([locate.training_name(data)] if data else [])
    known = _versions(method, pair, row, request, setting.training) | _file_versions(files, request)
    for seed in seeds:
        cell = Cell(
            scale=request.scale,
            pair=pair.name,
            method=row.method,
            seed=seed,
            group=table.group,
            training=setting.training if row.trained else None,
            decoding=setting.decoding,
            suites=suites,
            data=data,
            versions=tuple(sorted(known.items())),
        )
        state: State = "refused" if refusal else "run"
        yield Step(cell, pair, state, refusal, unseen=unseen)


def _published(address: str, options: Mapping[str, float]) -> str:
    """The address with the options of the published runs, where it leaves DSKD's defaults as they are."""
    if address in UNTRAINED or not options:
        return address
    try:
        method = methods.create(address)
    except MethodError:
        return address
    chosen, usual = dict(method.spec.options), methods.Options()
    if not method.needs.teacher:
        return address
    for name, value in options.items():
        if name not in chosen and getattr(method.options, name, None) == getattr(usual, name):
            chosen[name] = methods.write_value(value)
    return str(dataclasses.replace(method.spec, options=tuple(sorted(chosen.items()))))


def _default_seeds(table: Table, scale: str) -> tuple[int, ...]:
    count = table.seeds.get(scale)
    return tuple(range(1, count + 1)) if count else scales.DEFAULT_SEEDS[scale]


def _method(address: str, pair: PairSpec, training: Training | None) -> tuple[Method | None, str]:
    """The method, and why it cannot serve the pair or the training (empty if it can)."""
    if address in UNTRAINED:
        return None, ""
    try:
        method = methods.create(address)
        if pair.same_vocabulary is not None:
            method.check(pair.same_vocabulary)
    except MethodError as error:
        return None, str(error)
    asked = method.needs.student_samples
    unfit = asked.unfit(training.epochs) if asked is not None and training is not None else ""
    return method, f"{method.spec}: {unfit}" if unfit else ""


def _suites(
    table: Table, setting: scales.Setting, request: Request
) -> tuple[tuple[SuiteRun, ...], tuple[SuiteRun, ...], list[str]]:
    """The suites that can be scored, those whose files are not here, and a line for each that never can."""
    runs, unseen, missing = [], [], []
    for name in table.suites:
        absent, lost = scales.ABSENT.get((request.scale, name)), _suite_missing(name, request)
        run = SuiteRun(name, suite_version(name), setting.limit)
        if absent:
            missing.append(f"suite {name}: {absent}")
        elif lost and request.scale != "paper":  # there a cell is the whole protocol or nothing
            unseen.append(run)
        else:
            runs.append(run)
    return tuple(runs), tuple(unseen), missing


def suite_version(name: str) -> int:
    """Version of a suite's data, prompt and metric."""
    from evals import suites

    return suites.get(name).version


def _suite_missing(name: str, request: Request) -> str:
    """Why a suite's file cannot be read (empty if it can; the tiny world is made when needed)."""
    return _file_missing(suite_file(name), request)


def suite_file(name: str) -> str:
    """A suite's name in the data folder, without .jsonl."""
    from evals import suites

    return suites.get(name).file.removesuffix(".jsonl")


def _file_missing(name: str, request: Request) -> str:
    if request.scale == "tiny":
        return ""
    path, _, remedy = data_file(name, request.cache, request.data)
    return "" if path is not None else f"{name} is not here; {remedy}"


@functools.cache
def data_file(name: str, folder: Path, given: Path | None) -> tuple[Path | None, str, str]:
    """(path, SHA-256, remedy) of a file of the data folder, or of a user's own training file."""
    from harness import sources

    own = Path(name)
    if own.is_absolute():
        return own, hashlib.sha256(own.read_bytes()).hexdigest(), ""
    (found,) = sources.data_files([name], folder, given)
    return found.path, found.sha256 or "", found.remedy or ""


def _training_set(name: str, request: Request) -> str:
    """The scale's training set; for an own pair, ``train.jsonl`` of the user's folder if there is one."""
    if request.teacher is not None and request.data is not None:
        file = (request.data / "train.jsonl").resolve()
        if file.is_file():
            return str(file)
    return name


def _versions(
    method: Method | None, pair: PairSpec, row: Row, request: Request, training: Training | None
) -> dict[str, int]:
    """Whatever can move a number beside the settings: code by version, models by content."""
    found = {"decoder": versions.DECODER}
    if row.trained:
        found["trainer"] = versions.TRAINER
        if training is not None and training.precision == "bf16":
            found["bf16-student"] = versions.BF16_STUDENT
        if request.reference:
            found["reference-heads"] = 1
    if method is not None:
        found["method"] = method.entry.version
        if method.needs.student_samples is not None:
            found["student-text"] = versions.STUDENT_TEXT
        base = method.spec.divergence.partition("@")[0]
        if base in DIVERGENCES:
            found["divergence"] = DIVERGENCES[base].version
        found |= _hidden_versions(method)
    if request.scale == "tiny":
        found |= _tiny_versions()
    for ref in model_refs(row.method, pair) if method is not None or not row.trained else ():
        if not ref.startswith("tiny:") and (path := resolve(ref, request.cache)[0]) is not None:
            found[f"files of {ref}"] = fingerprint(path)
    return found


def _hidden_versions(method: Method) -> dict[str, int]:
    """What an address does not show: implied divergences past their first version, a plugin's source."""
    implied = {"kl", str(getattr(getattr(method, "divergence", None), "name", "kl")).partition("@")[0]}
    found = {f"divergence {name}": DIVERGENCES[name].version for name in implied & set(DIVERGENCES)}
    found = {name: version for name, version in found.items() if version != 1}
    source = plugin_file(method)
    if source is not None:
        found["plugin"] = int(hashlib.sha256(source.read_bytes()).hexdigest()[:12], 16)
    return found


def _file_versions(names: Iterable[str], request: Request) -> dict[str, int]:
    """48 bits of each data file's SHA-256; the tiny world has a version instead."""
    if request.scale == "tiny":
        return {}
    hashes = {name: data_file(name, request.cache, request.data)[1] for name in names}
    return {f"file {name}": int(sha256[:12], 16) for name, sha256 in hashes.items() if sha256}


def _tiny_versions() -> dict[str, int]:
    from evals.world import WORLD_VERSION
    from harness.tiny import TINY_VERSION

    return {"world": WORLD_VERSION, "tiny": TINY_VERSION}


def model_refs(address: str, pair: PairSpec) -> tuple[str, ...]:
    """The models a row needs."""
    if address in UNTRAINED:
        return (pair.teacher if address == "teacher" else pair.student,)
    needs = methods.create(address).needs
    return (pair.teacher, pair.student) if needs.teacher or needs.teacher_text else (pair.student,)


def resolve(ref: str, cache: Path) -> tuple[Path | None, str]:
    """A model's folder, or None and how to get it."""
    from harness import sources

    found = sources.resolve(ref, cache)
    return found.path, found.remedy or ""


@functools.cache
def fingerprint(path: Path) -> int:
    """48 bits over a model folder's files: names, sizes, and the first and last 64 KiB of each.

    Enough to tell two trainings of one architecture apart without reading gigabytes; the record has the
    whole hash.
    """
    digest = hashlib.sha256()
    kinds = (".safetensors", ".json", ".model", ".txt", ".py")
    for file in sorted(p for p in path.iterdir() if p.suffix in kinds and not p.name.startswith(".")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(65536))
            stream.seek(max(0, size - 65536))
            digest.update(stream.read())
    return int(digest.hexdigest()[:12], 16)


# states and order


def _settle(steps: Iterable[Step], store: Store, request: Request) -> None:
    """Find finished records and obstacles, and estimate the rest.

    Raises PlanError where a user's own models or data are what stands in the way.
    """
    open_steps: list[Step] = []
    blocked: list[Step] = []
    known = _Elsewhere(store, request)
    for step in steps:
        if step.state != "run":
            continue
        try:
            record = store.get(step.cell.id)
        except StoreError as error:
            step.state, step.reason = "refused", str(error)
            continue
        if record is not None and record["status"] == "done":
            step.state = "done"
        elif found := known.find(step):
            step.lacking, step.cell, step.state = known.lacking(step), found, "done"
        elif reason := _obstacle(step, request):
            step.state, step.reason = "refused", reason
            blocked.append(step)
        else:
            step.reason = f"failed before: {record['reason']}" if record is not None else ""
            open_steps.append(step)
    own_models, own_data = request.teacher is not None, request.data is not None
    if blocked and request.scale != "paper" and (own_models or (own_data and not open_steps)):
        raise PlanError(blocked[0].reason)  # what the user gave is not there, or cannot be used
    if open_steps:
        history = History.of(_readable(store, request.scale))
        for step in open_steps:
            step.seconds = history.guess(step.cell, step.pair)
            step.text_seconds = history.text_guess(step.cell, step.pair)


class _Elsewhere:
    """Finished cells of machines that had models or data this one has not.

    A cell's id holds hashes of both, so here it cannot be known. Such a record is found by everything else
    in its description: settings, code versions, and the hashes of whatever is here.
    """

    def __init__(self, store: Store, request: Request) -> None:
        self.store, self.request = store, request

    @functools.cached_property
    def _cells(self) -> dict[tuple[str, str, int], list[Cell]]:
        """Recorded cells by pair, method and seed, those with most suites first, of these the latest."""
        known = [
            (len(record["spec"]["suites"]), started(record), Cell.from_dict(record["spec"]))
            for record in _readable(self.store, self.request.scale)
            if record["status"] == "done"
        ]
        found: dict[tuple[str, str, int], list[Cell]] = {}
        for *_, cell in sorted(known, key=lambda entry: entry[:2], reverse=True):
            found.setdefault((cell.pair, cell.method, cell.seed), []).append(cell)
        return found

    def lacking(self, step: Step) -> tuple[str, ...]:
        """Names of models and data files of the cell that are not on this machine."""
        if self.request.scale == "tiny":
            return ()
        needed = model_refs(step.cell.method, step.pair)
        refs = [ref for ref in needed if resolve(ref, self.request.cache)[0] is None]
        files = [suite_file(run.name) for run in (*step.cell.suites, *step.unseen)]
        files += [locate.training_name(step.cell.data)] if step.cell.data else []
        return (*refs, *dict.fromkeys(name for name in files if _file_missing(name, self.request)))

    def find(self, step: Step) -> Cell | None:
        """The cell of the record that fits: the one with most suites, of these the latest."""
        lacking = self.lacking(step)
        if not lacking:
            return None
        hashes = {f"files of {name}" for name in lacking} | {f"file {name}" for name in lacking}
        cells = self._cells.get((step.cell.pair, step.cell.method, step.cell.seed), ())
        return next((cell for cell in cells if _fits(cell, step, hashes)), None)


def _fits(known: Cell, step: Step, hashes: set[str]) -> bool:
    """Whether a recorded cell is the step's but for these hashes, and for suites whose files are not here."""
    reduced = dataclasses.replace(
        known,
        versions=tuple((name, number) for name, number in known.versions if name not in hashes),
        suites=tuple(run for run in known.suites if run not in step.unseen),
    )
    mine = tuple((name, number) for name, number in step.cell.versions if name not in hashes)
    return bool(known.suites) and reduced == dataclasses.replace(step.cell, versions=mine)


def _readable(store: Store, scale: str) -> Iterable[dict[str, Any]]:
    """Records to learn from, up to the first damaged one."""
    records = store.all(scale)
    while True:
        try:
            yield next(records)
        except (StopIteration, StoreError):
            return


def _obstacle(step: Step, request: Request) -> str:
    """Why a cell cannot run on this machine; empty if it can."""
    checks: list[Callable[[Step, Request], str]] = [_no_gpu, _no_model, _no_data]
    if not request.teacher_pass:
        checks.append(_no_suites)
    return next((reason for check in checks if (reason := check(step, request))), "")


def unrepeatable(cell: Cell, request: Request) -> str:
    """Why a finished cell cannot be run again here as it was; empty if it can.

    ``request`` says where models and data are; of its scale, only the cell's own counts.
    """
    pair = pairs.get(cell.pair)
    method, refusal = _method(cell.method, pair, cell.training)
    if reason := refusal or _obstacle(Step(cell, pair, "run"), request):
        return reason
    row = Row(cell.method, cell.method, "same", ())
    files = [suite_file(run.name) for run in cell.suites]
    files += [locate.training_name(cell.data)] if cell.data else []
    then, now = dict(cell.versions), _versions(method, pair, row, request, cell.training)
    now |= _file_versions(files, request)
    changed = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    return f"these are not as they were: {', '.join(changed)}" if changed else ""


def _no_suites(step: Step, request: Request) -> str:
    missing = [why for run in step.cell.suites if (why := _suite_missing(run.name, request))]
    return missing[0] if missing else "" if step.cell.suites else "none of its suites is here"


def _no_gpu(step: Step, request: Request) -> str:
    """Cells at paper scale need GPUs; a training that several processes were launched for is shared out."""
    if request.scale != "paper":
        return ""
    if request.teacher_pass and step.cell.training is not None:
        needed = estimate.teacher_gib(step.cell, step.pair, launch.size())
    else:
        read = teacher_pass.ready(step.cell, request.cache)
        needed = estimate.gpu_gib(step.cell, step.pair, launch.size(), read=read)
    here = max((mib / 1024 for _, mib in gpus()), default=0.0)
    if here >= (needed or 1.0):
        return ""
    found = f"the largest here has {here:.0f}" if here else "there is none here"
    wanted = f"about {needed:.0f} GiB on each of {launch.size()}" if needed is not None else "of unknown size"
    return f"needs GPUs ({wanted}; {found}); see docs/paper.md"


def _no_model(step: Step, request: Request) -> str:
    for ref in model_refs(step.cell.method, step.pair):
        if not ref.startswith("tiny:"):
            path, remedy = resolve(ref, request.cache)
            if path is None:
                return f"{ref} is not here; {remedy}"
    return ""


def _no_data(step: Step, request: Request) -> str:
    if step.cell.training is None:
        return ""
    return _file_missing(locate.training_name(step.cell.data), request)


def _ordered(steps: list[Step]) -> list[Step]:
    """Pairs take turns, so that side by side cells do not wait for one teacher; its texts come early."""
    by_pair: dict[str, list[Step]] = {}
    writing = {address for address in {step.cell.method for step in steps} if _writes(address)}
    for step in sorted(steps, key=lambda step: step.cell.method not in writing):
        by_pair.setdefault(step.pair.name, []).append(step)
    turns = max(map(len, by_pair.values()), default=0)
    return [queue[turn] for turn in range(turns) for queue in by_pair.values() if turn < len(queue)]


def _writes(address: str) -> bool:
    """Whether a row begins with the teacher writing texts, which all its seeds then share."""
    if address in UNTRAINED:
        return False
    try:
        return methods.create(address).needs.teacher_text
    except MethodError:
        return False
