"""The models of scale ``tiny``: two tokenizers and a few Llama-shaped models trained on ``evals.world``.

Nothing is downloaded. A model is built on first use, in minutes on one core, and kept in the cache
under the versions and settings it depends on. The sizes were fixed by the gap between a student
fine-tuned on the training instructions and its teacher (docs/tiny.md).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock

from dskd.lazy import torch
from evals import world as town
from harness import files

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

#: Raised whenever a tokenizer or a model trained by this file changes.
TINY_VERSION = 1

Progress = Callable[[str, float], None]
Text = Literal["instructions", "maths", "code", "prose"]
Batch = tuple["Tensor", "Tensor"]  #: ids and labels


@dataclass(frozen=True)
class Recipe:
    """How a model is made."""

    vocabulary: Literal["bpe", "sp"]
    text: Text  #: what it is trained on
    width: int
    layers: int
    steps: int
    batch: int = 12  #: documents per step
    heads: int = 4
    lr: float = 2e-3
    start: str | None = None  #: model whose weights it begins with


_BEGIN = "tiny:teacher-bpe"
#: References to the models of this scale.
REFS: dict[str, Recipe] = {
    "tiny:teacher-bpe": Recipe("bpe", "instructions", width=192, layers=3, steps=2000),
    "tiny:teacher-sp": Recipe("sp", "instructions", width=192, layers=3, steps=2000),
    "tiny:student-bpe": Recipe("bpe", "prose", width=128, layers=3, steps=1500),
    "tiny:student-sp": Recipe("sp", "prose", width=128, layers=3, steps=1500),
    "tiny:teacher-bpe-maths": Recipe("bpe", "maths", width=192, layers=3, steps=1200, start=_BEGIN),
    "tiny:teacher-bpe-code": Recipe("bpe", "code", width=192, layers=3, steps=800, start=_BEGIN),
}

#: Models of the regression check. Trained anew on another kind of machine they would be other models, and
#: that difference is in no spread over training seeds; so their weights, in fp16, are in the checkout.
FIXED: dict[str, Recipe] = {
    "tiny:check-teacher-bpe": Recipe("bpe", "instructions", width=64, layers=2, steps=800, lr=4e-3),
    "tiny:check-teacher-sp": Recipe("sp", "instructions", width=64, layers=2, steps=800, lr=4e-3),
    "tiny:check-student-bpe": Recipe("bpe", "prose", width=48, layers=2, steps=400, lr=4e-3),
}
FIXED_FOLDER = Path(__file__).resolve().parents[1] / "results" / "references" / "models"

#: Base of the rotary angles: the texts have a hundred tokens, not thousands.
_ROPE_THETA = 500.0
#: Tokens of each vocabulary: so far apart that a quarter of an answer's tokens have no partner.
SIZES = {"bpe": 1280, "sp": 960}
SP_ALPHABET = 90
_SP_SPECIAL = ("<unk>", "<s>", "</s>")


def world(cache: Path) -> Path:
    """The folder with the suites and training files, written on first use."""
    return _once(world_place(cache), town.write)


def world_place(cache: Path) -> Path:
    """Where that folder lies once it is written."""
    return cache / "tiny" / f"world-{town.WORLD_VERSION}"


def build(ref: str, cache: Path, progress: Progress | None = None) -> Path:
    """The Hugging Face folder of a model, trained on first use; safe to call from several processes.

    ``progress(stage, part)`` is called with part between 0 and 1. ValueError for an unknown reference.
    """
    if ref in FIXED:
        return _install(ref, cache)
    if ref not in REFS:
        raise ValueError(f"{ref!r} is no tiny model; there are {', '.join((*REFS, *FIXED))}")
    return _build(ref, REFS[ref], cache, progress or (lambda stage, part: None))


def _build(ref: str, recipe: Recipe, cache: Path, progress: Progress) -> Path:
    name = ref.removeprefix("tiny:")
    return _once(_place(ref, recipe, cache), lambda into: _make(name, recipe, cache, into, progress))


def place(ref: str, cache: Path) -> Path:
    """Where a model lies once it is built."""
    return _place(ref, REFS[ref], cache)


def _place(ref: str, recipe: Recipe, cache: Path) -> Path:
    return cache / "tiny" / f"{ref.removeprefix('tiny:')}-{_key(recipe)}"


def _install(ref: str, cache: Path) -> Path:
    """A fixed model in the cache, where libraries may leave files of their own beside it."""
    source = FIXED_FOLDER / ref.removeprefix("tiny:")
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: the weights of {ref} come with a checkout of the repository")
    digest = hashlib.sha256("".join(files.file_hash(file) for file in sorted(source.iterdir())).encode())
    folder = cache / "tiny" / f"{source.name}-{digest.hexdigest()[:12]}"
    return _once(folder, lambda into: shutil.copytree(source, into, dirs_exist_ok=True))


def write_fixed(cache: Path) -> None:
    """Train the fixed models and write their weights into the checkout. This changes what is checked."""
    for ref, recipe in FIXED.items():
        into = FIXED_FOLDER / ref.removeprefix("tiny:")
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir(parents=True)
        _make(ref, recipe, cache, into, lambda stage, part: None, half=True)


def _key(recipe: Recipe) -> str:
    """Hash of all that the weights depend on, the recipe it starts from included."""
    start = _key(REFS[recipe.start]) if recipe.start else None
    parts = [
        town.WORLD_VERSION,
        TINY_VERSION,
        SIZES[recipe.vocabulary],
        _ROPE_THETA,
        SP_ALPHABET,
        dataclasses.asdict(recipe),
        start,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _once(folder: Path, make: Callable[[Path], object]) -> Path:
    """``folder``, made by ``make`` if it is not there as it was made; it appears whole or not at all."""
    if _sound(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not _sound(folder):
            half = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir()
            make(half)
            files.seal_folder(half)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(half, folder)
    return folder


def _sound(folder: Path) -> bool:
    """Whether a folder is there and its files are what they were; one without a seal gets one."""
    if not folder.is_dir():
        return False
    damaged = files.damaged_in(folder)
    if damaged is None:
        with contextlib.suppress(OSError):  # a cache that may only be read
            files.seal_folder(folder)
    elif damaged:
        warnings.warn(f"{folder}: {', '.join(damaged)} changed on disk; it is made anew", stacklevel=2)
    return not damaged


# Tokenizers


def _tokenizer_text() -> Iterator[str]:
    """What both tokenizers are trained on: some of everything."""
    yield from itertools.islice(town.prose("tokenizer"), 3000)
    for stream, count in (
        (town.instruction_stream("tokenizer"), 5000),
        (town.maths_stream("tokenizer"), 500),
        (town.python_stream("tokenizer"), 500),
    ):
        yield from (task.text for task in itertools.islice(stream, count))


def tokenizer(vocabulary: Literal["bpe", "sp"]) -> PreTrainedTokenizerFast:
    """``bpe``: byte-level as GPT-2's. ``sp``: ▁ for spaces, dummy prefix and byte fallback as LLaMA-2's."""
    return _byte_level() if vocabulary == "bpe" else _sentence_piece()


def _byte_level() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.ByteLevel(trim_offsets=False)
    end = "<|endoftext|>"
    raw.train_from_iterator(
        _tokenizer_text(),
        trainers.BpeTrainer(
            vocab_size=SIZES["bpe"],
            special_tokens=[end],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=end,
        eos_token=end,
        pad_token=end,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def _sentence_piece() -> PreTrainedTokenizerFast:
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    unknown, begin, end = _SP_SPECIAL
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    # The alphabet leaves out line breaks and the rarer letters, which then go through bytes.
    raw = Tokenizer(models.BPE(unk_token=unknown, byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # Only for training: no piece crosses a word, digits stand alone, a ▁ is at the front of a piece.
    raw.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"\n|▁+(?=▁)|▁?\p{L}+|▁?\p{N}|▁?[^▁\n\p{L}\p{N}]+|▁"), "isolated"
    )
    texts = [text.replace("\n", " ") for text in _tokenizer_text()]
    alphabet = _alphabet(texts)
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=SIZES["sp"],
            special_tokens=[unknown, begin, end, *pieces],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=_as_llama(json.loads(raw.to_str()), processors, Tokenizer, decoders),
        unk_token=unknown,
        bos_token=begin,
        eos_token=end,
        pad_token=end,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def _alphabet(texts: list[str]) -> list[str]:
    """The commonest letters, ties by code point: the trainer's own limit breaks them at random."""
    counts = Counter("▁".join(texts).replace(" ", "▁"))
    return sorted(sorted(counts, key=lambda letter: (-counts[letter], letter))[:SP_ALPHABET])


def _as_llama(state: dict[str, Any], processors: Any, tokenizer_class: Any, decoders: Any) -> Any:
    """The trained pieces as LLaMA-2 uses them: no pre-tokenizer, bytes are no specials, <s> in front."""
    begin = _SP_SPECIAL[1]
    state["pre_tokenizer"] = None
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in _SP_SPECIAL]
    raw = tokenizer_class.from_str(json.dumps(state))
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, 1)]
    )
    return raw


# Models


@dataclass(frozen=True)
class Document:
    """Token ids; those before ``learnt`` are only read (the prompt of an instruction)."""

    ids: list[int]
    learnt: int


def _documents(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: str) -> Iterator[Document]:
    """Training text without end. Prompt and answer are tokenized apart, as in distillation."""
    end = [tokenizer.eos_token_id]
    if recipe.text == "prose":
        for text in town.prose(seed):
            yield Document(tokenizer.encode(text) + end, 1)
        return
    stream = {
        "instructions": town.instruction_stream,
        "maths": town.maths_stream,
        "code": town.python_stream,
    }[recipe.text]
    for task in stream(seed):
        prompt = tokenizer.encode(task.prompt)
        answer = tokenizer.encode(task.outputs[0], add_special_tokens=False)
        yield Document(prompt + answer + end, len(prompt))


def _batches(documents: Iterator[Document], size: int) -> Iterator[Batch]:
    """(ids, labels), each (size, L), -100 where nothing is learnt; documents of like length go together."""
    pool = 16
    order = Random("order")
    while True:
        drawn = sorted(itertools.islice(documents, pool * size), key=lambda document: len(document.ids))
        groups = [drawn[start : start + size] for start in range(0, len(drawn), size)]
        order.shuffle(groups)
        yield from map(_padded, groups)


def _padded(documents: list[Document]) -> Batch:
    length = max(len(document.ids) for document in documents)
    ids = torch.zeros(len(documents), length, dtype=torch.int64)
    labels = torch.full_like(ids, -100)
    for row, document in enumerate(documents):
        tokens = torch.tensor(document.ids)
        ids[row, : len(tokens)] = tokens
        labels[row, document.learnt : len(tokens)] = tokens[document.learnt :]
    return ids[:, :-1], labels[:, 1:]


def _new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Llama's shape; one matrix for input and output with byte-level BPE, as in GPT-2."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.width * 8 // 3 // 16 * 16,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": _ROPE_THETA},
        tie_word_embeddings=recipe.vocabulary == "bpe",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def _fit(
    model: LlamaForCausalLM, recipe: Recipe, batches: Iterator[Batch], progress: Callable[[float], None]
) -> float:
    """AdamW, warm-up over a twentieth of the steps, cosine to zero. Gives the last loss."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    warm = max(1, recipe.steps // 20)
    model.train()
    loss = torch.zeros(())
    for step in range(recipe.steps):
        rate = min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / recipe.steps))
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * rate
        ids, labels = next(batches)
        learnt = labels >= 0
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[learnt]
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden), labels[learnt])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress((step + 1) / recipe.steps)
    return float(loss.detach())


@contextmanager
def _one_thread(seed: int) -> Iterator[None]:
    """One thread and a fixed seed, so that a model comes out the same with any number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def _make(
    name: str, recipe: Recipe, cache: Path, into: Path, progress: Progress, *, half: bool = False
) -> None:
    """Train a model and save it with its tokenizer, in half precision if asked."""
    from transformers import LlamaForCausalLM

    words = tokenizer(recipe.vocabulary)
    start = build(recipe.start, cache, progress) if recipe.start else None
    with _one_thread(seed=0):
        model = LlamaForCausalLM.from_pretrained(start) if start else _new_model(recipe, words)
        batches = _batches(_documents(recipe, words, seed="models"), recipe.batch)
        loss = _fit(model, recipe, batches, lambda part: progress(name, part))
    (model.half() if half else model).save_pretrained(into)
    words.save_pretrained(into)
    recipe_file = {"recipe": dataclasses.asdict(recipe), "last_loss": round(loss, 4)}
    (into / "recipe.json").write_text(json.dumps(recipe_file, indent=1, sort_keys=True) + "\n")
