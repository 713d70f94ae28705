from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dskd.method import Spec
from harness import tables
from harness.tables import TableError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "published"


def edited(tmp_path: Path, source: Path, change: Any) -> Path:
    """A copy of a YAML file, changed."""
    data = yaml.safe_load(source.read_text(encoding="utf-8"))
    change(data)
    path = tmp_path / source.name
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return path


def test_the_tables_are_these() -> None:
    assert tables.ids() == (
        *("1", "2", "3", "check", "code", "field", "kq", "math", "on-policy", "retention"),
    )


@pytest.mark.parametrize("name", tables.ids())
def test_a_table_holds_together(name: str) -> None:
    table = tables.load(name)
    assert table.id == name
    assert {scale: set(table.pairs[scale]) | set(table.absent[scale]) for scale in tables.SCALES} == {
        scale: set(table.sides) for scale in tables.SCALES
    }
    for scale in tables.SCALES:
        for pair in table.pairs[scale].values():
            assert pair.startswith(f"{scale}/")
    for row in table.rows:
        assert str(Spec.parse(row.method)) == row.method
        assert table.row(row.key) is row
    for side in table.sides:  # the gap needs both
        assert {f"{side}/teacher", f"{side}/student"} <= {row.key for row in table.rows}
    for claim in table.claims:
        assert all(table.row(a).trained for a, _ in claim.pairs)
        assert all(table.row(b).trained != (claim.kind == "share") for _, b in claim.pairs)


def test_columns_are_means_over_named_suites() -> None:
    table = tables.load("kq")
    assert table.columns == (*table.suites, "id", "ood", "avg")
    assert table.part("ood") == ("self-inst", "vicuna", "s-ni", "unni")
    assert table.part("avg") == table.suites
    assert table.part("vicuna") == ("vicuna",)
    with pytest.raises(KeyError):
        table.part("gsm8k")
    fewer = tables.only(table, ["vicuna", "unni"])
    assert fewer.columns == ("vicuna", "unni", "ood", "avg")  # no suite of "id" is left
    assert fewer.part("ood") == ("vicuna", "unni")
    assert [claim.id for claim in tables.only(table, ["dolly"]).claims] == ["ga-beats-cma", "ga-beats-ct"]


def test_by_paper_and_number() -> None:
    assert tables.load("dskd-v1:2") is tables.load("2")
    with pytest.raises(TableError, match="did you mean dskd-v1:2"):
        tables.load("dskd-v1:22")
    with pytest.raises(TableError, match="no row 'same/kll'; did you mean same/kl"):
        tables.load("1").row("same/kll")


def test_claims_follow_from_the_published_figures() -> None:
    """Published averages of one protocol have the sign and size that the claim gives them."""
    judged = 0
    for name in ("1", "2"):
        table = tables.load(name)
        for claim in table.claims:
            gains = []
            for pair in claim.pairs:
                rows = [tables.published(key) for k in pair for key in table.row(k).published[:1]]
                figures = [row.figures["avg"].value for row in rows if row is not None]
                if len(figures) == 2:
                    gains.append(figures[0] - figures[1])
            assert all(gain > 0 for gain in gains)
            judged += len(gains)
            if claim.size and gains:
                assert claim.size[0] - 0.011 <= min(gains)
                assert max(gains) <= claim.size[1] + 0.011
    assert judged >= 17


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("title"), "title: missing"),
        (lambda d: d.update(titel="x"), "titel: unknown key; did you mean title"),
        (lambda d: d.update(group="sport"), "group: one of"),
        (lambda d: d.update(columns=["dolly", "dolly"]), "columns: dolly occurs twice"),
        (lambda d: d.update(columns=["avg"]), "columns: name the suites"),
        (lambda d: d["margin"].update(points=0), "margin.points: a margin is above 0"),
        (lambda d: d["margin"].update(points="half"), "margin.points: should be a number, is 'half'"),
        (lambda d: d["pairs"].pop("small"), "pairs.small: missing"),
        (lambda d: d["pairs"].update(huge={}), "pairs.huge: unknown key"),
        (lambda d: d["pairs"]["tiny"].pop("same"), "pairs.tiny: no same pair"),
        (lambda d: d["pairs"]["tiny"].update(both="x"), "pairs.tiny.both: a side is"),
        (lambda d: d["rows"].append(d["rows"][0]), "rows: same/teacher occurs twice"),
        (lambda d: d["rows"][2].update(pair="none"), r"rows\[3\].pair: one of same, cross, not 'none'"),
        (lambda d: d["rows"][2].update(method="KL!"), r"rows\[3\].method: 'KL!' is no method address"),
        (
            lambda d: d["rows"][2].update(method="kl:b=1:a=1"),
            r"rows\[3\].method: the canonical address is kl:a=1:b=1",
        ),
        (lambda d: d["rows"][2].pop("published"), r"rows\[3\].published: should be a list"),
        (
            lambda d: d["rows"][2].update(published="dskd-v9:1/same/kl"),
            r"rows\[3\].published: no published file",
        ),
        (
            lambda d: d["rows"][2].update(published="dskd-v1:7/same/kl"),
            r"rows\[3\].published: dskd-v1 has no table",
        ),
        (
            lambda d: d["rows"][2].update(published="dskd-v1:1/same/k"),
            r"rows\[3\].published: dskd-v1:1 has no row",
        ),
        (lambda d: d["claims"][0]["pairs"][0].append("x"), r"claims\[1\].pairs: a list of"),
        (
            lambda d: d["claims"][0].update(pairs=[["same/kl", "same/lk"]]),
            "claims.dskd-beats-vanilla.pairs: .*no row",
        ),
        (lambda d: d["claims"][0].update(size=[2, 1]), r"claims\[1\].size: two numbers, the lower first"),
        (lambda d: d["claims"][0].update(kind="less"), r"claims\[1\].kind: one of greater"),
        (lambda d: d["claims"][1].update(kind="share"), r"claims\[2\].size: a share is said to lie"),
        (lambda d: d["claims"][0].update(kind="share"), r"claims.dskd-beats-vanilla.pairs: a share is of"),
        (lambda d: d["claims"][0].update(column="ood"), r"claims.dskd-beats-vanilla.column: one of dolly"),
        (lambda d: d.update(value="speed"), "value: one of score, retention"),
        (
            lambda d: d.update(value="retention", rows=[r for r in d["rows"] if r["label"] != "Teacher"]),
            "rows: retention is told in percent of cross/teacher, same/teacher, which is missing",
        ),
        (lambda d: d.update(averages={"ood": []}), "averages.ood: some of dolly"),
        (lambda d: d.update(averages={"ood": ["vicuna", "vicuna"]}), "averages.ood: some of dolly.*once"),
        (lambda d: d.update(averages={"ood": ["gsm8k"]}), "averages.ood: some of dolly"),
        (lambda d: d.update(averages={"avg": ["vicuna"]}), "averages.avg: a column of that name"),
        (lambda d: d.update(averages={"ood": "vicuna"}), "averages: should map names to list"),
        (lambda d: d["claims"][0].update(status="sure"), r"claims\[1\].status: one of"),
        (lambda d: d.update(budget={"tiny": "epoch=1"}), "budget.tiny: .*did you mean epochs"),
        (lambda d: d.update(budget={"huge": "epochs=1"}), "budget.huge: one of"),
        (lambda d: d.update(seeds={"tiny": 0}), "seeds: numbers of seeds"),
    ],
)
def test_an_error_names_file_and_key(tmp_path: Path, change: Any, message: str) -> None:
    path = edited(tmp_path, tables.TABLES / "1.yaml", change)
    with pytest.raises(TableError, match=re.escape(str(path)) + ": " + message):
        tables.read(path)


def test_no_yaml_and_double_keys_are_refused(tmp_path: Path) -> None:
    for text, message in (
        ("a: [", "while parsing"),
        ("a: 1\na: 2\n", "'a' occurs twice"),
        ("- 1", "not a mapping"),
    ):
        path = tmp_path / f"{len(text)}.yaml"
        path.write_text(text)
        with pytest.raises(TableError, match=message):
            tables.read(path)
    with pytest.raises(TableError, match="No such file"):
        tables.read(tmp_path / "none.yaml")


# published figures


@pytest.mark.parametrize("name", tables.papers())
def test_a_paper_holds_together(name: str) -> None:
    paper = tables.paper(name)
    assert paper.citation
    assert paper.tables or paper.unread
    for rows in paper.tables.values():
        for row in rows.values():
            suites = [figure.value for column, figure in row.figures.items() if column in row.items]
            if row.items and len(suites) == len(row.items):  # the mean check that was made on transcription
                assert row.figures["avg"].value == pytest.approx(sum(suites) / len(suites), abs=0.02)


def test_unknown_is_not_zero_and_has_a_reason() -> None:
    assert tables.published("dskd-v2:gpt2-120m/same/dskd-v2/kl") is None
    assert "could not be read" in tables.why_unknown("dskd-v2:gpt2-120m/same/dskd-v2/kl")
    assert tables.published("dskd-v1:2/same/dskd-v1/akl") is None
    assert "mean check" in tables.why_unknown("dskd-v1:2/same/dskd-v1/akl")
    row = tables.published("dskd-v1:1/same/kl")
    assert row is not None
    assert (row.figures["dolly"].value, row.figures["dolly"].status) == (24.54, "unverified")
    assert not row.figures["dolly"].verified


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(paper="other"), "paper: the file is named dskd-v1"),
        (
            lambda d: d["tables"][0]["rows"][0].update(dolly=27.19),
            r"tables\[1\].rows\[1\].dolly: should be a list",
        ),
        (
            lambda d: d["tables"][0]["rows"][0].update(dolly=[27.19, "sure"]),
            r"rows\[1\].dolly: status is one of",
        ),
        (lambda d: d["tables"][0]["rows"][0].update(dolly=["x", "primary"]), r"rows\[1\].dolly: a figure is"),
        (lambda d: d["tables"][0]["rows"][0].update(dolly=[1.0, "secondary"]), r"rows\[1\].dolly: .*via"),
        (
            lambda d: d["tables"][0]["rows"][0].update(doly=[1.0, "primary"]),
            r"doly: unknown key; did you mean dolly",
        ),
        (lambda d: d["tables"][0]["rows"].append(d["tables"][0]["rows"][0]), "same/teacher occurs twice"),
        (lambda d: d["tables"].append(d["tables"][0]), r"tables\[3\].table: 1 occurs twice"),
    ],
)
def test_wrong_figures_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = edited(tmp_path, tables.PUBLISHED / "dskd-v1.yaml", change)
    with pytest.raises(TableError, match=message):
        tables.read_paper(path)


def gathered() -> list[dict[str, Any]]:
    if not SHARED.is_dir():
        pytest.skip("the gathered figures are not beside this checkout")
    return [
        block
        for file in ("dskd_v1", "followers")
        for block in yaml.safe_load((SHARED / f"{file}.yaml").read_text())
    ]


def test_every_gathered_figure_is_here_with_its_status() -> None:
    columns = (
        "dolly",
        "self-inst",
        "vicuna",
        "s-ni",
        "unni",
        "avg",
        "math_avg",
        "code_avg",
        "ood_gain_over_cma",
    )
    compared = 0
    for block in gathered():
        for row in block["rows"]:
            if "table" in block:
                side = "cross" if row["teacher"] in ("qwen1.5-1.8b", "mistral-7b") else "same"
                key = f"{block['paper']}:{block['table']}/{side}/{row['method']}"
            elif block["paper"] == "dskd-cma-ga":
                key = f"dskd-cma-ga:log/cross/{row['method']}"
            else:
                kind = "-maths" if "math_avg" in row else "-code" if "code_avg" in row else ""
                key = f"{block['paper']}:{row['student']}{kind}/{row['teacher']}/{row['method']}"
            found = tables.published(key)
            assert found is not None, key
            for column in columns:
                if column not in row:
                    continue
                figure = found.figures["avg" if column in ("math_avg", "code_avg") else column]
                status = block.get("status") or row["avg_status" if column == "avg" else "cells_status"]
                assert (figure.value, figure.status) == (row[column], status), (key, column)
                compared += 1
    assert compared > 300


def test_only_at_paper_does_a_heading_claim_the_published_models() -> None:
    table = tables.load("1")
    assert table.heading("paper") == "Instruction following (GPT2-120M as student)"
    assert table.heading("small") == "Instruction following (published with GPT2-120M as student)"
    own = tables.load("check")
    assert own.heading("small") == own.title
