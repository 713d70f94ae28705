"""Spans of tokens and the alignments built on them, by hand and for any two of many tokenizers."""

from __future__ import annotations

import json
import os
import time
import unicodedata
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from dskd.alignment import Tokens, align_all, align_chunks, align_edit_distance, align_spans, encode
from dskd.vocabulary import Vocabulary

DATA = Path(os.environ.get("DSKD_DATA", Path(__file__).parents[2] / "shared" / "data"))
REAL = {
    "GPT2": "gpt2-base",
    "Qwen1.5": "Qwen1.5-1.8B",
    "LLaMA2": "llama2-7b-hf",
    "Mistral": "mistral-7b-v0.1",
    "TinyLLaMA": "tinyllama-1.1b-3T",
}
TINY = ("byte-level", "nfc", "bpe-fallback", "bpe-unk", "unigram-fallback", "unigram-nfkc")
CORPUS = [
    "the cat sat on the mat\n",
    "Dogs and cats, café au lait:  two spaces\n\nnew line",
    "naïve 中文 text",
] * 4


def wrapped(tokenizer: Tokenizer, **special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **special)


def byte_level(normalizer: Any = None) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrapped(tokenizer)


def metaspace(kind: str, fallback: bool, normalizer: Any = None) -> Any:
    """SentencePiece in its two forms; the byte tokens are put into the trained vocabulary."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>") if kind == "bpe" else models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "</s>"]
    trainer = (
        trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False)
        if kind == "bpe"
        else trainers.UnigramTrainer(
            vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())
    model = state["model"]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] if fallback else []
    if kind == "bpe":
        model["vocab"] |= {piece: len(model["vocab"]) + n for n, piece in enumerate(pieces)}
    else:
        model["vocab"] += [[piece, -20.0] for piece in pieces]
    model["byte_fallback"] = fallback
    rebuilt = Tokenizer.from_str(json.dumps(state))
    if normalizer is not None:
        rebuilt.normalizer = normalizer
    return wrapped(rebuilt, unk_token="<unk>")


@cache
def load(name: str) -> tuple[Any, Vocabulary]:
    if name in REAL:
        if not (DATA / "tokenizers").is_dir():
            pytest.skip(f"no tokenizers under {DATA}")
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(DATA / "tokenizers" / REAL[name])
    else:
        tokenizer = {
            "byte-level": byte_level,
            "nfc": lambda: byte_level(normalizers.NFC()),
            "bpe-fallback": lambda: metaspace("bpe", True),
            "bpe-unk": lambda: metaspace("bpe", False),
            "unigram-fallback": lambda: metaspace("unigram", True),
            "unigram-nfkc": lambda: metaspace("unigram", False, normalizers.NFKC()),
        }[name]()
    return tokenizer, Vocabulary.from_tokenizer(tokenizer)


def spans_of(name: str, text: str) -> list[tuple[bytes, int, int]]:
    tokenizer, vocabulary = load(name)
    (tokens,) = encode(tokenizer, [text])
    rows = zip(tokens.ids.tolist(), tokens.spans.tolist(), strict=True)
    return [(vocabulary.surfaces[i], start, end) for i, (start, end) in rows][:-1]


def made(*spans: tuple[int, int]) -> Tokens:
    return Tokens(np.arange(len(spans), dtype=np.int32), np.array(spans, dtype=np.int32).reshape(-1, 2))


# --- spans, by hand -------------------------------------------------------------------------------


def test_an_empty_response_is_eos_alone() -> None:
    for name in TINY:
        tokenizer, vocabulary = load(name)
        empty, full = encode(tokenizer, ["", "cat"])
        assert (empty.ids.tolist(), empty.spans.tolist()) == ([vocabulary.eos], [[0, 0]])
        assert (full.ids[-1], full.spans[-1].tolist()) == (vocabulary.eos, [3, 3])
        assert empty.ids.dtype == empty.spans.dtype == np.int32
    assert encode(load("nfc")[0], []) == []


def test_a_leftover_truncation_does_not_cut() -> None:
    tokenizer = byte_level()
    tokenizer("the cat sat", truncation=True, max_length=2)
    assert encode(tokenizer, ["the cat sat"])[0].spans[-2, 1] == 11


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(ValueError, match="text 1"):
        encode(load("byte-level")[0], ["a", "\ud800"])


def test_tokens_added_later_are_seen() -> None:
    tokenizer = byte_level()
    encode(tokenizer, ["a"])
    tokenizer.add_tokens(["<zebra>"])
    (tokens,) = encode(tokenizer, ["a<zebra>b"])
    assert tokens.spans.tolist() == [[0, 1], [1, 8], [8, 9], [9, 9]]


def test_a_split_character_has_its_bytes() -> None:
    assert [x[1:] for x in spans_of("byte-level", "😀!")] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]


def test_the_dummy_prefix_is_no_text() -> None:
    assert spans_of("bpe-fallback", "\n") == [(b" ", 0, 0), (b"\n", 0, 1)]
    assert spans_of("bpe-fallback", "😀")[:2] == [(b" ", 0, 0), (b"\xf0", 0, 1)]
    assert spans_of("TinyLLaMA", "Hello  world\n") == [
        (b" Hello", 0, 5), (b" ", 5, 6), (b" world", 6, 12), (b"\n", 12, 13),
    ]  # fmt: skip
    # TinyLLaMA puts the dummy only where the text begins with no space, Mistral always
    assert spans_of("TinyLLaMA", "  lead") == [(b" ", 0, 1), (b" lead", 1, 6)]
    assert spans_of("Mistral", "  lead") == [(b"  ", 0, 1), (b" lead", 1, 6)]


def test_composed_letters_span_the_text_they_came_from() -> None:
    # " e" + combining acute: Qwen reads "é", one token; the three or four bytes of the text are its span
    assert spans_of("Qwen1.5", "é e\u0301x") == [("é".encode(), 0, 2), (" é".encode(), 2, 6), (b"x", 6, 7)]
    # the two bytes of the composed "ú" stand together for three bytes of text
    assert spans_of("nfc", "xu\u0301b") == [(b"x", 0, 1), (b"\xc3", 1, 4), (b"\xba", 1, 4), (b"b", 4, 5)]
    # marks in another order are put in order: no boundary between them is one in the text
    assert {x[1:] for x in spans_of("nfc", "a\u0301\u0323b")} == {(0, 5), (5, 6)}


def test_a_literal_mark_is_three_bytes_of_text() -> None:
    assert spans_of("TinyLLaMA", "x▁a\n😀")[:3] == [(b" x", 0, 1), (b" a", 1, 5), (b"\n", 5, 6)]
    assert spans_of("TinyLLaMA", "x▁a\n😀")[3:] == [
        (bytes([b]), 6 + n, 7 + n) for n, b in enumerate("😀".encode())
    ]


def test_unknown_characters_have_their_span() -> None:
    assert [x[1:] for x in spans_of("bpe-unk", "cat 😀at")][-2:] == [(4, 8), (8, 10)]


def test_control_tokens_in_the_text_span_their_form() -> None:
    assert spans_of("Mistral", "<s>hi</s>") == [(b"<s>", 0, 3), (b" hi", 3, 5), (b"</s>", 5, 9)]
    assert spans_of("Mistral", "<s>😀a")[1:] == [(b" ", 3, 3), ("😀".encode(), 3, 7), (b"a", 7, 8)]


# --- exact alignment ------------------------------------------------------------------------------


def test_spans_align_by_hand() -> None:
    student = made((0, 5), (5, 6), (6, 12), (12, 13), (13, 14), (14, 14))
    teacher = made((0, 0), (0, 5), (5, 12), (12, 14), (14, 14))
    assert align_spans(student, teacher).tolist() == [[0, 1], [5, 4]]
    assert align_spans(teacher, student).tolist() == [[1, 0], [4, 5]]
    assert align_spans(made((0, 0), (0, 2), (2, 2)), made((0, 0), (0, 1), (1, 2), (2, 2))).tolist() == [
        [0, 0],
        [2, 3],
    ]


def test_a_shared_span_is_nobodys() -> None:
    # two tokens stand for one character together: neither is the other model's single token
    assert align_spans(made((0, 3), (0, 3), (3, 4), (4, 4)), made((0, 3), (3, 4), (4, 4))).tolist() == [
        [2, 1],
        [3, 2],
    ]


def test_cut_and_empty_rows() -> None:
    assert align_spans(made((0, 0)), made((0, 0))).tolist() == [[0, 0]]
    assert align_spans(made(), made((0, 0))).shape == (0, 2)
    assert align_spans(made((0, 1), (1, 2)), made((0, 1), (1, 2), (2, 2))).tolist() == [[0, 0], [1, 1]]
    rows = align_all(
        "spans", [made(), made((0, 1), (1, 1)), made()], [made((0, 0)), made((0, 1), (1, 1)), made()]
    )
    assert [row.tolist() for row in rows] == [[], [[0, 0], [1, 1]], []]
    assert rows[0].dtype == np.int32
    assert align_all("spans", [], []) == []


def test_chunks_by_hand() -> None:
    known = Vocabulary(surfaces=(b"</s>", b"x"), eos=0, special=frozenset({0}))

    def ended(*spans: tuple[int, int]) -> Tokens:
        end = spans[-1][1] if spans else 0
        return Tokens(np.array([1] * len(spans) + [0]), np.array([*spans, (end, end)]))

    def chunks(student: Tokens, teacher: Tokens) -> list[list[int]]:
        return align_chunks(student, teacher, known, known).tolist()

    one, other = ended((0, 2), (2, 3), (3, 5), (5, 6)), ended((0, 3), (3, 4), (4, 5), (5, 6))
    assert chunks(one, other) == [[1, 0], [2, 2], [3, 3], [4, 4]]
    # no byte but the last is an end for both
    assert chunks(ended((0, 2), (2, 6)), ended((0, 3), (3, 6))) == [[1, 1], [2, 2]]
    # three tokens of one character end together; a token of no text goes with what follows it
    assert chunks(ended((0, 3), (0, 3), (0, 3)), ended((0, 0), (0, 3))) == [[2, 1], [3, 2]]
    assert chunks(ended((0, 3), (3, 3), (3, 5)), ended((0, 3), (3, 5))) == [[0, 0], [2, 1], [3, 2]]
    assert chunks(ended(), ended()) == [[0, 0]]
    # cut: the last token may be part of a character, so it closes nothing, and EOS has no partner
    cut = Tokens(np.array([1, 1, 1]), np.array([(0, 2), (2, 3), (3, 5)]))
    assert chunks(cut, other) == [[1, 0]]
    assert chunks(other, cut) == [[0, 1]]
    assert chunks(Tokens(np.zeros(0), np.zeros((0, 2))), other) == []


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="spans, edit-distance"):
        align_all("words", [], [])
    with pytest.raises(ValueError, match="1 texts"):
        align_all("spans", [made()], [])
    for kind in ("edit-distance", "chunks"):
        with pytest.raises(ValueError, match="both vocabularies"):
            align_all(kind, [], [])


FRAGMENTS = [
    "the cat", " sat", "  ", "   x", "\n", "\n\n", "\r\n\t", " \n ", "1984", "don't", "😀", "👩‍👩‍👧", "🇫🇷",
    "中文漢字", "日本語です",
    "한국어", "\u1112\u1161\u11ab", "é", "e\u0301", "a\u0301\u0323", "a\u0323\u0301", "ệ", "\u0344",
    "q\u0307\u0323", "שלום",
    "مرحبا", "\u202eabc\u202c", "\u200d", "\u00a0", "▁", "▁a", "<s>", "</s>", "<unk>", "<|endoftext|>",
    "<0x0A>", "ﬁ", "Å",
    "\u0958", "\x00", "\ufffd", "\u0301", "Ġ", "ĊÃ©", "ŝ", "…", "’s",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=8).map("".join)


def check_spans(text: str, tokens: Tokens, vocabulary: Vocabulary) -> None:
    """Nothing lost and nothing twice: spans follow on one another, or are those of one character's tokens."""
    raw = text.encode()
    starts, ends = tokens.spans[:, 0].tolist(), tokens.spans[:, 1].tolist()
    assert (starts[-1], ends[-1], tokens.ids[-1]) == (len(raw), len(raw), vocabulary.eos)
    reached, previous = 0, None
    for start, end in zip(starts, ends, strict=True):
        assert (start == reached and end >= start) or (start, end) == previous
        reached, previous = end, (start, end)


def form(vocabulary: Vocabulary, token: int, text: bytes) -> bytes:
    """What a token stands for, as far as two tokenizers can differ in it: NFKC, a dummy space before it."""
    surface = text if token in (vocabulary.unk, vocabulary.eos) else vocabulary.surfaces[token]
    with suppress(UnicodeDecodeError):  # part of a character
        surface = unicodedata.normalize("NFKC", surface.decode()).replace("▁", " ").encode()
    return surface.lstrip(b" ")


def check_pair(text: str, names: tuple[str, str]) -> None:
    (a, s), (b, t) = load(names[0]), load(names[1])
    (student,), (teacher,) = encode(a, [text]), encode(b, [text])
    check_spans(text, student, s)
    check_spans(text, teacher, t)
    pairs = align_spans(student, teacher)
    assert (np.diff(pairs, axis=0) > 0).all()  # monotone and disjoint
    assert pairs[-1].tolist() == [len(student.ids) - 1, len(teacher.ids) - 1]
    for i, j in pairs.tolist():
        start, end = student.spans[i].tolist()
        assert teacher.spans[j].tolist() == [start, end]
        piece = text.encode()[start:end]
        assert form(s, int(student.ids[i]), piece) == form(t, int(teacher.ids[j]), piece)
    flipped = align_spans(teacher, student)
    assert flipped[:, ::-1].tolist() == pairs.tolist()
    chunks = align_chunks(student, teacher, s, t)
    assert chunks.tolist() == plain_chunks(student, teacher)
    wide = [pair for pair in pairs.tolist() if np.diff(student.spans[pair[0]])[0] > 0]
    assert {tuple(pair) for pair in wide} <= {tuple(pair) for pair in chunks.tolist()}


def plain_chunks(student: Tokens, teacher: Tokens) -> list[list[int]]:
    """The definition, byte by byte, for two whole responses."""

    def last(tokens: Tokens, byte: int) -> int | None:
        spans = tokens.spans[:-1].tolist()  # without EOS
        closes = [
            i
            for i, (_, end) in enumerate(spans)
            if end == byte and all(start >= byte for start, _ in spans[i + 1 :])
        ]
        return min(closes, default=None)

    found = [[last(x, byte) for x in (student, teacher)] for byte in range(student.spans[-1, 1] + 1)]
    return [row for row in found if None not in row] + [[len(student.ids) - 1, len(teacher.ids) - 1]]


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.tuples(st.sampled_from(TINY), st.sampled_from(TINY)))
def test_any_two_tiny_tokenizers(text: str, names: tuple[str, str]) -> None:
    check_pair(text, names)


@settings(max_examples=250, deadline=None)
@given(TEXTS, st.tuples(st.sampled_from(sorted(REAL)), st.sampled_from(sorted(REAL))))
def test_any_two_real_tokenizers(text: str, names: tuple[str, str]) -> None:
    check_pair(text, names)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, max_size=6), st.sampled_from(["spans", "edit-distance", "chunks"]))
def test_many_texts_at_once_are_each_alone(texts: list[str], kind: str) -> None:
    (a, s), (b, t) = load("byte-level"), load("unigram-fallback")
    students, teachers = encode(a, texts), encode(b, texts)
    for text, tokens in zip(texts, students, strict=True):
        assert tokens.spans.tolist() == encode(a, [text])[0].spans.tolist()
    rows = align_all(kind, students, teachers, s, t)
    alone = {
        "spans": align_spans,
        "edit-distance": lambda x, y: align_edit_distance(x, y, s, t),
        "chunks": lambda x, y: align_chunks(x, y, s, t),
    }[kind]
    for row, x, y in zip(rows, students, teachers, strict=True):
        assert row.tolist() == alone(x, y).tolist()


# --- edit-distance alignment ----------------------------------------------------------------------


def words(*surfaces: bytes) -> Vocabulary:
    return Vocabulary(surfaces=(b"</s>", *surfaces), eos=0, special=frozenset({0}))


def ids(*values: int) -> Tokens:
    return Tokens(np.array(values, dtype=np.int32), np.zeros((len(values), 2), dtype=np.int32))


def test_warping_by_hand() -> None:
    s = words(b"the", b" ca", b"t", b" sat")
    t = words(b"the", b" cat", b" sits")
    # " cat" has two partners, so neither pair is kept; " sat" goes with " sits" at cost 2
    assert align_edit_distance(ids(1, 2, 3, 4, 0), ids(1, 2, 3, 0), s, t).tolist() == [[0, 0], [3, 2], [4, 3]]
    assert align_edit_distance(ids(0), ids(1, 0), s, t).tolist() == [[0, 1]]
    assert align_edit_distance(ids(1), ids(1, 0), s, t).tolist() == [[0, 0]]  # cut before its EOS
    assert align_edit_distance(ids(), ids(), s, t).tolist() == []


def test_ties_of_the_path_prefer_both_then_the_student() -> None:
    s, t = words(b"a", b"b"), words(b"a", b"b", b"c")
    # three equal letters against two: back from the end both step, then the student alone
    assert align_edit_distance(ids(1, 1, 1), ids(1, 1), s, t).tolist() == [[2, 1]]
    assert align_edit_distance(ids(2, 2), ids(3, 3), s, t).tolist() == [[0, 0], [1, 1]]


def plain_warping(cost: np.ndarray) -> list[list[int]]:
    """The definition, cell by cell."""
    n, m = cost.shape
    table = np.full((n + 1, m + 1), np.inf)
    table[0, 0] = 0
    for i in range(n):
        for j in range(m):
            table[i + 1, j + 1] = cost[i, j] + min(table[i, j], table[i, j + 1], table[i + 1, j])
    i, j, path = n - 1, m - 1, []
    while (i, j) != (0, 0):
        path.append((i, j))
        moves = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        i, j = min((x for x in moves if min(x) >= 0), key=lambda x: table[x[0] + 1, x[1] + 1])
    path.append((0, 0))
    left, right = [x for x, _ in path], [y for _, y in path]
    return [[x, y] for x, y in reversed(path) if left.count(x) == right.count(y) == 1]


def test_warping_is_the_plain_definition() -> None:
    from dskd.vocabulary import distances

    generator = np.random.default_rng(1)
    texts = [bytes(generator.integers(97, 100, n % 4 + 1).tolist()) for n in range(20)]
    vocabulary = words(*texts)
    sizes = generator.integers(1, 14, (60, 2)).tolist()
    sides = [[ids(*generator.integers(1, 21, pair[k]).tolist()) for pair in sizes] for k in (0, 1)]
    found = align_all("edit-distance", sides[0], sides[1], vocabulary, vocabulary)
    for row, a, b in zip(found, *sides, strict=True):
        cost = distances(*([vocabulary.surfaces[i] for i in x.ids] for x in (a, b)))
        assert row.tolist() == plain_warping(cost.astype(float))


# --- the responses of Dolly -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def responses() -> list[str]:
    path = DATA / "dolly" / "dev.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    outputs = [json.loads(line)["output"] for line in path.read_text(encoding="utf-8").splitlines()]
    return [x if isinstance(x, str) else x[0] for x in outputs]


@pytest.mark.parametrize(
    ("student", "teacher", "per_token", "per_response"),
    [
        ("GPT2", "Qwen1.5", 0.905, 0.904),
        ("TinyLLaMA", "Mistral", 0.888, 0.893),
        ("GPT2", "Mistral", 0.884, 0.866),
        ("TinyLLaMA", "Qwen1.5", 0.757, 0.759),
    ],
)
def test_aligned_share_and_time(
    responses: list[str], student: str, teacher: str, per_token: float, per_response: float
) -> None:
    (a, s), (b, t) = load(student), load(teacher)
    encode(a, ["warm"]), encode(b, ["warm"])
    started = time.process_time()
    students, teachers = encode(a, responses), encode(b, responses)
    pairs = align_all("spans", students, teachers)
    assert time.process_time() - started < 2
    counts = np.array([len(x.ids) for x in students])
    aligned = np.array([len(x) for x in pairs])
    assert aligned.sum() / counts.sum() >= per_token
    assert (aligned / counts).mean() >= per_response
    for x, y, row in zip(students, teachers, pairs, strict=True):
        assert row[-1].tolist() == [len(x.ids) - 1, len(y.ids) - 1]  # EOS with EOS in every row
    assert {int(x.ids[-1]) for x in students} == {s.eos}
    assert {int(y.ids[-1]) for y in teachers} == {t.eos}
    started = time.process_time()
    chunks = align_all("chunks", students, teachers, s, t)
    assert time.process_time() - started < 1
    for x, y, row, finer in zip(students, teachers, chunks, pairs, strict=True):
        assert row[-1].tolist() == [len(x.ids) - 1, len(y.ids) - 1]
        assert len(row) >= len(finer)  # every exact pair ends a chunk
