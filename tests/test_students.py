"""Saved students: the record's own weights, kept or trained again, in a folder that transformers loads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import cli, run, students
from harness.cells import Cell
from harness.store import Store, checksum

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def options(
    student_folder: Path, teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """A maths run on a pair of the user's own; ``--results`` is still to be added."""
    data = tmp_path_factory.mktemp("data")
    rows = [{"question": f"How many are {n}?", "answer": f"There are {n}.\n#### {n}"} for n in range(20)]
    for name in ("train", "test"):
        file = data / "gsm8k" / f"{name}.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    cache = tmp_path_factory.mktemp("cache")
    return ["--data", str(data), "--cache", str(cache), "--jobs", "1"]


@pytest.fixture(scope="module")
def results(
    options: list[str], student_folder: Path, teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Results of that run with its student kept."""
    folder = tmp_path_factory.mktemp("results")
    pair = ["--teacher", str(teacher_folder), "--student", str(student_folder)]
    what = ["--table", "math", "--methods", "kl", "--seeds", "1", "--keep-students"]
    budget = ["--budget", "examples=12,epochs=6,batch=4,lr=3e-3,new_tokens=12"]
    done = call(*pair, *what, *budget, *options, "--results", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "reproduce.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, env=environment)


def trained(results: Path) -> dict[str, Any]:
    (record,) = [record for record in Store(results).all() if record["training"]]
    return record


def test_a_kept_student_carries_its_record_and_loads(results: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    record = trained(results)
    folder = students.kept(results, record["cell"])
    assert json.loads((folder / "record.json").read_text()) == record
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert str(model.dtype) == "torch.bfloat16"  # as it was scored
    tokenizer = AutoTokenizer.from_pretrained(folder)
    generation = GenerationConfig.from_pretrained(folder)
    assert not generation.do_sample
    assert generation.eos_token_id == tokenizer.eos_token_id
    assert generation.suppress_tokens is None
    settings = yaml.safe_load((folder / "lm_eval.yaml").read_text())
    assert settings["tasks"] == ["dskd_gsm8k"]
    assert settings["gen_kwargs"] == {"max_gen_toks": 12}
    assert settings["model_args"]["max_length"] == 128 + 12  # half of the model's window, and the answer
    card = (folder / "README.md").read_text()
    score = record["scores"]["gsm8k"]["seeds"]["10"]["all"]["flexible-extract"]
    assert f"| GSM8K | flexible-extract | {score:.2f} | 20 |" in card
    assert "16 of 16 answers to gsm8k, a whole batch, as in the record" in card
    assert str(ROOT) not in card.partition("## Record")[0]
    assert not list((results / "work").glob(f"{record['cell']}/*"))


def test_a_student_that_cannot_be_kept_does_not_cost_its_record(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise students.StudentError("other answers")

    monkeypatch.setattr(students, "keep", refuse)
    record = trained(results)
    settings = run.Settings(tmp_path, tmp_path, keep_students=True)
    body = {key: value for key, value in record.items() if key != "sha256"}
    said = run.put(Cell.from_dict(record["spec"]), body, settings, lambda *_: None)
    assert said == "its student was not saved: other answers"
    assert Store(tmp_path).get(record["cell"]) == record


def test_a_student_trained_again_is_the_kept_one(results: Path, options: list[str], tmp_path: Path) -> None:
    record = trained(results)
    kept = students.kept(results, record["cell"])
    again = tmp_path / "results"
    shutil.copytree(results, again, ignore=shutil.ignore_patterns("students"))
    output = tmp_path / "student"
    done = call("--save-student", record["cell"], "--output", str(output), "--results", str(again), *options)
    assert done.returncode == 0, done.stderr
    assert "16 of 16 answers to gsm8k, a whole batch, as in the record" in done.stdout
    names = sorted(path.relative_to(kept) for path in kept.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(output) for path in output.rglob("*") if path.is_file())
    assert all((output / name).read_bytes() == (kept / name).read_bytes() for name in names)
    assert not (again / "work" / record["cell"]).exists()


def test_a_kept_student_is_copied(results: Path, options: list[str], tmp_path: Path) -> None:
    cell = trained(results)["cell"]
    arguments = ["--save-student", cell, "--output", str(tmp_path / "copy"), "--results", str(results)]
    assert cli.main([*arguments, *options]) == 0
    weights = (tmp_path / "copy" / "model.safetensors").read_bytes()
    assert weights == (students.kept(results, cell) / "model.safetensors").read_bytes()
    assert cli.main([*arguments, *options]) == 2  # it is there


def test_another_student_than_the_records_is_not_saved(
    results: Path, options: list[str], tmp_path: Path
) -> None:
    record = trained(results)
    record["training"]["curve"][3][1]["ce"] += 1e-6
    record["sha256"] = checksum(record)
    file = tmp_path / "results" / "records" / "small" / f"{record['cell']}.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(record))
    output = tmp_path / "student"
    where = ["--output", str(output), "--results", str(tmp_path / "results")]
    done = call("--save-student", record["cell"], *where, *options)
    assert done.returncode == 1
    assert f"losses differ from step {record['training']['curve'][3][0]} on" in done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "results"]


def test_what_cannot_be_saved_is_said_before_any_work(
    results: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str) -> str:
        assert cli.main([*arguments, "--results", str(results)]) == 2
        return capsys.readouterr().err

    cell = trained(results)["cell"]
    untrained = next(record["cell"] for record in Store(results).all() if not record["training"])
    assert "has no record" in said("--save-student", "0" * 16, *options)
    assert "no cell id" in said("--save-student", "x", *options)
    assert "trained nothing" in said("--save-student", untrained, *options)
    assert "is there already" in said("--save-student", cell, *options)
    assert "belongs to --save-student" in said("--table", "math", "--output", str(tmp_path), *options)
    kept = students.kept(results, cell)
    kept.rename(kept.with_name("aside"))
    try:
        other = tmp_path / "gsm8k" / "test.jsonl"
        other.parent.mkdir()
        other.write_text('{"question": "1?", "answer": "#### 1"}\n')
        shutil.copy(other, other.with_name("train.jsonl"))
        moved = ["--data", str(tmp_path), *options[2:]]
        assert "not as they were: file gsm8k/test, file gsm8k/train" in said("--save-student", cell, *moved)
    finally:
        kept.with_name("aside").rename(kept)


@pytest.mark.slow
def test_llama_cpp_converts_a_saved_model(tmp_path: Path) -> None:
    """There and back; the converter is in no package of its own, so LLAMA_CPP names a checkout."""
    from safetensors.torch import load_file

    from harness import run, sources

    converter = Path(os.environ.get("LLAMA_CPP", "nowhere")) / "convert_hf_to_gguf.py"
    found = sources.resolve("small:smollm2-10l", run.default_cache())
    if not converter.is_file() or found.path is None:
        pytest.skip("needs LLAMA_CPP, a checkout of llama.cpp, and --fetch small:smollm2-10l")
    file = tmp_path / "model.gguf"
    command = [sys.executable, str(converter), str(found.path), "--outfile", str(file), "--outtype", "bf16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert cli.main(["--fetch", str(file), "--cache", str(tmp_path)]) == 0
    back = sources.resolve(str(file), tmp_path)
    assert back.path is not None
    before, after = (load_file(folder / "model.safetensors") for folder in (found.path, back.path))
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["tiny/code-same", "tiny/maths-same"])
def test_a_committed_record_its_student_and_stock_lm_eval_agree(pair: str, tmp_path: Path) -> None:
    """Minutes, where the tiny models are still to be built."""
    from test_lm_tasks import lm_eval

    committed = Store(ROOT / "results")
    specs = {(r["spec"]["pair"], r["spec"]["method"], r["spec"]["seed"]): r for r in committed.all("tiny")}
    record = specs[pair, "sft", 1]
    output = tmp_path / "student"
    (tmp_path / "results").mkdir()
    for part in ("records", "generations"):
        shutil.copytree(ROOT / "results" / part / "tiny", tmp_path / "results" / part / "tiny")
    where = ["--output", str(output), "--results", str(tmp_path / "results")]
    done = call("--save-student", record["cell"], *where)
    assert done.returncode == 0, done.stderr
    results, answers = lm_eval(output)
    for name, scores in record["scores"].items():
        (told,) = scores["seeds"].values()
        rows = committed.read_generations(told["generations"])
        assert answers[f"dskd_{name}"] == [row["text"] for row in rows]
        theirs = results[f"dskd_{name}"]
        for metric, value in told["all"].items():
            key = "pass@1,run" if metric == "pass@1" else f"exact_match,{metric}"
            assert theirs[key] == pytest.approx(value / 100)
            assert 0 < value < 100
