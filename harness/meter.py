"""What a cell takes: wall time and peak memory, over all attempts at it, and of this cell alone."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from harness.files import write_whole

Progress = Callable[[str, float], None]

KEEP_EVERY = 5.0  #: seconds; a kill loses so much at most
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class Meter:
    """Started with a cell's first line of work; ``file`` carries it over kills."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.own_peak = _reset_peak()
        self._before, self._peak_before = self._read()
        self._started = self._kept = time.monotonic()

    def seconds(self) -> float:
        """Wall time so far, without the pauses between attempts."""
        return self._before + time.monotonic() - self._started

    def peak_mb(self) -> float:
        """Largest resident size in MiB: while this cell ran if ``own_peak``, else since the process began."""
        return max(self._peak_before, _peak_mb(self.own_peak))

    def watching(self, progress: Progress) -> Progress:
        """The same progress, which also keeps the meter's state now and then."""

        def report(stage: str, fraction: float) -> None:
            if time.monotonic() - self._kept >= KEEP_EVERY:
                self.keep()
            progress(stage, fraction)

        return report

    def keep(self) -> None:
        """Write the state."""
        self._kept = time.monotonic()
        state = {"seconds": self.seconds(), "peak_mb": self.peak_mb()}
        write_whole(self.file, json.dumps(state).encode())

    def _read(self) -> tuple[float, float]:
        try:
            known = json.loads(self.file.read_text())
            return float(known["seconds"]), float(known["peak_mb"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0.0, 0.0


def _reset_peak() -> bool:
    """Set the kernel's high-water mark to what is resident now; False where it cannot be done (not Linux)."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _peak_mb(own: bool) -> float:
    if own:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
