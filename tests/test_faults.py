"""Faults put in on purpose: full disks, no memory, damaged files. Nothing is lost, nothing damaged used."""

from __future__ import annotations

import ast
import contextlib
import errno
import hashlib
import json
import os
import pickle
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_run import Silent, fake, planned, record
from test_store import CELL, make

from dskd import vocabulary
from harness import data, files, locate, methods, models, run, saving, sources, teacher, tiny
from harness.cells import Cell
from harness.examples import Example
from harness.sources import datasets
from harness.store import Store

HOW = ("flipped", "truncated", "emptied")


def damage(file: Path, how: str) -> None:
    """One bit in the middle, the last third gone, or everything."""
    raw = bytearray(file.read_bytes())
    if how == "flipped":
        raw[len(raw) // 2] ^= 4
    stamp = file.stat()
    file.write_bytes(raw if how == "flipped" else raw[: len(raw) * 2 // 3 if how == "truncated" else 0])
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # a failing disk leaves the time as it was
    files._known.clear()  # what a new process knows


@pytest.fixture(autouse=True)
def _registry() -> None:
    methods.load()


# what a worker does (imported by name there)


def out_of_memory_on_kl(cell: Cell, settings: run.Settings, progress: run.Progress) -> dict[str, Any]:
    """Really runs out: the address space ends 200 MB above what is in use."""
    if cell.method == "kl":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), resource.RLIM_INFINITY))
        torch.ones(1 << 28) if settings.reference else bytearray(1 << 30)
    return fake(cell, settings, progress)


def thirty_kilobytes(cell: Cell, settings: run.Settings, progress: run.Progress) -> dict[str, Any]:
    return {**record(cell, settings.command), "models": {"filler": "x" * 30_000}}


def settings(results: Path, function: str, **more: Any) -> run.Settings:
    return run.Settings(results, results / "cache", compute=f"test_faults:{function}", command="test", **more)


# memory


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("by_torch", [False, True])
def test_a_cell_out_of_memory_fails_and_the_others_go_on(tmp_path: Path, by_torch: bool) -> None:
    first = planned(tmp_path, seeds=(1, 2))
    how = settings(tmp_path, "out_of_memory_on_kl", reference=by_torch)
    outcomes = run.execute(first, how, 1, Silent())
    failed = run.failures(first, outcomes)
    assert [step.cell.method for step, _ in failed] == ["kl", "kl"]
    assert all(reason.startswith("out of memory; fewer cells side by side") for _, reason in failed)
    assert len(outcomes) - len(failed) == 2  # in workers whose memory is not limited
    for step, reason in failed:
        kept = Store(tmp_path).get(step.cell.id)
        assert kept is not None
        assert (kept["status"], kept["reason"]) == ("failed", reason)
    again = planned(tmp_path, seeds=(1, 2))
    assert {(s.cell.method, s.state) for s in again.steps} == {("kl", "run"), ("sft", "done")}
    assert all(s.reason.startswith("failed before: out of memory") for s in again.of("run"))
    run.execute(again, settings(tmp_path, "thirty_kilobytes"), 1, Silent())
    assert not planned(tmp_path, seeds=(1, 2)).of("run")


# disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 512 KB, where this process may mount one."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Take all room but ``leave`` bytes."""
    filler = disk / "filler"
    with filler.open("wb") as file, contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(4096))
    os.truncate(filler, filler.stat().st_size - leave)
    return filler


def test_a_record_on_a_full_disk_is_whole_or_not_there(small_disk: Path) -> None:
    store = Store(small_disk)
    store.put(make("failed", reason="first try"))
    before = store.record_path(CELL.id).read_bytes()
    filler = fill(small_disk, leave=8192)
    with pytest.raises(OSError, match="No space"):
        store.put(make(models={"filler": "x" * 50_000}))
    assert store.record_path(CELL.id).read_bytes() == before
    assert [p.name for p in (small_disk / "records" / "tiny").iterdir()] == [f"{CELL.id}.json"]
    with pytest.raises(OSError, match="No space"):
        store.write_generations(CELL, "dolly", 10, [{"text": os.urandom(20_000).hex()}])
    assert not list(small_disk.rglob("*.gz*"))
    filler.unlink()
    store.put(make())
    assert store.check() == []


def test_a_run_on_a_full_disk_fails_cell_by_cell_and_goes_on_later(small_disk: Path) -> None:
    first = planned(small_disk, seeds=(1, 2))
    filler = fill(small_disk, leave=65536)
    outcomes = run.execute(first, settings(small_disk, "thirty_kilobytes"), 1, Silent())
    failed = run.failures(first, outcomes)
    assert failed
    assert len(failed) < 4
    assert all("No space left on device" in reason for _, reason in failed)
    assert Store(small_disk).check() == []
    filler.unlink()
    again = planned(small_disk, seeds=(1, 2))
    assert len(again.of("done")) == 4 - len(failed)
    outcomes = run.execute(again, settings(small_disk, "thirty_kilobytes"), 1, Silent())
    assert run.failures(again, outcomes) == []


def test_a_checkpoint_on_a_full_disk_leaves_the_older_one(small_disk: Path) -> None:
    file = small_disk / "checkpoint.pt"
    saving.save_checkpoint(file, {"x": torch.ones(10)})
    fill(small_disk, leave=8192)
    with pytest.raises(OSError, match="No space"):
        saving.save_checkpoint(file, {"x": torch.ones(1 << 16)})
    kept = saving.load_checkpoint(file)
    assert kept is not None
    assert len(kept["x"]) == 10


def test_hidden_states_reserve_their_room_before_anything_is_mapped(small_disk: Path) -> None:
    with pytest.raises(OSError) as caught:
        teacher._reserve(small_disk / "hidden.bin", 1 << 20)
    assert caught.value.errno == errno.ENOSPC
    teacher._reserve(small_disk / "hidden.bin", 1 << 16)
    assert (small_disk / "hidden.bin").stat().st_size == 1 << 16


# damaged files


@pytest.mark.parametrize("how", HOW)
def test_seals_tell(tmp_path: Path, how: str) -> None:
    file = tmp_path / "a" / "b.bin"
    assert files.damaged(file)
    assert not files.intact(file)
    files.write_whole(file, b"0123456789")
    assert not files.damaged(file)
    assert not files.intact(file)
    files.seal(file)
    assert files.intact(file)
    damage(file, how)
    assert files.damaged(file)
    assert not files.intact(file)
    file.write_bytes(b"0123456789")
    assert files.intact(file)
    damage(file.with_name("b.bin.sha256"), how)
    assert files.damaged(file)


@pytest.mark.parametrize("how", HOW)
def test_a_damaged_tiny_folder_is_made_anew(tmp_path: Path, how: str) -> None:
    def maker(into: Path) -> None:
        (into / "sub").mkdir()
        (into / "sub" / "model.safetensors").write_bytes(b"0123456789")
        made.append(into)

    made: list[Path] = []
    folder = tiny._once(tmp_path / "model", maker)
    assert tiny._once(folder, maker) == folder
    assert len(made) == 1
    damage(folder / "sub" / "model.safetensors", how)
    with pytest.warns(UserWarning, match="changed on disk; it is made anew"):
        tiny._once(folder, maker)
    assert len(made) == 2
    assert (folder / "sub" / "model.safetensors").read_bytes() == b"0123456789"
    (folder / files.FOLDER_SEAL).unlink()  # a folder of an older version
    tiny._once(folder, maker)
    assert len(made) == 2
    (folder / "sub" / "model.safetensors").unlink()
    with pytest.warns(UserWarning, match="made anew"):
        tiny._once(folder, maker)
    assert len(made) == 3


@pytest.mark.parametrize("how", HOW)
def test_a_damaged_teacher_head_is_made_anew(teacher_folder: Path, tmp_path: Path, how: str) -> None:
    def side() -> torch.Tensor:
        return teacher.teacher_side(teacher_folder, "teacher", tmp_path, torch.float32).head.clone()

    before = side()
    damage(next((tmp_path / "teacher").glob("side-*.safetensors")), how)
    assert torch.equal(side(), before)


@pytest.mark.parametrize("how", HOW)
def test_damaged_teacher_texts_are_written_anew(tmp_path: Path, how: str) -> None:
    file = tmp_path / "texts.jsonl"
    texts = [("The miller keeps geese.", True), ("Zoë paints", False)]
    calls = []

    def write() -> list[tuple[str, bool]]:
        calls.append(1)
        return texts

    assert teacher.teacher_texts(file, write, 2) == texts
    assert teacher.teacher_texts(file, write, 2) == texts
    assert len(calls) == 1
    damage(file, how)
    assert teacher.teacher_texts(file, write, 2) == texts
    assert len(calls) == 2


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["hidden.bin", "meta.json"])
def test_damaged_hidden_states_are_computed_anew(
    teacher_folder: Path, tmp_path: Path, how: str, name: str
) -> None:
    tokenizer = models.load(teacher_folder, "teacher").tokenizer
    examples = [Example(str(n), "### Response:\n", "geese " * (n + 1)) for n in range(3)]
    encoded = data.encode_examples(tokenizer, examples, max_prompt=32, max_length=64)

    def states() -> torch.Tensor:
        found = teacher.hidden_states(
            teacher_folder, "teacher", encoded, tmp_path, torch.float32, lambda stage, part: None
        )
        return found.rows([0, 1, 2]).clone()

    before = states()
    damage(next((tmp_path / "teacher").rglob(name)), how)
    with contextlib.nullcontext() if name == "meta.json" else pytest.warns(UserWarning, match="rebuilding"):
        assert torch.equal(states(), before)


def test_no_flipped_bit_of_the_states_description_goes_unnoticed(tmp_path: Path) -> None:
    """The description is short enough to try every bit: wrong width, wrong hash, no JSON."""
    offsets = np.array([0, 3])
    folder = tmp_path / "states"
    content = np.arange(12, dtype=np.int16)
    files.write_whole(folder / "hidden.bin", content.tobytes())
    about = {"sha256": files.file_hash(folder / "hidden.bin"), "width": 4, "tokens": 3}
    raw = json.dumps(about).encode()
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        (folder / "meta.json").write_bytes(flipped)
        with contextlib.suppress(UserWarning), pytest.MonkeyPatch.context() as patch:
            patch.setattr(teacher.warnings, "warn", lambda *a, **k: None)
            found = teacher._open(folder, offsets)
        assert found is None or np.array_equal(found.data.reshape(-1), content)


@pytest.mark.parametrize("how", HOW)
def test_a_damaged_vocabulary_map_is_made_anew(tmp_path: Path, how: str) -> None:
    found = np.arange(100)
    vocabulary._write_map(tmp_path / "x.map", found)
    assert np.array_equal(vocabulary._read_map(tmp_path / "x.map", 100), found)
    assert vocabulary._read_map(tmp_path / "x.map", 99) is None
    damage(tmp_path / "x.map", how)
    assert vocabulary._read_map(tmp_path / "x.map", 100) is None


@pytest.mark.parametrize("how", HOW)
def test_a_damaged_checkpoint_is_not_used(tmp_path: Path, how: str) -> None:
    file = tmp_path / "checkpoint.pt"
    saving.save_checkpoint(file, {"x": torch.ones(100)})
    assert saving.load_checkpoint(file) is not None
    damage(file, how)
    assert saving.load_checkpoint(file) is None


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/dskd-evil-was-here",)


def test_a_checkpoint_that_is_a_pickled_program_is_not_run(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    saving.save_checkpoint(file, {"x": _Evil()})
    assert saving.load_checkpoint(file) is None
    payload = pickle.dumps(_Evil())
    file.write_bytes(hashlib.sha256(payload).digest() + payload)
    assert saving.load_checkpoint(file) is None
    assert not Path("/tmp/dskd-evil-was-here").exists()


@pytest.mark.parametrize("how", HOW)
def test_a_damaged_fingerprint_is_computed_anew(student_folder: Path, tmp_path: Path, how: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in student_folder.iterdir():
        if not file.name.startswith("."):
            (folder / file.name).write_bytes(file.read_bytes())
    before = models.fingerprint(folder)
    damage(folder / ".fingerprint", how)
    assert models.fingerprint(folder) == before
    wrong = json.loads((folder / ".fingerprint").read_text()) | {"sha256": "0" * 64}
    (folder / ".fingerprint").write_text(json.dumps(wrong))
    assert models.fingerprint(folder) == before


@pytest.mark.parametrize("how", HOW)
def test_a_damaged_data_set_of_ours_is_refused_and_made_anew(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = datasets.DataSet("gsm8k/test", "MIT", make="gsm8k", state="exact")
    row = '{"question": "1+1?", "answer": "#### 2"}\n'

    def gather(parts: object, work: Path, *_: object) -> None:
        files.write_whole(work / "rows.jsonl", row.encode())

    monkeypatch.setattr(datasets.packages, "gather", gather)

    def found() -> datasets.DataFile:
        return datasets._find("gsm8k/test", entry, tmp_path, None)

    datasets.make(entry, tmp_path, lambda stage, part: None)
    assert found().state == "exact"
    damage(tmp_path / "data" / "gsm8k" / "test.jsonl", how)
    assert found().kind == "missing"
    assert "was changed after it was made" in str(found().remedy)
    datasets.make(entry, tmp_path, lambda stage, part: None)
    assert found().state == "exact"
    assert found().path is not None
    assert found().path.read_text() == row  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["package", "hub"])
def test_damaged_weights_with_a_known_hash_are_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(b"weights, many of them")
    sha256 = files.file_hash(blob)
    blob = blob.rename(tmp_path / sha256)
    folder = tmp_path / "model"
    folder.mkdir()
    if kind == "hub":
        (folder / "model.safetensors").symlink_to(blob)
    else:
        blob = blob.rename(folder / "model.safetensors")
    found = sources.Resolution("a/b", kind, folder, sha256=sha256 if kind == "package" else None)  # type: ignore[arg-type]
    monkeypatch.setattr(sources, "resolve", lambda ref, cache: found)
    assert locate.model("a/b", tmp_path, lambda stage, part: None) == folder
    damage(blob, "flipped")
    with pytest.raises(sources.SourceError, match=r"SHA-256 differs.*--fetch a/b"):
        locate.model("a/b", tmp_path, lambda stage, part: None)


# the page about all this


def test_every_test_that_the_page_names_exists() -> None:
    root = Path(__file__).resolve().parents[1]
    text = (root / "docs" / "faults.md").read_text(encoding="utf-8")
    lines = [
        line for line in text.splitlines() if line.startswith("|") and not line.startswith(("| fault", "|-"))
    ]
    assert len(lines) > 50
    for line in lines:
        fault, test, lost = (part.strip() for part in line.strip("|").split("|"))
        assert fault and lost, line
        assert _defined(root / "tests", *test.strip("`").split("::")), test


def _defined(folder: Path, file: str, *path: str) -> bool:
    """Whether a test module defines a test, perhaps in a class."""
    body: list[Any] = [ast.parse((folder / file).read_text(encoding="utf-8"))]
    for name in path:
        body = [node for parent in body for node in parent.body if getattr(node, "name", "") == name]
    return bool(body) and path[-1].startswith("test_")


def test_a_test_that_is_not_there_is_noticed() -> None:
    folder = Path(__file__).parent
    assert not _defined(folder, "test_kill.py", "test_no_such_thing")
    assert not _defined(folder, "test_sandbox.py", "test_no_network")  # it is in a class
    assert _defined(folder, "test_sandbox.py", "TestNamespaces", "test_no_network")
