"""Trainings on disk: written whole behind a hash, and told from damaged ones before they are used."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.files import damaged_in, seal_folder


def save_checkpoint(file: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint behind its own SHA-256, atomically: a kill leaves the older one whole."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getbuffer()
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    with part.open("wb") as stream:
        stream.write(hashlib.sha256(payload).digest())
        stream.write(payload)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, file)


def load_checkpoint(file: Path) -> dict[str, Any] | None:
    """A checkpoint whose hash holds (tensors and plain data only, never pickled code), else None."""
    try:
        raw = file.read_bytes()
        if hashlib.sha256(raw[32:]).digest() != raw[:32]:
            return None
        state: dict[str, Any] = torch.load(io.BytesIO(raw[32:]), weights_only=True, map_location="cpu")
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError):
        return None
    return state


# of several processes


def save_shards(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, own: dict[str, Any], rank: int
) -> None:
    """Write the shards of all processes, and what is each one's own (plain data), into one sealed folder.

    A kill at any moment leaves the older folder, or the new one, whole.
    """
    from torch.distributed import barrier
    from torch.distributed import checkpoint as dcp

    fresh = folder.with_name(f"{folder.name}.new")
    if rank == 0:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
    barrier()
    dcp.save(_shards(module, optimizer), checkpoint_id=fresh, no_dist=False)
    save_checkpoint(fresh / f"process-{rank}.pt", own)
    barrier()
    if rank == 0:
        seal_folder(fresh)
        older = folder.with_name(f"{folder.name}.old")
        if folder.exists():
            shutil.rmtree(older, ignore_errors=True)
            folder.replace(older)
        fresh.replace(folder)
        shutil.rmtree(older, ignore_errors=True)
    barrier()


def forget_shards(folder: Path) -> None:
    """Remove what ``save_shards`` left."""
    for found in _versions(folder):
        shutil.rmtree(found, ignore_errors=True)


def keep_latest(folder: Path) -> None:
    """Remove all but the newest of the checkpoints that DeepSpeed keeps in a folder."""
    newest = (folder / "latest").read_text(encoding="utf-8").strip()
    for found in folder.iterdir():
        if found.is_dir() and found.name != newest:
            shutil.rmtree(found)


def _versions(folder: Path) -> list[Path]:
    return [folder, folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")]


def intact_shards(folder: Path) -> Path | None:
    """The newest folder of shards that is whole: this one, or the one it was about to replace."""
    return next((found for found in _versions(folder) if damaged_in(found) == []), None)


def load_shards(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, rank: int
) -> dict[str, Any]:
    """Put the shards of ``save_shards`` back, over as many processes as there are now; this one's own.

    A process that was not there before gets the first one's, without its random state.
    """
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    state = _shards(module, optimizer)
    dcp.load(state, checkpoint_id=folder)
    options = StateDictOptions(ignore_frozen_params=True, strict=False)
    set_state_dict(
        module,
        optimizer,
        model_state_dict=state["module"],
        optim_state_dict=state["optimizer"],
        options=options,
    )
    own = load_checkpoint(folder / f"process-{rank}.pt")
    if own is None:
        own = {**(load_checkpoint(folder / "process-0.pt") or {}), "rng": None}
    return own


def _shards(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(ignore_frozen_params=True)
    weights, moments = get_state_dict(module, optimizer, options=options)
    return {"module": weights, "optimizer": moments}
