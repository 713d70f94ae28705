"""Version numbers of the parts that can move a score. They enter every cell's id.

Raise a number whenever the same cell would come out differently; old records then stay on disk under
their old id and the cell is computed anew. Methods and suites carry their own (``Entry.version``,
``Suite.version``).
"""

from __future__ import annotations

TRAINER = 1  #: harness/train.py, harness/data.py, harness/teacher.py
DECODER = 1  #: evals/decoding.py, evals/prompts.py
BF16_STUDENT = 2  #: of cells whose student is trained for bfloat16; 1 rounded rotary frequencies as well
STUDENT_TEXT = 1  #: harness/on_policy.py; of cells whose method distils on student text
