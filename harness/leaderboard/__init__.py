"""The leaderboard: one HTML page that holds everything, made from records. Loads no torch."""

from __future__ import annotations

from harness.leaderboard.page import Made, make

__all__ = ["Made", "make"]
