"""The check notices what moved, what is missing and what was edited; references change for a reason alone."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import reproduce
from test_verdict import fill

from harness import goldens, methods, provenance, references, regression, tables
from harness.references import ReferencesError
from harness.store import Store

ROOT = Path(__file__).resolve().parents[1]

WRONG_DIRECTION = """
from dskd.divergences import ForwardKL, ReverseKL
ForwardKL._value, ForwardKL._value_and_grad = ReverseKL._value, ReverseKL._value_and_grad
"""
WRONG_NORMALISER = """
from dataclasses import replace
import baselines.logit as logit
plain = logit.logit_terms
def by_own_tokens(out, batch, *rest):
    plain(out, replace(batch, normaliser=float(len(batch.student.labels))), *rest)
logit.logit_terms = by_own_tokens
"""
BY_EXAMPLES = WRONG_NORMALISER.replace("len(batch.student.labels)", "len(batch.student.offsets) - 1")


def call(*arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "reproduce.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd=ROOT)


def planted(tmp_path: Path, fault: str) -> str:
    """A file that plants a fault in whatever process loads it."""
    file = tmp_path / "fault.py"
    file.write_text(fault)
    return str(file)


def test_this_checkout_is_what_the_references_say() -> None:
    done = call("--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MOVED" not in done.stdout


@pytest.mark.parametrize(
    ("fault", "moved", "kept"),
    [
        (WRONG_DIRECTION, {"kl", "dskd-v1", "dskd-v2", "dskd-eta"}, {"rkl", "sft", "uld", "js"}),
        (WRONG_NORMALISER, {"kl", "rkl", "js", "akl"}, {"sft", "uld", "dskd-v1", "dskd-v2"}),
    ],
    ids=["direction", "normaliser"],
)
def test_a_planted_fault_turns_the_check_red(
    tmp_path: Path, fault: str, moved: set[str], kept: set[str]
) -> None:
    done = call("--check", "--plugin", planted(tmp_path, fault))
    assert done.returncode == 1, done.stdout + done.stderr
    named = {line.split(":")[0].strip() for line in done.stdout.splitlines() if line.startswith("  ")}
    assert moved <= named
    assert not kept & named
    assert "tolerance" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", [WRONG_DIRECTION, BY_EXAMPLES], ids=["direction", "normaliser"])
def test_a_planted_fault_shows_in_cells_trained_anew(tmp_path: Path, copied: Path, fault: str) -> None:
    plant = ("--plugin", planted(tmp_path, fault), "--results", str(copied))
    done = call("--check", "1", *plant, timeout=1000)
    assert done.returncode == 1, done.stdout + done.stderr
    (summary,) = (line for line in done.stdout.splitlines() if "trained tiny" in line)
    assert "MOVED" in summary
    assert "tiny/check-same kl: first step's kd" in done.stdout
    assert "tiny/check-same sft" not in done.stdout


# golden losses


@pytest.fixture(scope="module")
def losses() -> dict[str, dict[str, float]]:
    methods.load()
    return goldens.all_values(["kl", "sft", "dskd-v2"])


def test_every_method_has_golden_losses() -> None:
    methods.load()
    known = set(references.read(ROOT / "results", "losses").section("losses"))
    own = {address for address in goldens.addresses() if "jeffreys" not in address}
    assert own <= known, "python reproduce.py --accept --reason 'new method ...' adds them"


def test_golden_losses_are_held_in_both_precisions(losses: dict[str, dict[str, float]]) -> None:
    for dtype in goldens.DTYPES:
        again = goldens.all_values(losses, dtype)
        assert regression.compare_losses(losses, again, dtype, goldens.tolerance(dtype)) == []
    assert goldens.all_values(["kl"], "float32")["kl"] != losses["kl"]  # it is another precision


@pytest.mark.parametrize("share", [1e-3, -1e-3])
def test_a_loss_that_moves_a_little_is_told(losses: dict[str, dict[str, float]], share: float) -> None:
    for name in losses["kl"]:
        moved = copy.deepcopy(losses)
        moved["kl"][name] += share * max(abs(value) for value in losses["kl"].values())
        (found,) = regression.compare_losses(losses, moved, "float32", goldens.tolerance("float32"))
        assert (found.where, found.what) == ("kl", f"{name} (float32)")


def test_lost_and_new_losses_are_told(losses: dict[str, dict[str, float]]) -> None:
    fewer = {address: values for address, values in losses.items() if address != "sft"}
    (gone,) = regression.compare_losses(losses, fewer, "float64", 1e-9)
    (new,) = regression.compare_losses(fewer, losses, "float64", 1e-9)
    assert str(gone) == "sft: the method is gone"
    assert str(new).startswith("sft: has no reference; --accept")
    renamed = {**losses, "kl": {**losses["kl"], "kd": float("nan")}}
    assert regression.compare_losses(losses, renamed, "float64", 1e-9)


# records


@pytest.fixture
def records() -> list[dict[str, Any]]:
    """Records of a table, with a curve each."""
    cells = fill(tables.load("2"), {"*": 20.0}, noise=0.2, scale="tiny", seeds=4)
    found = [copy.deepcopy(record) for entries in cells.values() for record in entries]
    for record in found:
        seed = record["spec"]["seed"]
        record["models"] = {"student": {"sha256": "s"}, "teacher": {"sha256": "t"}}
        if seed:
            record["spec"]["training"] = {"precision": "fp32"}
            terms = {"ce": 1.0 + 0.002 * seed, "kd": 0.5 + 0.002 * seed}
            record["training"] = {"curve": [[1, terms], [2, {k: v / 2 for k, v in terms.items()}]]}
    return found


def compared(
    records: list[dict[str, Any]], change: Callable[[dict[str, Any]], None], only: str = "kl"
) -> regression.Comparison:
    """Records against themselves, those of one method changed."""
    changed = copy.deepcopy(records)
    for record in changed:
        if record["spec"]["method"] == only:
            change(record)
    return regression.compare(regression.rows(records), regression.rows(changed))


def shift(points: float) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        for scores in record["scores"].values():
            for run in scores["seeds"].values():
                run["score"] += points

    return change


def multiply(term: str, by: float, *, first: bool = False) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        curve = record["training"]["curve"]
        for _, terms in curve[:1] if first else curve[1:]:
            terms[term] *= by

    return change


def test_the_same_records_have_not_moved(records: list[dict[str, Any]]) -> None:
    result = compared(records, lambda record: None)
    assert not result.findings
    assert result.identical == result.rows == len(tables.load("2").rows)
    assert result.numbers > 300


def test_a_version_and_a_seed_are_not_part_of_a_row(records: list[dict[str, Any]]) -> None:
    def renew(record: dict[str, Any]) -> None:
        record["spec"]["versions"] = [["method", 9]]
        for suite in record["spec"]["suites"]:
            suite["version"] = 9

    assert not compared(records, renew).findings

    def resize(record: dict[str, Any]) -> None:
        record["spec"]["training"] = {"precision": "fp32", "epochs": 1}

    assert {finding.kind for finding in compared(records, resize).findings} == {"missing"}


def test_scores_move_beyond_their_spread_only(records: list[dict[str, Any]]) -> None:
    assert not compared(records, shift(0.2)).findings
    result = compared(records, shift(5.0))
    assert {finding.where for finding in result.findings} == {"tiny/sp-same kl"}
    assert {finding.what for finding in result.findings} == {*tables.load("2").suites, "avg"}
    assert all("off by +5, tolerance" in finding.said for finding in result.findings)
    assert "seed sd" in str(result.findings[0])


def test_an_untrained_row_is_held_by_the_spread_of_its_pair(records: list[dict[str, Any]]) -> None:
    assert not compared(records, shift(0.2), only="teacher").findings
    assert {f.where for f in compared(records, shift(9.0), only="teacher").findings} == {
        "tiny/sp-same teacher",
        "tiny/sp-cross teacher",
    }


def test_loss_terms_are_compared_by_ratio(records: list[dict[str, Any]]) -> None:
    assert not compared(records, multiply("kd", 1.01)).findings
    (found,) = compared(records, multiply("kd", 1.8)).findings
    assert (found.where, found.what) == ("tiny/sp-same kl", "mean kd in training")
    assert " %" in found.said


def test_the_first_step_is_held_to_rounding_where_the_models_are_the_same(
    records: list[dict[str, Any]],
) -> None:
    assert not compared(records, multiply("kd", 1.0001, first=True)).findings
    found = compared(records, multiply("kd", 1.002, first=True)).findings
    assert len(found) == 4  # seeds
    assert all(finding.what.startswith("first step's kd (seed") for finding in found)

    def other_weights(record: dict[str, Any]) -> None:
        multiply("kd", 1.002, first=True)(record)
        record["models"]["teacher"]["sha256"] = "other"

    assert not compared(records, other_weights).findings


def test_missing_new_and_incomparable_rows_are_told(records: list[dict[str, Any]]) -> None:
    rows = regression.rows(records)
    fewer = {name: row for name, row in rows.items() if row["method"] != "kl"}
    result = regression.compare(rows, fewer)
    assert [str(finding) for finding in result.findings] == ["tiny/sp-same kl: no record"]
    assert len(regression.compare(fewer, rows).new) == 1
    assert not regression.compare(fewer, rows).findings

    def other_items(record: dict[str, Any]) -> None:
        record["scores"]["dolly"]["items_sha256"] = "1"

    (found,) = [f for f in compared(records, other_items).findings if f.what == "dolly"]
    assert found.said == "is scored on other items"


def test_one_seed_cannot_be_judged(records: list[dict[str, Any]]) -> None:
    single = [record for record in records if record["spec"]["seed"] in (0, 1)]
    assert not compared(single, lambda record: None).findings
    found = compared(single, shift(0.01)).findings
    assert found
    assert {finding.kind for finding in found} == {"unjudged"}
    assert "one training seed" in found[0].said


def test_terms_that_are_not_positive_have_their_own_spread(records: list[dict[str, Any]]) -> None:
    for record in records:
        if record["spec"]["method"] == "kl":
            for _, terms in record["training"]["curve"]:
                terms["kd"] -= 0.504  # of either sign
    assert not compared(records, lambda record: None).findings
    assert not compared(records, multiply("kd", 1.01)).findings

    def far(record: dict[str, Any]) -> None:
        record["training"]["curve"][1][1]["kd"] += 30

    assert [finding.what for finding in compared(records, far).findings] == ["mean kd in training"]


def test_a_claim_whose_verdict_changed_is_told() -> None:
    found = regression.compare_claims(
        {"1/a": "agrees", "1/b": "differs"}, {"1/a": "inconclusive", "1/c": "agrees"}
    )
    assert [str(finding) for finding in found] == [
        "claim 1/a: agrees -> inconclusive",
        "claim 1/b: differs -> not judged",
    ]


# reference files


def test_references_change_with_a_reason_that_is_kept(tmp_path: Path) -> None:
    assert references.read(tmp_path, "tiny").entries == {}
    for reason in ("", "  \n"):
        with pytest.raises(ReferencesError, match="--reason"):
            references.accept(tmp_path, "tiny", {"rows": {"a": 1}}, reason)
    assert references.accept(tmp_path, "tiny", {"rows": {"a": 1, "b": 2}}, "first") == [
        "new rows a",
        "new rows b",
    ]
    before = references.path(tmp_path, "tiny").read_bytes()
    assert references.accept(tmp_path, "tiny", {"rows": {"a": 1, "b": 2}}, "again") == []
    assert references.path(tmp_path, "tiny").read_bytes() == before
    assert references.accept(tmp_path, "tiny", {"rows": {"a": 3}}, "better\nloss") == [
        "changed rows a",
        "gone rows b",
    ]
    kept = references.read(tmp_path, "tiny")
    assert kept.section("rows") == {"a": 3}
    assert [change["reason"] for change in kept.changes] == ["first", "better loss"]
    assert all(change["date"] and change["by"] for change in kept.changes)
    assert kept.changes[1]["commit"] == provenance.commit()
    assert (kept.changes[1]["count"], kept.changes[1]["changed"]) == (2, ["changed rows a", "gone rows b"])


def test_an_edited_reference_is_refused(tmp_path: Path) -> None:
    references.accept(tmp_path, "tiny", {"rows": {"a": 1.5}}, "first")
    file = references.path(tmp_path, "tiny")
    text = file.read_text()
    for wrong in (text.replace("1.5", "1.6"), text.replace("first", "other"), "[]", "{", text[:-9]):
        file.write_text(wrong)
        with pytest.raises(ReferencesError):
            references.read(tmp_path, "tiny")
    file.write_text(text)
    assert references.read(tmp_path, "tiny").section("rows") == {"a": 1.5}


def test_the_committed_references_have_their_history() -> None:
    for name in ("losses", "tiny", "small"):
        known = references.read(ROOT / "results", name)
        assert known.entries
        assert all(change["reason"] and change["date"] and change["by"] for change in known.changes)


# the commands


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed results of the check's own table and of scale small, in a folder of their own."""
    results = tmp_path_factory.mktemp("copied") / "results"
    shutil.copytree(ROOT / "results" / "references", results / "references")
    store = Store(ROOT / "results")
    for record in store.all():
        if record["spec"]["pair"].startswith(("tiny/check", "small/")):
            for folder, name in (("records", f"{record['cell']}.json"), ("generations", record["cell"])):
                source = ROOT / "results" / folder / record["spec"]["scale"] / name
                target = results / folder / record["spec"]["scale"] / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    return results


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the golden losses, which have tests of their own."""
    monkeypatch.setattr(goldens, "addresses", lambda: ["kl"])


@pytest.mark.usefixtures("quick")
def test_check_then_accept_then_check(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = ("--results", str(copied))
    code, out, _ = reproduce(capsys, "--check", *results)
    assert code == 1
    assert "tiny/bpe-same kl: no record" in out  # the copy lacks the tables' own cells
    assert "tiny-check.md: is stale" in out
    assert "tiny/check-same" not in out
    code, out, err = reproduce(capsys, "--accept", *results)
    assert (code, out) == (2, "")
    assert "--reason" in err
    code, out, _ = reproduce(capsys, "--accept", "--reason", "a test", *results)
    assert code == 0
    assert "gone claims field/" in out  # and rows, beyond the lines shown
    from harness import rendering

    for judged in rendering.from_records(copied):
        rendering.keep(rendering.files(judged, copied))
    code, out, _ = reproduce(capsys, "--check", *results)
    assert (code, "against the references" in out) == (0, False)
    assert references.read(copied, "tiny").changes[-1]["reason"] == "a test"


@pytest.mark.usefixtures("quick")
def test_a_damaged_record_turns_the_check_red_and_is_not_accepted(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(copied, tmp_path / "results")
    victim = next((tmp_path / "results" / "records" / "tiny").iterdir())
    data = json.loads(victim.read_text())
    data["scores"]["dolly"]["seeds"]["10"]["score"] += 1
    victim.write_text(json.dumps(data))
    results = ("--results", str(tmp_path / "results"))
    code, out, _ = reproduce(capsys, "--check", *results)
    assert code == 1
    assert "checksum differs" in out
    code, _, err = reproduce(capsys, "--accept", "--reason", "x", *results)
    assert code == 2
    assert "nothing accepted" in err


def test_wrong_uses_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (("--check", "3"), ("--reason", "x", "--check"), ("--check", "--table", "2")):
        code, out, err = reproduce(capsys, *arguments)
        assert (code, out) == (2, "")
        assert len(err.strip().splitlines()) == 1


# cells trained anew, with a stand-in for the training


def test_trained_cells_are_compared_and_failures_told(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    from harness import upkeep
    from harness.commands import Options
    from harness.pool import Outcome
    from harness.run import Settings

    known = {record["cell"]: record for record in Store(ROOT / "results").all("tiny")}

    def stand_in(planned: Any, options: Options) -> dict[str, Outcome]:
        store = Store(options.settings.results)
        outcomes = {}
        for step in planned.of("run"):
            record = copy.deepcopy(known[step.cell.id])
            if step.cell.method == "uld":
                outcomes[step.cell.id] = Outcome(False, "it broke")
                continue
            if step.cell.method == "rkl":
                multiply("kd", 1.5)(record)
            store.put({**record, "sha256": ""})
            outcomes[step.cell.id] = Outcome(True)
        return outcomes

    monkeypatch.setattr(upkeep, "execute", stand_in)
    found = upkeep._trained("1", Options(Settings(copied, copied / "cache"), 1, None))
    said = [str(finding) for finding in found]
    assert any(line.startswith("tiny/check-same rkl: mean kd in training") for line in said)
    assert sum("it broke" in line for line in said) == 2
    assert not any("check-same kl" in line for line in said)
    assert "the records are under" in capsys.readouterr().out
    plain = dataclasses.replace(Options(Settings(copied, copied / "cache"), 1, None))
    monkeypatch.setattr(upkeep, "TRAINED", {"1": ("small", "check", ())})
    monkeypatch.setattr(upkeep, "execute", lambda planned, options: {})
    refused = [str(finding) for finding in upkeep._trained("1", plain)]
    assert refused and all("not run: " in line for line in refused)
