"""Work that is kept piece by piece: what a kill in the middle leaves is used, and nothing else is."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_level_tokenizer
from test_decoding import GREEDY, ITEMS, Settings, models
from torch import Tensor

from evals import decoding
from harness import data, teacher
from harness import models as loading
from harness.examples import Example
from harness.journal import Journal

ENTRIES = {"a": [1, "geese"], "b": {"Zoë": None}, "c": "line\nbreak"}


def filled(path: Path) -> bytes:
    journal = Journal(path)
    for key, value in ENTRIES.items():
        journal.add(key, value)
    return path.read_bytes()


def read(path: Path) -> dict[str, Any]:
    journal = Journal(path)
    return {key: value for key in ENTRIES if (value := journal.get(key)) is not None}


def test_a_journal_says_what_was_put_in_and_how_long_it_took(tmp_path: Path) -> None:
    path = tmp_path / "new" / "j"
    filled(path)
    assert read(path) == ENTRIES
    journal = Journal(path)
    assert journal.get("d") is None
    assert journal.seconds == 0
    journal.get("a")
    once = journal.seconds
    assert once > 0
    journal.add("d", 4)
    assert journal.seconds > once
    assert Journal(path).get("d") == 4


def test_cut_anywhere_it_has_the_entries_before_and_takes_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "j"
    whole = filled(path)
    ends = [0, *itertools.accumulate(len(line) for line in whole.splitlines(keepends=True))]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = sum(cut >= end for end in ends[1:])
        assert list(read(path)) == list(ENTRIES)[:kept]
        Journal(path).add("new", cut)
        assert list(read(path)) == list(ENTRIES)[:kept]
        assert Journal(path).get("new") == cut


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "j"
    whole = filled(path)
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        found = read(path)
        assert len(found) < len(ENTRIES)
        assert found.items() <= ENTRIES.items()


class StoppedError(Exception):
    pass


def stop_after(count: int) -> Any:
    """A progress that stops the work after so many reports."""
    calls = itertools.count(1)

    def progress(*said: Any) -> None:
        if next(calls) == count:
            raise StoppedError

    return progress


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
@pytest.mark.parametrize("settings", [GREEDY, Settings()])
def test_answers_go_on_after_the_last_whole_batch(settings: Any, stop: int, tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    model = models(len(tokenizer))["llama"]
    prefills = []

    def note(module: Any, inputs: Any, options: dict[str, Tensor]) -> None:
        if options["input_ids"].shape[1] > 1:
            prefills.append(len(options["input_ids"]))

    def written(path: Path, seed: int = 1, **options: Any) -> list[list[int]]:
        prefills.clear()
        handle = model.register_forward_pre_hook(note, with_kwargs=True)
        try:
            return decoding.generate_ids(
                model, tokenizer, ITEMS, settings, seed, batch_size=7, kept=Journal(path), **options
            )
        finally:
            handle.remove()

    expected = written(tmp_path / "undisturbed")
    whole = [7, 7, 7, 3]
    assert prefills == whole
    with pytest.raises(StoppedError):
        written(tmp_path / "j", progress=stop_after(stop))
    assert prefills == whole[:stop]
    assert written(tmp_path / "j") == expected
    assert prefills == whole[stop:]
    assert written(tmp_path / "j") == expected
    assert prefills == []
    written(tmp_path / "j", seed=2)  # other answers are asked for
    assert prefills == whole


def test_hidden_states_go_on_after_the_last_whole_batch(
    teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "TOKENS_PER_FORWARD", 20)
    tokenizer = loading.load(teacher_folder, "teacher").tokenizer
    examples = [Example(str(n), "### Response:\n", "geese " * (n + 1)) for n in range(6)]
    encoded = data.encode_examples(tokenizer, examples, max_prompt=32, max_length=64)
    batches = []
    plain = teacher.read

    def counted(model: Any, sequences: Sequence[Any]) -> Tensor:
        batches.append(len(sequences))
        return plain(model, sequences)

    monkeypatch.setattr(teacher, "read", counted)

    def states(cache: Path, progress: Any = lambda *said: None) -> Tensor:
        batches.clear()
        place = (cache, torch.float32, progress)
        return teacher.hidden_states(teacher_folder, "teacher", encoded, *place).rows(range(6)).clone()

    expected = states(tmp_path / "undisturbed")
    in_all = list(batches)
    assert len(in_all) > 3
    for stop in range(1, len(in_all) + 1):
        with pytest.raises(StoppedError):
            states(tmp_path / str(stop), stop_after(stop))
        assert torch.equal(states(tmp_path / str(stop)), expected)
        assert batches == in_all[stop:]
    with pytest.raises(StoppedError):
        states(tmp_path / "cache", stop_after(2))
    (file,) = (tmp_path / "cache").rglob("hidden.bin")
    stopped = file.read_bytes()
    assert torch.equal(states(tmp_path / "cache"), expected)
    assert batches == in_all[2:]
    assert sorted(path.name for path in file.parent.iterdir()) == ["hidden.bin", "meta.json"]

    (file.parent / "meta.json").unlink()  # rows that were altered since are computed again
    with pytest.raises(StoppedError):
        states(tmp_path / "cache", stop_after(2))
    raw = bytearray(stopped)
    raw[-1] ^= 1  # of the last example, which is the longest and was read first
    file.write_bytes(raw)
    assert torch.equal(states(tmp_path / "cache"), expected)
    assert batches == [in_all[0], *in_all[2:]]
