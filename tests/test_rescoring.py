"""``--rescore``: stored answers scored again, without a model."""

from __future__ import annotations

import copy
import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import reproduce

from harness import methods
from harness.store import Store, canonical

ROOT = Path(__file__).resolve().parents[1]
COMMAND = ("--table", "math", "--rescore", "--methods", "sft", "--pairs", "same", "--seeds", "1")


@pytest.fixture(autouse=True)
def _registry() -> None:
    methods.load()


@pytest.fixture
def record() -> dict[str, Any]:
    """The committed record of SFT in mathematics at tiny."""
    wanted = ("tiny/maths-same", "sft", 1)
    specs = ((found, found["spec"]) for found in Store(ROOT / "results").all("tiny"))
    return next(r for r, spec in specs if (spec["pair"], spec["method"], spec["seed"]) == wanted)


def store(results: Path, record: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """Put a record with another description into a store, answers and all."""
    here, changed = Store(results), copy.deepcopy(record)
    changed["spec"] |= spec
    changed["cell"] = hashlib.sha256(canonical(changed["spec"])).hexdigest()[:16]
    for scores in changed["scores"].values():
        for run in scores["seeds"].values():
            path = run["generations"]["path"]
            target = path.replace(record["cell"], changed["cell"])
            (results / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "results" / path, results / target)
            run["generations"]["path"] = target
    del changed["sha256"]
    here.put(changed)
    return changed


def test_answers_scored_by_an_older_suite_make_the_new_cells_record(
    record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = store(tmp_path, record, suites=[{**run, "version": 1} for run in record["spec"]["suites"]])
    code, out, _ = reproduce(capsys, *COMMAND, "--results", str(tmp_path))
    assert code == 0
    assert "0 cells checked, 0 differences; 1 written anew" in out
    made = Store(tmp_path).get(record["cell"])
    assert made is not None
    for part in ("spec", "scores", "training", "cost", "models", "data"):
        assert made[part] == record[part]
    assert made["provenance"]["answers_of"] == {"cell": old["cell"], "provenance": old["provenance"]}
    assert Store(tmp_path).check() == []

    code, out, _ = reproduce(capsys, *COMMAND, "--results", str(tmp_path))
    assert code == 0
    assert "1 cells checked, 0 differences; 0 written anew" in out


def test_a_score_that_its_answer_does_not_have_is_found(
    record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = record["scores"]["gsm8k"]["seeds"]["10"]
    run["per_item"][3] = 100.0 - run["per_item"][3]
    run["score"] = sum(run["per_item"]) / len(run["per_item"])
    store(tmp_path, record)
    code, out, _ = reproduce(capsys, *COMMAND, "--results", str(tmp_path))
    assert code == 1
    assert "gsm8k, decoding seed 10: 1 items differ" in out


def test_nothing_to_score_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = reproduce(capsys, *COMMAND, "--results", str(tmp_path))
    assert code == 1
    assert "0 cells checked" in out
