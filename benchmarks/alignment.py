"""Aligned share of tokens, overlap sizes and times, for the four pairs of tokenizers of the papers.

    python -m benchmarks.alignment --data DIR [--maps]

DIR holds ``dolly/dev.jsonl`` and ``tokenizers/``. Columns of the first table:

- tokens: aligned student tokens / student tokens, EOS among them, over all responses;
- responses: the same share per response, then the mean over responses;
- text: as responses, without dummy prefixes, which cover no text and so have nothing to align with;
- characters: as text, but a token counts where the other side has a token over the same *characters*, so
  that the pieces of a split character all count for it: what character offsets would claim;
- strings: as responses, by the greedy comparison of strings without space marks that DSKD v2's code is
  described to do. It counts equal strings after unequal text too ("a b" and "ab").
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dskd.alignment import Tokens, align_all, encode
from dskd.vocabulary import MARK, Vocabulary, VocabularyPair

TOKENIZERS = {
    "GPT2": "gpt2-base",
    "Qwen1.5": "Qwen1.5-1.8B",
    "Mistral": "mistral-7b-v0.1",
    "TinyLLaMA": "tinyllama-1.1b-3T",
}
PAIRS = (("GPT2", "Qwen1.5"), ("TinyLLaMA", "Mistral"), ("GPT2", "Mistral"), ("TinyLLaMA", "Qwen1.5"))
OVERLAPS = (("GPT2", "Qwen1.5"), ("TinyLLaMA", "Mistral"), ("GPT2", "TinyLLaMA"), ("GPT2", "Mistral"))


def read_responses(path: Path) -> list[str]:
    """The responses of a file with one JSON object a line; of several references the first."""
    outputs = [json.loads(line)["output"] for line in path.read_text(encoding="utf-8").splitlines()]
    return [output if isinstance(output, str) else output[0] for output in outputs]


def dummies(tokens: Tokens) -> np.ndarray:
    """(n,) bool: tokens that cover no text and are not the EOS at the end."""
    empty = tokens.spans[:, 0] == tokens.spans[:, 1]
    empty[-1] = False
    return empty


def character_share(text: str, student: Tokens, teacher: Tokens) -> float:
    """Share of the student's tokens over the same characters as some token of the teacher's."""
    sizes = [len(character.encode()) for character in text]
    of_byte = np.repeat(np.arange(len(text)), sizes)

    def hulls(tokens: Tokens) -> list[tuple[int, int]]:
        spans = tokens.spans[:-1][~dummies(tokens)[:-1]]
        return list(zip(of_byte[spans[:, 0]].tolist(), of_byte[spans[:, 1] - 1].tolist(), strict=True))

    left, right = hulls(student), set(hulls(teacher))
    return (sum(hull in right for hull in left) + 1) / (len(left) + 1)


def greedy_strings(left: Sequence[str], right: Sequence[str]) -> int:
    """Equal strings met while both sides have read equally much; the side that has read less reads on."""
    i = j = matched = 0
    read = ["", ""]
    while i < len(left) and j < len(right):
        if read[0] == read[1] and left[i] == right[j]:
            matched += 1
            read = ["", ""]
            i, j = i + 1, j + 1
        elif len(read[0]) <= len(read[1]):
            read[0] += left[i]
            i += 1
        else:
            read[1] += right[j]
            j += 1
    return matched


def bare_strings(tokenizer: Any, tokens: Tokens) -> list[str]:
    """The tokens' strings without space marks, EOS under one name."""
    words = tokenizer.convert_ids_to_tokens(tokens.ids[:-1].tolist())
    return [word.replace("Ġ", "").replace(MARK, "") for word in words] + ["</s>"]


def shares(texts: list[str], a: Any, b: Any, s: Vocabulary, t: Vocabulary) -> list[str]:
    """One row of the table: five shares, then seconds of encoding and both alignments."""
    encode(a, ["warm"]), encode(b, ["warm"])
    clock = [time.perf_counter()]
    students, teachers = encode(a, texts), encode(b, texts)
    clock.append(time.perf_counter())
    pairs = align_all("spans", students, teachers)
    clock.append(time.perf_counter())
    align_all("edit-distance", students, teachers, s, t)
    clock.append(time.perf_counter())
    counts = np.array([len(tokens.ids) for tokens in students])
    found = np.array([len(row) for row in pairs])
    empty = [dummies(tokens) for tokens in students]
    on_text = np.array([len(row) - e[row[:, 0]].sum() for row, e in zip(pairs, empty, strict=True)])
    strings = [
        greedy_strings(bare_strings(a, x), bare_strings(b, y))
        for x, y in zip(students, teachers, strict=True)
    ]
    values = [
        found.sum() / counts.sum(),
        (found / counts).mean(),
        (on_text / (counts - [e.sum() for e in empty])).mean(),
        np.mean([character_share(*row) for row in zip(texts, students, teachers, strict=True)]),
        (np.array(strings) / counts).mean(),
    ]
    eos = all(
        len(row) > 0 and row[-1].tolist() == [len(x.ids) - 1, len(y.ids) - 1]
        for row, x, y in zip(pairs, students, teachers, strict=True)
    )
    return [*(f"{v:.4f}" for v in values), "all" if eos else "NOT ALL", *(f"{s:.3f}" for s in np.diff(clock))]


def string_overlap(a: Any, b: Any) -> int:
    """Equal strings once "Ġ" is written as the SentencePiece mark: how the published sizes were counted."""
    return len(set.intersection(*({word.replace("Ġ", MARK) for word in x.get_vocab()} for x in (a, b))))


def show(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="alignment of tokens: shares, overlaps, times")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with dolly/dev.jsonl and tokenizers/"
    )
    parser.add_argument(
        "--maps", action="store_true", help="also build the Qwen1.5 -> GPT2 edit-distance map"
    )
    options = parser.parse_args(arguments)
    from transformers import AutoTokenizer

    folder = options.data / "tokenizers"
    tokenizers = {name: AutoTokenizer.from_pretrained(folder / path) for name, path in TOKENIZERS.items()}
    vocabularies = {name: Vocabulary.from_tokenizer(tokenizer) for name, tokenizer in tokenizers.items()}
    texts = read_responses(options.data / "dolly" / "dev.jsonl")
    header = ["student<-teacher", "tokens", "responses", "text", "characters", "strings", "EOS"]
    rows = [
        [f"{x}<-{y}", *shares(texts, tokenizers[x], tokenizers[y], vocabularies[x], vocabularies[y])]
        for x, y in PAIRS
    ]
    print(f"{len(texts)} responses; seconds for all of them")
    show([*header, "encode", "align", "edit distance"], rows)
    overlaps = []
    for x, y in OVERLAPS:
        pair = VocabularyPair(vocabularies[x], vocabularies[y])
        overlaps.append(
            [f"{x}/{y}", f"{len(pair.overlap[0]):,}", f"{string_overlap(tokenizers[x], tokenizers[y]):,}"]
        )
    show(["vocabularies", "equal bytes", "equal strings"], overlaps)
    if options.maps:
        started = time.perf_counter()
        found = VocabularyPair(vocabularies["GPT2"], vocabularies["Qwen1.5"]).edit_distance
        print(
            f"edit-distance map Qwen1.5 -> GPT2: {len(found):,} ids in {time.perf_counter() - started:.1f} s"
        )


if __name__ == "__main__":
    main()
