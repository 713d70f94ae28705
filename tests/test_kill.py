"""The real command, killed for real: it goes on, and ends with the records of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.store import Store, core

ROOT = Path(__file__).resolve().parents[1]
INSTRUCTION = "### Instruction:\n{}\n\n### Response:\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of the user's own: training set and one suite."""
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("dev", 24), ("test", 12)):
        rows = [
            {"instruction": f"Name boat {n}.", "input": "", "prompt": INSTRUCTION.format(f"Name boat {n}.")}
            | {"output": f"The boat is number {n},\nand Zoë paints it."}
            for n in range(count)
        ]
        file = folder / "dolly" / f"{name}.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for suite in ("self-inst", "vicuna", "s-ni", "unni"):
        (folder / suite).mkdir()
        (folder / suite / "test.jsonl").write_bytes((folder / "dolly" / "test.jsonl").read_bytes())
    return folder


@pytest.fixture(scope="module")
def command(
    student_folder: Path, teacher_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """A small run on a pair of the user's own; ``--results`` is still to be added."""
    cache = tmp_path_factory.mktemp("cache")
    return [
        *(
            sys.executable,
            str(ROOT / "reproduce.py"),
            "--teacher",
            str(teacher_folder),
            "--student",
            str(student_folder),
        ),
        *(
            "--methods",
            "sft,dskd-v1/kl",
            "--seeds",
            "1",
            "--jobs",
            "1",
            "--budget",
            "examples=24,epochs=8,prompts=6,new_tokens=16",
        ),
        *("--data", str(data), "--cache", str(cache)),
    ]


def run(command: list[str], results: Path, seconds: float | None = None) -> int:
    """Run to the end (returns the exit code) or SIGKILL the whole group after so many seconds (-9)."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DSKD_CHECKPOINT_SECONDS": "0"}
    process = subprocess.Popen(
        [*command, "--results", str(results)],
        start_new_session=True,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds or 400)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if seconds is None:
            raise
        return -signal.SIGKILL
    assert process.returncode == 0, output
    return 0


def cores(results: Path) -> dict[str, dict[str, object]]:
    """What must not depend on interruptions, by cell."""
    return {record["cell"]: core(record) for record in Store(results).all()}


def kill_until_done(command: list[str], results: Path, kills: int, longest: float) -> int:
    """Kill the command at random moments so many times, then let it end; returns the kills that hit."""
    moments = random.Random(7)
    hits = sum(run(command, results, moments.uniform(1.0, longest)) == -signal.SIGKILL for _ in range(kills))
    assert run(command, results) == 0
    return hits


@pytest.mark.timeout(900)
def test_killed_runs_end_with_the_same_records(command: list[str], tmp_path: Path) -> None:
    started = time.monotonic()
    run(command, tmp_path / "undisturbed")
    length = time.monotonic() - started
    hits = kill_until_done(command, tmp_path / "killed", kills=2, longest=length)
    assert hits >= 1
    assert cores(tmp_path / "killed") == cores(tmp_path / "undisturbed")
    assert len(cores(tmp_path / "killed")) == 4  # teacher and student besides the two methods


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_fifty_kills(command: list[str], tmp_path: Path) -> None:
    started = time.monotonic()
    run(command, tmp_path / "undisturbed")
    length = time.monotonic() - started
    hits = kill_until_done(command, tmp_path / "killed", kills=60, longest=length)
    assert hits >= 10
    assert cores(tmp_path / "killed") == cores(tmp_path / "undisturbed")


def test_a_second_run_trains_nothing(command: list[str], tmp_path: Path) -> None:
    run(command, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "records").rglob("*.json")}
    run(command, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "records").rglob("*.json")} == before
