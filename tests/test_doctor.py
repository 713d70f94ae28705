"""Every finding of the doctor, provoked; and how findings are shown, remembered and acted on."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import byte_level_tokenizer, save_llama
from test_store import CELL, make

from harness import cli, doctor, methods, plan, run, scales, sources
from harness.doctor import DoctorError, Finding, examination, machine, models, texts
from harness.folder import ModelFolder
from harness.plan import Plan, Request
from harness.store import Store

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "### Instruction:\n{}\n\n### Response:\n"
SUITES = ("dolly", "self-inst", "vicuna", "s-ni", "unni")


@pytest.fixture(autouse=True)
def _registry() -> None:
    methods.load()


def rows(count: int, response: str = "The miller keeps geese.") -> list[dict[str, Any]]:
    texts = [f"Name boat {n}." for n in range(count)]
    return [{"instruction": t, "prompt": PROMPT.format(t), "output": response} for t in texts]


def write(file: Path, content: Iterable[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    write(folder / "train.jsonl", rows(40))
    for suite in SUITES:
        write(folder / suite / "test.jsonl", rows(6))
    return folder


@pytest.fixture
def pair(student_folder: Path, teacher_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """(teacher, student), copies to be spoilt."""
    copies = tmp_path / "teacher", tmp_path / "student"
    for source, copy in zip((teacher_folder, student_folder), copies, strict=True):
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns(".*"))
    return copies


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None takes one out."""
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def request(pair: tuple[Path, Path], data: Path, **more: Any) -> Request:
    wanted: dict[str, Any] = {
        "scale": "small",
        "methods": ("sft", "kl"),
        "seeds": (1,),
        "budget": {"batch": 32},
    }
    wanted |= {"teacher": str(pair[0]), "student": str(pair[1]), "data": data, "cache": data.parent / "cache"}
    return Request(**{**wanted, **more})


def settings(folder: Path, **more: Any) -> run.Settings:
    return run.Settings(folder / "results", folder / "cache", **more)


def examined(
    pair: tuple[Path, Path],
    data: Path,
    *,
    glance: bool = False,
    how: dict[str, Any] | None = None,
    **more: Any,
) -> list[Finding]:
    asked = request(pair, data, **more)
    planned = plan.make(asked, Store(data.parent / "results"))
    return doctor.examine(planned, settings(data.parent, data=data, **(how or {})), 1, glance=glance)


def the(found: Iterable[Finding], words: str) -> Finding:
    """The one finding whose reason has these words."""
    hits = [finding for finding in found if words in finding.reason]
    assert len(hits) == 1, [str(finding) for finding in found]
    assert hits[0].remedy
    return hits[0]


def test_a_sound_pair_has_no_errors_and_every_finding_a_remedy(pair: tuple[Path, Path], data: Path) -> None:
    found = examined(pair, data)
    told = {finding.reason for finding in found if finding.severity != "note"}
    assert told == {"it is not the published file, so nothing made from it compares with published figures"}
    assert all(finding.reason and finding.remedy and finding.about for finding in found)


# models


Spoil = Callable[[Path], object]


def _resize(folder: Path, rows: int) -> None:
    """A model whose head has another number of rows than its tokenizer has ids."""
    tokenizer = byte_level_tokenizer()
    save_llama(folder, _Sized(tokenizer, rows))
    tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]


class _Sized:
    def __init__(self, tokenizer: Any, size: int) -> None:
        self.eos_token_id, self.size = tokenizer.eos_token_id, size

    def __len__(self) -> int:
        return self.size

    def save_pretrained(self, folder: Path) -> None:
        """The caller does."""


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def _halves(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({k: v.half() for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def _eights(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    eights = {k: v.to(torch.float8_e4m3fn) if "mlp" in k else v for k, v in weights.items()}
    save_file(eights, folder / "model.safetensors", {"format": "pt"})


MODEL_FINDINGS: list[tuple[Spoil, str, str]] = [
    (_pickled, "error", "its weights are pickles (pytorch_model.bin)"),
    (lambda f: (f / "model.safetensors").unlink(), "error", "no weights in safetensors format"),
    (_cut, "error", "its header says"),
    (lambda f: (f / "model.safetensors").write_bytes(b"{}"), "error", "no whole safetensors file"),
    (lambda f: edit(f / "config.json", architectures=["LlamaModel"]), "error", "no causal language model"),
    (lambda f: edit(f / "config.json", architectures=7), "error", "cannot be understood"),
    (
        lambda f: edit(f / "config.json", auto_map={"AutoModel": "own.Model"}, model_type="my-own"),
        *("error", "Python code that its folder brings"),
    ),
    (lambda f: edit(f / "config.json", quantization_config={"bits": 4}), "error", "quantized"),
    (lambda f: (f / "tokenizer.json").write_text("{"), "error", "tokenizer.json cannot be read"),
    (lambda f: edit(f / "tokenizer_config.json", eos_token=None), "error", "no EOS token"),
    (lambda f: edit(f / "tokenizer_config.json", eos_token="</nowhere>"), "error", "not in its vocabulary"),
    (lambda f: edit(f / "config.json", eos_token_id=7), "warning", "ends texts with id 7"),
    (lambda f: _resize(f, 300), "error", "the tokenizer has ids up to"),
    (lambda f: _resize(f, 512), "note", "have no token"),
    (_halves, "warning", "its weights are fp16"),
    (_eights, "error", "some of its weights are 8 bit numbers"),
    (lambda f: (f / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n"), "warning", "cc-by-nc-4.0"),
    (lambda f: (f / "README.md").write_text("---\nlicense: mit\n---\n"), "note", "licence is mit"),
]


@pytest.mark.parametrize(
    ("spoil", "severity", "words"), MODEL_FINDINGS, ids=[words for *_, words in MODEL_FINDINGS]
)
def test_findings_about_a_model(
    pair: tuple[Path, Path], data: Path, spoil: Spoil, severity: str, words: str
) -> None:
    assert not [finding for finding in examined(pair, data) if words in finding.reason]
    spoil(pair[0])
    found = the(examined(pair, data), words)
    assert (found.severity, found.about) == (severity, str(pair[0]))
    if severity == "error":
        planned = plan.make(request(pair, data), Store(data.parent / "results"))
        errors = examined(pair, data, glance=True)
        with pytest.raises(DoctorError, match=re.escape(words)):
            doctor.triage(planned, errors)


def test_padding_that_is_eos_and_unknown_licences_are_noted(pair: tuple[Path, Path], data: Path) -> None:
    found = [finding for finding in examined(pair, data) if finding.about == str(pair[1])]
    assert the(found, "padding and EOS are one token ('<|endoftext|>')").severity == "note"
    assert the(found, "no licence is stated").severity == "note"
    edit(pair[1] / "tokenizer_config.json", pad_token="a")
    found = [finding for finding in examined(pair, data) if finding.about == str(pair[1])]
    assert not [finding for finding in found if "padding" in finding.reason]


def test_remote_code_is_allowed_by_its_flag_only(pair: tuple[Path, Path], data: Path) -> None:
    edit(pair[0] / "config.json", auto_map={"AutoModel": "own.Model"}, model_type="my-own")
    assert the(examined(pair, data), "Python code").severity == "error"
    found = examined(pair, data, how={"trust_remote_code": True})
    assert the(found, "Python files of its folder will be run").severity == "warning"
    edit(pair[0] / "config.json", model_type="llama")  # transformers' own class is taken, so no code is run
    assert not [finding for finding in examined(pair, data) if "Python" in finding.reason]


def test_a_tokenizer_in_another_format_is_noted(pair: tuple[Path, Path], data: Path) -> None:
    (pair[0] / "tokenizer.json").unlink()
    assert the(examined(pair, data), "cannot be counted without loading").severity == "note"


TEMPLATE = "{{ messages[0].content }}"


def test_chat_templates_missing_or_different(pair: tuple[Path, Path], data: Path) -> None:
    assert the(examined(pair, data), "neither model has a chat template").severity == "note"
    edit(pair[0] / "tokenizer_config.json", chat_template=TEMPLATE)
    assert the(examined(pair, data), "only the teacher has a chat template").severity == "warning"
    (pair[1] / "chat_template.jinja").write_text(TEMPLATE)
    assert the(examined(pair, data), "the same chat template").severity == "note"
    (pair[1] / "chat_template.jinja").write_text(TEMPLATE + "!")
    assert the(examined(pair, data), "different chat templates").severity == "warning"


def test_a_student_larger_than_its_teacher(pair: tuple[Path, Path], data: Path) -> None:
    found = the(examined((pair[1], pair[0]), data), "parameters, the teacher")
    assert found.severity == "error"
    assert "exchange" in found.remedy
    assert not [f for f in examined((pair[0], pair[0]), data) if "parameters, the teacher" in f.reason]


def test_a_pair_that_is_not_what_it_was_declared_to_be(pair: tuple[Path, Path]) -> None:
    made = [models.Model(folder.name, ModelFolder(folder), None, frozenset("a")) for folder in pair]
    assert not [f for f in models.check_pair(*made, own=True, declared=True) if f.severity == "error"]
    content = json.loads((pair[1] / "tokenizer.json").read_text())
    content["model"]["vocab"] = dict(zip(content["model"]["vocab"], range(400, 0, -1), strict=False))
    (pair[1] / "tokenizer.json").write_text(json.dumps(content))
    made = [models.Model(folder.name, ModelFolder(folder), None, frozenset("a")) for folder in pair]
    assert the(models.check_pair(*made, own=True, declared=True), "share one vocabulary").severity == "error"


# texts


def test_prompts_and_responses_that_do_not_fit_are_counted(pair: tuple[Path, Path], data: Path) -> None:
    """The student's window is 256: prompts may take 128 tokens, all 256; of letters there is one a token."""
    long_prompt = {"prompt": "q" * 200 + PROMPT.format("a"), "output": "yes"}
    longer_prompt = {"prompt": "q" * 300 + PROMPT.format("a"), "output": "yes"}
    long_answer = {"prompt": PROMPT.format("a"), "output": "z" * 300}
    write(data / "train.jsonl", [*rows(7), long_prompt, longer_prompt, long_answer])
    found = [f for f in examined(pair, data) if f.about == f"{data / 'train.jsonl'} as {pair[1]} reads it"]
    said = the(found, "lose their beginning")
    assert said.severity == "warning"
    assert said.reason.startswith("2 of 10 training prompts have more than 128 tokens")
    assert "(1 are longer than the window of 256)" in said.reason
    cut = the(found, "teach no EOS")
    assert (cut.severity, cut.reason[:10]) == ("warning", "1 of 10 tr")


def test_training_text_without_any_eos_is_an_error(pair: tuple[Path, Path], data: Path) -> None:
    write(data / "train.jsonl", rows(5, "z" * 300))
    found = [f for f in examined(pair, data) if f.about.endswith(f"{pair[1]} reads it")]
    assert the(found, "none of 5 training responses keeps its EOS").severity == "error"


def test_eos_inside_a_text_and_empty_responses(pair: tuple[Path, Path], data: Path) -> None:
    write(data / "train.jsonl", [*rows(3), *rows(2, "yes<|endoftext|>no"), *rows(1, " ")])
    found = [f for f in examined(pair, data) if f.about.endswith(f"{pair[1]} reads it")]
    assert the(found, "2 of 6 training texts hold '<|endoftext|>'").severity == "warning"
    assert the(found, "1 of 6 training responses are empty").severity == "warning"


def test_suite_prompts_that_do_not_fit(pair: tuple[Path, Path], data: Path) -> None:
    long = {"instruction": "x", "prompt": "q" * 200 + PROMPT.format("a"), "output": "yes"}
    write(data / "dolly" / "test.jsonl", [*rows(3), long])
    found = [f for f in examined(pair, data) if f.about == f"suite dolly as {pair[1]} reads it"]
    assert the(found, "1 of 4 prompts have more than 128 tokens").severity == "warning"
    found = [
        f for f in examined(pair, data, budget={"new_tokens": 200}) if f.about.startswith("suite dolly as")
    ]
    assert {f.severity for f in found if "leave less than 200 tokens" in f.reason} == {"note"}


def test_fewer_examples_than_asked_for(pair: tuple[Path, Path], data: Path) -> None:
    found = the(examined(pair, data, budget={"examples": 50}), "50 examples are asked for, the file has 40")
    assert found.severity == "warning"


def test_a_glance_counts_some_texts_only(
    pair: tuple[Path, Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "GLANCE", 10)
    write(data / "train.jsonl", [*rows(10, "yes<|endoftext|>no"), *rows(10)])
    quick = [f for f in examined(pair, data, glance=True) if "texts hold" in f.reason]
    assert {f.reason[:32] for f in quick} == {"10 of the first 10 training text"}
    whole = [f for f in examined(pair, data) if "texts hold" in f.reason]
    assert {f.reason[:16] for f in whole} == {"10 of 20 trainin"}


@pytest.mark.parametrize("name", ["train", "dolly/test"])
def test_files_that_cannot_be_used(pair: tuple[Path, Path], data: Path, name: str) -> None:
    file = data / f"{name}.jsonl"
    file.write_bytes(file.read_bytes() + b"[1]\n")
    found = the(examined(pair, data), f"{file.name}:{len(file.read_bytes().splitlines())}: ")
    assert (found.severity, found.remedy) == ("error", "correct the file")


def test_a_file_is_the_published_one_or_it_is_not(pair: tuple[Path, Path], data: Path) -> None:
    (file,) = sources.data_files(["dolly/test"], data.parent / "cache", data)
    exact, other = dataclasses.replace(file, state="exact"), dataclasses.replace(file, state="re-sampled")
    for known, severity, words in (
        (exact, "note", "it is the published file"),
        (other, "warning", "it is not the published file"),
    ):
        assert the(texts.check_ledger(known, True, frozenset()), words).severity == severity
    assert (
        the(texts.check_ledger(other, False, frozenset()), "no hash of a published file").severity == "note"
    )


def test_files_against_the_ledger(pair: tuple[Path, Path], data: Path, shared_data: Path) -> None:
    def about(found: list[Finding], name: str) -> list[Finding]:
        return [finding for finding in found if finding.about.startswith(f"{name} (SHA-256")]

    found = examined(pair, data)
    assert the(about(found, "dolly/test"), "not the published file").severity == "warning"
    assert the(about(found, "unni/test"), "no hash of a published file").severity == "note"
    shutil.copy(shared_data / "dolly" / "test.jsonl", data / "dolly" / "test.jsonl")
    assert the(about(examined(pair, data), "dolly/test"), "it is the published file").severity == "note"


@pytest.mark.parametrize(
    ("licence", "severity"),
    [
        ("CC BY-NC 4.0 (non-commercial)", "warning"),
        ("MIT", "note"),
        (None, "note"),
        ("Llama 2, gated", "warning"),
    ],
)
def test_licences(licence: str | None, severity: str) -> None:
    (found,) = models.licence("x", licence, frozenset())
    assert found.severity == severity
    assert (licence or "no licence") in found.reason


# settings


def test_the_batch_against_the_published_one(pair: tuple[Path, Path], data: Path) -> None:
    found = the(examined(pair, data, budget={"batch": 16}), "the global batch is 16, the published one 32")
    assert found.severity == "warning"
    assert "--budget batch=32 restores it by accumulation over 8 micro-batches" in found.remedy
    given = scales.parse_overrides("batch=32")
    assert not [f for f in examined(pair, data, budget=given) if "global batch" in f.reason]


def test_slow_number_formats(pair: tuple[Path, Path], data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: ())
    monkeypatch.setattr(machine, "_flags", lambda: {"avx512_bf16"})
    assert not [f for f in examined(pair, data) if "bf16" in f.reason]
    monkeypatch.setattr(machine, "_flags", lambda: {"avx2"})
    assert the(examined(pair, data), "no instructions for bf16").severity == "warning"


# machine


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("free", "said"),
    [
        (1 << 40, {("--results", "note"), ("--cache", "note")}),
        (1_000_000, {("--results", "error"), ("--cache", "note")}),
        (2_000_000, {("--results", "warning"), ("--cache", "note")}),
        (10_000, {("--results", "error"), ("--cache", "warning")}),
    ],
)
def test_disk(
    pair: tuple[Path, Path],
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    said: set[tuple[str, str]],
) -> None:
    """Checkpoints take 32 bytes a number of the student; the states some tokens x 64 x 2."""
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: Usage(1, 1, free))
    parameters = ModelFolder(pair[1]).parameters
    needed = 32 * parameters
    assert 1_000_000 < needed < 2_000_000 < 2 * needed, needed
    found = [f for f in examined(pair, data) if "are free" in f.reason or "free;" in f.reason]
    assert {(f.about.split()[0], f.severity) for f in found if f.about != "memory"} == said


def test_memory(pair: tuple[Path, Path], data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: 64 << 30)
    assert the(examined(pair, data), "side by side need about").severity == "note"
    monkeypatch.setattr(machine, "memory_bytes", lambda: 1 << 20)
    found = the(examined(pair, data), "side by side need about")
    assert (found.severity, found.remedy) == ("warning", "run fewer side by side: --jobs 1")


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    where = run.Settings(tmp_path / "file" / "results", tmp_path / "new" / "cache")
    (found,) = machine.writable(where)
    assert (found.severity, found.about.split()[0]) == ("error", "--results")
    assert "is a file" in found.reason
    assert {path.name for path in tmp_path.iterdir()} == {"file"}  # nothing was made to find out
    if Path("/proc/self").exists():
        assert "cannot be written" in machine.unwritable(Path("/proc/self/results"))


@pytest.mark.parametrize(
    ("level", "allowed", "severity"),
    [
        ("namespaces", False, "note"),
        ("rlimits", False, "error"),
        ("rlimits", True, "warning"),
        ("none", True, "error"),
    ],
)
def test_the_level_of_the_sandbox(
    monkeypatch: pytest.MonkeyPatch, level: str, allowed: bool, severity: str
) -> None:
    monkeypatch.setattr(machine.sandbox, "level", lambda: level)
    (found,) = machine.code_level(frozenset("a"), allowed)
    assert found.severity == severity
    assert level in found.reason or level == "none"


def test_the_sandbox_is_asked_for_where_code_is_scored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine.sandbox, "level", lambda: "rlimits")
    for table, errors in (("code", 1), ("math", 0)):
        asked = Request("tiny", tables=(table,), methods=("sft",), seeds=(1,), cache=tmp_path)
        planned = plan.make(asked, Store(tmp_path))
        found = doctor.examine(planned, settings(tmp_path), 1, glance=True)
        assert sum(f.severity == "error" for f in found) == errors


def test_the_machine_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    path = store.put(make())
    found = doctor.survey(settings(tmp_path))
    assert the(found, "1 records, all whole").severity == "note"
    assert the(found, "0 of 6 tiny models are built").severity == "note"
    assert the(found, "cores").severity == "note"
    path.write_text(path.read_text().replace("rougeL", "rougeM"))
    found = doctor.survey(settings(tmp_path))
    assert the(found, "checksum differs").severity == "error"
    assert CELL.id in the(found, "checksum differs").reason


# what is done with findings


def test_cells_with_an_error_are_refused_and_others_run(tmp_path: Path) -> None:
    asked = Request("tiny", tables=("2",), methods=("sft", "kl"), pairs=("same",), seeds=(1,), cache=tmp_path)
    planned: Plan = plan.make(asked, Store(tmp_path))
    (kl,) = (step for step in planned.steps if step.cell.method == "kl")
    doctor.triage(planned, [Finding("error", "the teacher", "it is ill", "wait", frozenset({kl.cell.id}))])
    assert [(step.cell.method, step.state) for step in planned.steps] == [("sft", "run"), ("kl", "refused")]
    assert kl.reason == "the teacher: it is ill; wait"
    with pytest.raises(DoctorError, match="ill"):
        doctor.triage(planned, [Finding("error", "all", "is ill", "wait")])


def test_a_warning_is_said_once_in_a_results_folder(tmp_path: Path) -> None:
    first = Finding("warning", "a", "b", "c")
    assert doctor.said_first([first, Finding("note", "x", "y", "z")], tmp_path) == [first]
    error, second = Finding("error", "a", "b", "c"), Finding("warning", "a", "b", "other")
    assert doctor.said_first([error, first, second], tmp_path) == [error, second]
    assert doctor.said_first([error, first, second], tmp_path) == [error]
    (tmp_path / "work" / "doctor.json").write_text("{")
    assert doctor.said_first([first], tmp_path) == [first]


def test_equal_findings_are_one_with_the_cells_of_all() -> None:
    found = [Finding("note", "a", "b", "c", frozenset({cell})) for cell in "xyx"]
    (one,) = examination._merged([*found])
    assert one == dataclasses.replace(found[0], cells=frozenset("xy"))


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "reproduce.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)


def test_the_command(pair: tuple[Path, Path], data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--doctor", "--results", str(data.parent / "r"), "--cache", str(data.parent / "c")]
    own = ["--teacher", str(pair[0]), "--student", str(pair[1]), "--methods", "kl", "--data", str(data)]
    done = call(*common, *own)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith("0 errors, ")
    assert not (data.parent / "r").exists()
    _pickled(pair[1])
    done = call(*common, *own)
    assert done.returncode == 1
    assert done.stdout.startswith(f"error: {pair[1]}\n  its weights are pickles")
    assert cli.main([*common, "--table", "2"]) == 0
    assert "tiny/sp-same" in capsys.readouterr().out
    assert cli.main([*common, "--table", "1", "--scale", "paper"]) == 1
    assert "needs GPUs" in capsys.readouterr().out
    assert cli.main(common) == 0


def test_a_look_loads_no_torch(pair: tuple[Path, Path], data: Path) -> None:
    code = (
        "import sys\nfrom harness.cli import main\n"
        f"main(['--doctor', '--teacher', {str(pair[0])!r}, '--student', {str(pair[1])!r},"
        f" '--methods', 'sft,kl', '--data', {str(data)!r}, '--results', {str(data.parent / 'r')!r}])\n"
        "heavy = [name for name in ('torch', 'transformers', 'datasets') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
