"""The real command, killed for real: it goes on, and ends with the records of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from filelock import FileLock

from harness import tiny as models
from harness.run import default_cache
from harness.store import Store, core

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _heeds_ctrl_c() -> Iterator[None]:
    """A background job ignores it, and so would what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def command(
    student_folder: Path, teacher_folder: Path, own_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """A small run on a pair of the user's own; ``--results`` is still to be added."""
    pair = ["--teacher", str(teacher_folder), "--student", str(student_folder)]
    rows = ["--methods", "sft,dskd-v1/kl", "--seeds", "1", "--jobs", "1"]
    budget = ["--budget", "examples=24,epochs=8,prompts=6,new_tokens=16"]
    folders = ["--data", str(own_data), "--cache", str(tmp_path_factory.mktemp("cache"))]
    return [sys.executable, str(ROOT / "reproduce.py"), *pair, *rows, *budget, *folders]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Eight cells of table 2 at scale tiny, cut short; its models are copied where they were built before."""
    cache = tmp_path_factory.mktemp("tiny-cache")
    built = default_cache() / "tiny"
    if built.is_dir():
        shutil.copytree(built, cache / "tiny")
    for ref in ("tiny:teacher-sp", "tiny:student-sp"):
        models.build(ref, cache)
    rows = ["--table", "2", "--methods", "sft,seqkd,kl:on_policy=0.5,dskd-v2/kl"]
    rows += ["--pairs", "same", "--seeds", "1,2", "--jobs", "2"]
    short = ["--budget", "examples=64,epochs=5,prompts=8,new_tokens=24"]
    return [sys.executable, str(ROOT / "reproduce.py"), *rows, *short, "--cache", str(cache)]


def start(command: list[str], results: Path) -> subprocess.Popen[str]:
    """The command in a group of its own; it keeps a checkpoint as often as it can."""
    return subprocess.Popen(
        [*command, "--results", str(results)],
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DSKD_CHECKPOINT_SECONDS": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(command: list[str], results: Path) -> str:
    """Run to the end; what was printed."""
    process = start(command, results)
    output = process.communicate(timeout=3000)[0]
    assert process.returncode == 0, output
    return output


def cores(results: Path) -> dict[str, dict[str, object]]:
    """What must not depend on interruptions, by cell; every file is checked on the way."""
    store = Store(results)
    assert store.check() == []
    return {record["cell"]: core(record) for record in store.all()}


# the faults; each says whether there was something to hit


def workers(pid: int) -> list[int]:
    """The worker processes of a command."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (stat.parent / "cmdline").read_bytes():
                found.append(int(stat.parent.name))
    return found


def kill_command(process: subprocess.Popen[str], draw: random.Random) -> bool:
    """Its workers go on until they see that it is gone; the next command may meet them."""
    process.kill()
    return True


def kill_worker(process: subprocess.Popen[str], draw: random.Random) -> bool:
    """The command tries the worker's cell again."""
    alive = workers(process.pid)
    for pid in draw.sample(alive, min(1, len(alive))):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def kill_everything(process: subprocess.Popen[str], draw: random.Random) -> bool:
    """As when the power fails."""
    alive = workers(process.pid)
    process.kill()
    for pid in alive:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    return True


def terminate(process: subprocess.Popen[str], draw: random.Random) -> bool:
    process.terminate()
    return True


def interrupt(process: subprocess.Popen[str], draw: random.Random) -> bool:
    process.send_signal(signal.SIGINT)
    return True


#: Exit codes that may follow; 0 and 1 where the fault came too late.
CODES = {-signal.SIGKILL, 0, 1}, {130, 0, 1}
KILLS = {
    "SIGKILL of the command": kill_command,
    "SIGKILL of a worker": kill_worker,
    "SIGKILL of all": kill_everything,
}
POLITE = {"SIGTERM": terminate, "Ctrl-C": interrupt}


def damage(folders: list[Path], draw: random.Random) -> bool:
    """Flip a bit of a kept file, or cut it short, as a dying disk does. Locks and logs are no state."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files = [path for path in files if path.suffix not in (".lock", ".log") and path.stat().st_size]
    if not files:
        return False
    file = draw.choice(sorted(files))
    raw = bytearray(file.read_bytes())
    if draw.random() < 0.5:
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    else:
        del raw[draw.randrange(len(raw)) :]
    file.write_bytes(raw)
    return True


#: What a cell keeps when it is trained, and while it is.
KEPT = ("student.pt", "checkpoint.pt")


@dataclass
class Storm:
    """Runs one command again and again under faults at random moments, in one results folder a round."""

    command: list[str]
    folder: Path
    whole: dict[str, dict[str, object]]  #: what an undisturbed run gives, by cell
    longest: float  #: seconds that it took
    kills: int  #: how many SIGKILLs there shall be
    draw: random.Random = field(default_factory=lambda: random.Random(7))
    injected: Counter[str] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=Counter)  #: how far the cells were
    rounds: int = 0
    started: float = field(default_factory=time.monotonic)

    def blow(self) -> None:
        """After every round the records are those of the undisturbed run."""
        while not self.over:
            results = self.folder / f"round-{self.rounds}"
            for kept in ("teacher", "maps"):  # so that the next round makes them again
                shutil.rmtree(self.cache / kept, ignore_errors=True)
            finished: dict[Path, bytes] = {}
            while not self.attempt(results):
                finished = self.unchanged(results, finished)
                if not self.over and self.draw.random() < 0.2:
                    kept_here = [self.cache / "teacher", self.cache / "maps", results / "work"]
                    self.injected["damaged file"] += damage(kept_here, self.draw)
            self.unchanged(results, finished)
            self.in_order(results)
            self.rounds += 1
            print(f"\n{self.told()}", flush=True)

    @property
    def over(self) -> bool:
        return sum(self.injected[kind] for kind in KILLS) >= self.kills

    @property
    def cache(self) -> Path:
        return Path(self.command[self.command.index("--cache") + 1])

    def attempt(self, results: Path) -> bool:
        """One run, with one fault if any is left; whether it came to its end with every cell."""
        moment = None if self.over else self.draw.uniform(1.0, self.longest / 2)
        process, codes = start(self.command, results), {0, 1}
        try:
            process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            self.stages[self.stage(process, results)] += 1
            kinds, codes = (KILLS, CODES[0]) if self.draw.random() < 0.8 else (POLITE, CODES[1])
            kind = self.draw.choice(sorted(kinds))
            self.injected[kind] += kinds[kind](process, self.draw)
        output = process.communicate(timeout=3000)[0]
        assert "Traceback" not in output, output
        assert process.returncode in codes, (process.returncode, output)
        return process.returncode == 0

    def stage(self, process: subprocess.Popen[str], results: Path) -> str:
        if not workers(process.pid):
            return "without a worker"
        done = len(list((results / "records").glob("*/*.json")))
        trained, training = (len(list((results / "work").glob(f"*/{name}"))) for name in KEPT)
        return f"{done} done, {trained} trained, {training} in training"

    def unchanged(self, results: Path, before: dict[Path, bytes]) -> dict[Path, bytes]:
        """A finished cell is never run again: its record, times of the run included, stays to the byte."""
        now = {path: path.read_bytes() for path in (results / "records").glob("*/*.json")}
        now = {path: data for path, data in now.items() if json.loads(data)["status"] == "done"}
        assert {path: now.get(path) for path in before} == before
        return now

    def in_order(self, results: Path) -> None:
        """Nothing is lost, torn, or held."""
        assert cores(results) == self.whole
        assert not {path.name for path in (results / "work").iterdir()} & set(self.whole)
        for path in (results / "work" / "locks").glob("*.lock"):
            with FileLock(path, timeout=0):
                pass

    def told(self) -> str:
        """The report."""
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self.injected.items()) if count)
        stages = "; ".join(f"{count} at {stage}" for stage, count in sorted(self.stages.items()))
        cells = f"{len(self.whole)} records each, all identical to the undisturbed run's: none lost"
        number, seconds = self.injected.total(), time.monotonic() - self.started
        told = f"{number} faults ({counts}) in {self.rounds} rounds of {cells}"
        return f"{told}; hit {stages}; {seconds:.0f} s"


def weather(command: list[str], folder: Path, kills: int, capsys: pytest.CaptureFixture[str]) -> Storm:
    """An undisturbed run, then the storm."""
    started = time.monotonic()
    run(command, folder / "undisturbed")
    took = time.monotonic() - started
    storm = Storm(command, folder, cores(folder / "undisturbed"), took, kills)
    assert len(storm.whole) == len(list((folder / "undisturbed" / "records").glob("*/*.json"))) >= 4
    with capsys.disabled():
        storm.blow()
    assert storm.rounds >= 1
    return storm


@pytest.mark.timeout(900)
def test_killed_runs_end_with_the_same_records(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weather(command, tmp_path, 2, capsys)


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_fifty_kills(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And, between them, polite ends and damaged files. $DSKD_KILLS says how many kills, 50 if unset."""
    weather(tiny, tmp_path, int(os.environ.get("DSKD_KILLS", "50")), capsys)


def test_a_second_run_trains_nothing(command: list[str], tmp_path: Path) -> None:
    run(command, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "records").rglob("*.json")}
    run(command, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "records").rglob("*.json")} == before
