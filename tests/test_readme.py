"""What the README, the tables and the figures show is what the records say."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest

from harness import brief, figure, readme, rendering
from harness.markdown import escaped
from harness.page import claim_words
from harness.rendering import Judged
from harness.tables import AVERAGE

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def judged() -> Mapping[str, Judged]:
    found = rendering.from_records(readme.ROOT / "results")
    return {f"{shown.result.scale}-{shown.result.table.id}": shown for shown in found}


def test_everything_made_from_records_is_fresh() -> None:
    stale = [str(path.relative_to(readme.ROOT)) for path in rendering.stale(readme.made())]
    assert not stale, "run python -m harness.readme"


def test_nothing_kept_is_left_over(judged: Mapping[str, Judged]) -> None:
    kept = {
        path.stem for folder in ("tables", "figures") for path in (readme.ROOT / "results" / folder).iterdir()
    }
    assert kept == set(judged)


def test_the_readme_shows_a_table_and_a_figure_of_tiny_and_small() -> None:
    text = readme.README.read_text(encoding="utf-8")
    for name in ("tiny-2", "small-1"):
        assert (readme.ROOT / "results" / "figures" / f"{name}.svg").is_file()
        assert f"](results/figures/{name}.svg)" in text
    assert "**Table 2, tiny" in text
    assert "**Table 1, small" in text


def test_the_table_at_a_glance_leaves_out_no_row_and_no_claim(judged: Mapping[str, Judged]) -> None:
    shown = judged["tiny-2"]
    text = brief.render(shown.result, shown.info, "results/tables/tiny-2.md")
    for row in shown.result.rows.values():
        measured = row.cells[AVERAGE].measured
        assert measured is not None
        expected = rf"^\| {re.escape(row.row.label)} \| .*{measured.mean:.2f}\**? \[{measured.low:.2f}, "
        assert re.search(expected, text, re.MULTILINE)
    for claim in shown.result.claims:
        assert f"{claim_words(claim)}**: {escaped(claim.claim.text)}" in text


def test_a_stale_file_is_noticed(tmp_path: Path) -> None:
    made = {tmp_path / "a": "text\n", tmp_path / "b": "text\n"}
    rendering.keep(made)
    assert rendering.stale(made) == []
    (tmp_path / "b").write_text("other\n")
    assert rendering.stale(made) == [tmp_path / "b"]


def test_the_figure_shows_the_records_numbers(judged: Mapping[str, Judged]) -> None:
    """Positions are an affine map of cost and mean, the same for all points of a panel."""
    result = judged["tiny-2"].result
    root = ElementTree.fromstring(figure.svg(result))
    for side in result.table.sides:
        found = {point.name: point for point in figure.points(result, side)}
        rows = [row for row in result.rows.values() if row.row.side == side and row.row.trained]
        assert {row.row.label for row in rows} == set(found)
        for row in rows:
            measured = row.cells[AVERAGE].measured
            assert measured is not None
            point = found[row.row.label]
            assert (point.mean, point.low, point.high) == (measured.mean, measured.low, measured.high)
        drawn = {}
        for group in root.iter(f"{SVG}g"):
            title, circle, bar = (
                group.find(f"{SVG}title"),
                group.find(f"{SVG}circle"),
                group.find(f"{SVG}line"),
            )
            assert title is not None and circle is not None and bar is not None and title.text
            name = title.text.partition(": ")[0]
            if name in found and f"{found[name].mean:.2f} [" in title.text:
                drawn[name] = (circle.attrib, bar.attrib)
        assert set(drawn) == set(found)
        ordered = sorted(found.values(), key=lambda point: point.mean)
        worst, best = ordered[0], ordered[-1]
        scale = (y(drawn, best.name) - y(drawn, worst.name)) / (best.mean - worst.mean)
        assert scale < 0  # up is better
        for name, point in found.items():
            wanted = y(drawn, worst.name) + scale * (point.mean - worst.mean)
            assert y(drawn, name) == pytest.approx(wanted, abs=0.2)
            bar = drawn[name][1]
            assert (float(bar["y2"]) - float(bar["y1"])) / scale == pytest.approx(
                point.high - point.low, abs=0.2 / -scale
            )
            for other, value in found.items():
                cheaper = point.cost < value.cost
                assert not cheaper or float(drawn[name][0]["cx"]) <= float(drawn[other][0]["cx"])


def y(drawn: Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]], name: str) -> float:
    return float(drawn[name][0]["cy"])


def test_names_stay_apart_and_inside() -> None:
    for wanted in ([50.0] * 8, [0.0, 1.0, 2.0, 99.0], [100.0] * 3, [10.0, 90.0], [5.0]):
        placed = figure.spread(wanted, 0, 150)
        assert all(b - a >= figure.LINE - 1e-9 for a, b in itertools.pairwise(placed))
        assert placed[0] >= 0 and placed[-1] <= 150
    assert figure.spread([40.0, 90.0], 0, 150) == [40.0, 90.0]


def test_ticks_are_round_and_inside() -> None:
    for low, high in ((8.1, 12.3), (0.0, 1.0), (24.1, 33.9), (17, 112), (0.001, 0.0042)):
        ticks = figure.Axis(low, high, 0, 100).ticks()
        assert 3 <= len(ticks) <= 8
        assert all(low <= tick <= high for tick in ticks)
        assert all(len(re.sub(r"\D", "", f"{tick:g}").strip("0")) <= 3 for tick in ticks)
