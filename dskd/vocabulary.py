"""Vocabularies as text: what every token id stands for, and maps between two vocabularies.

Byte-level BPE writes bytes as printable characters ("Ġ" for a space), SentencePiece writes a space as
"▁" and bytes it has no character for as "<0x0A>". Here every token is the *bytes* it adds to a text,
so that tokens of any two tokenizers can be compared exactly. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

MARK = "▁"  #: U+2581, SentencePiece's space
EDIT_DISTANCE_VERSION = 1  #: raised whenever the rule of ``edit_distance_map`` changes; part of the cache key
_BLOCK_CELLS = 1 << 25  # distances held at once while the map is built


def _byte_level_alphabet() -> dict[str, int]:
    """Character -> byte of GPT-2's byte-level BPE: printable latin-1 is itself, the rest from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_ALPHABET = _byte_level_alphabet()


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What each token id of one tokenizer stands for.

    ``surfaces`` has the literal bytes of every id, ``tokens`` the same with None for ids that are no
    text: control tokens (EOS, BOS, unk, ...) and ids no token has.
    """

    surfaces: tuple[bytes, ...] = field(repr=False)
    eos: int
    special: frozenset[int] = frozenset()  #: control tokens, EOS among them
    byte_tokens: frozenset[int] = field(default=frozenset(), repr=False)  #: SentencePiece's <0x00> .. <0xFF>
    holes: frozenset[int] = field(default=frozenset(), repr=False)  #: ids below ``size`` without a token
    unk: int | None = None  #: None where the tokenizer has none, or uses EOS for it
    marked: bool = False  #: spaces are written as the SentencePiece mark

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> Vocabulary:
        """Read a fast ``transformers`` tokenizer. Raises ValueError for a slow one or one without EOS."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(f"{type(tokenizer).__name__} is no fast tokenizer; token spans need one")
        if not isinstance(tokenizer.eos_token_id, int):
            raise ValueError(
                f"tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has no EOS token: set eos_token"
            )
        byte_level = _is_byte_level(backend)
        fallback = _byte_fallback(backend.model)
        added = backend.get_added_tokens_decoder()
        special = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        words = backend.get_vocab(with_added_tokens=True)
        surfaces: list[bytes | None] = [None] * (max(words.values()) + 1)
        byte_tokens: set[int] = set()
        for word, i in words.items():
            # trained tokenizers may list their byte tokens as added, even as special
            if fallback and (byte := _fallback_byte(word)) is not None:
                surfaces[i] = byte
                byte_tokens.add(i)
            elif i in added or i in special:
                surfaces[i] = word.encode()
            else:
                surfaces[i] = _surface(word, byte_level)
        eos, unk = tokenizer.eos_token_id, tokenizer.unk_token_id
        return cls(
            surfaces=tuple(surface or b"" for surface in surfaces),
            eos=eos,
            special=frozenset(special - byte_tokens | {eos}),
            byte_tokens=frozenset(byte_tokens),
            holes=frozenset(i for i, surface in enumerate(surfaces) if not surface),
            unk=None if unk == eos else unk,
            marked=not byte_level,
        )

    @property
    def size(self) -> int:
        """Highest id + 1; heads may be larger, those rows stand for nothing."""
        return len(self.surfaces)

    @cached_property
    def tokens(self) -> list[bytes | None]:
        """Text of each id in the one canonical form, a space as a space; None for what is no text."""
        return [None if i in self.special or i in self.holes else s for i, s in enumerate(self.surfaces)]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all ids, their texts and their roles."""
        digest = hashlib.sha256(f"{self.size} {self.eos} {self.unk}".encode())
        for i, surface in enumerate(self.surfaces):
            role = (i in self.special) + 2 * (i in self.byte_tokens)
            digest.update(bytes([role]) + len(surface).to_bytes(4, "little") + surface)
        return digest.hexdigest()

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """Text -> id. Of several ids with one text: an ordinary token before <0xNN>, then the lowest id."""
        found: dict[bytes, int] = {}
        texts = [(i, token) for i, token in enumerate(self.tokens) if token is not None]
        for group in (
            [x for x in texts if x[0] not in self.byte_tokens],
            [x for x in texts if x[0] in self.byte_tokens],
        ):
            for i, token in group:
                found.setdefault(token, i)
        return found

    @cached_property
    def byte_ids(self) -> dict[bytes, int]:
        """Byte -> id of its <0xNN> token."""
        return {self.surfaces[i]: i for i in sorted(self.byte_tokens)}

    @cached_property
    def special_ids(self) -> dict[bytes, int]:
        """Literal form -> id of every control token but EOS."""
        return {self.surfaces[i]: i for i in sorted(self.special - {self.eos} - self.holes)}

    @cached_property
    def lengths(self) -> np.ndarray:
        """(size,) int64 bytes per id."""
        return np.array([len(surface) for surface in self.surfaces], dtype=np.int64)


def _has(component: Any, kind: str) -> bool:
    # Components of the tokenizers library tell their type only in their serialised state.
    try:
        return component is not None and f'"type":"{kind}"'.encode() in bytes(component.__getstate__())
    except Exception:  # a component written in Python cannot be serialised, and is none of the known kinds
        return False


def _is_byte_level(backend: Any) -> bool:
    return any(
        _has(part, "ByteLevel") for part in (backend.pre_tokenizer, backend.decoder, backend.normalizer)
    )


def _byte_fallback(model: Any) -> bool:
    if hasattr(model, "byte_fallback"):
        return bool(model.byte_fallback)
    state = json.loads(model.__getstate__())  # Unigram tells only there
    return bool(state.get("byte_fallback", False))


def _fallback_byte(word: str) -> bytes | None:
    if len(word) == 6 and word.startswith("<0x") and word.endswith(">"):
        try:
            return bytes([int(word[3:5], 16)])
        except ValueError:
            return None
    return None


def _surface(word: str, byte_level: bool) -> bytes:
    if not byte_level:
        return word.replace(MARK, " ").encode()
    try:
        return bytes([_ALPHABET[character] for character in word])
    except KeyError:  # not written in the alphabet: it stands for itself
        return word.encode()


@dataclass(eq=False)
class VocabularyPair:
    """Maps between a student's and a teacher's vocabulary.

    Two tokens are the same where their bytes are. Comparing the *strings* of the two vocabularies
    after mapping "Ġ" to "▁", as DSKD v2's code does, misses tokens outside ASCII between byte-level
    BPE and SentencePiece ("Ã©" is "é"), and equates some that differ ("é" is a lone byte 0xE9 there).
    """

    student: Vocabulary
    teacher: Vocabulary
    cache: Path | None = None  #: folder for the edit-distance map

    @cached_property
    def same(self) -> bool:
        """Whether every id means the same to both."""
        return self.student.fingerprint == self.teacher.fingerprint

    @cached_property
    def overlap(self) -> tuple[np.ndarray, np.ndarray]:
        """(student ids, teacher ids), both (K,) int64: equal tokens one to one, by ascending student id.

        EOS goes with EOS whatever their form, a control token with the one of the same form, a byte
        token with a byte token. No id occurs twice.
        """
        s, t = self.student, self.teacher
        pairs = {s.eos: t.eos}
        pairs |= {i: t.special_ids[form] for form, i in s.special_ids.items() if form in t.special_ids}
        pairs |= {i: t.byte_ids[byte] for byte, i in s.byte_ids.items() if byte in t.byte_ids}
        taken = set(pairs.values())
        for text, i in s.ids.items():
            j = t.ids.get(text)
            if j is not None and i not in pairs and j not in taken:
                pairs[i] = j
        ids = np.array(sorted(pairs.items()), dtype=np.int64)
        return ids[:, 0].copy(), ids[:, 1].copy()

    @cached_property
    def translation(self) -> np.ndarray:
        """(V_t,) int64: the student's id for each teacher id, -1 for none.

        EOS translates to EOS and nothing else does; the unknown token has no translation.
        """
        s, t = self.student, self.teacher
        found = np.full(t.size, -1, dtype=np.int64)
        for i, text in enumerate(t.tokens):
            if text is not None:
                same_kind = s.byte_ids.get(text) if i in t.byte_tokens else None
                found[i] = s.ids.get(text, -1) if same_kind is None else same_kind
        for form, i in t.special_ids.items():
            match = s.special_ids.get(form, -1)
            found[i] = -1 if t.unk == i or s.unk == match else match
        found[t.eos] = s.eos
        return found

    @cached_property
    def edit_distance(self) -> np.ndarray:
        """(V_t,) int64: the student's token of minimum edit distance for each teacher id.

        The vocabulary map of MinED (FuseLLM, arXiv 2401.10491, "Token alignment"): Levenshtein distance over
        the bytes of the tokens. Whatever ``translation`` maps stays; ties go to the lowest student
        id, which in BPE is the earliest merge. Control tokens without translation are -1. Kept under
        ``cache``.
        """
        if self.cache is None:
            return edit_distance_map(self.student, self.teacher, self.translation)
        path = self._cache_path(self.cache)
        found = _read_map(path, self.teacher.size)
        if found is None:
            found = edit_distance_map(self.student, self.teacher, self.translation)
            _write_map(path, found)
        return found

    def _cache_path(self, folder: Path) -> Path:
        key = f"{EDIT_DISTANCE_VERSION} {self.student.fingerprint} {self.teacher.fingerprint}"
        return folder / f"edit-distance-{hashlib.sha256(key.encode()).hexdigest()[:32]}.map"


def edit_distance_map(student: Vocabulary, teacher: Vocabulary, translation: np.ndarray) -> np.ndarray:
    """(V_t,) int64: ``translation``, and for its text tokens without one the nearest of the student's.

    Exact; 151,646 x 50,257 takes some 20 seconds of processor time, spread over two threads.
    """
    found = translation.copy()
    missing: dict[bytes, list[int]] = {}
    for i, text in enumerate(teacher.tokens):
        if text is not None and found[i] < 0:
            missing.setdefault(text, []).append(i)
    candidates = sorted(student.ids.items(), key=lambda item: item[1])
    if missing and candidates:
        nearest = _nearest(list(missing), [text for text, _ in candidates])
        for ids, index in zip(missing.values(), nearest, strict=True):
            found[ids] = candidates[index][1]
    return found


def _nearest(queries: list[bytes], choices: list[bytes]) -> np.ndarray:
    """(len(queries),) int64: for each query the first of the choices at minimum Levenshtein distance.

    A distance is at least the difference in length, so choices are tried by growing difference and a
    query is done when its best is smaller than that.
    """
    lengths = np.array([len(choice) for choice in choices])
    query_lengths = np.array([len(query) for query in queries])
    nearest = np.zeros(len(queries), dtype=np.int64)
    for length in np.unique(query_lengths):
        rows = np.flatnonzero(query_lengths == length)
        gaps = np.abs(lengths - length)
        best = np.full(len(rows), np.iinfo(np.int64).max)
        for gap in np.unique(gaps):
            open_rows = np.flatnonzero(best >= gap)  # equal: a tie may have a lower index
            if not len(open_rows):
                break
            columns = np.flatnonzero(gaps == gap)
            where, distance = _first_minimum(
                [queries[r] for r in rows[open_rows]], [choices[c] for c in columns]
            )
            where = columns[where]
            old = best[open_rows]
            better = (distance < old) | ((distance == old) & (where < nearest[rows[open_rows]]))
            best[open_rows[better]] = distance[better]
            nearest[rows[open_rows[better]]] = where[better]
    return nearest


def _first_minimum(queries: list[bytes], choices: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Index of the nearest choice (the first of equals) and its distance, for each query, block by block."""
    where = np.zeros(len(queries), dtype=np.int64)
    least = np.zeros(len(queries), dtype=np.int64)
    rows = max(1, _BLOCK_CELLS // len(choices))
    for start in range(0, len(queries), rows):
        block = distances(queries[start : start + rows], choices, workers=2)
        part = slice(start, start + len(block))
        where[part] = block.argmin(axis=1)  # the first of equals
        least[part] = block[np.arange(len(block)), where[part]]
    return where, least


def distances(left: list[bytes], right: list[bytes], *, workers: int = 1) -> np.ndarray:
    """Levenshtein distances over bytes, (len(left), len(right)) uint8, or uint32 for long tokens."""
    from rapidfuzz import process
    from rapidfuzz.distance import Levenshtein

    # latin-1 makes one character of every byte, which rapidfuzz compares fastest
    rows, columns = ([text.decode("latin-1") for text in side] for side in (left, right))
    dtype = np.uint8 if max(map(len, [*left, *right]), default=0) < 256 else np.uint32
    return process.cdist(rows, columns, scorer=Levenshtein.distance, dtype=dtype, workers=workers)


def _read_map(path: Path, size: int) -> np.ndarray | None:
    """The map behind its own SHA-256; None where it is absent or not what was written."""
    try:
        raw = path.read_bytes()
        if hashlib.sha256(raw[32:]).digest() != raw[:32]:
            return None
        found = np.load(io.BytesIO(raw[32:]), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == (size,) and found.dtype == np.int64 else None


def _write_map(path: Path, found: np.ndarray) -> None:
    """Write beside and rename, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            buffer = io.BytesIO()
            np.save(buffer, found)
            file.write(hashlib.sha256(buffer.getbuffer()).digest() + buffer.getbuffer())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
