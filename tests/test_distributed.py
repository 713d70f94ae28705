"""Two processes that share a student (FSDP2 over gloo) do what one does: losses, weights, resume."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.files import FOLDER_SEAL
from harness.store import Store, core

ROOT = Path(__file__).resolve().parents[1]
WRITING = ("on-policy", "imitkd", "minillm", "distillm")
CASES = ("kl", "dskd-v1", "dskd-v2", "lora", "dskd-v2+resumed", *WRITING, "distillm+resumed")


def started(*arguments: str, processes: int = 2, config: str = "fsdp2") -> subprocess.Popen[str]:
    """Start a script in so many processes, as a user does; alone without a launcher."""
    file = str(ROOT / "configs" / f"{config}.yaml")
    launcher = ("-m", "accelerate.commands.launch", "--config_file", file)
    several = (*launcher, "--num_processes", str(processes), "--main_process_port", "0")
    return subprocess.Popen(
        [sys.executable, *(several if processes > 1 else ()), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DSKD_CHECKPOINT_SECONDS": "0"},
    )


def launch(*arguments: str, processes: int = 2, config: str = "fsdp2") -> None:
    """The same to its end."""
    process = started(*arguments, processes=processes, config=config)
    try:
        output = process.communicate(timeout=280)[0]
    finally:
        process.terminate()
    assert process.returncode == 0, output[-3000:]


@pytest.fixture(scope="module")
def teacher(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student with noise on its weights: near enough that projected argmaxes often agree."""
    from harness import models

    folder = tmp_path_factory.mktemp("near")
    model = models.load(student_folder, "student")
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.lm.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=draw))
    model.lm.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(student_folder: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, trained by one process and by two."""
    out = tmp_path_factory.mktemp("runs")
    script = str(ROOT / "tests" / "two_processes.py")
    for processes in (1, 2):
        launch(script, ",".join(CASES), str(student_folder), str(teacher), str(out), processes=processes)
    return out


def found(runs: Path, case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    one, two = (torch.load(runs / f"{case}-{size}.pt", weights_only=True) for size in (1, 2))
    return one, two


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(runs: Path, case: str) -> None:
    same_training(*found(runs, case))


def same_training(one: dict[str, Any], two: dict[str, Any], weights: float = 1e-6) -> None:
    """Losses, gradient norms and weights, within what the order of sums may change.

    A weight whose gradient is next to nothing moves by its rounding; Adam makes up to the rate of it, 1e-3.
    """
    assert [step for step, _ in one["curve"]] == [step for step, _ in two["curve"]]
    for (_, mine), (_, theirs) in zip(one["curve"], two["curve"], strict=True):
        assert mine.keys() == theirs.keys()
        assert theirs == pytest.approx(mine, rel=1e-5, abs=1e-6)
    assert two["norms"] == pytest.approx(one["norms"], rel=1e-4)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert one["tokens"] == two["tokens"]
    assert two["written"] == pytest.approx(one["written"])
    for name, weight in {**one["weights"], **one["parts"]}.items():
        other = {**two["weights"], **two["parts"]}[name]
        torch.testing.assert_close(other, weight, rtol=1e-4, atol=weights, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", CASES)
def test_each_process_holds_half(runs: Path, case: str) -> None:
    one, two = found(runs, case)
    assert one["sharded"] == 0
    assert two["numbers"] == one["numbers"]
    assert 0.45 * one["numbers"] < two["sharded"] < 0.6 * one["numbers"]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_deepspeed_trains_as_one_process(
    runs: Path, student_folder: Path, teacher: Path, tmp_path: Path, config: str
) -> None:
    """Its first run on a machine without a GPU compiles an operation, which takes minutes."""
    pytest.importorskip("deepspeed")
    cases = ("kl", "dskd-v2", "dskd-v2+resumed", "on-policy", "imitkd", "minillm")
    script = str(ROOT / "tests" / "two_processes.py")
    launch(script, ",".join(cases), str(student_folder), str(teacher), str(tmp_path), config=config)
    for case in cases:
        one = torch.load(runs / f"{case}-1.pt", weights_only=True)
        two = torch.load(tmp_path / f"{case}-2.pt", weights_only=True)
        same_training(one, two, weights=1e-5 if case in WRITING else 1e-6)
        assert two["sharded"] == (one["numbers"] / 2 if config == "zero3" else 0)


@pytest.fixture(scope="module")
def command(
    student_folder: Path, teacher: Path, own_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """A run of the real command; ``--results`` and ``--methods`` are still to be added."""
    pair = ["--teacher", str(teacher), "--student", str(student_folder)]
    rows = ["--seeds", "1,"]
    budget = ["--budget", "examples=24,epochs=8,prompts=6,new_tokens=16"]
    folders = ["--data", str(own_data), "--cache", str(tmp_path_factory.mktemp("cache"))]
    return [str(ROOT / "reproduce.py"), *pair, *rows, *budget, *folders]


def trained(results: Path) -> dict[str, Any]:
    """The record of the one training."""
    (record,) = (record for record in Store(results).all() if record["training"])
    return record


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", ["dskd-v1/kl", "minillm"])
def test_the_command_trains_on_two_processes_and_goes_on_after_a_kill(
    command: list[str], tmp_path: Path, method: str
) -> None:
    command = [*command, "--methods", method]
    launch(*command, "--results", str(tmp_path / "one"), processes=1)
    launch(*command, "--results", str(tmp_path / "two"))
    one, two = trained(tmp_path / "one"), trained(tmp_path / "two")
    assert one["cell"] == two["cell"]
    assert [two["cost"].get("processes"), one["cost"].get("processes")] == [2, None]
    assert [one["training"]["accumulation"], two["training"]["accumulation"]] == [4, 2]
    for (step, mine), (other, theirs) in zip(one["training"]["curve"], two["training"]["curve"], strict=True):
        assert step == other
        assert theirs == pytest.approx(mine, rel=1e-4, abs=1e-5)
    assert kill_one_process(command, tmp_path / "killed") != 0
    launch(*command, "--results", str(tmp_path / "killed"))
    assert core(trained(tmp_path / "killed")) == core(two)


@pytest.mark.slow
def test_a_teacher_read_by_two_processes_says_what_it_says_to_one(command: list[str], tmp_path: Path) -> None:
    states = []
    for processes in (1, 2):
        cache = tmp_path / str(processes)
        folders = ("--results", str(tmp_path / "results"), "--cache", str(cache))
        launch(*command, "--methods", "dskd-v1/kl", "--teacher-pass", *folders, processes=processes)
        assert len([*(cache / "teacher").glob("ready-*.json")]) == 1
        (file,) = (cache / "teacher").rglob("hidden.bin")
        states.append(torch.from_file(str(file), size=file.stat().st_size // 2, dtype=torch.bfloat16))
    assert states[0].abs().mean() > 0.1
    assert torch.allclose(*states, rtol=2**-6, atol=1e-3)
    assert Store(tmp_path / "results").paths() == []


def kill_one_process(command: list[str], results: Path) -> int:
    """SIGKILL the second process as soon as there is a checkpoint; how the launch ended."""
    process = started(*command, "--results", str(results))
    deadline = time.monotonic() + 250
    while not list((results / "work").glob(f"*/checkpoint/{FOLDER_SEAL}")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.kill(second(process.pid), signal.SIGKILL)
    process.communicate(timeout=100)
    assert not [record for record in Store(results).all() if record["training"]]
    return process.returncode


def second(launcher: int) -> int:
    """The process of a launch whose rank is 1."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and b"\0RANK=1\0" in (folder / "environ").read_bytes():
                return int(folder.name)
    raise AssertionError("no process has rank 1")


@pytest.mark.parametrize("case", WRITING)
def test_the_student_writes_on_two_processes(runs: Path, case: str) -> None:
    """Else the comparison would be of gold text."""
    written = found(runs, case)[1]["written"]
    assert written["texts"] > 4
    assert written["tokens"] > 40
    if case == "distillm":
        assert written["replayed"] > 0


@pytest.mark.parametrize("case", ["dskd-v2", "distillm"])
def test_a_training_of_two_goes_on_exactly(runs: Path, case: str) -> None:
    undisturbed, resumed = (found(runs, name)[1] for name in (case, f"{case}+resumed"))
    assert all(torch.equal(resumed["weights"][name], w) for name, w in undisturbed["weights"].items())
    assert resumed["tokens"] == undisturbed["tokens"]
    assert resumed["written"] == undisturbed["written"]


def test_every_term_takes_part(runs: Path) -> None:
    """Both spaces of dskd-v2 among them; a term that is 0 would compare nothing."""
    for case in ("dskd-v1", "dskd-v2"):
        terms = found(runs, case)[1]["curve"][-1][1]
        assert terms.keys() == {"ce", "ce_t2s", "kd_student", "kd_teacher"}
        assert min(terms.values()) > 1e-4


def test_trained_weights_moved(runs: Path, student_folder: Path) -> None:
    """What the other tests compare is not the untouched student."""
    from harness import models

    before = models.load(student_folder, "student").lm.state_dict()
    after = found(runs, "kl")[1]["weights"]
    assert max(float((after[name] - weight).abs().max()) for name, weight in before.items()) > 1e-3


def test_work_is_spread_and_word_is_passed(runs: Path) -> None:
    texts = [f"item {n} done" for n in range(5)]
    for size in (1, 2):
        for rank in range(size):
            heard = json.loads((runs / f"process-{rank}-of-{size}.json").read_text())
            assert heard == [texts, [0, "from the main process"]]
