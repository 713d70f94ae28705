"""What the teacher writes for SeqKD: one answer or several, seeded, kept, and said in the record."""

from __future__ import annotations

from pathlib import Path

from dskd.method import create
from harness import methods
from harness.cell import Context, Walk
from harness.cells import Cell, Decoding, Training
from harness.estimate import History
from harness.examples import Example
from harness.pairs import PairSpec
from harness.store import Store

methods.load()
PROMPTS = [Example(str(n), f"Name item {n}.\n\n### Response:\n", "geese") for n in range(6)]
TRAINING = Training(examples=None, epochs=1, batch=2, micro_batch=2, lr=1e-3, max_length=96, max_prompt=48)
LIMITS = {"max_new_tokens": 12, "max_length": 96}


def cell(method: str) -> Cell:
    return Cell("small", "own", method, 1, "instructions", TRAINING, Decoding(**LIMITS), (), "own", ())


def written(folder: Path, teacher: Path, student: Path, method: str) -> list[Example]:
    pair = PairSpec("own", "small", str(teacher), str(student), True, "table1-same")
    context = Context(Store(folder / "results"), folder / "cache", pair, data=folder)
    walk = Walk(cell(method), context)
    return walk._teacher_written(PROMPTS, TRAINING, create(method).sampling)


def test_the_default_is_one_greedy_answer_under_its_old_key(tmp_path: Path) -> None:
    pair = PairSpec("own", "small", "t", "s", True, "table1-same")
    walk = Walk(cell("seqkd"), Context(Store(tmp_path), tmp_path, pair, data=tmp_path))
    found = walk._teacher_decoding(create("seqkd").sampling)
    assert repr(found) == repr(Decoding(temperature=0.0, seeds=(0,), **LIMITS))


def test_samples_are_seeded_and_each_is_an_example(
    tmp_path: Path, teacher_folder: Path, student_folder: Path
) -> None:
    one, two, again = (
        written(
            tmp_path / str(number), teacher_folder, student_folder, f"seqkd:samples={count}:temperature=1"
        )
        for number, count in enumerate((1, 2, 2))
    )
    assert [e.id for e in two] == [*"012345", *(f"{n}#2" for n in range(6))]
    assert [e.prompt for e in two] == [e.prompt for e in PROMPTS] * 2
    assert two == again
    assert two[:6] == one
    assert [e.response for e in two[:6]] != [e.response for e in two[6:]]
    greedy = written(tmp_path, teacher_folder, student_folder, "seqkd")
    assert [e.response for e in greedy] != [e.response for e in one]


def test_texts_are_written_once(tmp_path: Path, teacher_folder: Path, student_folder: Path) -> None:
    address = "seqkd:samples=2:temperature=1.0:top_p=0.9"
    first = written(tmp_path, teacher_folder, student_folder, address)
    (file,) = (tmp_path / "cache" / "teacher").glob("texts-*.jsonl")
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 12
    stamp = file.stat().st_mtime_ns
    assert written(tmp_path, teacher_folder, student_folder, address) == first
    assert file.stat().st_mtime_ns == stamp


def test_an_estimate_counts_the_samples() -> None:
    pair = PairSpec("own", "small", "t", "s", True, "table1-same")
    several, one = cell("seqkd:samples=4:temperature=1.0"), cell("seqkd")
    assert History().guess(several, pair) == 4 * History().guess(one, pair) > 0
    spent = {"train_seconds": 10, "decode_seconds": 2}
    record = {"status": "done", "cost": spent, "spec": cell("sft").as_dict()}
    assert History.of([record]).guess(several, pair) == 4 * 12
    assert History.of([record]).guess(one, pair) == 12
