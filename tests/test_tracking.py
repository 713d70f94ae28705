"""Trackers: what tensorboard reads back is the training's curve; a missing package is told at once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from test_store import CELL
from test_train import trainer

from harness import cell, cli, pairs, tracking
from harness.distributed import World
from harness.store import Store


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every scalar that tensorboard finds."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_gets_the_curve_and_the_scores(
    student_folder: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    run = trainer(student_folder, teacher_folder, tmp_path / "work", "dskd-v1/kl")
    context = cell.Context(Store(tmp_path / "results"), tmp_path, pairs.get(CELL.pair))
    with tracking.tracked("tensorboard", CELL, tmp_path / "tracked", World()) as log:
        run.log = context.log = log
        trained = run.run()
        scores = {"dolly": {"seeds": {"1": {"score": 2.0}, "2": {"score": 4.0}}}}
        cell._log_scores(context, scores, trained.steps)
    found = scalars(tmp_path / "tracked" / CELL.id)
    assert found["score/dolly"] == [(trained.steps, 3.0)]
    for name in trained.curve[0][1]:
        kept = [(step, pytest.approx(terms[name])) for step, terms in trained.curve]
        assert found[f"train/{name}"] == kept
    rates = [rate for _, rate in found["train/lr"]]
    assert rates[0] == pytest.approx(run.settings.lr)
    assert rates == sorted(rates, reverse=True)


def test_nothing_is_tracked_unless_asked_for(tmp_path: Path) -> None:
    with tracking.tracked(None, CELL, tmp_path, World()) as log:
        assert log is None


def test_a_missing_package_is_told_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    arguments = ["--table", "2", "--tracker", "wandb", "--results", str(tmp_path)]
    assert cli.main(arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert told == ["reproduce.py: --tracker wandb needs a package: pip install 'dskd-bench[trackers]'"]
    assert list(tmp_path.iterdir()) == []
