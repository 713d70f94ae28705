"""Two results folders, or two commits, side by side."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_verdict import make

from harness import cli, comparing, rendering, tables
from harness.page import CLAIM_WORDS
from harness.store import Store, StoreError

ROOT = Path(__file__).resolve().parents[1]
TABLE = tables.load("1")
ITEMS = dict.fromkeys(TABLE.suites, 40)


def records(
    method: str, mean: float, seeds: tuple[int, ...] = (1, 2, 3), **more: Any
) -> list[dict[str, Any]]:
    row = TABLE.row(f"same/{method}")
    found = [make(TABLE, row, seed, mean, items=ITEMS, scale="tiny", noise=0.1, **more) for seed in seeds]
    return [copy.deepcopy(record) for record in found]


def shifted(record: dict[str, Any], points: float) -> dict[str, Any]:
    """The record with every item's score moved."""
    moved = copy.deepcopy(record)
    for scores in moved["scores"].values():
        for run in scores["seeds"].values():
            run["per_item"] = [value + points for value in run["per_item"]]
            run["score"] = float(np.mean(run["per_item"]))
    return moved


def test_a_gain_has_its_paired_interval() -> None:
    """Every item gains two points: the interval has no width, whatever items and seeds vary."""
    first = records("kl", 20)
    second = copy.deepcopy(first)
    second = [shifted(record, 2) for record in second]
    result = comparing.of_records(first, second)
    assert {each.column for each in result.differences} == {*TABLE.suites, "avg"}
    for each in result.differences:
        assert each.gap is not None
        assert (each.gap.low, each.gap.mean, each.gap.high) == pytest.approx((2, 2, 2), abs=1e-4)
        assert each.a is not None and each.b is not None
        assert each.b - each.a == pytest.approx(2)
        assert each.moved
    back = comparing.of_records(second, first)
    assert all(each.gap and each.gap.mean == pytest.approx(-2) for each in back.differences)


def test_equal_records_are_identical_and_the_rest_is_listed() -> None:
    first = [*records("kl", 20), *records("rkl", 21), *records("js", 22, (1, 2))]
    second = [*records("kl", 20), *records("sft", 21), *records("js", 22, (2, 3))]
    second[0]["provenance"] = {"commit": "another"}
    result = comparing.of_records(first, second)
    assert [row.split()[1] for row in result.identical] == ["js", "kl"]
    assert [row.split()[1] for row in result.only_a] == ["rkl", "js"]
    assert result.only_a[1].endswith(" seed 1")
    assert result.only_b[1].endswith(" seed 3")
    assert not result.differences


def test_one_seed_and_other_items_can_tell_nothing() -> None:
    one = comparing.of_records(records("kl", 20, (1,)), records("kl", 40, (1,)))
    assert {each.note for each in one.differences} == {"one training seed"}
    assert not any(each.moved for each in one.differences)
    other = records("kl", 20)
    for record in other:
        record["scores"]["dolly"]["items_sha256"] = "1"
    result = comparing.of_records(records("kl", 20), other)
    (dolly,) = (each for each in result.differences if each.column == "dolly")
    assert dolly.gap is None
    assert "same items" in dolly.note


def test_other_settings_are_other_rows_and_versions_are_not() -> None:
    longer, newer = records("kl", 20), records("kl", 20)
    for record in longer:
        record["spec"]["decoding"]["max_new_tokens"] = 7
    for record in newer:
        record["spec"]["versions"] = [["method", 2]]
    assert len(comparing.of_records(records("kl", 20), longer).only_a) == 1
    assert len(comparing.of_records(records("kl", 20), newer).identical) == 1


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with two commits of records, and one without."""
    root = tmp_path / "repository"
    root.mkdir()

    def git(*arguments: str) -> None:
        named = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(root), *named, *arguments], check=True, capture_output=True)

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "empty")
    git("tag", "empty")
    for tag, mean in (("old", 20), ("new", 23)):
        shutil.rmtree(root / "results", ignore_errors=True)
        for record in records("kl", mean):
            Store(root / "results").put(record)
        git("add", "-A")
        git("commit", "-q", "-m", tag)
        git("tag", tag)
    return root


def test_commits_and_folders_are_read_alike(repository: Path) -> None:
    old, new = comparing.load("old", repository), comparing.load("new", repository)
    assert new == comparing.load(str(repository / "results"))
    result = comparing.of_records(old, new)
    (average,) = (each for each in result.differences if each.column == "avg")
    assert average.gap is not None
    assert average.gap.mean == pytest.approx(3)
    for name, says in (
        ("nowhere", "neither a folder"),
        ("empty", "holds no records"),
        ("--help", "neither a folder"),
        (str(repository), "holds no records"),
    ):
        with pytest.raises(StoreError, match=says):
            comparing.load(name, repository)


def test_a_damaged_record_in_a_commit_is_told(repository: Path) -> None:
    file = next((repository / "results" / "records" / "tiny").iterdir())
    data = json.loads(file.read_text())
    data["status"] = "failed"
    file.write_text(json.dumps(data))
    named = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(repository), *named, "commit", "-qam", "bad"], check=True)
    with pytest.raises(StoreError, match="checksum differs"):
        comparing.load("HEAD", repository)


def test_the_command_prints_rows_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, mean in (("a", 20), ("b", 24)):
        for record in [*records("kl", mean), *records("sft", 20)]:
            Store(tmp_path / name).put(record)
    Store(tmp_path / "a").put(records("rkl", 3, (1,))[0])
    assert cli.main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    assert "| +4.00 | [+4.00, +4.00] |    * |" in out
    assert "## Only in A\n\n- `tiny/bpe-same rkl`\n" in out
    assert "2 rows in both: 1 identical, 1 not (6 of 6 differences have an interval without 0, *)" in out
    both = ("--compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert cli.main([*both, "--export", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["differences"]) == 6
    assert cli.main([*both, "--export", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["kind"] for line in lines] == ["score"] * 6 + ["only a"]
    assert [float(line["difference"]) for line in lines[:6]] == pytest.approx([4] * 6, abs=1e-3)
    for wrong, says in (((*both, "--export", "tex"), "md, csv or json"), ((*both[:2], "nowhere"), "neither")):
        assert cli.main(wrong) == 2
        said = capsys.readouterr()
        assert says in said.err
        assert (said.out, said.err.count("\n")) == ("", 1)


def test_claims_are_judged_as_the_tables_judge_them_and_a_planted_fall_is_told() -> None:
    """The committed records at tiny, and the same with 20 points off every score of table 2's DSKDv2 rows."""
    now = [record for record in comparing.load(str(ROOT / "results")) if record["spec"]["scale"] == "tiny"]
    fallen = [shifted(r, -20) if r["spec"]["method"].startswith("dskd-v2/") else r for r in now]
    result = comparing.of_records(now, fallen)
    moved = {each.row for each in result.differences if each.moved}
    assert moved
    assert all(row.split()[1].startswith("dskd-v2/") for row in moved)
    found = [claim for claim in comparing.claims(now, fallen) if claim.table == "2"]
    judged = (each.result for each in rendering.from_records(ROOT / "results"))
    (table,) = (each for each in judged if (each.scale, each.table.id) == ("tiny", "2"))
    verdicts = {claim.claim.text: CLAIM_WORDS.get(claim.verdict, claim.verdict) for claim in table.claims}
    assert found
    for claim in found:
        assert claim.a == verdicts[claim.text]
        assert claim.b != claim.a
    assert "differs: does not hold" in {claim.b for claim in found}
    compared = dataclasses.replace(result, claims=found)
    assert "| tiny  | 2     |" in comparing.render(compared, "md")
    assert not comparing.claims(now, copy.deepcopy(now))


def test_names_from_records_cannot_leave_their_place() -> None:
    compared = comparing.Compared("a`b", "c", only_a=["x` <img src=x>\x1b[2J\n# y | z"])
    text = comparing.render(compared, "md")
    assert "- `x? <img src=x>?[2J?# y ? z`\n" in text
    assert "\x1b" not in text
