"""Records as a commit of git has them, read without a checkout."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.provenance import ROOT
from harness.store import StoreError, check_record, checksum

RECORDS = "results/records"
GIT_SECONDS = 120


def records(name: str, root: Path = ROOT) -> list[dict[str, Any]]:
    """Every record under ``results/`` of a commit of ``root``. StoreError where it is none or has none."""
    found = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if found is None:
        raise StoreError(f"{name} is neither a folder of results nor a commit of {root}")
    commit = found.decode().strip()
    listed = _git(root, "ls-tree", "-r", "-z", "--full-tree", commit, "--", RECORDS) or b""
    entries = [entry.partition(b"\t") for entry in listed.split(b"\0") if entry.endswith(b".json")]
    if not entries:
        raise StoreError(f"commit {name} holds no records under {RECORDS}")
    blobs = [meta.split()[2] for meta, _, _ in entries]
    texts = _blobs(root, blobs)
    return [
        _record(text, f"{name}:{path.decode()}") for text, (_, _, path) in zip(texts, entries, strict=True)
    ]


def _git(root: Path, *arguments: str, given: bytes | None = None) -> bytes | None:
    """What git prints; None where it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            input=given,
            capture_output=True,
            timeout=GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _blobs(root: Path, names: Sequence[bytes]) -> list[bytes]:
    """Contents of git's objects, in order. Each comes as a line ``name type size`` and a line of bytes."""
    stream = _git(root, "cat-file", "--batch", given=b"".join(name + b"\n" for name in names))
    if stream is None:
        raise StoreError("git could not read the records of the commit")
    found, at = [], 0
    for _ in names:
        end = stream.index(b"\n", at)
        name, *facts = stream[at:end].split()
        if len(facts) != 2:
            raise StoreError(f"git has no object {name.decode()} here, which the commit refers to")
        size = int(facts[1])
        found.append(stream[end + 1 : end + 1 + size])
        at = end + 2 + size
    return found


def _record(text: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise StoreError(f"{where} is no JSON: {error}") from None
    if not isinstance(record, dict) or record.get("sha256") != checksum(record):
        raise StoreError(f"{where} was changed after it was written (checksum differs)")
    check_record(record, where)
    return record
