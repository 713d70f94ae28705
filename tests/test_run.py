"""Worker processes, resume, double commands, kills and Ctrl-C, with a stand-in for the work of a cell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness import methods, plan, run
from harness.cells import Cell
from harness.cluster import EngineError
from harness.plan import Plan, Request
from harness.pool import Busy, Job, Outcome, Pool
from harness.store import Store

ROOT = Path(__file__).resolve().parent.parent


# what stands in for a cell (imported by name in workers)


def fake(cell: Cell, settings: run.Settings, progress: run.Progress) -> dict[str, Any]:
    """A record at once; every call leaves a line."""
    with (settings.results / "calls").open("a") as calls:
        calls.write(f"{cell.method} {os.getpid()}\n")
    progress("train", 0.5)
    return record(cell, settings.command)


def fails_on_kl(cell: Cell, settings: run.Settings, progress: run.Progress) -> dict[str, Any]:
    if cell.method == "kl":
        raise ValueError("the loss is\nno number")
    return fake(cell, settings, progress)


def killed_on_kl(cell: Cell, settings: run.Settings, progress: run.Progress) -> dict[str, Any]:
    if cell.method == "kl":
        with (settings.results / "calls").open("a") as calls:
            calls.write("kl killed\n")
        os.kill(os.getpid(), signal.SIGKILL)
    return fake(cell, settings, progress)


def killed_once(cell: Cell, settings: run.Settings, progress: run.Progress) -> dict[str, Any]:
    marker = settings.results / "killed"
    if cell.method == "kl" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return fake(cell, settings, progress)


def slow(cell: Cell, settings: run.Settings, progress: run.Progress) -> dict[str, Any]:
    if cell.method != "sft":
        (settings.results / "slow").write_text(str(os.getpid()))
        subprocess.run(["sleep", "60"], check=False)
    return fake(cell, settings, progress)


def half_a_second(cell: Cell, settings: run.Settings, progress: run.Progress) -> dict[str, Any]:
    time.sleep(0.5)
    return fake(cell, settings, progress)


def record(cell: Cell, command: str) -> dict[str, Any]:
    """As short as the store lets it be."""
    seeds = {
        str(seed): {"score": 50.0, "all": {"rougeL": 50.0}, "per_item": [50.0]}
        for seed in cell.decoding.seeds
    }
    scores = {
        suite.name: {"metric": "rougeL", "items": 1, "items_sha256": "0", "seeds": seeds}
        for suite in cell.suites
    }
    return {
        "schema": 1,
        "cell": cell.id,
        "spec": cell.as_dict(),
        "status": "done",
        "reason": None,
        "scores": scores,
        "training": None,
        "models": {},
        "data": [],
        "template_sha256": "0",
        "provenance": {"command": command},
        "cost": {"train_seconds": 3.0, "decode_seconds": 1.0},
    }


def say_pid(progress: run.Progress) -> tuple[int, str]:
    return os.getpid(), os.environ["OMP_NUM_THREADS"]


def busy_twice(file: str, progress: run.Progress) -> str:
    with open(file, "a") as tries:
        tries.write("x")
    if len(Path(file).read_text()) < 3:
        raise Busy
    return "free"


class Silent:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def started(self, worker: int, job: Job) -> None:
        self.heard.append(f"started {job.title}")

    def progress(self, worker: int, stage: str, fraction: float) -> None:
        self.heard.append(f"progress {stage}")

    def finished(self, worker: int, job: Job, outcome: Outcome) -> None:
        self.heard.append(f"finished {job.title}")

    def waiting(self, job: Job) -> None:
        self.heard.append(f"waiting {job.title}")


@pytest.fixture(autouse=True)
def _registry() -> None:
    methods.load()


def planned(results: Path, *, seeds: tuple[int, ...] = (1,)) -> Plan:
    request = Request("tiny", tables=("2",), methods=("sft", "kl"), pairs=("same",), seeds=seeds)
    return plan.make(request, Store(results))


def settings(results: Path, function: str) -> run.Settings:
    return run.Settings(results, results / "cache", compute=f"test_run:{function}", command="test")


def calls(results: Path) -> list[str]:
    file = results / "calls"
    return file.read_text().splitlines() if file.exists() else []


def test_cells_run_once_and_are_found_again(tmp_path: Path) -> None:
    listener = Silent()
    outcomes = run.execute(planned(tmp_path, seeds=(1, 2)), settings(tmp_path, "fake"), 2, listener)
    assert [outcome.ok for outcome in outcomes.values()] == [True] * 4
    assert len(calls(tmp_path)) == 4
    assert any(line.startswith("progress") for line in listener.heard)
    again = planned(tmp_path, seeds=(1, 2))
    assert [step.state for step in again.steps] == ["done"] * 4
    assert run.execute(again, settings(tmp_path, "fake"), 2, listener) == {}
    assert len(calls(tmp_path)) == 4


def test_a_failed_cell_is_told_with_its_reason_and_run_again_next_time(tmp_path: Path) -> None:
    first = planned(tmp_path)
    outcomes = run.execute(first, settings(tmp_path, "fails_on_kl"), 1, Silent())
    ((step, reason),) = run.failures(first, outcomes)
    assert step.cell.method == "kl"
    assert reason == "ValueError: the loss is no number"
    rows = run.entries(first, Store(tmp_path), outcomes)["2"]
    (entry,) = rows["same/kl"]
    assert isinstance(entry, dict)
    assert (entry["status"], entry["reason"]) == ("failed", reason)
    assert isinstance(rows["same/sft"][0], dict)
    assert [step.cell.method for step in planned(tmp_path).of("run")] == ["kl"]
    assert "ValueError" in (tmp_path / "work" / "logs" / "worker-0.log").read_text()


def test_a_killed_worker_is_tried_twice_and_the_others_go_on(tmp_path: Path) -> None:
    first = planned(tmp_path, seeds=(1, 2))
    outcomes = run.execute(first, settings(tmp_path, "killed_on_kl"), 2, Silent())
    failed = run.failures(first, outcomes)
    assert {step.cell.method for step, _ in failed} == {"kl"}
    assert all("SIGKILL" in reason and "2 times" in reason for _, reason in failed)
    assert calls(tmp_path).count("kl killed") == 4
    assert sum(line.startswith("sft") for line in calls(tmp_path)) == 2


def test_a_worker_killed_once_costs_nothing(tmp_path: Path) -> None:
    first = planned(tmp_path)
    outcomes = run.execute(first, settings(tmp_path, "killed_once"), 1, Silent())
    assert run.failures(first, outcomes) == []
    assert len(calls(tmp_path)) == 2


def test_two_commands_share_the_work(tmp_path: Path) -> None:
    """Both finish with every record, and no cell was computed twice."""
    code = (
        "import sys; sys.path[:0] = [{root!r}, {tests!r}]\n"
        "if __name__ == '__main__':\n"
        "    from pathlib import Path\n"
        "    import test_run as t\n"
        "    t.methods.load()\n"
        "    results = Path({results!r})\n"
        "    p = t.planned(results, seeds=(1, 2))\n"
        "    found = t.run.execute(p, t.settings(results, 'half_a_second'), 2, t.Silent())\n"
        "    assert all(o.ok for o in found.values()), found\n"
    ).format(root=str(ROOT), tests=str(ROOT / "tests"), results=str(tmp_path))
    script = tmp_path / "go.py"
    script.write_text(code)
    both = [subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate(timeout=60)[1] for process in both] == [b"", b""]
    assert [process.returncode for process in both] == [0, 0]
    assert len(calls(tmp_path)) == 4


def _gone(pid: int) -> bool:
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_tidily_and_keeps_what_is_done(tmp_path: Path, sent: signal.Signals) -> None:
    code = (
        "import sys; sys.path[:0] = [{root!r}, {tests!r}]\n"
        "if __name__ == '__main__':\n"
        "    from pathlib import Path\n"
        "    import signal\n"
        "    import test_run as t\n"
        "    from harness import cli, commands\n"
        "    signal.signal(signal.SIGTERM, cli._interrupt)\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job\n"
        "    results = Path({results!r})\n"
        "    request = t.Request('tiny', tables=('2',), methods=('sft', 'kl'), pairs=('same',), seeds=(1,))\n"
        "    options = commands.Options(t.settings(results, 'slow'), 1, None)\n"
        "    sys.exit(commands.reproduce(request, options))\n"
    ).format(root=str(ROOT), tests=str(ROOT / "tests"), results=str(tmp_path))
    script = tmp_path / "go.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, str(script)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "slow").exists() or not (tmp_path / "slow").read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(sent)
    output, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert output == ""
    assert said.splitlines()[-1] == "stopped; 1 of 2 cells done; run the same command to go on"
    assert "Traceback" not in said
    assert _gone(int((tmp_path / "slow").read_text()))
    methods.load()
    assert [step.cell.method for step in planned(tmp_path).of("run")] == ["kl"]


def test_workers_are_reused_and_have_their_threads(tmp_path: Path) -> None:
    jobs = [Job(str(n), str(n), "test_run:say_pid", ()) for n in range(4)]
    with Pool(1, 3, tmp_path) as pool:
        outcomes = pool.run(jobs, Silent())
    assert {outcome.value[1] for outcome in outcomes.values()} == {"3"}
    assert len({outcome.value[0] for outcome in outcomes.values()}) == 1


def test_a_busy_job_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.pool.BUSY_WAIT", 0.05)
    listener = Silent()
    with Pool(1, 1, tmp_path) as pool:
        outcomes = pool.run([Job("a", "a", "test_run:busy_twice", (str(tmp_path / "tries"),))], listener)
    assert outcomes["a"].value == "free"
    assert listener.heard.count("waiting a") == 2


def test_default_jobs_fit_the_machine() -> None:
    assert all(run.default_jobs(scale) >= 1 for scale in ("tiny", "small", "paper"))


def test_a_cluster_without_ray_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"pip install 'dskd-bench\[ray\]'"):
        run.execute(planned(tmp_path), settings(tmp_path, "fake"), 1, Silent(), "ray")
    assert calls(tmp_path) == []
