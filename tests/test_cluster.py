"""``--engine ray`` on a real cluster of two workers on this machine, some of which are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import cli, methods, plan, run
from harness.cells import Cell
from harness.plan import Plan, Request
from harness.pool import Job, Outcome
from harness.store import Store

import test_merging  # isort: skip

ROOT = Path(__file__).resolve().parent.parent
ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow]


# what stands in for a cell (imported by name on the nodes)


def compute(cell: Cell, settings: run.Settings, progress: run.Progress) -> dict[str, Any]:
    progress("train", 0.5)
    with (shared(settings) / "calls").open("a") as calls:
        calls.write(f"{cell.method} {os.getpid()}\n")
    return test_merging.compute(cell, settings, progress)


def killed_once(cell: Cell, settings: run.Settings, progress: run.Progress) -> dict[str, Any]:
    """The first worker on a KL cell dies in the middle of it."""
    marker = shared(settings) / "killed"
    if cell.method == "kl" and not marker.exists():
        marker.touch()
        progress("train", 0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(cell, settings, progress)


def always_killed(cell: Cell, settings: run.Settings, progress: run.Progress) -> dict[str, Any]:
    if cell.method == "kl":
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(cell, settings, progress)


def waits(cell: Cell, settings: run.Settings, progress: run.Progress) -> dict[str, Any]:
    """The first cell on every node waits until the test has taken a node away."""
    marker = shared(settings) / f"waiting-{ray.get_runtime_context().get_node_id()}"
    if not marker.exists():
        marker.touch()
        while not (shared(settings) / "node-gone").exists():
            time.sleep(0.1)
    return compute(cell, settings, progress)


def own_disk(cell: Cell, settings: run.Settings, progress: run.Progress) -> dict[str, Any]:
    """A cell fails on KL, by an error of its own."""
    if cell.method == "kl":
        raise ValueError("the loss is\nno number")
    return compute(cell, settings, progress)


def elsewhere(spec: dict[str, Any], settings: run.Settings, progress: run.Progress) -> run.Delivery:
    """``deliver`` on a node whose results folder is its own disk's."""
    folder = shared(settings) / f"disk-of-{os.getpid()}"
    return run.deliver(spec, run.Settings(folder, settings.cache, compute=settings.compute), progress)


def altered(spec: dict[str, Any], settings: run.Settings, progress: run.Progress) -> run.Delivery:
    note, files = elsewhere(spec, settings, progress)
    return note, {path: data.replace(b'"rougeL"', b'"bleu"') for path, data in files.items()}


def shared(settings: run.Settings) -> Path:
    """Where the test and all nodes leave word."""
    return settings.cache


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head without cores and two workers of one core each."""
    from ray.cluster_utils import Cluster

    methods.load()
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_worker_niceness", "0")  # by default workers give way to all else, and may starve
    memory = 80 * 2**20
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": memory},
    )
    for _ in range(2):
        made.add_node(num_cpus=1, object_store_memory=memory)
    patch.setenv("RAY_ADDRESS", made.address)
    patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    yield made
    patch.undo()
    ray.shutdown()
    with contextlib.suppress(Exception):  # a node that the test took away
        made.shutdown()


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def started(self, worker: int, job: Job) -> None:
        self.said.append(f"started {job.title}")

    def progress(self, worker: int, stage: str, fraction: float) -> None:
        self.said.append(f"progress {stage}")

    def finished(self, worker: int, job: Job, outcome: Outcome) -> None:
        self.said.append(f"finished {job.title}")

    def waiting(self, job: Job) -> None: ...


def planned(results: Path, seeds: tuple[int, ...]) -> Plan:
    request = Request("tiny", tables=("2",), methods=("sft", "kl"), pairs=("same",), seeds=seeds)
    return plan.make(request, Store(results))


def execute(
    folder: Path, function: str, seeds: tuple[int, ...] = (1,)
) -> tuple[Plan, dict[str, Outcome], Heard]:
    """Run two cells a seed; records in folder/results, word of the nodes in folder/shared."""
    (folder / "shared").mkdir(exist_ok=True)
    settings = run.Settings(folder / "results", folder / "shared", compute=f"test_cluster:{function}")
    first, heard = planned(folder / "results", seeds), Heard()
    return first, run.execute(first, settings, 10, heard, "ray"), heard


def calls(folder: Path) -> list[str]:
    return (folder / "shared" / "calls").read_text().splitlines()


def test_a_worker_killed_in_the_middle_costs_nothing(nodes: Any, tmp_path: Path) -> None:
    first, outcomes, heard = execute(tmp_path, "killed_once", (1, 2, 3))
    assert (tmp_path / "shared" / "killed").exists()
    assert run.failures(first, outcomes) == []
    assert len(calls(tmp_path)) == 6
    assert Store(tmp_path / "results").check() == []
    assert {step.state for step in planned(tmp_path / "results", (1, 2, 3)).steps} == {"done"}
    assert sum(line.startswith("started") for line in heard.said) >= 6
    assert sum(line.startswith("finished") for line in heard.said) == 6


def test_cells_that_fail_or_kill_their_worker_are_told_with_the_reason(nodes: Any, tmp_path: Path) -> None:
    first, outcomes, _ = execute(tmp_path, "own_disk")
    assert {reason for _, reason in run.failures(first, outcomes)} == {"ValueError: the loss is no number"}
    first, outcomes, _ = execute(tmp_path, "always_killed")
    failed = run.failures(first, outcomes)
    assert {step.cell.method for step, _ in failed} == {"kl"}
    assert all("lost, 2 times" in reason for _, reason in failed)


def _deliver_by(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    monkeypatch.setitem(run._WAYS, "ray", (run.cluster, function))


def test_records_come_back_from_disks_of_their_own(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _deliver_by(monkeypatch, "test_cluster:elsewhere")
    first, outcomes, _ = execute(tmp_path, "compute")
    assert run.failures(first, outcomes) == []
    store = Store(tmp_path / "results")
    assert len(list(store.all())) == 2
    assert store.check() == []
    _deliver_by(monkeypatch, "test_cluster:altered")
    first, outcomes, _ = execute(tmp_path / "shared", "compute")
    assert len(run.failures(first, outcomes)) == 2
    assert all("checksum differs" in reason for _, reason in run.failures(first, outcomes))


def test_a_node_that_goes_away_leaves_its_cell_to_the_other(nodes: Any, tmp_path: Path) -> None:
    def take_away() -> None:
        while len(list((tmp_path / "shared").glob("waiting-*"))) < 2:
            time.sleep(0.1)
        nodes.remove_node(nodes.worker_nodes.copy().pop(), allow_graceful=False)
        (tmp_path / "shared" / "node-gone").touch()

    helper = threading.Thread(target=take_away)
    (tmp_path / "shared").mkdir()
    helper.start()
    first, outcomes, _ = execute(tmp_path, "waits", (1, 2, 3))
    helper.join()
    assert run.failures(first, outcomes) == []
    assert len(list(Store(tmp_path / "results").all())) == 6


def test_without_a_cluster_one_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    arguments = ["--table", "2", "--methods", "sft", "--seeds", "1,", "--engine", "ray"]
    assert cli.main([*arguments, "--results", str(tmp_path), "--cache", str(tmp_path)]) == 2
    assert "no Ray cluster answers" in capsys.readouterr().err.splitlines()[-1]
