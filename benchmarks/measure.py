"""What the benchmarks share: memory of a process, the machine, and runs in processes of their own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any


def memory(field: str) -> float:
    """A field of /proc/self/status in MiB, such as VmRSS or VmHWM. Raises OSError where there is none."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}")


def reset_peak() -> None:
    """Let VmHWM start again from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def apart(module: str, request: dict[str, Any], threads: int) -> dict[str, Any]:
    """Run ``python -m MODULE --measure REQUEST`` and return the JSON of the last line it prints.

    One thread arena keeps the allocator from holding on to memory that peaks would then miss.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-m", module, "--measure", json.dumps(request)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{module}: {request} failed\n{done.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def machine(threads: int) -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    models = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "bf16": "avx512_bf16" in Path("/proc/cpuinfo").read_text(),
    }
