from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from harness import tables, verdict
from harness.cells import UNTRAINED, Cell, Decoding, SuiteRun
from harness.statistics import StatisticsError
from harness.tables import Row, Table
from harness.verdict import COMPARED, VERDICTS, Entry, TableVerdict, judge

ITEMS = {"dolly": 500, "self-inst": 242, "vicuna": 80, "s-ni": 40, "unni": 40}


def make(
    table: Table,
    row: Row,
    seed: int,
    mean: float,
    *,
    items: Mapping[str, int],
    scale: str = "paper",
    noise: float = 0.0,
    decodings: int = 1,
    temperature: float = 1.0,
    state: str = "exact",
) -> dict[str, Any]:
    """A finished record; ``noise`` moves the whole run, items vary by 5 points around the mean."""
    shift = np.random.default_rng([seed, len(row.key)]).normal(0, noise)
    scores = {}
    for suite in table.suites:
        spread = np.random.default_rng(items[suite]).normal(0, 5, items[suite])
        values = np.round(mean + shift + spread - spread.mean(), 4).tolist()
        run = {"score": float(np.mean(values)), "all": {}, "per_item": values, "generations": None}
        seeds = {str(10 * d + 10): run for d in range(decodings)}
        scores[suite] = {"metric": "rougeL", "items": items[suite], "items_sha256": "0", "seeds": seeds}
    decoding = Decoding(temperature=temperature)
    suites = tuple(SuiteRun(suite, 1, None) for suite in table.suites)
    pair = table.pair(scale, row.side) or "none"
    cell = Cell(scale, pair, row.method, seed, table.group, None, decoding, suites, "x", ())
    return {
        **{"schema": 1, "cell": cell.id, "spec": json.loads(json.dumps(cell.as_dict()))},
        **{"status": "done", "reason": None, "scores": scores, "training": None, "models": {}},
        **{"template_sha256": "", "provenance": {}},
        "data": [{"name": "dolly-train", "sha256": "", "licence": "", "state": state}],
        "cost": {
            "train_seconds": 10.0,
            "decode_seconds": 2.0,
            "tokens_per_second": 100.0,
            "peak_rss_mb": 500.0,
        },
    }


def fill(
    table: Table,
    means: Mapping[str, float],
    *,
    seeds: int = 3,
    items: Mapping[str, int] | None = None,
    **more: Any,
) -> dict[str, Sequence[Entry]]:
    """Records for every row at these means (by row key; ``*`` for all others)."""
    items = items or dict.fromkeys(table.suites, 40)
    cells: dict[str, Sequence[Entry]] = {}
    for row in table.rows:
        mean = means.get(row.key, means["*"])
        numbers = [0] if row.method in UNTRAINED else list(range(1, seeds + 1))
        cells[row.key] = [make(table, row, seed, mean, items=items, **more) for seed in numbers]
    return cells


def failed(record: Any, reason: str) -> dict[str, Any]:
    return {**record, "status": "failed", "reason": reason, "scores": {}}


def ladder(table: Table) -> dict[str, float]:
    """Means under which every claim of the table holds."""
    rank = {
        "student": 2.0,
        "teacher": 40.0,
        "dskd-v1": 22.0,
        "dskd-v2": 24.0,
        "dskd-cma": 21.0,
        "dskd-eta": 24.0,
    }
    means = {row.key: rank.get(row.method.split("/")[0], 20.0) for row in table.rows}
    means |= {row.key: 23.0 for row in table.rows if ":" in row.method}
    return {**means, "*": 20.0}


@pytest.mark.parametrize("scale", tables.SCALES)
@pytest.mark.parametrize("name", tables.ids())
def test_never_a_blank(name: str, scale: str) -> None:
    table = tables.load(name)
    for cells in ({}, fill(table, {"*": 20.0}, noise=0.2, scale=scale)):
        result = judge(table, scale, cells)
        assert list(result.rows) == [row.key for row in table.rows]
        for row in result.rows.values():
            assert list(row.cells) == list(table.columns)
            for cell in row.cells.values():
                assert cell.verdict in VERDICTS
                assert cell.reason
                assert (cell.measured is None) == (cell.verdict in ("not run", "failed"))
                if scale != "paper":
                    assert cell.verdict not in COMPARED
        for claim in result.claims:
            assert claim.verdict in VERDICTS
            assert claim.reason
        assert (
            sum(result.census.verdicts.values())
            == result.census.cells
            == len(table.rows) * len(table.columns)
        )
        assert sum(result.census.claims.values()) == len(table.claims)


def test_claims_hold_do_not_hold_and_stay_open() -> None:
    table = tables.load("1")
    means = ladder(table)
    result = judge(table, "tiny", fill(table, means, noise=0.05, scale="tiny"))
    assert {claim.verdict for claim in result.claims} == {"agrees"}
    first = result.claims[0]
    assert first.reason.startswith("holds in 6 of 6 pairs, gains +1.")
    assert first.size is not None
    assert first.size[0] == "not comparable"

    upside_down = judge(
        table, "tiny", fill(table, {k: 60 - v for k, v in means.items()}, noise=0.05, scale="tiny")
    )
    assert {claim.verdict for claim in upside_down.claims} == {"differs"}

    level = judge(table, "tiny", fill(table, {"*": 20.0}, noise=1.0, scale="tiny"))
    assert {claim.verdict for claim in level.claims} == {"inconclusive"}


def test_one_pair_against_it_refutes_a_claim_even_half_run() -> None:
    table = tables.load("1")
    means = ladder(table) | {"same/dskd-v1/js": 10.0}
    cells = fill(table, means, noise=0.05, scale="tiny")
    cells["same/skl"] = ["too dear"] * 3
    claim = judge(table, "tiny", cells).claims[0]
    assert claim.verdict == "differs"
    assert "same/dskd-v1/js - same/js" in claim.reason
    cells["same/dskd-v1/js"] = cells["same/dskd-v1/kl"]
    claim = judge(table, "tiny", cells).claims[0]
    assert (claim.verdict, "too dear" in claim.reason) == ("not run", True)
    cells["same/skl"] = [failed(cells["same/kl"][0], "loss is not finite")]
    claim = judge(table, "tiny", cells).claims[0]
    assert (claim.verdict, "loss is not finite" in claim.reason) == ("failed", True)


@pytest.mark.parametrize("scale", tables.SCALES)
def test_one_training_seed_concludes_nothing(scale: str) -> None:
    table = tables.load("1")
    published = {
        row.key: found.figures["dolly"].value
        for row in table.rows
        if row.published and (found := tables.published(row.published[0]))
    }
    result = judge(table, scale, fill(table, {**published, "*": 20.0}, seeds=1, items=ITEMS, scale=scale))
    assert {claim.verdict for claim in result.claims} == {"inconclusive"}
    for row in result.rows.values():
        assert {cell.verdict for cell in row.cells.values()} <= {"inconclusive", "not comparable"}


def against(mean: float, **more: Any) -> verdict.CellVerdict:
    """The Dolly cell of table 1's KL row (24.54) at paper scale."""
    table = tables.load("1")
    return kl(judge(table, "paper", fill(table, {"*": mean}, items=ITEMS, **more)))


def kl(result: TableVerdict) -> verdict.CellVerdict:
    return result.rows["same/kl"].cells["dolly"]


def test_equivalence_within_the_margin() -> None:
    assert against(24.60, noise=0.1).verdict == "agrees"
    assert against(30.0, noise=0.1).verdict == "differs"
    assert against(19.0, noise=0.1).verdict == "differs"
    assert against(25.54, noise=0.1).verdict == "inconclusive"
    assert against(24.54, noise=3.0).verdict == "inconclusive"
    assert "ours - published +0.0" in against(24.60, noise=0.0).reason


def test_what_may_not_be_compared_is_not() -> None:
    assert against(24.54, noise=0.1, state="re-sampled").reason == (
        "training data not the published one (dolly-train: re-sampled)"
    )
    table = tables.load("1")
    fewer = judge(table, "paper", fill(table, {"*": 24.54}, noise=0.1))
    assert kl(fewer).reason == "dolly scored on 40 items, published on 500"
    full = judge(table, "paper", fill(table, {"*": 24.54}, noise=0.1, items=ITEMS))
    assert full.rows["same/kl"].cells["avg"].verdict == "not comparable"  # S-NI and UnNI were cut here
    assert "another protocol" in full.rows["same/tvd"].cells["dolly"].reason
    assert "could not be read" in full.rows["same/dskd-v2/kl"].cells["dolly"].reason
    assert full.rows["same/student"].cells["dolly"].reason == "no paper gives a figure for this row"


def test_an_untrained_row_varies_by_decoding() -> None:
    def teacher(**more: Any) -> verdict.CellVerdict:
        table = tables.load("1")
        return (
            judge(table, "paper", fill(table, {"*": 27.19}, items=ITEMS, **more))
            .rows["same/teacher"]
            .cells["dolly"]
        )

    assert (teacher().verdict, teacher().reason) == ("inconclusive", "one decoding seed")
    assert teacher(decodings=5).verdict == "agrees"
    assert teacher(temperature=0.0).verdict == "agrees"


def test_a_row_says_how_far_it_got() -> None:
    table = tables.load("1")
    cells = fill(table, {"*": 20.0}, noise=0.1, scale="small")
    whole = cells["same/kl"]
    cases: list[tuple[Sequence[Entry], str, str]] = [
        (whole, "done", ""),
        ([whole[0], None, None], "partial", "2 of 3 seeds not yet"),
        ([whole[0], failed(whole[1], "killed"), "too dear"], "partial", "seed 2: killed; too dear"),
        ([failed(whole[0], "killed"), None], "failed", "seed 1: killed; 1 of 2 seeds not yet"),
        (["licence forbids"] * 3, "not run", "licence forbids"),
        ([None] * 3, "not run", "not yet"),
        ([], "not run", "not yet"),
    ]
    for entries, state, reason in cases:
        row = judge(table, "small", {**cells, "same/kl": entries}).rows["same/kl"]
        assert (row.state, row.reason) == (state, reason)
    maths = tables.load("math")
    assert judge(maths, "small", {}).rows["same/kl"].reason == maths.absent["small"]["same"]


def test_the_share_of_the_gap() -> None:
    table = tables.load("1")
    means = {"*": 20.0, "same/student": 10.0, "same/teacher": 30.0}
    result = judge(table, "tiny", fill(table, means, noise=0.02, scale="tiny"))
    share = result.rows["same/kl"].recovered
    assert share is not None
    assert share.mean == pytest.approx(50, abs=1)
    assert result.rows["same/teacher"].recovered is None
    assert result.rows["cross/uld"].recovered is None  # there, student and teacher are level


def test_census_counts_what_is_verified() -> None:
    census = judge(tables.load("1"), "tiny", {}).census
    assert (census.measured, census.compared, census.verified) == (0, 0, 0)
    assert census.figures == census.secondary + census.unverified > 100
    assert census.unknown == census.cells - census.figures


def test_holes_and_strangers_are_refused() -> None:
    table = tables.load("1")
    cells = fill(table, {"*": 20.0}, scale="tiny")
    with pytest.raises(KeyError, match="same/nothing"):
        judge(table, "tiny", {"same/nothing": []})
    del cells["same/kl"][0]["scores"]["unni"]  # type: ignore[index]
    with pytest.raises(StatisticsError, match=r"table 1, row same/kl: cell \w+ has no scores on unni"):
        judge(table, "tiny", cells)


def adversarial(table: Table, *gains: float) -> dict[str, float]:
    """Means of the key-query table: GA's over plain attention's by these gains, divergence by divergence."""
    rows = [row.key for row in table.rows if row.key.startswith("cross/dskd-cma-ga/")]
    return {"*": 20.0} | {key: 20.0 + gain for key, gain in zip(rows, gains, strict=True)}


def test_an_average_of_some_suites_is_just_that() -> None:
    table = tables.load("kq")
    cells = fill(table, {"*": 20.0}, scale="paper")
    for entry in cells["cross/dskd-cma/kl"]:
        assert isinstance(entry, dict)
        for place, suite in enumerate(table.suites):
            for run in entry["scores"][suite]["seeds"].values():
                run["per_item"] = [10.0 * place] * len(run["per_item"])
    found = judge(table, "paper", cells).rows["cross/dskd-cma/kl"].cells
    means = {column: cell.measured.mean for column, cell in found.items() if cell.measured}
    assert [means[suite] for suite in table.suites] == [0, 10, 20, 30, 40]
    assert (means["id"], means["ood"], means["avg"]) == (0, 25, 20)


def test_a_claim_of_the_mean_stands_where_single_pairs_do_not() -> None:
    table = tables.load("kq")
    gains = adversarial(table, 0.9, 0.6, -0.3, 0.5, 0.4, 0.12)
    result = judge(table, "paper", fill(table, gains, noise=0.001))
    mean, every, _ = result.claims
    assert mean.verdict == "agrees"
    assert mean.reason.startswith("mean gain +0.37 [")
    assert mean.reason.endswith("5 of 6 gains above 0")
    assert mean.size is not None
    assert mean.size[0] == "agrees"
    assert every.verdict == "differs"  # the same rows, asked one by one

    assert judge(table, "tiny", fill(table, gains, scale="tiny")).claims[0].size == (
        *("not comparable",),
        "published gain +0.37; tiny: generated text and models of some hundred thousand weights",
    )
    worse = judge(table, "paper", fill(table, adversarial(table, *[-1.0] * 6), noise=0.001)).claims[0]
    assert (worse.verdict, worse.size[0] if worse.size else "") == ("differs", "differs")
    single = judge(table, "paper", fill(table, gains, seeds=1)).claims[0]
    assert (single.verdict, single.size[0] if single.size else "") == ("inconclusive", "inconclusive")


def test_a_claim_of_the_mean_needs_all_its_rows() -> None:
    table = tables.load("kq")
    cells = fill(table, adversarial(table, *[1.0] * 6))
    cells["cross/dskd-cma-ga/js"] = [failed(cells["cross/dskd-cma-ga/js"][0], "loss is not finite")]
    claim = judge(table, "paper", cells).claims[0]
    assert (claim.verdict, claim.size and claim.size[0]) == ("failed", "not run")
    assert claim.reason == "cross/dskd-cma-ga/js: seed 1: loss is not finite"


def test_a_claim_looks_at_its_column_alone() -> None:
    """Gains on the training suite do not count for a claim about the others."""
    table = tables.load("kq")
    cells = fill(table, {"*": 20.0}, noise=0.001)
    for key in (key for key in cells if "-ga/" in key):
        for entry in cells[key]:
            assert isinstance(entry, dict)
            for run in entry["scores"]["dolly"]["seeds"].values():
                run["per_item"] = [score + 10 for score in run["per_item"]]
    mean, every, _ = judge(table, "paper", cells).claims
    assert (mean.claim.column, every.claim.column) == ("ood", "avg")
    assert (mean.verdict, every.verdict) == ("inconclusive", "agrees")


def test_retention_is_told_in_percent_of_the_teacher() -> None:
    table = tables.load("retention")
    means = {"*": 20.0, "same/teacher": 25.0, "same/sft": 15.0}
    result = judge(table, "paper", fill(table, means))
    for key, share in (("teacher", 100), ("kl", 80), ("sft", 60)):
        for column, cell in result.rows[f"same/{key}"].cells.items():
            assert cell.measured is not None, column
            assert cell.measured.mean == pytest.approx(share, abs=0.01)
    claims = {claim.claim.id: claim for claim in result.claims}
    kept = claims["keeps-70-to-91"]
    assert (kept.verdict, kept.size) == ("agrees", None)
    (pair,) = kept.pairs
    assert pair.name == "same/kl:temperature=1.0 / same/teacher"
    assert pair.reason.startswith("80.0 % [")
    assert claims["distilling-keeps-more"].pairs[0].gain.mean == pytest.approx(20, abs=0.01)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("score", "noise", "seeds", "said"),
    [
        (24.5, 0.01, 3, "differs"),  # 98 %
        (15.0, 0.01, 3, "differs"),  # 60 %
        (22.75, 0.01, 3, "inconclusive"),  # on the very edge
        (20.0, 9.0, 3, "inconclusive"),  # too noisy
        (20.0, 0.01, 1, "inconclusive"),  # one training seed
        (20.0, 0.01, 3, "agrees"),
    ],
)
def test_a_share_lies_in_the_range_or_not(score: float, noise: float, seeds: int, said: str) -> None:
    table = tables.load("retention")
    cells = dict(fill(table, {"*": 20.0, "same/teacher": 25.0}))
    noisy = fill(table, {"*": score}, noise=noise, seeds=seeds)
    cells["same/kl:temperature=1.0"] = noisy["same/kl:temperature=1.0"]
    assert judge(table, "paper", cells).claims[0].verdict == said


def test_no_retention_without_a_teacher() -> None:
    table = tables.load("retention")
    cells = dict(fill(table, {"*": 20.0}))
    cells["same/teacher"] = [None]
    result = judge(table, "paper", cells)
    for cell in result.rows["same/kl"].cells.values():
        assert (cell.measured, cell.verdict) == (None, "not run")
        assert cell.reason == "no share without the teacher's score"
    for claim in result.claims:
        assert claim.verdict == "not run"
        assert claim.reason.endswith("same/teacher: not yet")
