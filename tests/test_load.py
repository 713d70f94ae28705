"""Large grids and large folders: what planning, rendering and checking cost. Times are of the processor."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_store import make

from harness import methods, plan, rendering, report, run
from harness.plan import Plan, Request
from harness.store import Store, checksum

ROOT = Path(__file__).resolve().parent.parent
TABLES = ("1", "2", "3", "math", "code")
SUITE = 200  #: items of a suite: a record has a thousand scores, as those of scale tiny do


@pytest.fixture(autouse=True)
def _registry() -> None:
    methods.load()


def request(seeds: int, cache: Path) -> Request:
    return Request("tiny", tables=TABLES, seeds=tuple(range(1, seeds + 1)), cache=cache)


def seeds_for(cells: int, cache: Path) -> int:
    """How many training seeds make so many cells of all tables."""
    one, two = (len(plan.make(request(n, cache), Store(cache)).steps) for n in (1, 2))
    return 1 + -(-(cells - one) // (two - one))


def fill(planned: Plan, store: Store) -> None:
    """A record for every cell, written plainly: what a year of runs leaves."""
    draw = random.Random(1)
    values = [[round(100 * draw.random(), 4) for _ in range(SUITE)] for _ in range(50)]
    for number, step in enumerate(planned.steps):
        scores = {}
        for place, suite in enumerate(step.cell.suites):
            row = values[(number + place) % len(values)]
            entry = {"score": sum(row) / SUITE, "all": {}, "per_item": row, "generations": None}
            seeds = {str(seed): entry for seed in step.cell.decoding.seeds}
            scores[suite.name] = {"metric": "m", "items": SUITE, "items_sha256": "0", "seeds": seeds}
        body = {**make(), "cell": step.cell.id, "spec": step.cell.as_dict(), "scores": scores}
        body["cost"] = {"train_seconds": 1.0, "decode_seconds": 1.0, "tokens_per_second": 1.0}
        body = json.loads(json.dumps(body))
        path = store.record_path(step.cell.id, "tiny")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**body, "sha256": checksum(body)}, sort_keys=True, indent=1))


def test_five_thousand_cells_are_planned_in_five_seconds(tmp_path: Path) -> None:
    asked = request(seeds_for(5000, tmp_path), tmp_path)
    started = time.process_time()
    planned = plan.make(asked, Store(tmp_path))
    spent = time.process_time() - started
    assert len(planned.steps) >= 5000
    assert spent < 5  # about 0.6 on a quiet core


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_thousand_records_are_planned_in_five_seconds_and_rendered_in_twenty(tmp_path: Path) -> None:
    asked, store = request(seeds_for(5000, tmp_path), tmp_path), Store(tmp_path)
    fill(plan.make(asked, store), store)
    started = time.process_time()
    planned = plan.make(asked, store)
    spent = time.process_time() - started
    assert {step.state for step in planned.steps} == {"done"}
    assert len(planned.steps) >= 5000
    started = time.process_time()
    for judged in rendering.judged(planned, store, {}):
        for style in ("terminal", "md"):
            assert report.render_verdict(judged.result, judged.info, style)
    rendered = time.process_time() - started
    print(f"\nplanned in {spent:.1f} s, rendered in {rendered:.1f} s of processor time")
    assert spent < 5  # about 2.5 on a quiet core
    assert rendered < 20  # about 4


def test_entries_of_a_grid_are_each_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    fill(plan.make(request(2, tmp_path), store), store)
    planned = plan.make(request(2, tmp_path), store)
    read: list[str] = []
    get = store.get

    def counted(cell_id: str) -> dict[str, Any] | None:
        read.append(cell_id)
        return get(cell_id)

    monkeypatch.setattr(store, "get", counted)
    run.entries(planned, store, {})
    assert len(read) == len(set(read)) == len(planned.steps)


STREAM = """
import random, resource, sys
from harness.store import Store
from test_store import CELL, make

def answers(count):
    draw = random.Random(2)
    for number in range(count):
        yield {"id": f"unni/{number}", "text": f"{draw.random()} geese", "rougeL": 50.0}

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MB

store, count = Store(sys.argv[1]), int(sys.argv[2])
before = peak()
reference = store.write_generations(CELL, "unni", 10, answers(count))
record = make()
record["scores"]["dolly"]["seeds"]["10"]["generations"] = reference
store.put(record)
assert store.check() == []
assert sum(1 for _ in store.generations(reference)) == count
print(peak() - before)
"""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_generations(tmp_path: Path, count: int) -> None:
    """Rows are neither gathered when they are written nor when they are read or checked.

    As dictionaries they would take some 600 bytes each; what is held is the packed file, about 20 a row.
    """
    script = tmp_path / "stream.py"
    script.write_text(STREAM)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, str(script), str(tmp_path), str(count)]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) * 1e6 < 8e6 + 100 * count
