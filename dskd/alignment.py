"""Which positions of two tokenisations of one text go together.

``encode`` gives the tokens of responses with the bytes of text each one covers, ``decode`` the text and the
spans of tokens that a model wrote; ``align_spans`` pairs
tokens that cover exactly the same bytes (DSKD-ETA), ``align_edit_distance`` pairs tokens by dynamic
time warping over their strings (MinED), ``align_chunks`` cuts both into the finest runs of tokens that
cover the same bytes (ALM, GOLD, SimCT). No torch, no loop over tokens on the way of ordinary text.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dskd.vocabulary import MARK, Vocabulary, distances

KINDS = ("spans", "edit-distance", "chunks")
_DP_CELLS = 1 << 21  # cells of the warping table held at once
_vocabularies: weakref.WeakKeyDictionary[Any, tuple[int, Vocabulary]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Tokens:
    """A response in one model's tokens, ended by EOS.

    Spans are monotone. Tokens that stand for one character together, where no byte of the text tells
    them apart (a character that the tokenizer rewrote first), all have that character's span.
    """

    ids: np.ndarray  #: (n,) int32
    spans: (
        np.ndarray
    )  #: (n, 2) int32: first byte and end in the utf-8 text; EOS (L, L); a dummy prefix alone (0, 0)


def encode(tokenizer: Any, texts: Sequence[str]) -> list[Tokens]:
    """Tokens and byte spans of each response: no BOS, EOS appended, an empty response is EOS alone.

    Raises ValueError for a tokenizer without EOS or without a fast implementation, and for text that
    utf-8 cannot hold (lone surrogates).
    """
    vocabulary = _vocabulary(tokenizer)
    raw = [_utf8(text, row) for row, text in enumerate(texts)]
    filled = [row for row, text in enumerate(texts) if text]
    encodings = _encodings(tokenizer, [texts[row] for row in filled])
    result = [_with_eos([], np.zeros((0, 2), dtype=np.int64), 0, vocabulary.eos)] * len(raw)
    for row, encoding in zip(filled, encodings, strict=True):
        spans = _spans_from_bytes(vocabulary, raw[row], encoding.ids)
        if spans is None:
            spans = _spans_from_offsets(
                vocabulary, tokenizer.backend_tokenizer.normalizer, texts[row], encoding
            )
        result[row] = _with_eos(encoding.ids, spans, len(raw[row]), vocabulary.eos)
    return result


def decode(vocabulary: Vocabulary, ids: Sequence[int], ended: bool) -> tuple[str, Tokens]:
    """The text of tokens that a model wrote, and these tokens with their spans; EOS is appended if ``ended``.

    The ids need not be what ``encode`` makes of the text. Control tokens are no text, SentencePiece's
    leading space is none either, and what is no UTF-8 becomes U+FFFD, whose span its tokens share.
    """
    words = [vocabulary.tokens[i] or b"" for i in ids]
    raw = b"".join(words)
    dummy = int(vocabulary.marked and raw.startswith(b" "))
    edges = np.maximum(np.cumsum([0, *map(len, words)]) - dummy, 0)
    text, starts, ends = _repaired(raw[dummy:])
    spans = np.stack([starts[edges[:-1]], ends[edges[1:]]], axis=1)
    if ended:
        return text, _with_eos(list(ids), spans, int(ends[-1]), vocabulary.eos)
    return text, Tokens(np.array(ids, dtype=np.int32), spans.astype(np.int32))


def _repaired(raw: bytes) -> tuple[str, np.ndarray, np.ndarray]:
    """Valid text, and where in it a token starts that starts at each byte offset (L + 1,), or ends there."""
    starts = np.arange(len(raw) + 1)
    ends = starts.copy()
    pieces: list[str] = []
    at = 0
    while True:
        try:
            pieces.append(raw[at:].decode())
            return "".join(pieces), starts, ends
        except UnicodeDecodeError as error:
            first, last = at + error.start, at + error.end
        pieces += [raw[at:first].decode(), "\ufffd"]
        grown = len("\ufffd".encode()) - (last - first)
        starts[last:] += grown
        ends[last:] += grown
        starts[first + 1 : last] = starts[first]
        ends[first + 1 : last] = ends[last]
        at = last


def _vocabulary(tokenizer: Any) -> Vocabulary:
    """The tokenizer's vocabulary, read once; again when tokens were added."""
    known = _vocabularies.get(tokenizer)
    if known is None or known[0] != len(tokenizer) or known[1].eos != tokenizer.eos_token_id:
        known = len(tokenizer), Vocabulary.from_tokenizer(tokenizer)
        _vocabularies[tokenizer] = known
    return known[1]


def _utf8(text: str, row: int) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text {row} is no valid Unicode: {error}") from None


def _encodings(tokenizer: Any, texts: list[str]) -> list[Any]:
    if not texts:
        return []
    # through transformers, which resets any truncation or padding an earlier call left in the backend
    batch = tokenizer(texts, add_special_tokens=False, verbose=False, padding=False, truncation=False)
    return list(batch.encodings)


def _with_eos(ids: list[int], spans: np.ndarray, length: int, eos: int) -> Tokens:
    return Tokens(
        np.array([*ids, eos], dtype=np.int32),
        np.concatenate([spans, [[length, length]]]).astype(np.int32),
    )


def _cumulative(ends: np.ndarray) -> np.ndarray:
    return np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)


def _spans_from_bytes(vocabulary: Vocabulary, raw: bytes, ids: list[int]) -> np.ndarray | None:
    """Spans from the lengths of the tokens, where the tokens joined are the text; else None.

    SentencePiece puts a dummy space before the text; it belongs to the first token and is no text.
    """
    surfaces = vocabulary.surfaces
    joined = b"".join([surfaces[i] for i in ids])
    if joined != raw and joined != b" " + raw:
        return None
    return _cumulative(np.cumsum(vocabulary.lengths[ids]) - (len(joined) - len(raw)))


def _spans_from_offsets(vocabulary: Vocabulary, normalizer: Any, text: str, encoding: Any) -> np.ndarray:
    """Spans from the tokenizer's character offsets, where it rewrote the text (NFC, a literal mark, unk).

    Offsets alone lose what normalisation took away (the combining mark of a composed letter) and do
    not follow reordered marks. So the text is cut where offsets allow it, what lies between two
    tokens goes to the first, and a cut stands only if normalising what is before it gives its tokens.
    """
    ids = encoding.ids
    at = np.concatenate(
        [[0], np.cumsum([len(character.encode()) for character in text])]
    )  # character -> byte
    spans = np.zeros((len(ids), 2), dtype=np.int64)
    for first, last, start, end in _pieces(
        vocabulary, normalizer, text, ids, _components(encoding.offsets, len(text))
    ):
        segment = text[start:end].encode()
        inside = _spans_from_bytes(vocabulary, segment, ids[first:last]) if last - first > 1 else None
        spans[first:last] = (at[start], at[end]) if inside is None else inside + at[start]
    return spans


def _components(offsets: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """(first token, first character) of the finest cut of the text in which no token crosses a cut."""
    cuts: list[tuple[int, int]] = []
    reached = 0
    for token, (start, end) in enumerate(offsets):
        if not cuts:
            cuts.append((0, 0))
        elif reached <= start < length and start > cuts[-1][1]:
            cuts.append((token, start))
        reached = max(reached, end)
    return cuts


def _pieces(
    vocabulary: Vocabulary, normalizer: Any, text: str, ids: list[int], cuts: list[tuple[int, int]]
) -> list[tuple[int, int, int, int]]:
    """(first token, end token, first character, end character): components joined until they check."""
    bounds = [*cuts, (len(ids), len(text))]
    pieces = []
    begin = 0
    for index in range(1, len(bounds)):
        (first, start), (last, end) = bounds[begin], bounds[index]
        if index == len(bounds) - 1 or _checks(vocabulary, normalizer, text[start:end], ids[first:last]):
            pieces.append((first, last, start, end))
            begin = index
    return pieces


def _checks(vocabulary: Vocabulary, normalizer: Any, segment: str, ids: list[int]) -> bool:
    """Whether the tokens stand for the segment, up to runs of spaces; an unknown token always does."""
    if vocabulary.unk in ids:
        return True
    normal = normalizer.normalize_str(segment) if normalizer is not None else segment
    if vocabulary.marked:
        normal = normal.replace(MARK, " ")
    joined = b"".join([vocabulary.surfaces[i] for i in ids])
    return _spaces(normal.encode()) == _spaces(joined)


def _spaces(text: bytes) -> bytes:
    return re.sub(rb" +", b" ", text).strip(b" ")


def align_spans(student: Tokens, teacher: Tokens) -> np.ndarray:
    """(P, 2) int32 positions (student, teacher) of tokens that cover exactly the same bytes.

    Then the text before both tokens is equal too (DSKD v2's exact token alignment). Pairs ascend on
    both sides; no position occurs twice; EOS goes with EOS. A span that several tokens of one side
    share is no single token's, so it is not paired.
    """
    return _align_spans_all([student], [teacher])[0]


def _align_spans_all(students: Sequence[Tokens], teachers: Sequence[Tokens]) -> list[np.ndarray]:
    if not students:
        return []
    ends = [max(_last(s), _last(t)) for s, t in zip(students, teachers, strict=True)]
    base = np.concatenate([[0], np.cumsum(np.array(ends, dtype=np.int64) + 1)])
    left, left_row, left_at = _keys(students, base)
    right, _, right_at = _keys(teachers, base)
    place = np.minimum(np.searchsorted(right, left), max(len(right) - 1, 0))
    hit = right[place] == left if len(right) else np.zeros(len(left), dtype=bool)
    pairs = np.stack([left_at[hit], right_at[place[hit]]], axis=1).astype(np.int32)
    counts = np.bincount(left_row[hit], minlength=len(students))
    return np.split(pairs, np.cumsum(counts)[:-1])


def _last(tokens: Tokens) -> int:
    return int(tokens.spans[-1, 1]) if len(tokens.spans) else 0


def _keys(rows: Sequence[Tokens], base: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One number per span of its own over all rows, ascending; with the row and the position in it."""
    counts = np.array([len(row.ids) for row in rows])
    row = np.repeat(np.arange(len(rows)), counts)
    position = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    spans = np.concatenate([row.spans for row in rows]).astype(np.int64)
    keys = ((spans[:, 0] + base[row]) << 24) + (spans[:, 1] - spans[:, 0])  # text < 2^39 bytes, token < 2^24
    fresh = np.concatenate([[True], keys[1:] != keys[:-1], [True]])
    single = fresh[:-1] & fresh[1:] if len(keys) else np.zeros(0, dtype=bool)
    return keys[single], row[single], position[single]


def align_edit_distance(
    student: Tokens, teacher: Tokens, student_vocabulary: Vocabulary, teacher_vocabulary: Vocabulary
) -> np.ndarray:
    """(P, 2) int32 positions (student, teacher) that MinED matches one to one.

    FuseLLM (arXiv 2401.10491, "Token alignment"): dynamic time warping of the two token sequences with the
    edit distance of two tokens as cost, here Levenshtein over their canonical bytes. The path may
    advance on both sides, on the student's or on the teacher's, each step paying the cost of the
    pair it arrives at. Among paths of equal cost the one traced back from the end by these
    preferences: both, student, teacher. Kept are pairs in which neither token has another partner.
    EOS is no string: it goes with EOS and takes no part in the warping.
    """
    return _align_edit_distance_all([student], [teacher], student_vocabulary, teacher_vocabulary)[0]


def align_all(
    kind: str,
    students: Sequence[Tokens],
    teachers: Sequence[Tokens],
    student_vocabulary: Vocabulary | None = None,
    teacher_vocabulary: Vocabulary | None = None,
) -> list[np.ndarray]:
    """(P, 2) int32 pairs of positions for each text; ``kind`` is one of ``KINDS``.

    All but "spans" need both vocabularies. Raises ValueError for another kind or lists of unequal length.
    """
    if len(students) != len(teachers):
        raise ValueError(f"{len(students)} texts of the student against {len(teachers)} of the teacher")
    if kind == "spans":
        return _align_spans_all(students, teachers)
    if kind not in KINDS:
        raise ValueError(f"alignment is one of {', '.join(KINDS)}, not {kind!r}")
    if student_vocabulary is None or teacher_vocabulary is None:
        raise ValueError(f"alignment by {kind.replace('-', ' ')} needs both vocabularies")
    if kind == "chunks":
        vocabularies = student_vocabulary, teacher_vocabulary
        return [align_chunks(s, t, *vocabularies) for s, t in zip(students, teachers, strict=True)]
    return _align_edit_distance_all(students, teachers, student_vocabulary, teacher_vocabulary)


def align_chunks(
    student: Tokens, teacher: Tokens, student_vocabulary: Vocabulary, teacher_vocabulary: Vocabulary
) -> np.ndarray:
    """(C, 2) int32 last positions (student, teacher) of the chunks that both tokenisations agree on.

    A chunk is a shortest run of tokens on each side that covers the same bytes; it begins after the chunk
    before it, or with the text. Both sides reach the end of a chunk at one byte, and no token or
    character lies across it. A token that covers no text belongs to what follows it. EOS is a chunk of its
    own, with EOS. What follows the last common byte of a response that was cut belongs to no chunk.
    """
    ends = [_clean_ends(student, student_vocabulary), _clean_ends(teacher, teacher_vocabulary)]
    _, left, right = np.intersect1d(ends[0][0], ends[1][0], assume_unique=True, return_indices=True)
    pairs = np.stack([ends[0][1][left], ends[1][1][right]], axis=1)
    last = [len(student.ids) - 1, len(teacher.ids) - 1]
    if _ended(student, student_vocabulary) and _ended(teacher, teacher_vocabulary):
        pairs = np.concatenate([pairs, [last]])
    return pairs.astype(np.int32)


def _ended(tokens: Tokens, vocabulary: Vocabulary) -> bool:
    return len(tokens.ids) > 0 and bool(tokens.ids[-1] == vocabulary.eos)


def _clean_ends(tokens: Tokens, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Bytes (k,), ascending, at which a token ends and none goes on, and its position.

    Of tokens that share the span of one character, the last ends it. The last token of a cut response may
    share its span with tokens that were cut off, so it ends nothing.
    """
    size = len(tokens.ids) - 1  # without EOS, or without the last token of a cut response
    if size < 1:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    spans = tokens.spans.astype(np.int64)
    positions = np.flatnonzero(spans[:size, 1] <= spans[1 : size + 1, 0])
    ends = spans[positions, 1]
    ends, first = np.unique(ends, return_index=True)
    return ends, positions[first]


def _align_edit_distance_all(
    students: Sequence[Tokens], teachers: Sequence[Tokens], s: Vocabulary, t: Vocabulary
) -> list[np.ndarray]:
    left = [_body(tokens, s) for tokens in students]
    right = [_body(tokens, t) for tokens in teachers]
    result: list[np.ndarray] = [np.zeros((0, 2), dtype=np.int32)] * len(left)
    for group in _groups([len(x) for x in left], [len(x) for x in right]):
        costs = _costs([left[row] for row in group], [right[row] for row in group], s, t)
        sizes = np.array([(len(left[row]), len(right[row])) for row in group])
        for row, pairs in zip(group, _warp(costs, sizes), strict=True):
            result[row] = pairs
    for row, (a, b) in enumerate(zip(students, teachers, strict=True)):
        if len(left[row]) < len(a.ids) and len(right[row]) < len(b.ids):
            end = np.array([[len(left[row]), len(right[row])]], dtype=np.int32)
            result[row] = np.concatenate([result[row], end])
    return result


def _body(tokens: Tokens, vocabulary: Vocabulary) -> np.ndarray:
    """The ids without the EOS that ends them (a cut response has none)."""
    ends = len(tokens.ids) > 0 and tokens.ids[-1] == vocabulary.eos
    return tokens.ids[: len(tokens.ids) - int(ends)]


def _groups(left: list[int], right: list[int]) -> list[list[int]]:
    """Rows of similar size to be warped together; rows with an empty side match nothing and are left out."""
    rows = sorted(
        (row for row in range(len(left)) if left[row] and right[row]), key=lambda row: (left[row], right[row])
    )
    groups: list[list[int]] = []
    height = width = 0
    for row in rows:
        height, width = max(height, left[row]), max(width, right[row])
        if not groups or height * width * (len(groups[-1]) + 1) > _DP_CELLS:
            groups.append([])
            height, width = left[row], right[row]
        groups[-1].append(row)
    return groups


def _costs(left: list[np.ndarray], right: list[np.ndarray], s: Vocabulary, t: Vocabulary) -> np.ndarray:
    """(texts, n, m) int32 edit distances of all token pairs of each text, padded with 0 at the end."""
    costs = np.zeros((len(left), max(map(len, left)), max(map(len, right))), dtype=np.int32)
    for row, (a, b) in enumerate(zip(left, right, strict=True)):
        a_ids, a_at = np.unique(a, return_inverse=True)
        b_ids, b_at = np.unique(b, return_inverse=True)
        unique = distances([s.surfaces[i] for i in a_ids], [t.surfaces[j] for j in b_ids])
        costs[row, : len(a), : len(b)] = unique[np.ix_(a_at, b_at)]
    return costs


def _warp(costs: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """One-to-one pairs of the warping path of each text; costs (B, n, m), sizes (B, 2)."""
    path = _trace(_accumulate(costs), sizes)
    return [_one_to_one(np.array(steps, dtype=np.int32)) for steps in path]


def _accumulate(costs: np.ndarray) -> np.ndarray:
    """(B, n, m) cost of the best path to each cell: D[i,j] = c[i,j] + min(D[i-1,j-1], D[i-1,j], D[i,j-1]).

    Along a row, D[i,j] = C[j] + min over k <= j of (arrival from above at k - C[k-1]) with C the
    running sum of the row's costs, which a running minimum computes for all j at once.
    """
    table = np.empty_like(costs)
    running = np.cumsum(costs, axis=2, dtype=np.int32)
    table[:, 0] = running[:, 0]
    for i in range(1, costs.shape[1]):
        above = table[:, i - 1].copy()
        np.minimum(above[:, 1:], table[:, i - 1, :-1], out=above[:, 1:])
        above -= running[:, i] - costs[:, i]
        np.minimum.accumulate(above, axis=1, out=above)
        np.add(above, running[:, i], out=table[:, i])
    return table


def _trace(table: np.ndarray, sizes: np.ndarray) -> list[list[tuple[int, int]]]:
    """Path of each text, traced from its end: at equal cost both sides step, else student, else teacher."""
    batch = np.arange(len(table))
    i, j = sizes[:, 0] - 1, sizes[:, 1] - 1
    far = np.iinfo(np.int32).max
    columns: list[np.ndarray] = [np.stack([i, j], axis=1)]
    while (i + j).any():
        up, back = np.maximum(i - 1, 0), np.maximum(j - 1, 0)
        options = np.stack(
            [
                np.where((i > 0) & (j > 0), table[batch, up, back], far),
                np.where(i > 0, table[batch, up, j], far),
                np.where(j > 0, table[batch, i, back], far),
            ]
        )
        move = options.argmin(axis=0)
        done = (i == 0) & (j == 0)
        i = np.where(done | (move == 2), i, i - 1)
        j = np.where(done | (move == 1), j, j - 1)
        columns.append(np.stack([i, j], axis=1))
    steps = np.stack(columns, axis=1)[:, ::-1]  # (B, steps, 2), padded at the front with (0, 0)
    return [list(dict.fromkeys(map(tuple, row.tolist()))) for row in steps]


def _one_to_one(path: np.ndarray) -> np.ndarray:
    """The path's pairs in which each token occurs once."""
    once = [np.bincount(path[:, side])[path[:, side]] == 1 for side in (0, 1)]
    return path[once[0] & once[1]]
