"""Shares of a grid on machines of their own, and their records brought together: all or none."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import cli, merging, methods, plan, run
from harness.cells import Cell
from harness.plan import Plan, Request
from harness.pool import Job, Outcome
from harness.shards import Shard, ShardError
from harness.store import Store, StoreError, core

ROOT = Path(__file__).resolve().parent.parent


def compute(cell: Cell, settings: run.Settings, progress: run.Progress) -> dict[str, Any]:
    """A cell's record with answers, without a model; the command is the machine's name."""
    store, scores = Store(settings.results), {}
    for suite in cell.suites:
        value = float(int(cell.id, 16) % 97)
        answers = store.write_generations(cell, suite.name, 10, [{"id": "1", "text": f"{cell} {suite.name}"}])
        seeds = {"10": {"score": value, "all": {}, "per_item": [value], "generations": answers}}
        scores[suite.name] = {"metric": "rougeL", "items": 1, "items_sha256": "0", "seeds": seeds}
    return made(cell, scores=scores, provenance={"command": settings.command})


def made(cell: Cell, **changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {"schema": 1, "cell": cell.id, "spec": cell.as_dict(), "status": "done"}
    plain |= {"reason": None, "scores": {}, "training": None, "models": {}, "data": []}
    return {**plain, "provenance": {}, "cost": {}, **changes}


class Silent:
    """A listener that says nothing."""

    def started(self, worker: int, job: Job) -> None: ...
    def progress(self, worker: int, stage: str, fraction: float) -> None: ...
    def finished(self, worker: int, job: Job, outcome: Outcome) -> None: ...
    def waiting(self, job: Job) -> None: ...


@pytest.fixture(autouse=True)
def _registry() -> None:
    methods.load()


def planned(results: Path, shard: Shard | None = None) -> Plan:
    request = Request("tiny", tables=("2",), pairs=("same",), seeds=(1,), shard=shard)
    return plan.make(request, Store(results))


def work(results: Path, shard: Shard | None = None) -> Path:
    """Run a share in a real worker process."""
    settings = run.Settings(results, results / "cache", compute="test_merging:compute", command=results.name)
    outcomes = run.execute(planned(results, shard), settings, 1, Silent())
    assert all(outcome.ok for outcome in outcomes.values())
    return results


def content(results: Path) -> dict[str, bytes]:
    """Every file of a store but its scratch."""
    files = (file for file in results.rglob("*") if file.is_file())
    return {
        file.relative_to(results).as_posix(): file.read_bytes()
        for file in files
        if file.relative_to(results).parts[0] != "work"
    }


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "1", "a/b", "1/2/3", "-1/3", "1/-3", "", "²/3"])
def test_a_share_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(ShardError):
        Shard.parse(text)


@given(st.integers(0, 16**16 - 1), st.integers(1, 40))
def test_every_cell_is_in_exactly_one_share(number: int, count: int) -> None:
    shares = [Shard.parse(f"{n}/{count}") for n in range(1, count + 1)]
    assert sum(share.holds(f"{number:016x}") for share in shares) == 1


def test_shares_on_machines_of_their_own_make_the_whole_grid(tmp_path: Path) -> None:
    whole = [step.cell.id for step in planned(tmp_path / "none").steps]
    shares = [work(tmp_path / str(n), Shard(n, 3)) for n in (1, 2, 3)]
    sizes = [sum(1 for _ in Store(share).all()) for share in shares]
    assert sum(sizes) == len(whole)
    assert max(sizes) < len(whole)
    target = Store(tmp_path / "all")
    merged = merging.plan(target, shares)
    assert (merged.faults, merged.read, len(merged.new)) == ([], len(whole), len(whole))
    merged.carry_out()
    assert {record["cell"] for record in target.all()} == set(whole)
    assert target.check() == []
    assert content(target.root) == {name: data for share in shares for name, data in content(share).items()}
    assert {step.state for step in planned(target.root).steps} == {"done"}


def test_records_that_agree_are_taken_once_and_merging_again_changes_nothing(tmp_path: Path) -> None:
    a, b = work(tmp_path / "a"), work(tmp_path / "b")  # two provenances, one core
    target = Store(tmp_path / "all")
    merging.plan(target, [a, b]).carry_out()
    before = content(target.root)
    again = merging.plan(target, [b, a])
    assert (again.faults, again.new) == ([], [])
    again.carry_out()
    assert content(target.root) == before
    assert {record["provenance"]["command"] for record in target.all()} == {"a"}


def rewrite(store: Path, number: int, **changes: Any) -> str:
    """Another result under a cell's id, duly signed; the path in the store."""
    path = Store(store).paths()[number]
    record = json.loads(path.read_bytes())
    path.unlink()
    Store(store).put({**record, **changes})
    return path.relative_to(store).as_posix()


def test_all_conflicts_are_listed_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = work(tmp_path / "a"), work(tmp_path / "b")
    changed = [rewrite(b, n, template_sha256="another") for n in (0, 2)]
    code = cli.main(["--merge", str(a), str(b), "--results", str(tmp_path / "all")])
    said = capsys.readouterr().err
    assert code == 2
    assert all(f"{b / path} and {a / path} differ: template_sha256" in said for path in changed)
    assert "nothing was merged: 2 faults" in said
    assert content(tmp_path / "all") == {}


def test_what_the_store_has_is_not_overruled(tmp_path: Path) -> None:
    a, target = work(tmp_path / "a"), work(tmp_path / "all")
    rewrite(a, 1, template_sha256="another")
    before = content(target)
    assert len(merging.plan(Store(target), [a]).faults) == 1
    assert content(target) == before


def _answers(store: Path) -> Path:
    return min((store / "generations").rglob("*.gz"))


def _alter_record(store: Path) -> None:
    path = Store(store).paths()[0]
    path.write_text(path.read_text().replace('"rougeL"', '"bleu"'))


def _lead_out(store: Path) -> None:
    """Answers through a link to a file outside the store."""
    file = _answers(store)
    outside = store.parent / "outside.gz"
    shutil.move(file, outside)
    file.symlink_to(outside)


def _foreign_folder(store: Path) -> None:
    """A record whose answers lie in another cell's folder."""
    path, other = Store(store).paths()[:2]
    record, theirs = json.loads(path.read_bytes()), json.loads(other.read_bytes())
    record["scores"] = theirs["scores"]
    path.unlink()
    Store(store).put(record)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_alter_record, "checksum differs"),
        (lambda store: _answers(store).write_bytes(b"other answers"), "SHA-256 differs"),
        (lambda store: _answers(store).unlink(), "No such file"),
        (_lead_out, "leads out of"),
        (_foreign_folder, "not in the cell's own folder"),
    ],
)
def test_damage_anywhere_stops_the_whole_merge(tmp_path: Path, damage: Any, says: str) -> None:
    whole, damaged = work(tmp_path / "a", Shard(1, 2)), work(tmp_path / "b", Shard(2, 2))
    damage(damaged)
    target = Store(tmp_path / "all")
    faults = merging.plan(target, [whole, damaged]).faults
    assert faults
    assert all(says in fault for fault in faults)
    assert content(target.root) == {}


def test_a_failed_cell_gives_way_to_a_finished_one_in_any_order(tmp_path: Path) -> None:
    done = work(tmp_path / "done")
    cell = planned(tmp_path / "none").steps[0].cell
    failed = Store(tmp_path / "failed")
    failed.put(made(cell, status="failed", reason="out of memory"))
    for number, sources in enumerate(([done, failed.root], [failed.root, done])):
        target = Store(tmp_path / str(number))
        merging.plan(target, sources).carry_out()
        assert (target.get(cell.id) or {})["status"] == "done"
    late = Store(tmp_path / "late")
    merging.plan(late, [failed.root]).carry_out()
    assert (late.get(cell.id) or {})["status"] == "failed"
    merging.plan(late, [done]).carry_out()
    assert (late.get(cell.id) or {})["status"] == "done"
    assert late.check() == []


def test_a_merge_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = work(tmp_path / "a"), Store(tmp_path / "all")
    put, count = Store.put, 0

    def dying(self: Store, record: dict[str, Any]) -> Path:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return put(self, record)

    monkeypatch.setattr(Store, "put", dying)
    with pytest.raises(KeyboardInterrupt):
        merging.plan(target, [source]).carry_out()
    monkeypatch.setattr(Store, "put", put)
    assert target.check() == []  # what is there is whole
    merging.plan(target, [source]).carry_out()
    assert content(target.root) == content(source)


def test_a_source_that_is_no_store_is_refused(tmp_path: Path) -> None:
    results = work(tmp_path / "a")
    with pytest.raises(StoreError, match="holds no records"):
        merging.plan(Store(results), [tmp_path / "nowhere"])
    with pytest.raises(StoreError, match="into itself"):
        merging.plan(Store(results), [tmp_path / "." / "a"])


def test_commands_of_all_shares_make_up_the_grid(tmp_path: Path) -> None:
    """Two real commands: their shares are disjoint and make up the grid."""
    cells: list[set[str]] = []
    for number in (1, 2):
        arguments = ("--table", "2", "--shard", f"{number}/2", "--dry-run", "--results", str(tmp_path))
        done = subprocess.run(
            [sys.executable, str(ROOT / "reproduce.py"), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        cells.append({line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")})
    whole = {step.cell.id for step in plan.make(Request("tiny", tables=("2",)), Store(tmp_path)).steps}
    assert cells[0] | cells[1] >= whole
    assert not cells[0] & cells[1] & whole


def test_a_finished_share_says_so_without_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = Shard(1, 2)
    results = work(tmp_path / "a", shard)
    count = len(planned(results, shard).steps)
    arguments = ["--table", "2", "--pairs", "same", "--seeds", "1,", "--shard", "1/2"]
    assert cli.main([*arguments, "--results", str(results)]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert f"share 1/2: {count} of its {count} cells have a record" in said.err
    assert [core(record)["status"] for record in Store(results).all()] == ["done"] * count
