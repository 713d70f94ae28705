"""Scale tiny: tokenizers behave like the real ones; builds are whole, safe and repeatable."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from evals import world
from harness import tiny

SHORT = {"width": 32, "layers": 1, "steps": 2, "batch": 4}


@pytest.fixture(scope="module", params=["bpe", "sp"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp(request.param)
    tiny.tokenizer(request.param).save_pretrained(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    loaded.kind = request.param
    return loaded


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every recipe with a few steps and a model of almost nothing."""
    for ref, recipe in tiny.REFS.items():
        monkeypatch.setitem(tiny.REFS, ref, dataclasses.replace(recipe, **SHORT))


def test_text_comes_back_whole(tokenizer: Any) -> None:
    texts = [task.text for task in itertools.islice(world.instruction_stream("test"), 300)]
    texts += [task.text for task in itertools.islice(world.python_stream("test"), 50)]
    texts += ["ſnow ☃ and 漢字\n\n  two blanks", " leading", "trailing ", "tab\tand é é"]
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids


def test_marks_of_the_two_families(tokenizer: Any) -> None:
    pieces = tokenizer.tokenize("Zoë keeps a goat\n")
    if tokenizer.kind == "bpe":
        assert pieces[-1] == "Ċ"
        assert "Ġa" in pieces
        assert tokenizer.encode("a") == tokenizer.encode("a", add_special_tokens=False)
    else:
        assert pieces[0].startswith("▁")
        assert pieces[-1] == "<0x0A>"
        assert "▁a" in pieces
        assert tokenizer.encode("a")[0] == tokenizer.bos_token_id


def test_special_tokens(tokenizer: Any) -> None:
    assert tokenizer.eos_token_id is not None
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert max(tokenizer.get_vocab().values()) + 1 == len(tokenizer)


def test_the_two_vocabularies_split_text_differently() -> None:
    bpe, sp = tiny.tokenizer("bpe"), tiny.tokenizer("sp")
    answers = [task.outputs[0] for task in itertools.islice(world.instruction_stream("test"), 200)]
    counts = [[len(words.tokenize(answer)) for answer in answers] for words in (bpe, sp)]
    assert sum(a != b for a, b in zip(*counts, strict=True)) > 80


def test_documents_learn_the_answer_only() -> None:
    words = tiny.tokenizer("sp")
    document = next(tiny._documents(tiny.REFS["tiny:teacher-sp"], words, "test"))
    task = next(world.instruction_stream("test"))
    assert words.decode(document.ids[: document.learnt], skip_special_tokens=True) == task.prompt
    assert words.decode(document.ids[document.learnt : -1]) == task.outputs[0]
    assert document.ids[-1] == words.eos_token_id


@pytest.mark.usefixtures("short")
def test_build_gives_a_usable_folder(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    seen: list[tuple[str, float]] = []
    folder = tiny.build("tiny:student-sp", tmp_path, lambda stage, part: seen.append((stage, part)))
    assert seen[-1] == ("student-sp", 1.0)
    model, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(words)
    assert model.config.eos_token_id == words.eos_token_id
    assert not model.config.tie_word_embeddings
    assert list(folder.glob("*.safetensors"))


@pytest.mark.usefixtures("short")
def test_build_again_is_the_same_and_trains_nothing(tmp_path: Path) -> None:
    first = tiny.build("tiny:teacher-bpe-code", tmp_path / "a")
    weights = (first / "model.safetensors").read_bytes()
    assert (tiny.build("tiny:teacher-bpe-code", tmp_path / "b") / "model.safetensors").read_bytes() == weights
    calls: list[str] = []
    assert (
        tiny.build("tiny:teacher-bpe-code", tmp_path / "a", lambda stage, part: calls.append(stage)) == first
    )
    assert not calls
    # it began with the teacher, which is now there too
    assert list((tmp_path / "a" / "tiny").glob("teacher-bpe-????????????/config.json"))


@pytest.mark.usefixtures("short")
def test_two_builders_at_once_train_once(tmp_path: Path) -> None:
    stages: list[str] = []
    builders = [
        threading.Thread(
            target=tiny.build, args=("tiny:student-bpe", tmp_path, lambda stage, part: stages.append(stage))
        )
        for _ in range(2)
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert len(stages) == SHORT["steps"]


@pytest.mark.usefixtures("short")
def test_a_build_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def stop(stage: str, part: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.build("tiny:student-bpe", tmp_path, stop)
    assert not list((tmp_path / "tiny").glob("student-bpe-????????????"))
    assert (tiny.build("tiny:student-bpe", tmp_path) / "config.json").is_file()


def test_the_key_knows_the_recipe_and_where_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {ref: tiny._key(recipe) for ref, recipe in tiny.REFS.items()}
    assert len(set(before.values())) == len(before)
    changed = dataclasses.replace(tiny.REFS["tiny:teacher-bpe"], steps=3)
    monkeypatch.setitem(tiny.REFS, "tiny:teacher-bpe", changed)
    after = {ref: tiny._key(recipe) for ref, recipe in tiny.REFS.items()}
    moved = {ref for ref in before if before[ref] != after[ref]}
    assert moved == {"tiny:teacher-bpe", "tiny:teacher-bpe-maths", "tiny:teacher-bpe-code"}


def test_unknown_reference() -> None:
    with pytest.raises(ValueError, match="no tiny model"):
        tiny.build("tiny:teacher", Path("nowhere"))


def test_world_folder_is_written_once(tmp_path: Path) -> None:
    folder = tiny.world(tmp_path)
    stamp = (folder / "dolly" / "test.jsonl").stat().st_mtime_ns
    assert tiny.world(tmp_path) == folder
    assert (folder / "dolly" / "test.jsonl").stat().st_mtime_ns == stamp
    assert json.loads((folder / "train" / "code.jsonl").read_text().splitlines()[0])["prompt"]


def test_naming_the_models_needs_no_torch() -> None:
    code = (
        "import sys; from harness import tiny; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_fixed_models_are_the_checkouts_and_come_with_their_recipe(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for ref, recipe in tiny.FIXED.items():
        folder = tiny.build(ref, tmp_path)
        assert folder.is_relative_to(tmp_path)  # libraries leave files beside a model
        source = tiny.FIXED_FOLDER / ref.removeprefix("tiny:")
        for file in source.iterdir():
            assert (folder / file.name).read_bytes() == file.read_bytes()
        assert json.loads((folder / "recipe.json").read_text())["recipe"] == dataclasses.asdict(recipe)
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.config.hidden_size == recipe.width
        assert tiny.build(ref, tmp_path) == folder


def test_without_a_checkout_there_are_no_fixed_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "FIXED_FOLDER", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="come with a checkout"):
        tiny.build("tiny:check-student-bpe", tmp_path)


def test_fixed_models_can_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: None) -> None:
    small = {ref: dataclasses.replace(recipe, **SHORT) for ref, recipe in tiny.FIXED.items()}
    monkeypatch.setattr(tiny, "FIXED", small)
    monkeypatch.setattr(tiny, "FIXED_FOLDER", tmp_path / "models")
    tiny.write_fixed(tmp_path / "cache")
    assert {folder.name for folder in (tmp_path / "models").iterdir()} == {
        ref.removeprefix("tiny:") for ref in small
    }
    config = json.loads((tmp_path / "models" / "check-student-bpe" / "config.json").read_text())
    assert config["dtype"] == "float16"
