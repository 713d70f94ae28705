"""The tiny world: its files, what is held out, and that everything in it is true and comes out the same."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from evals import suites, world
from evals.world import files, instructions, python, town

ROUGE_SUITES = ("dolly", "self-inst", "vicuna", "s-ni", "unni")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    world.write(folder)
    return folder


def _rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.jsonl")}


def test_the_one_loader_reads_every_suite(root: Path) -> None:
    sizes = {
        name: len(suites.load(suites.get(name), root))
        for name in (*ROUGE_SUITES, "gsm8k", "humaneval", "mbpp")
    }
    assert sum(sizes[name] for name in ROUGE_SUITES) >= 1000
    assert sizes["gsm8k"] == files.MATHS
    assert sizes["humaneval"] == sizes["mbpp"] == files.PYTHON


def test_only_s_ni_has_several_references(root: Path) -> None:
    several = {
        name: any(len(item.references) > 1 for item in suites.load(suites.get(name), root))
        for name in ROUGE_SUITES
    }
    assert several == {name: name == "s-ni" for name in ROUGE_SUITES}


def test_files_do_not_depend_on_the_hash_seed(root: Path, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from evals import world; world.write(Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    repository = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=repository, env=environment)
    assert _contents(tmp_path) == _contents(root)


def test_the_world_needs_no_torch() -> None:
    code = "import sys; from evals import world; next(world.prose('a')); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_prompts_of_suites_are_distinct(root: Path) -> None:
    prompts = [item.prompt for name in (*ROUGE_SUITES, "gsm8k", "humaneval", "mbpp")
               for item in suites.load(suites.get(name), root)]  # fmt: skip
    assert len(set(prompts)) == len(prompts)
    assert set(prompts) <= world.held_out()


def test_nothing_held_out_is_trained_on(root: Path) -> None:
    for name in ("instructions", "maths", "code"):
        prompts = [row["prompt"] for row in _rows(root / "train" / f"{name}.jsonl")]
        assert len(set(prompts)) == len(prompts) == files.TRAIN[name]
        assert not world.held_out().intersection(prompts)  # type: ignore[arg-type]
    for stream in (world.instruction_stream, world.maths_stream, world.python_stream):
        assert not any(task.prompt in world.held_out() for task in itertools.islice(stream("models"), 5000))


def test_prose_has_no_headings_and_no_task_of_a_suite() -> None:
    asked = {(task.instruction, task.input) for tasks in files.suites().values() for task in tasks}
    text = "\n".join(itertools.islice(world.prose("models"), 5000))
    assert "###" not in re.sub(r"#### \d+", "", text)
    talked = re.findall(r"^\w+ asked \w+: (.*)(?:\n(?!\w+ said:)(.*))?\n\w+ said:", text, re.MULTILINE)
    assert len(talked) > 500
    assert not asked.intersection(talked)


def test_streams_repeat_for_a_seed_and_differ_between_seeds() -> None:
    def first(seed: str) -> list[str]:
        return [task.text for task in itertools.islice(world.instruction_stream(seed), 20)]

    assert first("a") == first("a") != first("b")


def test_training_is_in_the_manner_of_dolly_only(root: Path) -> None:
    tasks = [row["instruction"] for row in _rows(root / "train" / "instructions.jsonl")]
    others = {
        wording
        for manner in ("sni",)
        for words in instructions.LIST_WORDINGS[manner].values()
        for wording in words
    }
    assert not others.intersection(tasks)  # type: ignore[arg-type]


def test_every_person_has_every_attribute_and_values_are_shared() -> None:
    for name, attribute in town.ATTRIBUTES.items():
        counts = [len(town.people_with(name, value)) for value in attribute.values]
        assert sum(counts) == len(town.PEOPLE)
        assert min(counts) >= 2


@pytest.mark.parametrize("operation", list(instructions.OPERATIONS))
def test_operations_on_a_list(operation: str) -> None:
    expected = {
        "reverse": "saw, pear, plum", "first": "plum", "last": "saw", "count": "There are three words.",
        "bullets": "- plum\n- pear\n- saw", "join": "plum, pear and saw.",
        "rest": "pear, saw", "ends": "plum and saw",
    }  # fmt: skip
    assert instructions.OPERATIONS[operation](["plum", "pear", "saw"]) == expected[operation]


def test_calculations_in_maths_are_right() -> None:
    for task in itertools.islice(world.maths_stream("check"), 2000):
        answer = task.outputs[0]
        steps = re.findall(r"<<(\d+)([+*-])(\d+)=(\d+)>>(\d+)", answer)
        assert steps
        for a, sign, b, result, shown in steps:
            value = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
            assert value == int(result) == int(shown)
            assert value >= 0
        assert answer.endswith(f"\n#### {steps[-1][3]}")


def test_functions_pass_their_own_tests_and_fail_those_of_others() -> None:
    functions = python.functions()
    assert len({function.name for function in functions}) == len(functions)
    for function in functions:
        scope: dict[str, object] = {}
        exec(function.signature + function.body, scope)
        for line in function.asserts:
            exec(line, scope)
        row = function.humaneval(0)
        exec(row["prompt"] + row["canonical_solution"] + row["test"], scope)
        exec(f"check({function.name})", scope)


def test_text_has_line_breaks_and_letters_outside_ascii() -> None:
    answers = [task.outputs[0] for tasks in files.suites().values() for task in tasks]
    assert sum("\n" in answer for answer in answers) > 100
    assert sum(not answer.isascii() for answer in answers) > 100
