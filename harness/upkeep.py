"""Commands that keep results honest: against references, against other results, and from elsewhere."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import comparing, methods, plan, references, regression, rendering, run, tables
from harness.commands import Options, execute
from harness.plan import Plan, Request
from harness.regression import Comparison, Finding
from harness.store import Store

TIERS = ("0", "1", "2")
#: What tiers 1 and 2 train anew: scale, table, training seeds (empty: the table's own).
TRAINED: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "1": ("tiny", "check", (1, 2)),
    "2": ("small", "check", ()),
}


def check(tier: str, options: Options) -> int:
    """Hold losses, records, tables and (tiers 1, 2) cells trained anew against references; 1 if any moved."""
    methods.load(options.settings.plugins)
    findings = [*_losses(options), *_records(options), *_tables(options)]
    for number in TIERS[1 : TIERS.index(tier) + 1]:
        findings += _trained(number, options)
    if not findings:
        return 0
    print(f"{len(findings)} against the references:")
    for line in regression.worst(findings):
        print(f"  {line}")
    print("If this is meant: --accept --reason TEXT makes the records and losses of now the references.")
    return 1


def _losses(options: Options) -> list[Finding]:
    """Tier 0: golden losses in both precisions."""
    from harness import goldens

    known = references.read(options.settings.results, "losses").section("losses")
    addresses = _built_in(goldens.addresses())
    found: list[Finding] = []
    for dtype in goldens.DTYPES:
        made = goldens.all_values(addresses, dtype)
        found += regression.compare_losses(known, made, dtype, goldens.tolerance(dtype))
    found = list(dict.fromkeys(found))  # a method without reference is so in both precisions
    _tell("0", "losses", f"{len(addresses)} methods in {' and '.join(goldens.DTYPES)}", found)
    return found


def _built_in(addresses: Sequence[str]) -> list[str]:
    """The addresses that are not of a plugin."""
    from dskd.method import create

    return [address for address in addresses if methods.plugin_file(create(address)) is None]


def _records(options: Options) -> list[Finding]:
    """Tier 0: the store is whole, and its records say what the references say."""
    results = options.settings.results
    found = [Finding("moved", "store", "", fault) for fault in Store(results).check()]
    _tell("0", "store", "records and answers as they were written", found)
    if found:
        return found
    for scale in tables.SCALES:
        known = references.read(results, scale).section("rows")
        now = regression.rows(_planned_records(results, scale))
        if known or now:
            result = regression.compare(known, now)
            _tell("0", f"records {scale}", _counted(result), result.findings)
            found += result.findings
    return found


def _planned_records(results: Path, scale: str) -> list[dict[str, Any]]:
    """The records behind the tables of a scale, as on a machine without models and data."""
    store = Store(results)
    planned = plan.make(Request(scale, tables=tables.ids(), cache=rendering.NOTHING), store)
    return _finished(planned, store)


def _finished(planned: Plan, store: Store) -> list[dict[str, Any]]:
    records = (store.get(step.cell.id) for step in planned.steps if store.has(step.cell.id))
    return [record for record in records if record is not None and record["status"] == "done"]


def _counted(result: Comparison) -> str:
    new = f", {len(result.new)} rows without a reference (--accept adds them)" if result.new else ""
    return f"{result.rows} rows, {result.numbers} numbers, {result.identical} rows identical{new}"


def _tables(options: Options) -> list[Finding]:
    """Tier 0: claims have their verdicts, and what was made from the records is what they say."""
    results = options.settings.results
    judged = list(rendering.from_records(results))
    found = []
    for scale in tables.SCALES:
        known = references.read(results, scale).section("claims")
        mine = [shown for shown in judged if shown.result.scale == scale]
        found += regression.compare_claims(known, regression.claims(mine))
    made = {file: text for shown in judged for file, text in rendering.files(shown, results).items()}
    stale = [str(file.relative_to(results)) for file in rendering.stale(made)]
    found += [
        Finding("moved", name, "", "is stale; python -m harness.readme makes it anew") for name in stale
    ]
    _tell("0", "tables", f"{len(judged)} tables, {len(made)} files", found)
    return found


def _trained(tier: str, options: Options) -> list[Finding]:
    """Cells trained anew in a folder of their own, which is kept where something moved."""
    scale, table, seeds = TRAINED[tier]
    results = options.settings.results
    known = references.read(results, scale).section("rows")
    (results / "work").mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"check-{tier}-", dir=results / "work"))
    settings = dataclasses.replace(options.settings, results=scratch)
    request = Request(scale, tables=(table,), seeds=seeds, cache=settings.cache, data=settings.data)
    planned = plan.make(request, Store(scratch))
    outcomes = execute(planned, dataclasses.replace(options, settings=settings))
    now = regression.rows(_finished(planned, Store(scratch)))
    asked = {regression.key(step.cell.as_dict()) for step in planned.steps}
    result = regression.compare({key: row for key, row in known.items() if key in asked & set(now)}, now)
    failed = [Finding("missing", step.title, "", reason) for step, reason in run.failures(planned, outcomes)]
    failed += [
        Finding("missing", step.title, "", f"not run: {step.reason}") for step in planned.of("refused")
    ]
    failed += [Finding("missing", name, "", "has no reference") for name in result.new]
    found = [*failed, *result.findings]
    _tell(tier, f"trained {scale}", _counted(result), found)
    if found:
        print(f"tier {tier}  the records are under {scratch}")
    else:
        shutil.rmtree(scratch, ignore_errors=True)
    return found


def _tell(tier: str, part: str, counted: str, found: Sequence[Finding]) -> None:
    said = f"{len(found)} MOVED OR MISSING" if found else "none moved"
    print(f"tier {tier}  {part:<14} {counted}: {said}", flush=True)


def accept(reason: str, options: Options) -> int:
    """Make losses, records and verdicts of now the references. Refused while the store is damaged."""
    from harness import goldens

    results = options.settings.results
    faults = Store(results).check()
    if faults:
        raise references.ReferencesError(f"nothing accepted: {faults[0]}")
    methods.load()
    made: dict[str, Mapping[str, Mapping[str, Any]]] = {}
    made["losses"] = {"losses": goldens.all_values(goldens.addresses())}
    judged = list(rendering.from_records(results))
    for scale in tables.SCALES:
        mine = [shown for shown in judged if shown.result.scale == scale]
        rows = regression.rows(_planned_records(results, scale))
        if rows or references.read(results, scale).entries:
            made[scale] = {"rows": rows, "claims": regression.claims(mine)}
    for name, entries in made.items():
        changed = references.accept(results, name, entries, reason)
        print(
            f"{name}: {len(changed)} changes" + (f" in {references.path(results, name)}" if changed else "")
        )
        for line in changed[: references.LISTED]:
            print(f"  {line}")
        if len(changed) > references.LISTED:
            print(f"  and {len(changed) - references.LISTED} more", file=sys.stdout)
    return 0


def compare(first: str, second: str, options: Options) -> int:
    """Print how two results folders or commits differ. 0 whatever they say."""
    print(comparing.render(comparing.compare(first, second), options.export or "md"), end="")
    return 0


def take_in(files: Sequence[Path], source: str, options: Options) -> int:
    """Check records from elsewhere, all before any is kept; say where each is shown."""
    from harness import external

    given = [(str(file), external.read(file)) for file in files]
    paths = external.take_in(options.settings.results, given, source)
    for (_, record), path in zip(given, paths, strict=True):
        spec = record["spec"]
        print(f"{path}: {spec['pair']} {spec['method']} seed {spec['seed']}, external, from {source.strip()}")
        print(f"  {_shown_in(spec)}")
    return 0


def _shown_in(spec: Mapping[str, Any]) -> str:
    """The tables that have a row for an external record."""
    from harness.external import is_of

    every = map(tables.load, tables.ids())
    found = [table.id for table in every if any(is_of(spec, table, row) for row in table.rows)]
    if not found:
        return "no table has a row for it; the leaderboard shows it"
    return f"shown in table{'s' * (len(found) > 1)} {', '.join(found)} and in the leaderboard"
