"""What results are held against: data files that change only with a reason, which they keep.

``references/<name>.json`` under the results: ``losses`` (harness/goldens.py) and one file a scale
(harness/regression.py). A file that was changed in any other way is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.files import write_whole
from harness.provenance import author, commit
from harness.store import canonical, checksum

SCHEMA = 1
LISTED = 20  #: names of entries that a change lists at most


class ReferencesError(RuntimeError):
    """A reference file that is damaged or was edited, or a change without a reason."""


@dataclass(frozen=True)
class References:
    """Entries by section and name, and every change that was made to them."""

    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    changes: tuple[Mapping[str, Any], ...] = ()

    def section(self, name: str) -> Mapping[str, Any]:
        """Entries of a section by name; none where the section is missing."""
        return self.entries.get(name, {})


def path(results: Path, name: str) -> Path:
    """Where a reference file lies."""
    return results / "references" / f"{name}.json"


def read(results: Path, name: str) -> References:
    """A reference file; empty where there is none. ReferencesError where it is not as ``accept`` wrote it."""
    file = path(results, name)
    try:
        data = json.loads(file.read_bytes())
    except FileNotFoundError:
        return References()
    except (OSError, ValueError) as error:
        raise ReferencesError(f"{file}: {error}") from None
    if not isinstance(data, dict) or data.get("sha256") != checksum(data):
        raise ReferencesError(f"{file} was edited; references change only by --accept (git has the last one)")
    if data["schema"] != SCHEMA:
        raise ReferencesError(f"{file} has schema {data['schema']}; this code reads {SCHEMA}")
    return References(data["entries"], tuple(data["changes"]))


def accept(results: Path, name: str, entries: Mapping[str, Mapping[str, Any]], reason: str) -> list[str]:
    """Make ``entries`` the reference, for a reason, if they are not; what changed, a line each."""
    if not reason.strip():
        raise ReferencesError("references change for a reason: --reason TEXT")
    known = read(results, name)
    plain = json.loads(canonical(entries))
    changed = _changes(known.entries, plain)
    if not changed:
        return []
    change = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": author(),
        "commit": commit(),
        "reason": " ".join(reason.split()),
        "count": len(changed),
        "changed": changed[:LISTED],
    }
    body = {"schema": SCHEMA, "name": name, "changes": [*known.changes, change], "entries": plain}
    signed = {**body, "sha256": checksum(body)}
    text = json.dumps(signed, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(path(results, name), f"{text}\n".encode())
    return changed


def _changes(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """``new``, ``gone`` or ``changed`` with section and name, in that order of the sections."""
    said = []
    for section in sorted({*old, *new}):
        before, after = old.get(section, {}), new.get(section, {})
        for name in sorted({*before, *after}):
            if name not in before:
                said.append(f"new {section} {name}")
            elif name not in after:
                said.append(f"gone {section} {name}")
            elif before[name] != after[name]:
                said.append(f"changed {section} {name}")
    return said
