"""Files that are written whole, and files that can be told from damaged ones.

A *seal* is a list of SHA-256 hashes in the format of ``sha256sum``, written after what it vouches for: beside
a file as ``NAME.sha256``, in a folder as ``.sha256sums``.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

FOLDER_SEAL = ".sha256sums"

_known: dict[tuple[str, int, int], str] = {}


def write_whole(path: Path, data: bytes) -> None:
    """Write whole or not at all: a reader, or a crash, never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened for this
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_hash(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def known_hash(path: Path) -> str:
    """As ``file_hash``, read once per process as long as size and time stay."""
    found = path.stat()
    key = (str(path), found.st_size, found.st_mtime_ns)
    if key not in _known:
        _known[key] = file_hash(path)
    return _known[key]


def seal(path: Path) -> None:
    """Vouch for a file as it is now."""
    write_whole(_seal_of(path), f"{file_hash(path)}  {path.name}\n".encode())


def intact(path: Path) -> bool:
    """Whether a file is there, sealed, and what its seal says."""
    return _sealed(_seal_of(path)) is not None and not damaged(path)


def damaged(path: Path) -> bool:
    """Whether a file is missing or not what its seal says; one without a seal is taken as it is."""
    hashes = _sealed(_seal_of(path))
    return not path.is_file() or (hashes is not None and hashes.get(path.name) != file_hash(path))


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def seal_folder(folder: Path) -> None:
    """Vouch for all files of a folder as they are now, hidden ones apart."""
    names = sorted(path.relative_to(folder).as_posix() for path in _visible(folder))
    lines = [f"{file_hash(folder / name)}  {name}\n" for name in names]
    write_whole(folder / FOLDER_SEAL, "".join(lines).encode())


def damaged_in(folder: Path) -> list[str] | None:
    """Files of a folder that are missing or not what its seal says; None for a folder without a seal."""
    hashes = _sealed(folder / FOLDER_SEAL)
    if hashes is None:
        return None
    return [
        name
        for name, sha256 in hashes.items()
        if not (folder / name).is_file() or known_hash(folder / name) != sha256
    ]


def _visible(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def _sealed(path: Path) -> dict[str, str] | None:
    """Name -> SHA-256; what is no seal vouches for nothing, so every file under it counts as damaged."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return {name: sha256 for sha256, _, name in (line.partition("  ") for line in lines)}
