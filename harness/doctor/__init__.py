"""What is wrong, or will surprise, before anything runs: each finding with severity, reason and remedy.

Models are read by their headers and texts by their tokenizers, so nothing here loads torch and a look takes
a second or two. ``--doctor`` shows everything; before a run only what is new and worth a line is said, and
cells that an error concerns are not started.
"""

from __future__ import annotations

from harness.doctor.examination import DoctorError, examine, said_first, triage
from harness.doctor.findings import SEVERITIES, Finding
from harness.doctor.machine import survey

__all__ = ["SEVERITIES", "DoctorError", "Finding", "examine", "said_first", "survey", "triage"]
