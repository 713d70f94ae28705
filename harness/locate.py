"""Where models and data of a scale lie, made or fetched on first use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.cells import Cell

Progress = Callable[[str, float], None]

#: What is known of the real data sets (upstream licences).
LICENCES = {
    "dolly": "CC BY-SA 3.0",
    "self-inst": "Apache-2.0",
    "vicuna": "Apache-2.0",
    "s-ni": "Apache-2.0",
    "unni": "MIT",
    "gsm8k": "MIT",
    "math500": "MIT",
    "mbpp": "CC BY 4.0",
    "humaneval": "MIT",
}

#: Training sets by name: files under the data root.
TRAINING_FILES = {
    "tiny-instructions": "train/instructions.jsonl",
    "tiny-maths": "train/maths.jsonl",
    "tiny-code": "train/code.jsonl",
    "dolly": "dolly/train.jsonl",
    "dolly-dev": "dolly/dev.jsonl",
    "gsm8k": "gsm8k/train.jsonl",
    "mbpp-train": "mbpp/mbpp.jsonl",
}


def model(ref: str, cache: Path, progress: Progress) -> Path:
    """The folder of a model: built (tiny), converted before (small), or as the user names it."""
    if ref.startswith("tiny:"):
        from harness import tiny

        return tiny.build(ref, cache, progress)
    from harness import sources

    found = sources.resolve(ref, cache)
    if found.path is None:
        raise FileNotFoundError(f"{ref} is not here; {found.remedy}")
    return found.path


def data_root(scale: str, cache: Path, given: Path | None) -> Path:
    """The folder of suites and training files."""
    if scale == "tiny":
        from harness import tiny

        return tiny.world(cache)
    from harness import sources

    return sources.data_root(cache, given)


def training_file(name: str, root: Path) -> Path:
    """A training set's file under the data root; a path of the user's own is taken as it is."""
    return root / TRAINING_FILES.get(name, name)  # joining an absolute path gives that path


def data_report(cell: Cell, root: Path) -> list[dict[str, Any]]:
    """Name, hash, licence and state of every file a cell used."""
    from evals import suites

    files = {run.name: suites.file_of(suites.get(run.name), root) for run in cell.suites}
    if cell.training is not None:
        files[f"train: {cell.data}"] = training_file(cell.data, root)
    generated = cell.scale == "tiny"
    return [
        {
            "name": name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "licence": "Apache-2.0 (made by this project)" if generated else _licence(name),
            "state": "generated" if generated else "exact",
        }
        for name, path in sorted(files.items())
    ]


def _licence(name: str) -> str:
    known = name.removeprefix("train: ").removesuffix("-dev").removesuffix("-train")
    return LICENCES.get(known, "unknown")
