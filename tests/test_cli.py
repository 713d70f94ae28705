"""The command line as a user meets it: real processes, exit codes, one clear line for wrong input."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from command import reproduce

from harness import cli

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "datasets", "pandas", "peft", "lm_eval", "scipy")


def call(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "reproduce.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd=ROOT)


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("--list",), ("--table", "2", "--dry-run", "--scale", "tiny"), ("--table", "nonsense")],
    ids=" ".join,
)
def test_light_commands_load_nothing_heavy(arguments: tuple[str, ...], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from harness.cli import main\n"
        "try:\n"
        f"    main([*{list(arguments)!r}])\n"
        "except SystemExit:\n"
        "    pass\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


def test_list_answers_in_under_a_second() -> None:
    """Its processor time, which a machine busy with something else does not stretch far."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = call("--list")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    for word in ("dskd-v2", "needs", "math500", "tiny/sp-same", "dskd-v1:2"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--table", "9"), "no table '9'"),
        (("--table", "2", "--dry-run", "--rescore"), "--dry-run and --rescore are two things to do"),
        (
            ("--list", "--teacher-pass"),
            "pass goes with --table or a pair of your own, not with --list",
        ),
        (("--doctor", "--teacher-pass"), "--doctor and --teacher-pass are two things to do"),
        (("--teacher-pass",), "ask for one of --table"),
        (("--table", "2", "--methods", "skdd"), "did you mean"),
        (("--table", "2", "--pairs", "nowhere"), "nowhere"),
        (("--table", "2", "--seeds", "0"), "seeds"),
        (("--table", "2", "--seeds", "1,1"), "seeds"),
        (("--table", "2", "--seeds", "x"), "whole numbers"),
        (("--table", "2", "--budget", "epoch=1"), "did you mean epochs"),
        (("--table", "2", "--budget", "top_p=2"), "a share of probability"),
        (("--table", "2", "--jobs", "0"), "1 or more"),
        (("--table", "2", "--data", "/nowhere"), "no folder"),
        (("--table", "2", "--scale", "huge"), "huge"),
        (("--table", "2", "--list"), "one of"),
        ((), "--help"),
        (("--teacher", "tiny:teacher-sp"), "go together"),
        (("--teacher", "tiny:teacher-sp", "--student", "tiny:student-sp"), "--methods"),
        (("--table", "2", "--plugin", "/nowhere.py", "--dry-run"), "no Python file"),
        (("--tables", "2"), "unrecognized"),
    ],
)
def test_wrong_input_is_one_clear_line_and_exit_2(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = reproduce(capsys, *arguments, "--results", str(tmp_path))
    assert code == 2
    assert out == ""
    assert says in err.splitlines()[-1]
    assert "Traceback" not in err


def test_the_dry_run_names_cells_and_changes_nothing(tmp_path: Path) -> None:
    done = call("--table", "2", "--dry-run", "--scale", "tiny", "--results", str(tmp_path), "--seeds", "1,")
    assert done.returncode == 0, done.stderr
    assert "tiny/sp-same kl seed 1" in done.stdout
    assert "side by side" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_paper_scale_dry_run_estimates_hours_memory_and_downloads(tmp_path: Path) -> None:
    done = call(
        "--table",
        "2",
        "--dry-run",
        "--scale",
        "paper",
        "--results",
        str(tmp_path),
        "--cache",
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    for word in (
        "A100 hours",
        "GiB on each of N GPUs",
        "GB in all",
        "meta-llama/Llama-2-7b-hf",
        "gated",
        "11435 examples",
        "FLOPs",
    ):
        assert word in done.stdout


def test_seeds_are_a_list_or_a_count() -> None:
    read = cli.parser().parse_args
    assert read(["--seeds", "3"]).seeds == (1, 2, 3)
    assert read(["--seeds", "3,"]).seeds == (3,)
    assert read(["--seeds", "4,7"]).seeds == (4, 7)


def test_the_default_scale_needs_no_gpu() -> None:
    read = cli.parser().parse_args
    assert cli._default_scale(read(["--table", "1"])) == "tiny"
    assert cli._default_scale(read(["--teacher", "tiny:a", "--student", "tiny:b"])) == "tiny"
    assert cli._default_scale(read(["--teacher", "org/a", "--student", "tiny:b"])) == "small"
