from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_verdict import failed, fill, ladder

from harness import report, tables
from harness.report import render, render_verdict
from harness.tables import Table
from harness.verdict import Entry, judge


@pytest.fixture(scope="module")
def table() -> Table:
    return tables.load("1")


@pytest.fixture(scope="module")
def cells(table: Table) -> dict[str, Sequence[Entry]]:
    """A table with everything in it: whole rows, a partial one, a failed one, one too dear."""
    cells = fill(table, ladder(table), noise=0.1, scale="tiny", decodings=2)
    cells["same/js"] = [cells["same/js"][0], None, None]
    cells["same/skl"] = [failed(cells["same/skl"][0], "loss is not finite")]
    cells["cross/uld"] = ["too dear"] * 3
    return cells


def test_terminal_fits_any_width(table: Table, cells: dict[str, Sequence[Entry]]) -> None:
    result = judge(table, "tiny", cells)
    for width in (40, 60, 76, 100, 130, 200):
        text = render_verdict(result, {"same": "A [base] -> B"}, "terminal", width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text  # nothing is cut
        plain = re.sub(r"\s+", " ", text)
        for row in table.rows:
            assert row.label.split()[0] in plain
        for words in ("17.63?", "unknown", "not run", "failed", "too dear", "agrees: holds", "A [base] -> B"):
            assert words in plain, width
        assert ("24.54?" in plain) == (width >= 130)  # the suites, where there is room
    assert "\x1b[" not in text
    assert "\x1b[1m" in render_verdict(result, color=True)


def test_markdown_has_every_cell_once(table: Table, cells: dict[str, Sequence[Entry]]) -> None:
    text = render(table, "tiny", cells, format="md")
    lines = [line for line in text.splitlines() if line.startswith("|") and "<br>" in line]
    assert len(lines) == len(table.rows)
    assert all(line.count(" | ") == len(table.columns) for line in lines)
    assert any("**" in line for line in lines)
    assert not any("**" in line for line in lines if line.startswith("| Teacher"))
    assert "failed<br>17.71? !" in text
    assert "same/SKL failed: seed 1: loss is not finite" in text
    assert "same/JS partly run: 2 of 3 seeds not yet" in text
    assert "0 of them verified at source" in text


def test_unverified_figures_are_marked(table: Table, cells: dict[str, Sequence[Entry]]) -> None:
    result = judge(table, "tiny", cells)
    numbers = {  # published numbers that no measured one happens to equal
        f"{figure.value:.2f}": figure.status
        for row in table.rows
        for key in row.published
        if (found := tables.published(key))
        for figure in found.figures.values()
    }
    for format, marks in (("md", "?†"), ("tex", "?$"), ("terminal", "?†")):
        text = render_verdict(result, format=format, width=200)
        shown = re.findall(r"(?<![\d.\[+-])(\d+\.\d\d)(.)", text)
        seen = 0
        for number, after in shown:
            if number in numbers and numbers[number] != "primary" and after in marks:
                seen += 1
        known = sum(
            len(set(found.figures) & set(table.columns))
            for row in table.rows
            if (found := next(filter(None, map(tables.published, row.published)), None))
        )
        assert seen >= known


def test_csv_reads_back(table: Table, cells: dict[str, Sequence[Entry]]) -> None:
    rows = list(csv.DictReader(io.StringIO(render(table, "tiny", cells, format="csv"))))
    kinds = [row["kind"] for row in rows]
    assert kinds.count("cell") == len(table.rows) * len(table.columns)
    assert kinds.count("claim") == len(table.claims)
    assert all(row["verdict"] for row in rows)
    kl = next(row for row in rows if row["method"] == "kl" and row["column"] == "dolly")
    assert (kl["published"], kl["published_status"], kl["published_source"]) == (
        "24.54",
        "unverified",
        "dskd-v1:1",
    )
    assert float(kl["low"]) < float(kl["measured"]) < float(kl["high"])
    assert kl["training_sd"] and kl["decoding_sd"]
    assert not kl["peak_rss_mb"]
    average = next(row for row in rows if row["method"] == "kl" and row["column"] == "avg")
    assert (float(average["peak_rss_mb"]), average["peak_is_bound"]) == (500.0, "True")
    assert float(average["gap_low"]) < float(average["gap_percent"]) < float(average["gap_high"])


def test_cost_columns(table: Table, cells: dict[str, Sequence[Entry]]) -> None:
    """An own peak is plain, a process's is a bound; an untrained row has no training to cost anything."""
    own = [{**entry, "cost": {**entry["cost"], "peak_of": "cell"}} for entry in cells["same/kl"]]  # type: ignore[dict-item,index]
    text = render(table, "tiny", {**cells, "same/kl": own}, format="md")
    costs = {
        line.split(" | ")[0].strip("| "): [cell.strip(" |") for cell in line.split(" | ")[5:]]
        for line in text.split("| spread and cost |")[1].split("\n\n")[0].splitlines()[2:]
    }
    assert costs["KL"][:4] == ["10", "2", "100", "500"]
    assert costs["SFT"][:4] == ["10", "2", "100", "≤500"]
    assert costs["Teacher"][:4] == ["", "2", "", "≤500"]


def test_json_holds_everything(table: Table, cells: dict[str, Sequence[Entry]]) -> None:
    data = json.loads(render(table, "tiny", cells, {"same": "A -> B"}, "json"))
    assert data["pairs"]["same"] == {"name": "tiny/bpe-same", "about": "A -> B"}
    assert [row["method"] for row in data["rows"]] == [row.method for row in table.rows]
    assert data["claims"][0]["verdict"] == "failed"
    assert data["census"]["cells"] == 156


#: Every command the LaTeX may use: LaTeX's own, booktabs' or adjustbox's.
KNOWN = re.compile(
    "usepackage|begin|end|centering|small|scriptsize|footnotesize|emph|textbf|multicolumn|quad|caption|item|"
    "toprule|midrule|bottomrule|par|noindent|textwidth|textheight|textbackslash|sim|neq|cdot|dagger|ddagger|leq"
)


def structure(text: str) -> list[str]:
    """The environments as they open; fails where LaTeX would, on anything left open or out of place."""
    bare = re.sub(r"(?m)(?<!\\)%.*$", "", text)
    opened: list[str] = []
    seen: list[str] = []
    math = False
    for token in re.findall(r"\\(?:begin|end)\{\w+\}|\\[A-Za-z]+|\\.|[{}$&#_^]", bare, re.DOTALL):
        if token.startswith(("\\begin", "\\end")):
            name = token[token.index("{") + 1 : -1]
            if token.startswith("\\begin"):
                opened.append(name)
                seen.append(name)
            else:
                assert opened.pop() == name
        elif len(token) > 2:
            assert KNOWN.fullmatch(token[1:]), token
        elif token == "{":
            opened.append("{")
        elif token == "}":
            assert opened.pop() == "{"
        elif token == "$":
            math = not math
        elif token in "_^":
            assert math, "a sub- or superscript outside mathematics"
        elif token == "&":
            assert opened[-1] == "tabular", "a column mark outside a table"
        elif token == "#":
            raise AssertionError("a bare #")
    assert not opened and not math
    return seen


def rows_of(text: str) -> list[int]:
    """Cells in each row of each tabular, spanning ones counted as what they span."""
    found = []
    for columns, body in re.findall(r"\\begin\{tabular\}\{(lr*)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        for line in body.splitlines():
            if line.endswith(r"\\"):
                span = re.search(r"\\multicolumn\{(\d+)\}", line)
                cells = int(span[1]) if span else len(re.findall(r"(?<!\\)&", line)) + 1
                assert cells == len(columns), line
                found.append(cells)
    return found


def test_latex_has_the_structure_of_latex(
    table: Table, cells: dict[str, Sequence[Entry]], tmp_path: Path
) -> None:
    text = render(table, "tiny", cells, {"same": "50 % & a_b {x} #1 $ ^ ~ \\"}, "tex")
    assert r"50 \% \& a\_b \{x\} \#1 \$ \^{} $\sim$ \textbackslash{}" in text
    assert text.isascii()
    assert structure(text) == ["table", "adjustbox", "tabular"] * 2 + ["itemize"]
    counted = rows_of(text)
    assert (
        counted.count(len(table.columns) + 1) == 2 * len(table.rows) + 3
    )  # a heading for each side, one for all
    if shutil.which("pdflatex"):
        head = "\\documentclass{article}\\usepackage{booktabs,adjustbox}\\begin{document}\n"
        (tmp_path / "page.tex").write_text(head + text + "\\end{document}\n")
        subprocess.run(["pdflatex", "-interaction=batchmode", "page.tex"], cwd=tmp_path, check=True)


@pytest.mark.parametrize("wrong", ["{", "}", "$x", "a_b", "a & b", r"\unknown", r"\begin{table}", "50 % }"])
def test_the_structure_test_can_fail(wrong: str) -> None:
    with pytest.raises((AssertionError, IndexError)):
        structure(wrong if "%" not in wrong else wrong.replace("%", r"\%"))


@pytest.mark.parametrize("format", report.FORMATS)
@pytest.mark.parametrize("scale", tables.SCALES)
@pytest.mark.parametrize("name", tables.ids())
def test_an_empty_table_is_a_table(name: str, scale: str, format: str) -> None:
    text = render(tables.load(name), scale, {}, format=format, width=80)
    assert "not run" in text


def test_where_all_are_equal_none_is_best(table: Table) -> None:
    level = render(table, "tiny", fill(table, {"*": 20.0}, scale="tiny"), format="md")
    assert "20.00" in level
    assert "**20.00" not in level


def test_the_same_records_give_the_same_text(table: Table, cells: dict[str, Sequence[Entry]]) -> None:
    assert render(table, "tiny", cells, format="md") == render(table, "tiny", cells, format="md")


def test_unknown_format_is_refused(table: Table) -> None:
    with pytest.raises(ValueError, match="no format 'html'; known: terminal"):
        render(table, "tiny", {}, format="html")
    assert report.path(Path("results"), "tiny", "1") == Path("results/tables/tiny-1.md")


def test_nothing_here_needs_torch() -> None:
    code = "import sys, harness.report, harness.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_diverged_training_is_told_beside_its_score(table: Table) -> None:
    cells = fill(table, ladder(table), noise=0.1, scale="tiny")
    said = {"diverged": "mean loss 9 over the last tenth of the steps, 3 over the first"}
    cells["same/kl"] = [{**record, "training": said} if n == 1 else record  # type: ignore[dict-item]
                        for n, record in enumerate(cells["same/kl"])]  # fmt: skip
    for format in ("terminal", "md", "tex"):
        text = " ".join(render(table, "tiny", cells, format=format, width=200).split())
        assert "same/KL diverged in training, seed 2: mean loss 9 over the last tenth" in text


def test_sampled_code_rows_tell_pass_at_k() -> None:
    table = tables.load("code")
    sampled = fill(table, ladder(table), scale="tiny", decodings=2)
    notes = render(table, "tiny", sampled, format="md")
    assert re.search(r"same/SFT, humaneval: pass@1 [\d.]+, pass@2 [\d.]+", notes)
    assert "pass@1" not in render(table, "tiny", fill(table, ladder(table), scale="tiny"), format="md")


def test_averages_over_some_suites_are_shown_and_explained() -> None:
    table = tables.load("kq")
    cells = fill(table, {"*": 20.0}, noise=0.1, scale="tiny")
    means = "Averages over some suites: id: dolly; ood: self-inst, vicuna, s-ni, unni"
    for format in ("terminal", "md", "tex"):
        assert means in " ".join(render(table, "tiny", cells, format=format, width=200).split())
    wide = render(table, "tiny", cells, format="terminal", width=28 + 17 * len(table.columns))
    narrow = render(table, "tiny", cells, format="terminal", width=100)
    heads = [next(x for x in text.splitlines() if " ood " in x).split() for text in (wide, narrow)]
    assert heads == [["row", *table.columns], ["row", "id", "ood", "avg"]]
    rows = list(csv.DictReader(io.StringIO(render(table, "tiny", cells, format="csv"))))
    columns = {row["row"]: row["column"] for row in rows if row["kind"] == "claim"}
    assert columns == {"ga-gains-out-of-distribution": "ood", "ga-beats-cma": "avg", "ga-beats-ct": "avg"}
    data = json.loads(render(table, "tiny", cells, format="json"))
    assert data["averages"] == {"id": ["dolly"], "ood": list(table.suites[1:])}


def test_a_table_of_retentions_says_that_it_is_one() -> None:
    table = tables.load("retention")
    cells = fill(table, {"*": 20.0, "same/teacher": 25.0}, scale="tiny")
    for format in ("terminal", "md", "tex"):
        text = " ".join(render(table, "tiny", cells, format=format, width=200).split())
        assert "Numbers are percent of the teacher's score on the suite" in text
    kl = next(
        row
        for row in csv.DictReader(io.StringIO(render(table, "tiny", cells, format="csv")))
        if (row["method"], row["column"]) == ("kl", "avg")
    )
    assert float(kl["measured"]) == pytest.approx(80, abs=0.01)
    assert json.loads(render(table, "tiny", cells, format="json"))["value"] == "retention"
