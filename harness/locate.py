"""Where models and data of a scale lie, made or fetched on first use."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.cells import Cell
from harness.files import known_hash

Progress = Callable[[str, float], None]

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
    for file, sha256 in _vouched(found.path, found.sha256).items():
        if known_hash(file) != sha256:
            raise sources.SourceError(
                f"{file} was changed after it was made (SHA-256 differs); "
                f"remove its folder and run: python reproduce.py --fetch {ref}"
            )
    return found.path


def _vouched(folder: Path, sha256: str | None) -> dict[Path, str]:
    """Weights whose hash is known: those made here, and the hub's, which are links to files named by it."""
    if sha256 is not None:
        return {folder / "model.safetensors": sha256}
    links = {file: file.resolve().name for file in folder.glob("*.safetensors") if file.is_symlink()}
    return {file: name for file, name in links.items() if re.fullmatch("[0-9a-f]{64}", name)}


def data_root(scale: str, cache: Path, given: Path | None) -> Path:
    """The folder of suites and training files."""
    if scale == "tiny":
        from harness import tiny

        return tiny.world(cache)
    from harness import sources

    return sources.data_root(cache, given)


def training_name(name: str) -> str:
    """A training set's name in the data folder, without .jsonl; a user's own file as it is."""
    return TRAINING_FILES.get(name, name).removesuffix("" if Path(name).is_absolute() else ".jsonl")


def training_file(name: str, root: Path) -> Path:
    """A training set's file under the data root; a path of the user's own is taken as it is."""
    return root / TRAINING_FILES.get(name, name)  # joining an absolute path gives that path


def data_report(cell: Cell, root: Path) -> list[dict[str, Any]]:
    """Name, hash, licence and state (exact, re-sampled, generated, own) of every file a cell used."""
    from evals import suites

    files = {run.name: suites.file_of(suites.get(run.name), root) for run in cell.suites}
    if cell.training is not None:
        files[f"train: {cell.data}"] = training_file(cell.data, root)
    return [{"name": name, **_described(cell.scale, path, root)} for name, path in sorted(files.items())]


def _described(scale: str, path: Path, root: Path) -> dict[str, str]:
    if scale == "tiny":
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return {"sha256": digest, "licence": "Apache-2.0 (made by this project)", "state": "generated"}
    from harness import sources

    known = path.relative_to(root) if path.is_relative_to(root) else Path("humaneval/test.jsonl")
    if path.is_relative_to(root) or path.name.startswith("HumanEval"):
        found = sources.data_files([known.with_suffix("").as_posix()], root, root)[0]
        return {"sha256": str(found.sha256), "licence": str(found.licence), "state": found.state}
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "licence": "unknown", "state": "own"}
