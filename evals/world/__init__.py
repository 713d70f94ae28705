"""A small town as text: raw prose, instructions in five manners, word problems and Python functions.

Everything is written from seeded generators by the rules in this package; nothing is downloaded, and
no text of a suite is ever in anything a model is trained on.
"""

from __future__ import annotations

from evals.world.files import held_out, instruction_stream, maths_stream, prose, python_stream, write
from evals.world.task import Task

#: Raised whenever any text of the world changes: suites, training files, streams or prose.
WORLD_VERSION = 2

__all__ = [
    "WORLD_VERSION",
    "Task",
    "held_out",
    "instruction_stream",
    "maths_stream",
    "prose",
    "python_stream",
    "write",
]
