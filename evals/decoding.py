"""Writing answers with a causal language model: batched, cached, and the same whatever the batch.

A sampled token is the inverse of the cumulative distribution at a uniform number that depends only on the
decoding seed, the item's id and the step. So an answer does not change with the batch size, the order of the
items or what else is in the batch, up to the rounding of the model itself (two logits or two sides of a
boundary closer than that rounding). The released evaluations draw from one stream per process instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from evals.prompts import encode_prompts


class BrokenModelError(RuntimeError):
    """A model that computes NaN or infinity; it has no score."""


class DecodingLike(Protocol):
    """The shape of harness/cells.Decoding."""

    @property
    def temperature(self) -> float: ...  #: 0 is greedy
    @property
    def top_p(self) -> float: ...
    @property
    def top_k(self) -> int: ...  #: 0 is off
    @property
    def no_repeat_ngram(self) -> int: ...  #: 0 is off
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def max_length(self) -> int: ...  #: prompt and answer together


class Prompted(Protocol):
    """What of an item decoding reads."""

    @property
    def id(self) -> str: ...
    @property
    def prompt(self) -> str: ...


class Kept(Protocol):
    """The shape of harness/journal.Journal: batches of answers that were written before."""

    def get(self, key: str) -> Any: ...
    def add(self, key: str, value: Any) -> None: ...


class Written(NamedTuple):
    """An answer's tokens without EOS, and whether EOS came (else it was cut)."""

    ids: list[int]
    ended: bool


@dataclass(frozen=True)
class Companion:
    """A second model that has a say in every token: p = share * its distribution + the rest the first's."""

    model: Any
    share: float


def generate(
    model: Any,
    tokenizer: Any,
    items: Sequence[Prompted],
    decoding: DecodingLike,
    seed: int,
    *,
    max_prompt: int = 256,
    batch_size: int = 32,
    progress: Callable[[float], None] | None = None,
    kept: Kept | None = None,
) -> list[str]:
    """The model's answer to each item, in the items' order; EOS and special tokens are not part of it.

    An answer's tokens are decoded on their own, so a SentencePiece tokenizer drops the dummy space of the
    first: the text is what encoding it as a response and decoding that gives.

    Args:
        model: a Hugging Face causal language model with position ids and a dynamic cache.
        tokenizer: its tokenizer; only its EOS ends an answer.
        items: need ``id`` and ``prompt``.
        decoding: see DecodingLike.
        seed: decoding seed; unused when greedy.
        max_prompt: prompts are cut from the left to so many tokens, BOS kept.
        batch_size: answers written side by side; does not change them.
        progress: called with the share of items finished, 0..1.
        kept: keeps every batch when it is finished, and has those of an earlier call with this model.

    Raises:
        ValueError: settings that leave no room for an answer, or make no sense.
    """
    ids = generate_ids(
        model,
        tokenizer,
        items,
        decoding,
        seed,
        max_prompt=max_prompt,
        batch_size=batch_size,
        progress=progress,
        kept=kept,
    )
    return (
        tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if ids
        else []
    )


def generate_ids(
    model: Any,
    tokenizer: Any,
    items: Sequence[Prompted],
    decoding: DecodingLike,
    seed: int,
    *,
    max_prompt: int = 256,
    batch_size: int = 32,
    progress: Callable[[float], None] | None = None,
    kept: Kept | None = None,
) -> list[list[int]]:
    """As ``generate``, but token ids, without EOS."""
    prompts = encode_prompts(tokenizer, [item.prompt for item in items], max_prompt)
    written = write(
        model,
        prompts,
        [item.id for item in items],
        decoding,
        seed,
        eos=tokenizer.eos_token_id,
        reachable=max(tokenizer.get_vocab().values()) + 1,
        batch_size=batch_size,
        progress=progress,
        kept=kept,
    )
    return [answer.ids for answer in written]


def write(
    model: Any,
    prompts: Sequence[Sequence[int]],
    names: Sequence[str],
    decoding: DecodingLike,
    seed: int,
    *,
    eos: int | None,
    reachable: int,
    batch_size: int = 32,
    banned: Tensor | None = None,
    companion: Companion | None = None,
    progress: Callable[[float], None] | None = None,
    kept: Kept | None = None,
) -> list[Written]:
    """Answers to prompts of token ids, in their order.

    Args:
        model: as in ``generate``.
        prompts: not empty, short enough for the window.
        names: one for each answer; with the seed it decides the answer's random numbers.
        decoding, seed, batch_size, progress, kept: as in ``generate``.
        eos: ends an answer.
        reachable: token ids are below this; rows of the head beyond get no probability.
        banned: (K,) int64 token ids that get none either.
        companion: a second model with the same vocabulary; needs temperature 1.

    Raises:
        ValueError: settings that leave no room for an answer, or make no sense.
    """
    _check(decoding, batch_size)
    if companion is not None and decoding.temperature != 1:
        raise ValueError("two models write together at temperature 1 only")
    rooms = _rooms(model, prompts, decoding)
    answers = [Written([], False)] * len(prompts)
    voices = [model] if companion is None else [model, companion.model]
    with contextlib.ExitStack() as stack:
        for voice in voices:
            stack.enter_context(_evaluating(voice))
        done = 0
        for chosen in batches(prompts, batch_size):
            inputs = [prompts[i] for i in chosen]
            key = _batch_key([names[i] for i in chosen], inputs, decoding, seed)
            known = kept.get(key) if kept is not None else None
            if known is None:
                batch = _Batch(model, decoding, eos, reachable, banned, companion)
                known = batch.run(
                    inputs,
                    [rooms[i] for i in chosen],
                    [uniforms(seed, names[i], decoding.max_new_tokens) for i in chosen],
                )
                if kept is not None:
                    kept.add(key, known)
            for i, answer in zip(chosen, known, strict=True):
                answers[i] = Written(*answer)
            done += len(chosen)
            if progress is not None:
                progress(done / len(prompts))
    return answers


def batches(prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Which prompts are answered side by side, in what order.

    Longest first: little padding, and a batch that does not fit memory fails at once.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _batch_key(
    names: Sequence[str], prompts: Sequence[Sequence[int]], decoding: DecodingLike, seed: int
) -> str:
    """What the answers of a batch depend on, beside the models."""
    limits = (decoding.temperature, decoding.top_p, decoding.top_k, decoding.no_repeat_ngram)
    lengths = (decoding.max_new_tokens, decoding.max_length)
    asked = (seed, limits, lengths, [(name, list(ids)) for name, ids in zip(names, prompts, strict=True)])
    return hashlib.sha256(repr(asked).encode()).hexdigest()


def _check(decoding: DecodingLike, batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if (
        decoding.temperature < 0
        or not 0 < decoding.top_p <= 1
        or decoding.top_k < 0
        or decoding.no_repeat_ngram < 0
    ):
        raise ValueError(
            f"temperature >= 0, 0 < top_p <= 1, top_k >= 0 and no_repeat_ngram >= 0 are needed: {decoding}"
        )
    if decoding.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {decoding.max_new_tokens}")


def _rooms(model: Any, prompts: Sequence[Sequence[int]], decoding: DecodingLike) -> list[int]:
    """How many tokens each answer may have: the settings' limit, or what the model's window leaves."""
    window = min(
        decoding.max_length, getattr(model.config, "max_position_embeddings", None) or decoding.max_length
    )
    longest = max(map(len, prompts), default=0)
    if longest >= window:
        raise ValueError(
            f"a prompt of {longest} tokens leaves no room for an answer in {window}; lower max_prompt"
        )
    if prompts and not min(map(len, prompts)):
        raise ValueError("an empty prompt, and the tokenizer adds no BOS: there is nothing to continue")
    return [min(decoding.max_new_tokens, window - len(prompt)) for prompt in prompts]


def uniforms(seed: int, item: str, count: int) -> np.ndarray:
    """``count`` uniform numbers in [0, 1) for one answer's steps: Philox keyed by SHA-256 of seed and id."""
    key = hashlib.sha256(f"{seed}\x1f{item}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(count)


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Dropout off and no gradients; the model's mode is put back afterwards."""
    training = model.training
    model.eval()
    try:
        # not inference_mode: a model may keep tensors it makes here, and be trained with them later
        with torch.no_grad():
            yield
    finally:
        model.train(training)


class _Ngrams:
    """Which tokens would repeat an n-gram of one row's prompt and answer."""

    def __init__(self, size: int, prompt: Sequence[int]) -> None:
        self.size = size
        self.text: list[int] = []
        self.followers: dict[tuple[int, ...], list[int]] = {}
        for token in prompt:
            self.append(token)

    def append(self, token: int) -> None:
        self.text.append(token)
        if len(self.text) >= self.size:
            start = len(self.text) - self.size
            self.followers.setdefault(tuple(self.text[start:-1]), []).append(token)

    def banned(self) -> list[int]:
        """Tokens that have followed the last n - 1 before."""
        if len(self.text) < self.size - 1:
            return []
        return self.followers.get(tuple(self.text[len(self.text) - self.size + 1 :]), [])


class _Batch:
    """One batch of answers: prefill, then a token for every unfinished row at each step."""

    def __init__(
        self,
        model: Any,
        decoding: DecodingLike,
        eos: int | None,
        reachable: int,
        banned: Tensor | None,
        companion: Companion | None,
    ) -> None:
        self.voices = [model] if companion is None else [model, companion.model]
        self.companion = companion
        self.decoding, self.eos, self.reachable = decoding, eos, reachable
        self.device = next(model.parameters()).device
        self.banned = None if banned is None else banned.to(self.device)
        self.cache_names = [_cache_argument(voice) for voice in self.voices]

    def run(
        self, prompts: Sequence[Sequence[int]], rooms: Sequence[int], randoms: Sequence[np.ndarray]
    ) -> list[Written]:
        from transformers import DynamicCache

        width, steps = max(map(len, prompts)), max(rooms)
        lengths = torch.tensor([len(p) for p in prompts])
        inputs = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            inputs[row, width - len(prompt) :] = torch.tensor(prompt)
        columns = torch.arange(width + steps)
        mask = (columns[None] >= width - lengths[:, None]).long().to(self.device)
        positions = (columns[None, :width] - width + lengths[:, None]).clamp(min=0).to(self.device)
        lengths, inputs = lengths.to(self.device), inputs.to(self.device)
        padded = bool((lengths < width).any())
        uniform = torch.from_numpy(np.stack(randoms)).to(self.device)

        written: list[list[int]] = [[] for _ in prompts]
        size = self.decoding.no_repeat_ngram
        seen = [_Ngrams(size, prompt) for prompt in prompts] if size else None
        rows = list(range(len(prompts)))  # which answer each row of the tensors belongs to
        alive = [True] * len(prompts)
        ended = [False] * len(prompts)
        caches = [DynamicCache(config=voice.config) for voice in self.voices]
        for step in range(steps):
            logits = self._logits(inputs, mask[:, : width + step] if padded else None, positions, caches)
            if seen is not None:
                _ban(logits, [seen[n].banned() for n in rows])
            tokens = choose(logits, self.decoding, uniform[:, step])
            for n, token in zip(rows, tokens.tolist(), strict=True):
                if not alive[n]:
                    continue
                if token == self.eos:
                    alive[n], ended[n] = False, True
                    continue
                written[n].append(token)
                alive[n] = len(written[n]) < rooms[n]
                if seen is not None:
                    seen[n].append(token)
            kept = [place for place, n in enumerate(rows) if alive[n]]
            if not kept:
                break
            if len(rows) - len(kept) >= max(1, len(rows) // 4):
                index = torch.tensor(kept, device=self.device)
                rows = [rows[place] for place in kept]
                for cache in caches:
                    cache.batch_select_indices(index)
                tokens, mask, lengths, uniform = tokens[index], mask[index], lengths[index], uniform[index]
            inputs, positions = tokens[:, None], (lengths + step)[:, None]
        return [Written(ids, end) for ids, end in zip(written, ended, strict=True)]

    def _logits(
        self, inputs: Tensor, mask: Tensor | None, positions: Tensor, caches: Sequence[Any]
    ) -> Tensor:
        """Logits (rows, reachable) of the last column, fp32, of all voices together."""
        spoken = [
            self._forward(voice, inputs, mask, positions, {name: cache})
            for voice, name, cache in zip(self.voices, self.cache_names, caches, strict=True)
        ]
        logits = spoken[0]
        if self.companion is not None:
            share = self.companion.share
            logits = ((1 - share) * logits.softmax(-1) + share * spoken[1].softmax(-1)).log()
        if self.banned is not None:
            logits[:, self.banned] = -torch.inf
        return logits

    def _forward(
        self, model: Any, inputs: Tensor, mask: Tensor | None, positions: Tensor, cache: dict[str, Any]
    ) -> Tensor:
        """Logits (rows, reachable) of the last column of one model, fp32."""
        output = model(
            input_ids=inputs,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **cache,
        )
        # rows of the head that no token id reaches get no probability
        logits: Tensor = output.logits[:, -1, : self.reachable].float()
        if not math.isfinite(logits.max().item()):  # the maximum of what holds NaN is NaN
            raise BrokenModelError("the model's logits are not numbers, so its answers would mean nothing")
        return logits


def _cache_argument(model: Any) -> str:
    """What the library's models call it: ``cache`` of late, ``past_key_values`` before."""
    known = inspect.signature(getattr(model, "forward", model)).parameters
    return "cache" if "cache" in known else "past_key_values"


def _ban(logits: Tensor, banned: Sequence[Sequence[int]]) -> None:
    rows = [row for row, tokens in enumerate(banned) for _ in tokens]
    if rows:
        columns = [token for tokens in banned for token in tokens]
        logits[
            torch.tensor(rows, device=logits.device), torch.tensor(columns, device=logits.device)
        ] = -torch.inf


def choose(logits: Tensor, decoding: DecodingLike, uniform: Tensor) -> Tensor:
    """One token for each row.

    Temperature, then top-k, then top-p, as Hugging Face orders them; then the first token whose cumulative
    probability, in the order of ids and in fp64, exceeds the row's uniform number.

    Args:
        logits: (rows, V) fp32; -inf for tokens that may not come.
        decoding: see DecodingLike.
        uniform: (rows,) fp64 in [0, 1).

    Returns:
        (rows,) int64.
    """
    if decoding.temperature == 0:
        return logits.argmax(-1)
    scaled = logits / decoding.temperature if decoding.temperature != 1 else logits
    if 0 < decoding.top_k < scaled.shape[-1]:
        least = scaled.topk(decoding.top_k).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    if decoding.top_p < 1:
        scaled = _nucleus(scaled, decoding.top_p)
    cumulative = torch.softmax(scaled, -1).double().cumsum(-1)
    total = cumulative[:, -1:]
    # u * total may round up to total, above which no token lies
    target = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Keep the most likely tokens until their mass reaches ``top_p``; the one that crosses it stays."""
    ordered, order = torch.softmax(logits, -1).double().sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return logits.masked_fill(dropped, -torch.inf)
