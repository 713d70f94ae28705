"""Records from elsewhere: taken in only whole and sane, shown apart, counted nowhere."""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import reproduce
from test_report import rows_of, structure

from harness import external, methods, plan, rendering, report
from harness.plan import Request
from harness.rendering import Judged
from harness.store import Store, StoreError, canonical, checksum

ROOT = Path(__file__).resolve().parents[1]


def signed(record: dict[str, Any]) -> dict[str, Any]:
    """The record with the id and checksum that fit what it says."""
    record["cell"] = hashlib.sha256(canonical(record["spec"])).hexdigest()[:16]
    record["sha256"] = checksum(record)
    return record


@pytest.fixture(scope="module")
def own() -> dict[str, Any]:
    """A record of table 2's KL row."""
    records = Store(ROOT / "results").all("tiny")
    return next(r for r in records if (r["spec"]["pair"], r["spec"]["method"]) == ("tiny/sp-same", "kl"))


@pytest.fixture
def theirs(own: dict[str, Any]) -> dict[str, Any]:
    """What another machine might send: seed 7, every score three points lower."""
    record = copy.deepcopy(own)
    record["spec"]["seed"] = 7
    for scores in record["scores"].values():
        for run in scores["seeds"].values():
            run["per_item"] = [max(0.0, value - 3) for value in run["per_item"]]
            run["score"] = sum(run["per_item"]) / len(run["per_item"])
    return signed(record)


def written(folder: Path, record: Any, name: str = "theirs.json") -> Path:
    file = folder / name
    file.write_text(record if isinstance(record, str) else json.dumps(record))
    return file


def judged(results: Path) -> Judged:
    """Table 2 at tiny, from the committed records and what was imported into ``results``."""
    methods.load()
    if not (results / "records").exists():
        (results / "records").symlink_to(ROOT / "results" / "records")
    store = Store(results)
    planned = plan.make(Request("tiny", tables=("2",), cache=rendering.NOTHING), store)
    (shown,) = rendering.judged(planned, store, {})
    return shown


def test_an_external_row_is_shown_apart_and_counted_nowhere(tmp_path: Path, theirs: dict[str, Any]) -> None:
    plain = judged(tmp_path).result
    external.take_in(tmp_path, [("a.json", theirs)], "Uni X & Co_1")
    shown = judged(tmp_path)
    assert shown.result.census == plain.census
    assert shown.result.claims == plain.claims
    assert {key: row.cells for key, row in shown.result.rows.items()} == {
        key: row.cells for key, row in plain.rows.items()
    }
    (found,) = shown.result.external
    scores = theirs["scores"]["dolly"]["seeds"]["10"]["per_item"]
    assert found.cells["dolly"].mean == pytest.approx(sum(scores) / len(scores))
    assert (found.row.key, found.seeds, found.unlike) == ("same/kl", (7,), "")

    texts = {
        style: report.render_verdict(shown.result, shown.info, style, width=140) for style in report.FORMATS
    }
    mean = f"{found.cells['avg'].mean:.2f}"
    for style in ("terminal", "md", "tex"):
        assert "external: not measured here" in texts[style]
        assert mean in texts[style]
    assert "KL (external: Uni X & Co_1)" in texts["terminal"]
    structure(texts["tex"])
    rows_of(texts["tex"])
    lines = [line for line in csv.DictReader(io.StringIO(texts["csv"])) if line["kind"] == "external"]
    assert {line["column"] for line in lines} == {*shown.result.table.suites, "avg"}
    assert all(line["reason"] == "Uni X & Co_1" and not line["verdict"] for line in lines)
    (plain_data,) = json.loads(texts["json"])["external"]
    assert plain_data["source"] == "Uni X & Co_1"


def test_sources_settings_and_items_are_kept_apart(tmp_path: Path, theirs: dict[str, Any]) -> None:
    other_seed, longer, other_items = (copy.deepcopy(theirs) for _ in range(3))
    other_seed["spec"]["seed"] = 8
    longer["spec"]["training"]["epochs"] = 9
    longer["spec"]["versions"][0][1] = 77
    other_items["scores"]["dolly"]["items_sha256"] = "0" * 64
    other_items["spec"]["seed"] = 9
    given = [theirs, *map(signed, (other_seed, longer, other_items))]
    external.take_in(tmp_path, [(f"{n}.json", record) for n, record in enumerate(given)], "X")
    again = copy.deepcopy(theirs)
    again["provenance"] = {"commit": "other"}
    external.take_in(tmp_path, [("b.json", signed(again))], "Y")
    found = judged(tmp_path).result.external
    assert sorted((each.source, each.seeds) for each in found) == [
        *[("X", (7,)), ("X", (7, 8)), ("X", (9,)), ("Y", (7,))]
    ]
    (unlike,) = (each.unlike for each in found if "epochs" in each.unlike)
    assert unlike.startswith("training epochs 9 (here 6)")
    assert "77 (here 1)" in unlike


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set what lies at a dotted path."""
    *names, last = path.split(".")

    def set_it(record: dict[str, Any]) -> None:
        place: Any = record
        for name in names:
            place = place[int(name) if isinstance(place, list) else name]
        place[int(last) if isinstance(place, list) else last] = value

    return set_it


def run_of(record: dict[str, Any]) -> dict[str, Any]:
    run: dict[str, Any] = record["scores"]["dolly"]["seeds"]["10"]
    return run


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda r: run_of(r)["per_item"].append(3.0), "scores for"),
        (lambda r: run_of(r).update(per_item=[101.0] * 260, score=101.0), "between 0 and 100"),
        (lambda r: run_of(r).update(per_item=[-1.0] * 260, score=-1.0), "between 0 and 100"),
        (lambda r: run_of(r).update(score=99.0), "not the mean"),
        (lambda r: run_of(r).update(per_item=["x"] * 260), "no finite|not a finite"),
        (lambda r: run_of(r)["generations"].update(path="../../etc/passwd"), "no path inside"),
        (lambda r: run_of(r)["generations"].update(path="/etc/passwd"), "no path inside"),
        (lambda r: run_of(r)["generations"].update(path="a\\..\\b"), "no path inside"),
        (lambda r: r["scores"]["dolly"]["seeds"].update({"11": run_of(r)}), "decoding seeds"),
        (change("scores.dolly.metric", "accuracy"), "scored by rougeL"),
        (lambda r: r["scores"].update(nonsense=r["scores"]["dolly"]), "described with"),
        (lambda r: r["scores"].pop("dolly"), "described with"),
        (change("spec.scale", "huge"), "scale is one of"),
        (change("spec.scale", "../tiny"), "scale name"),
        (change("spec.method", "kl:b=1:a=1"), "canonical address"),
        (change("spec.method", "KL!"), "no record of this benchmark"),
        (change("spec.training", {"epochs": 1}), "no record of this benchmark"),
        (change("spec.extra", 1), "no record of this benchmark"),
        (change("spec.pair", "x\n" * 3), "nobody can read"),
        (change("spec.versions.0.0", "decoder\x1b[2J"), "nobody can read"),
        (change("spec.group", "poems"), "another type"),
        (change("spec.training.epochs", "6"), "another type"),
        (change("spec.training.lora", {"rank": 8, "alpha": 16, "dropout": "x"}), "another type"),
        (change("spec.seed", True), "another type"),
        (change("status", "failed"), "says why|nothing to show"),
        (change("schema", 99), "schema 99"),
        (change("cost.train_seconds", -1.0), "cost train_seconds"),
        (change("scores", []), "no record of this benchmark"),
        (lambda r: r.pop("models"), "lacks models"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, theirs: dict[str, Any], spoil: Callable[[dict[str, Any]], None], says: str
) -> None:
    spoil(theirs)
    with pytest.raises(StoreError, match=says):
        external.read(written(tmp_path, signed(theirs)))


def test_a_changed_file_and_no_json_are_refused(tmp_path: Path, theirs: dict[str, Any]) -> None:
    run_of(theirs)["score"] += 1e-4
    for text, says in (
        (json.dumps(theirs), "checksum differs"),
        ("[]", "no record"),
        ("nonsense", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"sha256": NaN}', "not plain JSON|checksum"),
    ):
        with pytest.raises(StoreError, match=says):
            external.read(written(tmp_path, text))
    with pytest.raises(StoreError, match="No such file"):
        external.read(tmp_path / "none.json")
    with pytest.raises(StoreError, match="is no file"):
        external.read(Path("/dev/zero"))


def test_a_wrong_cell_id_is_refused(tmp_path: Path, theirs: dict[str, Any]) -> None:
    theirs["cell"] = "0" * 16
    theirs["sha256"] = checksum(theirs)
    with pytest.raises(StoreError, match="not the hash of its description"):
        external.read(written(tmp_path, theirs))


def test_a_damaged_import_is_told(tmp_path: Path, theirs: dict[str, Any]) -> None:
    (path,) = external.take_in(tmp_path, [("a.json", theirs)], "X")
    whole = path.read_text()
    assert [source for source, _ in external.kept(tmp_path, "tiny")] == ["X"]
    for old, new, says in (
        ('"status": "done"', '"status": "failed"', "checksum differs"),
        ('"source": "X"', '"source": "Y"', "name it was imported by"),
        ('"source": "X"', '"source": "=1+1"', "begins with a letter"),
        ('"source"', '"whose"', "not as it was imported"),
    ):
        path.write_text(whole.replace(old, new))
        with pytest.raises(StoreError, match=says):
            list(external.kept(tmp_path, "tiny"))


def test_a_second_word_on_a_cell_is_refused(tmp_path: Path, theirs: dict[str, Any]) -> None:
    """One source has one record of a cell; the same record has one source. Two sources may differ."""
    other, rerun = copy.deepcopy(theirs), copy.deepcopy(theirs)
    run = run_of(other)
    run["per_item"] = [value / 2 for value in run["per_item"]]
    run["score"] /= 2
    rerun["cost"]["train_seconds"] += 1
    with pytest.raises(StoreError, match="b is of the same cell as a"):
        external.take_in(tmp_path, [("a", theirs), ("b", signed(other))], "X")
    assert not (tmp_path / "external").exists()
    external.take_in(tmp_path, [("a", theirs)], "X")
    for record, source, says in (
        (theirs, "X", "imported before, from X"),
        (theirs, "Y", "imported before, from X"),
        (signed(other), "X", "other results of X"),
        (signed(rerun), "X", "the same results of X"),
    ):
        with pytest.raises(StoreError, match=says):
            external.take_in(tmp_path, [("c", record)], source)
    external.take_in(tmp_path, [("c", signed(other))], "Y")
    assert [source for source, _ in external.kept(tmp_path, "tiny")] in (["X", "Y"], ["Y", "X"])


def test_a_damaged_import_is_told_before_anything_runs(
    tmp_path: Path,
    theirs: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (path,) = external.take_in(tmp_path, [("a.json", theirs)], "X")
    path.write_text("{}")
    monkeypatch.setattr("harness.commands.execute", lambda *_: pytest.fail("started"))
    where = ("--results", str(tmp_path), "--cache", str(tmp_path / "cache"))
    code, out, err = reproduce(capsys, "--table", "2", "--methods", "kl", *where)
    assert (code, out) == (2, "")
    assert "not as it was imported" in err.splitlines()[-1]


def test_the_command_takes_all_or_none(
    tmp_path: Path, own: dict[str, Any], theirs: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    good, results = written(tmp_path, theirs), tmp_path / "results"
    bad = written(tmp_path, "{}", "bad.json")
    code, out, err = reproduce(
        capsys, "--import", str(good), str(bad), "--source", "X", "--results", str(results)
    )
    assert (code, out) == (2, "")
    assert "bad.json" in err
    assert not results.exists()
    code, out, _ = reproduce(capsys, "--import", str(good), "--source", "X", "--results", str(results))
    assert code == 0
    assert "tiny/sp-same kl seed 7, external, from X" in out
    assert "shown in tables 2, on-policy and in the leaderboard" in out
    (file,) = (results / "external" / "tiny").iterdir()
    assert json.loads(file.read_text())["record"] == theirs
    for arguments, says in (
        ((str(good), "--source", "X"), "imported before"),
        ((str(good),), "--source"),
        ((str(good), "--source", "a\nb"), "--source"),
        ((str(good), "--source", "=HYPERLINK(1)"), "--source"),
    ):
        code, _, err = reproduce(capsys, "--import", *arguments, "--results", str(results))
        assert code == 2
        assert says in err
    ours = written(tmp_path, own, "own.json")
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "records").symlink_to(ROOT / "results" / "records")
    code, _, err = reproduce(
        capsys, "--import", str(ours), "--source", "X", "--results", str(tmp_path / "both")
    )
    assert code == 2
    assert "own record" in err
    assert reproduce(capsys, "--source", "X", "--list")[0] == 2


def test_a_merge_brings_what_was_imported_elsewhere(
    theirs: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there, other = (tmp_path / name for name in ("here", "there", "other"))
    (path,) = external.take_in(there, [("a.json", theirs)], "Uni X")
    merge = ["--merge", str(there), "--results", str(here)]
    code, out, _ = reproduce(capsys, *merge)
    assert code == 0
    assert "1 imported record new" in out
    kept = here / path.relative_to(there)
    assert kept.read_bytes() == path.read_bytes()
    assert "imported" not in reproduce(capsys, *merge)[1]  # the same again adds nothing
    assert [source for source, _ in external.kept(here)] == ["Uni X"]

    changed = copy.deepcopy(theirs)
    changed["scores"] = {**changed["scores"], "dolly": zeroed(changed["scores"]["dolly"])}
    external.take_in(other, [("b.json", signed(changed))], "Uni X")
    code, _, err = reproduce(capsys, "--merge", str(other), "--results", str(here))
    assert code == 2
    assert "one source's records of one cell" in err
    assert kept.read_bytes() == path.read_bytes()

    again = tmp_path / "again"
    external.take_in(again, [("c.json", theirs)], "Uni Z")
    code, _, err = reproduce(capsys, "--merge", str(again), "--results", str(here))
    assert code == 2
    assert "has come from another source before" in err

    ours = Store(tmp_path / "ours")
    ours.put({key: value for key, value in theirs.items() if key != "sha256"})
    assert reproduce(capsys, "--merge", str(there), "--results", str(ours.root))[0] == 0
    assert not (ours.root / "external").exists()  # our own record is not shown as somebody's

    path.write_bytes(path.read_bytes().replace(b"Uni X", b"Uni Y"))
    code, _, err = reproduce(capsys, "--merge", str(other), "--results", str(there))
    assert code == 2  # what is damaged here is said, in a line
    assert "does not have the name it was imported by" in err
    assert reproduce(capsys, "--merge", str(there), "--results", str(tmp_path / "new"))[0] == 2
    assert not (tmp_path / "new" / "external").exists()


def test_an_older_suites_record_is_shown_with_its_version(theirs: dict[str, Any], tmp_path: Path) -> None:
    for suite in theirs["spec"]["suites"]:
        suite["version"] = 0
    for scores in theirs["scores"].values():
        scores["metric"] = "rouge2"
    external.take_in(tmp_path, [("a.json", signed(theirs))], "Uni X")
    (shown,) = judged(tmp_path).result.external
    assert "version of suite dolly 0 (here 1)" in shown.unlike

    theirs["spec"]["suites"][0]["version"] = 1
    with pytest.raises(StoreError, match="scored by rougeL"):
        external.check(signed(theirs), "a.json")


def zeroed(scores: dict[str, Any]) -> dict[str, Any]:
    """A suite's scores with nothing right."""
    seeds = {
        seed: {**run, "score": 0.0, "per_item": [0.0] * len(run["per_item"])}
        for seed, run in scores["seeds"].items()
    }
    return {**scores, "seeds": seeds}
