"""Wrong input, each kind of it: one clear line, exit 2, before any long work, and nothing partial left."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command import reproduce
from test_doctor import SUITES, edit, rows, write

from harness import cli, commands, tables

ROOT = Path(__file__).resolve().parents[1]


class Place:
    """A sound own pair with sound data, to be spoilt in one point."""

    def __init__(self, folder: Path, teacher: Path, student: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        self.teacher, self.student = folder / "teacher", folder / "student"
        for source, copy in ((teacher, self.teacher), (student, self.student)):
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns(".*"))
        write(self.data / "train.jsonl", rows(8))
        for suite in SUITES:
            write(self.data / suite / "test.jsonl", rows(4))
        self.more: list[str] = []
        self.results, self.cache = folder / "results", folder / "cache"

    @property
    def train(self) -> Path:
        return self.data / "train.jsonl"

    @property
    def suite(self) -> Path:
        return self.data / "dolly" / "test.jsonl"

    @property
    def arguments(self) -> list[str]:
        own = ["--teacher", str(self.teacher), "--student", str(self.student), "--data", str(self.data)]
        given = [*own, "--results", str(self.results), "--cache", str(self.cache), *self.more]
        return given if "--methods" in self.more else [*given, "--methods", "kl"]


@pytest.fixture
def place(tmp_path: Path, student_folder: Path, teacher_folder: Path) -> Place:
    return Place(tmp_path, teacher_folder, student_folder)


def add(*arguments: str) -> Callable[[Place], None]:
    return lambda place: place.more.extend(arguments)


def put(**where: str) -> Callable[[Place], None]:
    return lambda place: [setattr(place, name, place.folder / path) for name, path in where.items()] and None


def line(which: str, text: str | bytes, *, first: bool = False) -> Callable[[Place], None]:
    """Put a line into a file, as its last or its first."""

    def spoil(place: Place) -> None:
        file: Path = getattr(place, which)
        raw = text.encode() if isinstance(text, str) else text
        file.write_bytes(raw + b"\n" + file.read_bytes() if first else file.read_bytes() + raw + b"\n")

    return spoil


def whole(which: str, content: bytes) -> Callable[[Place], None]:
    return lambda place: getattr(place, which).write_bytes(content) and None


def utf16(which: str) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        file: Path = getattr(place, which)
        file.write_text(file.read_text(), encoding="utf-16")

    return spoil


def twice(which: str) -> Callable[[Place], None]:
    return lambda place: write(getattr(place, which), [{**row, "id": 7} for row in rows(3)])


def gone(which: str) -> Callable[[Place], None]:
    return lambda place: getattr(place, which).unlink()


def no_suites(place: Place) -> None:
    for suite in SUITES:
        shutil.rmtree(place.data / suite)


def unknown_suite(place: Place) -> None:
    text = (tables.TABLES / "1.yaml").read_text(encoding="utf-8").replace("s-ni", "s-no")
    (place.folder / "tables").mkdir()
    (place.folder / "tables" / "9.yaml").write_text(text, encoding="utf-8")
    place.more += ["--table", "9"]


def no_eos(place: Place) -> None:
    edit(place.student / "tokenizer_config.json", eos_token=None)


def headless(place: Place) -> None:
    edit(place.teacher / "config.json", architectures=["LlamaModel"])


def exchanged(place: Place) -> None:
    place.teacher, place.student = place.student, place.teacher


def pickled(place: Place) -> None:
    (place.student / "model.safetensors").rename(place.student / "pytorch_model.bin")


def own_code(place: Place) -> None:
    edit(place.teacher / "config.json", auto_map={"AutoModel": "own.Model"}, model_type="own")
    (place.teacher / "own.py").write_text("raise SystemExit(7)")


def results_are_a_file(place: Place) -> None:
    (place.folder / "results").write_text("")


def cache_is_a_file(place: Place) -> None:
    (place.folder / "cache").write_text("")


def read_only_results(place: Place) -> None:
    place.results = Path("/proc/dskd")


LONG = '{"prompt": "' + "x" * (10 << 20) + '", "output": "y"}'
WRONG: dict[str, tuple[Callable[[Place], object], str]] = {
    "no such teacher": (put(teacher="nowhere"), "nowhere is not here; it is no folder"),
    "no such models": (put(teacher="x", student="x"), "x is not here; it is no folder"),
    "a hub name that is not here": (lambda p: setattr(p, "teacher", "org/name"), "--fetch org/name"),
    "a misspelt small model": (
        lambda p: setattr(p, "teacher", "small:smollm2-136m"),
        "did you mean smollm2-135m",
    ),
    "a folder that is no model": (put(student="data"), "has no config.json"),
    "no such data folder": (put(data="nowhere"), "is no folder"),
    "no training file": (gone("train"), "dolly/dev is not here"),
    "no suites": (no_suites, "none of its suites is here"),
    "an empty training file": (whole("train", b""), "train.jsonl: no examples"),
    "a blank training file": (whole("train", b"\n\n \n"), "train.jsonl: no examples"),
    "an empty suite": (whole("suite", b""), "no items for suite dolly"),
    "wrong columns": (
        line("train", '{"prompt": "x", "answer": "y"}'),
        "train.jsonl:9: needs 'prompt' and 'output'",
    ),
    "wrong columns first": (line("train", '{"a": 1}', first=True), "train.jsonl:1: needs 'prompt'"),
    "wrong columns of a suite": (line("suite", '{"question": "x"}'), "test.jsonl:5: column 'output' must be"),
    "wrong types": (
        line("train", '{"prompt": 3, "output": "y"}'),
        "train.jsonl:9: prompt and response must be text",
    ),
    "wrong types of a suite": (
        line("suite", '{"prompt": "x", "output": 3}'),
        "test.jsonl:5: column 'output'",
    ),
    "a list instead of an object": (
        line("train", "[1, 2]"),
        "train.jsonl:9: a JSON object is needed, not list",
    ),
    "no JSON": (line("train", "{prompt: x}"), "train.jsonl:9: not JSON"),
    "nested a million deep": (line("train", "[" * 500_000), "train.jsonl:9: not JSON"),
    "UTF-16": (utf16("train"), "train.jsonl:1: this is UTF-16; save the file as UTF-8"),
    "a suite in UTF-16": (utf16("suite"), "test.jsonl:1: this is UTF-16"),
    "latin-1": (line("train", b'{"prompt": "\xe9", "output": "y"}'), "train.jsonl:9: not UTF-8"),
    "a line of 10 MB": (line("train", LONG), "train.jsonl:9: the line is longer than 1 MB"),
    "a line of 10 MB in a suite": (line("suite", LONG), "test.jsonl:5: the line is longer than 1 MB"),
    "ids twice": (twice("train"), "train.jsonl:2: id '7' is already that of line 1"),
    "ids twice in a suite": (twice("suite"), "id 'dolly/7' is already that of line 1"),
    "a blank prompt": (line("train", '{"prompt": " ", "output": "y"}'), "train.jsonl:9: the prompt is blank"),
    "an unknown suite": (unknown_suite, "no suite 's-no'; did you mean s-ni"),
    "an unknown table": (add("--table", "../../etc/passwd"), "there is no table"),
    "a student larger than its teacher": (exchanged, "parameters, the teacher"),
    "a teacher without a head": (headless, "no causal language model with an output head"),
    "a tokenizer without EOS": (no_eos, "has no EOS token"),
    "pickled weights": (pickled, "its weights are pickles (pytorch_model.bin)"),
    "code in the model folder": (own_code, "--trust-remote-code"),
    "cut weights": (lambda p: (p.student / "model.safetensors").write_bytes(b"abc"), "no whole safetensors"),
    "a negative rate": (add("--budget", "lr=-1"), "lr must be more than zero"),
    "a rate that is no number": (add("--budget", "lr=nan"), "lr must be more than zero"),
    "no examples asked for": (add("--budget", "examples=0"), "examples must be more than zero"),
    "half an epoch": (add("--budget", "epochs=0.5"), "epochs is a number"),
    "zero seeds": (add("--seeds", "0"), "seeds"),
    "a negative seed": (add("--seeds=-3,1"), "seeds"),
    "zero jobs": (add("--jobs", "0"), "1 or more"),
    "an unknown method": (add("--methods", "kll"), "did you mean"),
    "an unknown divergence": (add("--methods", "dskd-v2/kll"), "kll"),
    "an unknown export": (add("--export", "pdf"), "pdf"),
    "a plugin that is none": (add("--plugin", "/nowhere.py"), "no Python file"),
    "results that are a file": (results_are_a_file, "is a file, so no folder can be made there"),
    "results where nothing can be written": (read_only_results, "/proc cannot be written"),
    "a cache that is a file": (cache_is_a_file, "is a file"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_input_is_one_line_and_exit_2_and_leaves_nothing(
    place: Place, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, says = WRONG[kind]
    spoil(place)
    if (place.folder / "tables").exists():
        monkeypatch.setattr(tables, "TABLES", place.folder / "tables")
    monkeypatch.setattr(commands, "execute", lambda *_: pytest.fail("work was begun"))
    before = sorted(place.folder.rglob("*"))
    code, out, err = reproduce(capsys, *place.arguments)
    assert code == 2, err
    assert out == ""
    (told,) = err.splitlines()
    assert says in told
    assert len(told) < 600
    assert sorted(place.folder.rglob("*")) == before


def test_the_sound_input_that_these_are_spoilt_from_is_taken(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "execute", lambda *_: {})
    assert cli.main(place.arguments) == 0
    assert "to run" in capsys.readouterr().err


def test_it_is_said_at_once_and_without_torch(place: Place) -> None:
    """A real process, and one of the latest checks: nothing heavy was loaded by then."""
    no_eos(place)
    code = (
        "import sys\nfrom harness.cli import main\n"
        f"code = main({place.arguments!r})\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\nsys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("title: !!python/object/apply:os.system ['touch {marker}']\n", "could not determine a constructor"),
        ("title: [\n", "expected"),
        ("- a\n", "not a mapping"),
        ("title: a\ntitle: b\n", "occurs twice"),
        ("\x00", "characters"),
    ],
)
def test_a_table_file_is_data_and_runs_nothing(
    tmp_path: Path,
    content: str,
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "9.yaml").write_text(content.replace("{marker}", str(marker)))
    monkeypatch.setattr(tables, "TABLES", tmp_path)
    assert cli.main(["--table", "9", "--dry-run", "--results", str(tmp_path / "r")]) == 2
    assert says in capsys.readouterr().err
    assert not marker.exists()


def test_a_catalogue_is_data_and_runs_nothing(tmp_path: Path) -> None:
    import yaml

    from harness.sources import catalogue

    marker = tmp_path / "ran"
    file = tmp_path / "catalogue.yaml"
    file.write_text(f"models: !!python/object/apply:os.system ['touch {marker}']\n")
    with pytest.raises(yaml.YAMLError):
        catalogue.load(file)
    assert not marker.exists()


def test_code_of_a_model_folder_is_not_run_unless_it_is_allowed(place: Place) -> None:
    """Loading itself refuses too, whatever the doctor let pass."""
    from harness import models

    marker = place.folder / "ran"
    own_code(place)
    (place.teacher / "own.py").write_text(
        f"open({str(marker)!r}, 'w').write('x')\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig):\n    model_type = 'own'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    edit(
        place.teacher / "config.json",
        auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
        architectures=["ModelForCausalLM"],
    )
    with pytest.raises(ValueError, match="trust_remote_code"):
        models.load(place.teacher, "own")
    assert not marker.exists()
    models.trust_remote_code(True)
    try:
        assert models.load(place.teacher, "own").window == 256
    finally:
        models.trust_remote_code(False)
    assert marker.exists()


def test_pickled_weights_are_not_read(place: Place) -> None:
    import torch

    from harness import models

    (place.student / "model.safetensors").unlink()
    torch.save({}, place.student / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        models.load(place.student, "student")


def test_weights_that_lack_a_part_are_refused(place: Place) -> None:
    """transformers would draw the missing head at random, and say so in a warning."""
    from safetensors.torch import load_file, save_file

    from harness import models

    file = place.teacher / "model.safetensors"
    weights = load_file(file)
    del weights["lm_head.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(models.ModelError, match=r"do not hold lm_head\.weight"):
        models.load(place.teacher, "teacher")


@pytest.mark.parametrize("ref", ["../..", "org/name@../../../x", "org/name@..", "../models", "org/.."])
def test_references_that_climb_lead_nowhere(
    tmp_path: Path, ref: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness import sources

    hub = tmp_path / "a" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    monkeypatch.chdir(tmp_path)
    snapshots = hub / "models--org--name" / "snapshots"
    for folder in (tmp_path / "a" / "x", snapshots, snapshots.parent):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"")
    found = sources.resolve(ref, tmp_path)
    assert (found.kind, found.path) == ("missing", None)
    assert found.remedy
