"""Wall time and peak memory are a cell's own, over all attempts at it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import meter
from harness.meter import Meter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock set by hand."""
    now = [100.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    return now


def test_time_before_a_kill_counts_and_the_pause_does_not(tmp_path: Path, clock: list[float]) -> None:
    heard: list[tuple[str, float]] = []
    first = Meter(tmp_path / "work" / "meter.json")
    progress = first.watching(lambda stage, part: heard.append((stage, part)))
    for _ in range(5):
        clock[0] += 6
        progress("train", 0.5)
    clock[0] += 0.5  # killed here: what was not kept is lost
    progress("train", 0.5)
    clock[0] += 1000
    second = Meter(first.file)
    clock[0] += 7
    assert second.seconds() == pytest.approx(30 + 7)
    assert len(heard) == 6


def test_a_damaged_file_starts_anew(tmp_path: Path, clock: list[float]) -> None:
    for text in ("", "{", "[]", '{"seconds": 1}', '{"seconds": null, "peak_mb": 1}'):
        (tmp_path / "meter.json").write_text(text)
        assert Meter(tmp_path / "meter.json").seconds() == 0


def test_the_peak_is_the_cells_own(tmp_path: Path) -> None:
    big = bytearray(256 * 2**20)
    big[:: 2**12] = b"x" * len(big[:: 2**12])
    during = Meter(tmp_path / "a.json").peak_mb()
    del big
    after = Meter(tmp_path / "b.json")
    if not after.own_peak:
        pytest.skip("this system keeps one high-water mark for the whole process")
    assert after.peak_mb() < during - 200


def test_the_peak_of_an_earlier_attempt_counts(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"seconds": 1.0, "peak_mb": 1e6}))
    assert Meter(tmp_path / "a.json").peak_mb() == 1e6


def test_without_linux_the_whole_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "_CLEAR", tmp_path / "no" / "such")
    plain = Meter(tmp_path / "a.json")
    assert not plain.own_peak
    assert plain.peak_mb() > 10
