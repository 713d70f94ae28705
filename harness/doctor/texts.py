"""Findings about training files and suites: whether they can be read, and what of them does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals import suites
from evals.suites import Item, SuiteError
from harness.cells import Decoding, SuiteRun, Training
from harness.doctor.findings import Finding
from harness.doctor.models import licence
from harness.examples import DataError, Example, load_examples
from harness.folder import ModelFolder
from harness.sources import DataFile

#: Before a run so many texts are counted; ``--doctor`` counts all.
GLANCE = 2000


@dataclass(frozen=True)
class Reader:
    """A model's tokenizer and how much of a text the settings let it see."""

    ref: str
    tokenizer: Any  #: tokenizers.Tokenizer
    eos: str | None
    max_prompt: int
    window: int

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        return [len(x.ids) for x in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def reader(ref: str, folder: ModelFolder, training: Training, *, student: bool) -> Reader | None:
    """The reader of a model; None where its tokenizer is in another format than tokenizer.json."""
    file = folder.path / "tokenizer.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    window = (
        min(training.max_length, folder.window or training.max_length) if student else training.max_length
    )
    prompt = min(training.max_prompt, (folder.window or 2 * training.max_prompt) // 2)
    prompt = prompt if student else training.max_prompt
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Reader(ref, tokenizer, folder.eos, prompt, window)


def read_training(
    name: str, path: Path, limit: int | None, cells: frozenset[str]
) -> tuple[list[Example], list[Finding]]:
    """The examples, or why they cannot be used."""
    try:
        examples = load_examples(path, limit)
    except DataError as error:
        return [], [Finding("error", name, str(error), "correct the file", cells)]
    if limit is not None and len(examples) < limit:
        reason = f"{limit} examples are asked for, the file has {len(examples)}"
        return examples, [Finding("warning", name, reason, "nothing to do, or give more", cells)]
    return examples, []


def check_training(
    name: str, examples: Sequence[Example], reads: Reader, cells: frozenset[str], glance: bool
) -> Iterator[Finding]:
    """What of the training texts does not fit the model, or lacks an end."""
    some = examples[:GLANCE] if glance else examples
    of = f"{len(some)} training" if len(some) == len(examples) else f"the first {GLANCE} training"
    about = f"{name} as {reads.ref} reads it"
    prompts = reads.lengths([e.prompt for e in some])
    answers = reads.lengths([e.response for e in some])
    yield from _prompts(about, of, prompts, reads, cells)
    room = [reads.window - min(n, reads.max_prompt) for n in prompts]
    cut = sum(n + 1 > left for n, left in zip(answers, room, strict=True))
    if cut == len(some):
        reason = f"none of {of} responses keeps its EOS within {reads.window} tokens, so none teaches to end"
        yield Finding("error", about, reason, "shorten them, or take a model with a wider window", cells)
    elif cut:
        reason = f"{cut} of {of} responses are cut at {reads.window} tokens and teach no EOS"
        yield Finding("warning", about, reason, "shorten them, or leave them out", cells)
    inside = sum(reads.eos in e.response or reads.eos in e.prompt for e in some) if reads.eos else 0
    if inside:
        reason = f"{inside} of {of} texts hold {reads.eos!r}, which ends them in the middle"
        yield Finding("warning", about, reason, "take it out: an EOS is put after every response", cells)
    empty = sum(not e.response.strip() for e in some)
    if empty:
        reason = f"{empty} of {of} responses are empty"
        yield Finding("warning", about, reason, "leave them out unless silence is to be learnt", cells)


def _prompts(
    about: str, of: str, lengths: Sequence[int], reads: Reader, cells: frozenset[str]
) -> Iterator[Finding]:
    long = sum(n > reads.max_prompt for n in lengths)
    if long:
        wide = sum(n >= reads.window for n in lengths)
        more = f" ({wide} are longer than the window of {reads.window})" if wide else ""
        reason = (
            f"{long} of {of} prompts have more than {reads.max_prompt} tokens and lose their beginning{more}"
        )
        yield Finding("warning", about, reason, "shorten them, or take a model with a wider window", cells)


def read_suite(run: SuiteRun, path: Path, cells: frozenset[str]) -> tuple[list[Item], list[Finding]]:
    """The items, or why they cannot be used."""
    try:
        return suites.load_file(suites.get(run.name), path, run.limit), []
    except SuiteError as error:
        return [], [Finding("error", f"suite {run.name}", str(error), "correct the file", cells)]


def check_suite(
    run: SuiteRun, items: Sequence[Item], reads: Reader, decoding: Decoding, cells: frozenset[str]
) -> Iterator[Finding]:
    """Which prompts of a suite do not fit the model that answers it."""
    about = f"suite {run.name} as {reads.ref} reads it"
    lengths = reads.lengths([item.prompt for item in items])
    yield from _prompts(about, str(len(items)), lengths, reads, cells)
    window = min(decoding.max_length, reads.window)
    short = sum(window - min(n, reads.max_prompt) < decoding.max_new_tokens for n in lengths)
    if short:
        reason = f"{short} of {len(items)} prompts leave less than {decoding.max_new_tokens} tokens to answer"
        remedy = "nothing to do if answers are short; else take a model with a wider window"
        yield Finding("note", about, reason, remedy, cells)


def check_ledger(file: DataFile, published: bool, cells: frozenset[str]) -> Iterator[Finding]:
    """A file against the hashes of the published data; ``published``: whether such hashes are known."""
    short = f"{file.name} (SHA-256 {str(file.sha256)[:12]})"
    if published and file.state != "exact":
        reason = "it is not the published file, so nothing made from it compares with published figures"
        yield Finding("warning", short, reason, "take the original if you want to compare", cells)
    elif not published:
        remedy = "nothing to do; records name the file's hash"
        yield Finding("note", short, "no hash of a published file is known for it", remedy, cells)
    else:
        yield Finding("note", short, "it is the published file", "nothing to do", cells)
    yield from licence(file.name, file.licence, cells)
