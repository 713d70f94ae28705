from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import files
from harness.cells import Cell, Decoding, SuiteRun
from harness.store import Store, StoreError, Timeout, canonical, checksum, core, read_record

CELL = Cell(
    "tiny",
    "tiny/bpe-same",
    "kl",
    1,
    "instructions",
    None,
    Decoding(),
    (SuiteRun("dolly", 1, 3),),
    "tiny",
    (("kl", 1),),
)


def make(status: str = "done", scores: tuple[float, ...] = (1.0, 2.0, 3.0), **more: Any) -> dict[str, Any]:
    run = {"score": sum(scores) / len(scores), "all": {}, "per_item": list(scores), "generations": None}
    suite = {"metric": "rougeL", "items": len(scores), "items_sha256": "0" * 64, "seeds": {"10": run}}
    record = {
        "schema": 1, "cell": CELL.id, "spec": CELL.as_dict(), "status": status, "reason": None,
        "scores": {"dolly": suite}, "training": None, "models": {}, "data": [], "template_sha256": "",
        "provenance": {"commit": "a"}, "cost": {"train_seconds": 1.0},
    }  # fmt: skip
    return {**record, **more}


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.get(CELL.id) is None
    path = store.put(make())
    assert path == tmp_path / "records" / "tiny" / f"{CELL.id}.json" == store.record_path(CELL.id)
    record = store.get(CELL.id)
    assert record is not None
    assert core(record) == core(json.loads(json.dumps(make())))
    assert Cell.from_dict(record["spec"]) == CELL
    assert [r["cell"] for r in store.all()] == [CELL.id]
    assert list(store.all("small")) == []
    assert store.check() == []


def test_records_are_immutable_but_for_provenance_and_cost(tmp_path: Path) -> None:
    store = Store(tmp_path)
    before = store.put(make()).read_bytes()
    assert store.put(make(provenance={"commit": "b"}, cost={"train_seconds": 9.0})).read_bytes() == before
    with pytest.raises(StoreError, match=r"other results.*scores\.dolly"):
        store.put(make(scores=(1.0, 2.0, 4.0)))
    assert store.record_path(CELL.id).read_bytes() == before


def test_a_failure_is_kept_until_the_cell_runs_through(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(make("failed", reason="out of memory"))
    assert store.get(CELL.id)["reason"] == "out of memory"  # type: ignore[index]
    store.put(make())
    assert store.get(CELL.id)["status"] == "done"  # type: ignore[index]
    with pytest.raises(StoreError):
        store.put(make("failed", reason="out of memory"))


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = Store(tmp_path).put(make())
    data = path.read_bytes()
    tail = data.rstrip()
    for position in range(0, len(tail), 7):
        for bit in (0, 3):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with contextlib.suppress(StoreError):
                assert read_record(path) == json.loads(data)  # white space for white space changes nothing
    path.write_bytes(data.replace(b"2.0", b"2.5", 1))
    with pytest.raises(StoreError, match=rf"{path.name} was changed"):
        read_record(path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreError, match="no JSON"):
        Store(tmp_path).get(CELL.id)
    assert Store(tmp_path).check()


def test_a_record_out_of_place_is_refused(tmp_path: Path) -> None:
    path = Store(tmp_path).put(make())
    other = path.with_name("0" * 16 + ".json")
    path.rename(other)
    with pytest.raises(StoreError, match="holds the record of cell"):
        read_record(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "f" * 16}, "not the hash"),
        ({"cell": "../../etc/passwd"}, "no cell id"),
        ({"status": "perhaps"}, "done or failed"),
        ({"status": "failed"}, "says why"),
        ({"schema": 2}, "schema 2"),
        ({"template_sha256": float("nan")}, "plain JSON"),
        ({"models": {"a": object()}}, "plain JSON"),
    ],
)
def test_wrong_records_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        Store(tmp_path).put(make(**change))
    assert not list(tmp_path.rglob("*.json"))


def test_missing_field_and_broken_scores_are_refused(tmp_path: Path) -> None:
    record = make()
    del record["models"]
    with pytest.raises(StoreError, match="lacks models"):
        Store(tmp_path).put(record)
    for key, value, message in (("items", 4, "3 scores for 4"), ("items", 0, "3 scores for 0")):
        record = make()
        record["scores"]["dolly"][key] = value
        with pytest.raises(StoreError, match=message):
            Store(tmp_path).put(record)
    record = make()
    record["scores"]["dolly"]["seeds"]["10"]["score"] = 2.1
    with pytest.raises(StoreError, match="not the mean"):
        Store(tmp_path).put(record)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", "a//b", "./a", "C:\\x", "a\\b"])
def test_paths_stay_inside(tmp_path: Path, path: str) -> None:
    record = make()
    record["scores"]["dolly"]["seeds"]["10"]["generations"] = {"path": path, "sha256": "0" * 64}
    with pytest.raises(StoreError, match="no path inside"):
        Store(tmp_path).put(record)
    with pytest.raises(StoreError, match="no path inside"):
        Store(tmp_path).read_generations({"path": path, "sha256": "0" * 64})


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("x")
    (root / "way").symlink_to(tmp_path)
    with pytest.raises(StoreError, match="leads out"):
        Store(root).read_generations({"path": "way/secret", "sha256": "0" * 64})


def test_generations_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    rows = [{"id": "dolly-1", "text": "Zoë\nflies"}, {"id": "dolly-2", "text": ""}]
    a = Store(tmp_path / "a").write_generations(CELL, "dolly", 10, rows)
    b = Store(tmp_path / "b").write_generations(CELL.id, "dolly", 10, iter(rows), scale="tiny")
    assert a == b
    assert a["path"] == f"generations/tiny/{CELL.id}/dolly-10.jsonl.gz"
    store = Store(tmp_path / "a")
    assert store.read_generations(a) == rows
    record = make()
    record["scores"]["dolly"]["seeds"]["10"]["generations"] = a
    store.put(record)
    assert store.check() == []
    data = gzip.compress(b"{}\n", mtime=0)
    (tmp_path / "a" / a["path"]).write_bytes(data)
    with pytest.raises(StoreError, match="SHA-256"):
        store.read_generations(a)
    assert len(store.check()) == 1
    (tmp_path / "a" / a["path"]).unlink()
    with pytest.raises(StoreError, match="No such file"):
        store.read_generations(a)


def test_names_that_climb_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for cell, suite, scale in ((CELL.id, "../x", "tiny"), (CELL.id, "dolly", ".."), ("x", "dolly", "tiny")):
        with pytest.raises(StoreError):
            store.write_generations(cell, suite, 10, [], scale=scale)
    with pytest.raises(StoreError, match="need scale"):
        store.write_generations(CELL.id, "dolly", 10, [])
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_crash_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(files.os, "replace", crash)
    with pytest.raises(OSError, match="power cut"):
        Store(tmp_path).put(make())
    assert not [path for path in (tmp_path / "records").rglob("*") if path.is_file()]


def test_a_lock_keeps_others_out(tmp_path: Path) -> None:
    with Store(tmp_path).lock(CELL.id), pytest.raises(Timeout):
        Store(tmp_path).lock(CELL.id, timeout=0).acquire()
    with Store(tmp_path).lock(CELL.id, timeout=0):
        pass
    assert Store(tmp_path).work(CELL.id).is_dir()


def _put(root: str, number: int, queue: Any) -> None:
    try:
        Store(root).put(make(scores=(float(number), 0.0, 0.0)))
        queue.put(("kept", number))
    except StoreError:
        queue.put(("refused", number))


def test_two_processes_cannot_both_write_a_cell(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_put, args=(str(tmp_path), number, queue)) for number in range(4)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join()
    kept = [number for word, number in results if word == "kept"]
    assert len(kept) == 1
    record = Store(tmp_path).get(CELL.id)
    assert record is not None
    assert record["scores"]["dolly"]["seeds"]["10"]["per_item"][0] == kept[0]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_the_checksum_knows_content_not_order(body: dict[str, Any]) -> None:
    turned = dict(reversed(body.items()))
    assert checksum(body) == checksum(turned) == checksum({**body, "sha256": "x"})
    plain = {k: v for k, v in body.items() if k != "sha256"}
    assert checksum(json.loads(json.dumps(body))) == hashlib.sha256(canonical(plain)).hexdigest()
    assert checksum({**body, "new key": 1}) != checksum({**body, "new key": 2})
