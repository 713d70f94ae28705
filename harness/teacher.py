"""The teacher, run once: its final hidden states at response positions, kept on disk in bf16.

A state is ``width`` numbers where the logits would be ``vocabulary``; the head turns one into the
other exactly when a loss needs them. Every method, seed and epoch shares one file per text set.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dskd.batch import Side
from dskd.vocabulary import Vocabulary
from harness.data import Encoded, pack
from harness.distributed import World
from harness.estimate import DISK_BUDGET
from harness.files import file_hash, intact, seal, write_whole
from harness.journal import Journal
from harness.models import LoadedModel, Progress, fingerprint, load, load_tokenizer
from harness.versions import TRAINER

TOKENS_PER_FORWARD = 4096

#: The file of a folder of hidden states.
STATES = "hidden.bin"


class HiddenStates(Protocol):
    """Final hidden states of a text set, addressed by example."""

    def rows(self, examples: Sequence[int]) -> Tensor:
        """(sum of response tokens, width) bf16, examples in the order given."""
        ...


@dataclass(frozen=True)
class StoredStates:
    """Memory-mapped states: example e owns rows offsets[e] .. offsets[e + 1] - 1."""

    data: np.memmap  #: (tokens, width) int16, the bits of bf16
    offsets: np.ndarray  #: (examples + 1,)

    @property
    def files(self) -> tuple[Path, Path]:
        """What is on disk: the states, and what vouches for them."""
        file = Path(str(self.data.filename))
        return file, file.with_name("meta.json")

    def rows(self, examples: Sequence[int]) -> Tensor:
        """See HiddenStates."""
        return torch.from_numpy(_rows(self.data, self.offsets, examples)).view(torch.bfloat16)


@dataclass(frozen=True)
class RecomputedStates:
    """States computed anew at every request, for texts whose cache would not fit the disk budget."""

    model: LoadedModel
    sequences: Sequence[Encoded]

    def rows(self, examples: Sequence[int]) -> Tensor:
        """See HiddenStates."""
        return read(self.model, [self.sequences[e] for e in examples])


def hidden_states(
    path: Path,
    ref: str,
    sequences: Sequence[Encoded],
    cache: Path,
    dtype: torch.dtype,
    progress: Progress,
    disk_budget: int = DISK_BUDGET,
    world: World | None = None,
    *,
    whole: bool = False,
) -> HiddenStates:
    """The teacher's states on these sequences: from disk, or computed once and kept there.

    ``whole``: no process reads with a shard of the teacher, for methods that train on student text beside
    the data's. Shards have to be read by all processes together, and how many examples of a micro-batch
    are the data's is each process's own.
    """
    world = world or World()
    offsets = np.cumsum([0] + [len(s.response.ids) for s in sequences])
    folder = cache / "teacher" / _key(path, sequences, dtype)
    with world.locked(folder):
        if not world.told(lambda: _open(folder, offsets) is not None):
            model = (world.place if whole else world.reader)(load(path, ref, dtype))
            needed = int(offsets[-1]) * int(model.lm.config.hidden_size) * 2
            if not world.told(lambda: _fits(needed, folder, disk_budget)):
                warnings.warn(
                    f"{ref}: {needed / 2**30:.1f} GiB of hidden states exceed the disk budget; "
                    "the teacher runs at every step",
                    stacklevel=2,
                )
                return RecomputedStates(model, sequences)
            _compute(model, sequences, offsets, folder, progress, world)
    stored = _open(folder, offsets)
    if stored is None:
        raise OSError(f"{folder}: hidden states unreadable right after they were written")
    return stored


def whole_teacher(
    path: Path, ref: str, dtype: torch.dtype, states: HiddenStates | None, world: World
) -> LoadedModel:
    """A teacher that each process may ask about text of its own; that of ``whole`` states, if any."""
    return states.model if isinstance(states, RecomputedStates) else world.place(load(path, ref, dtype))


def _fits(needed: int, folder: Path, budget: int) -> bool:
    """Whether there is room, counting what an earlier call has reserved."""
    reserved = (folder / STATES).stat().st_size if (folder / STATES).is_file() else 0
    return needed <= min(budget, (shutil.disk_usage(folder.parent).free + reserved) // 2)


def teacher_side(path: Path, ref: str, cache: Path, dtype: torch.dtype, world: World | None = None) -> Side:
    """Head, embedding and vocabulary of a teacher, without loading its layers a second time."""
    world = world or World()
    vocabulary = Vocabulary.from_tokenizer(load_tokenizer(path))
    file = cache / "teacher" / f"side-{fingerprint(path)[:20]}-{str(dtype).split('.')[1]}.safetensors"

    def make() -> None:
        if not intact(file):
            side = load(path, ref, dtype).side()
            tied = side.head.data_ptr() == side.embedding.data_ptr()
            matrices = {"head": side.head} if tied else {"head": side.head, "embedding": side.embedding}
            save_file({k: v.detach().contiguous() for k, v in matrices.items()}, f"{file}.part")
            os.replace(f"{file}.part", file)
            seal(file)

    with world.locked(file):
        world.told(make)
    matrices = load_file(file)
    return Side(matrices["head"], matrices.get("embedding", matrices["head"]), vocabulary)


def _key(path: Path, sequences: Sequence[Encoded], dtype: torch.dtype) -> str:
    digest = hashlib.sha256(f"{fingerprint(path)} {dtype} {TRAINER}".encode())
    for sequence in sequences:
        digest.update(len(sequence.prompt).to_bytes(4, "little"))
        digest.update(np.concatenate([sequence.prompt, sequence.response.ids]).astype(np.int32).tobytes())
    return digest.hexdigest()[:20]


def _open(folder: Path, offsets: np.ndarray) -> StoredStates | None:
    """The stored states, or None where they are absent, cut short or altered (then rebuilt)."""
    meta, file = folder / "meta.json", folder / STATES
    try:
        known = json.loads(meta.read_text())
        shape = (int(offsets[-1]), int(known["width"]))
        whole = file.stat().st_size == 2 * shape[0] * shape[1] and file_hash(file) == known["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not whole:
        warnings.warn(f"{file}: contents do not match their hash; rebuilding", stacklevel=3)
        return None
    return StoredStates(np.memmap(file, dtype=np.int16, mode="r", shape=shape), offsets)


@torch.no_grad()  # not inference_mode: what a projector takes in is kept for its backward pass
def read(model: LoadedModel, sequences: Sequence[Encoded]) -> Tensor:
    """A model's final hidden states at the response positions of these sequences (N, width), bf16."""
    packed = pack(sequences).to(model.device)
    hidden = model.hidden(packed.ids).flatten(0, 1)
    return hidden[packed.positions].to(torch.bfloat16)


def _compute(
    model: LoadedModel,
    sequences: Sequence[Encoded],
    offsets: np.ndarray,
    folder: Path,
    progress: Progress,
    world: World,
) -> None:
    """Fill the file in batches of like length, from where an earlier call was stopped."""
    width = int(model.lm.config.hidden_size)
    filling = _Filling(folder, offsets, width) if world.main else None
    order = sorted(range(len(sequences)), key=lambda e: len(sequences[e]), reverse=True)
    batches = list(_by_tokens(order, [len(s) for s in sequences], TOKENS_PER_FORWARD))
    left = world.told(lambda: filling.left(batches) if filling is not None else [])
    done = len(order) - sum(map(len, left))
    for batch, counts in world.shares(left):
        states = read(model, [sequences[e] for e in batch]).view(torch.int16).cpu().numpy()
        for examples, found in world.gathered((batch, states) if counts else ([], states)):
            if filling is not None and examples:
                filling.put(examples, found)
            done += len(examples)
        progress("teacher states", done / len(order))
    if filling is not None:
        filling.close()
    world.told(lambda: None)  # nobody looks before it is there


class _Filling:
    """The file of states while it is filled; a journal beside it has the hash of each batch's rows.

    meta.json with the hash of all comes last and makes the file valid.
    """

    def __init__(self, folder: Path, offsets: np.ndarray, width: int) -> None:
        self.folder, self.offsets, self.width = folder, offsets, width
        self.file = folder / STATES
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "meta.json").unlink(missing_ok=True)
        shape = (int(offsets[-1]), width)
        if not self.file.is_file() or self.file.stat().st_size != 2 * shape[0] * shape[1]:
            _reserve(self.file, 2 * shape[0] * shape[1])
        self.data = np.memmap(self.file, dtype=np.int16, mode="r+", shape=shape)
        self.journal = Journal(folder / "batches.journal")

    def left(self, batches: Sequence[list[int]]) -> list[list[int]]:
        """The batches whose rows are not what an earlier call put there."""
        return [batch for batch in batches if not self._holds(batch)]

    def _holds(self, batch: Sequence[int]) -> bool:
        known = self.journal.get(str(batch))
        return known is not None and known == _hash(_rows(self.data, self.offsets, batch))

    def put(self, batch: Sequence[int], states: np.ndarray) -> None:
        """Put the states of a batch's examples, one after the other, into their places."""
        start = 0
        for e in batch:
            count = int(self.offsets[e + 1] - self.offsets[e])
            self.data[self.offsets[e] : self.offsets[e + 1]] = states[start : start + count]
            start += count
        self.journal.add(str(batch), _hash(states))

    def close(self) -> None:
        """Vouch for the whole file."""
        self.data.flush()
        about = {"sha256": file_hash(self.file), "width": self.width, "tokens": int(self.offsets[-1])}
        write_whole(self.folder / "meta.json", json.dumps(about).encode())
        self.journal.forget()


def _rows(data: np.ndarray, offsets: np.ndarray, examples: Sequence[int]) -> np.ndarray:
    """The rows of some examples, one after the other."""
    return np.concatenate([data[offsets[e] : offsets[e + 1]] for e in examples])


def _hash(states: np.ndarray) -> str:
    return hashlib.sha256(states.tobytes()).hexdigest()


def _reserve(file: Path, size: int) -> None:
    """A file of so many bytes that are really there: a disk that fills up under a map kills the process."""
    with file.open("wb") as stream:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
        stream.truncate(size)


def _by_tokens(order: Sequence[int], lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Consecutive groups whose padded size stays within the budget (order: longest first)."""
    group: list[int] = []
    for e in order:
        if group and (len(group) + 1) * lengths[group[0]] > budget:
            yield group
            group = []
        group.append(e)
    if group:
        yield group


def teacher_texts(
    file: Path, write: Callable[[], list[tuple[str, bool]]], count: int, world: World | None = None
) -> list[tuple[str, bool]]:
    """The teacher's answers to the training prompts (SeqKD), each with whether it came to its end; kept."""
    world = world or World()
    with world.locked(file):
        if not world.told(lambda: intact(file)):
            texts = write()  # by all processes together
            world.told(lambda: _keep_texts(file, texts))
    texts = [(text, ended) for text, ended in map(json.loads, file.read_text(encoding="utf-8").splitlines())]
    if len(texts) != count:
        raise ValueError(f"{file}: {len(texts)} texts for {count} prompts")
    return texts


def _keep_texts(file: Path, texts: Sequence[tuple[str, bool]]) -> None:
    write_whole(file, "".join(json.dumps(text) + "\n" for text in texts).encode())
    seal(file)
    for part in file.parent.glob(f"{file.stem}.part*"):  # journals of all processes that wrote
        part.unlink(missing_ok=True)
