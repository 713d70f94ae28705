"""Two processes that share a student (FSDP2 over gloo) do what one does: losses, weights, resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
CASES = ("kl", "dskd-v1", "dskd-v2", "lora", "dskd-v2+resumed")
LAUNCH = ("-m", "accelerate.commands.launch", "--config_file", str(ROOT / "configs" / "fsdp2.yaml"))


def launch(*arguments: str, processes: int = 2, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    """Run a script in so many processes, as a user does; alone without a launcher."""
    several = (*LAUNCH, "--num_processes", str(processes), "--main_process_port", "0")
    before = several if processes > 1 else ()
    return subprocess.run(
        [sys.executable, *before, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


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
        done = launch(
            script, ",".join(CASES), str(student_folder), str(teacher), str(out), processes=processes
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return out


def found(runs: Path, case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    one, two = (torch.load(runs / f"{case}-{size}.pt", weights_only=True) for size in (1, 2))
    return one, two


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(runs: Path, case: str) -> None:
    one, two = found(runs, case)
    assert [step for step, _ in one["curve"]] == [step for step, _ in two["curve"]]
    for (_, mine), (_, theirs) in zip(one["curve"], two["curve"], strict=True):
        assert mine.keys() == theirs.keys()
        assert theirs == pytest.approx(mine, rel=1e-5, abs=1e-6)
    assert two["norms"] == pytest.approx(one["norms"], rel=1e-4)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert one["tokens"] == two["tokens"]
    for name, weight in {**one["weights"], **one["parts"]}.items():
        other = {**two["weights"], **two["parts"]}[name]
        torch.testing.assert_close(other, weight, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", CASES)
def test_each_process_holds_half(runs: Path, case: str) -> None:
    one, two = found(runs, case)
    assert one["sharded"] == 0
    assert two["numbers"] == one["numbers"]
    assert 0.45 * one["numbers"] < two["sharded"] < 0.6 * one["numbers"]


def test_a_training_of_two_goes_on_exactly(runs: Path) -> None:
    undisturbed, resumed = (found(runs, case)[1] for case in ("dskd-v2", "dskd-v2+resumed"))
    assert all(torch.equal(resumed["weights"][name], w) for name, w in undisturbed["weights"].items())
    assert resumed["tokens"] == undisturbed["tokens"]


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
