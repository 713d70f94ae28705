"""What a run says where there is no terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from harness import screen
from harness.pool import Job, Outcome
from harness.screen import SIGN_OF_LIFE, Screen


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    return now


def test_a_long_cell_gives_signs_of_life_and_a_short_one_none(clock: list[float], tmp_path: Path) -> None:
    stream = io.StringIO()
    jobs = [Job(name, name, "module:function", ()) for name in ("long", "short")]
    with Screen(2, tmp_path / "run.log", stream) as shown:
        for worker, job in enumerate(jobs):
            shown.started(worker, job)
        shown.progress(1, "train", 0.5)
        shown.finished(1, jobs[1], Outcome(True, "", None))
        for clock[0] in (1.0, SIGN_OF_LIFE, SIGN_OF_LIFE + 1, 2 * SIGN_OF_LIFE):
            shown.progress(0, "teacher reads", clock[0] / SIGN_OF_LIFE / 4)
        shown.finished(0, jobs[0], Outcome(True, "", None))
    lines = stream.getvalue().splitlines()
    assert lines == [
        *("start long", "start short"),
        "[1/2] short: done in 1 s",
        *("long: teacher reads, 25%", "long: teacher reads, 50%"),
        "[2/2] long: done in 10 min",
    ]
    logged = (tmp_path / "run.log").read_text().splitlines()
    assert [line[20:] for line in logged] == lines
