"""A model folder read without loading the model: configuration, tokenizer, and the shapes of its weights."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

#: Weights as pickles, which run code when they are read.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5")
_HEADER_LIMIT = 100 << 20  # the safetensors format's own
_INPUT = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "embeddings.weight",
)
_OUTPUT = ("lm_head.weight", "embed_out.weight", "output.weight", "output_layer.weight")


class FolderError(ValueError):
    """A file of a model folder that is not what it should be; the message names it."""


@dataclass(frozen=True)
class Weights:
    """A tensor as a safetensors header describes it."""

    shape: tuple[int, ...]
    dtype: str  #: as the format writes it: F32, F16, BF16 ...


@dataclass(frozen=True)
class ModelFolder:
    """What can be known of a model folder in milliseconds. Raises FolderError where a file is damaged."""

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return _json(self.path / "config.json")

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        """tokenizer_config.json over special_tokens_map.json; empty where there is neither."""
        files = (self.path / "special_tokens_map.json", self.path / "tokenizer_config.json")
        return {key: value for file in files if file.is_file() for key, value in _json(file).items()}

    @cached_property
    def tensors(self) -> dict[str, Weights]:
        """Name -> shape and type of every tensor; empty where there is no safetensors file."""
        index = self.path / "model.safetensors.index.json"
        files = sorted(self.path.glob("*.safetensors"))
        if index.is_file():
            files = sorted({self.path / name for name in _json(index).get("weight_map", {}).values()})
        return {name: tensor for file in files for name, tensor in _header(file).items()}

    @property
    def pickles(self) -> list[str]:
        """Names of weight files that are pickles."""
        return sorted(p.name for p in self.path.iterdir() if p.suffix in PICKLES and p.is_file())

    @property
    def parameters(self) -> int:
        """Numbers in all weights; a tied matrix is stored once."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def dtypes(self) -> set[str]:
        """Types of the floating weights."""
        return {tensor.dtype for tensor in self.tensors.values() if tensor.dtype.startswith(("F", "BF"))}

    @property
    def rows(self) -> int | None:
        """Rows of the output head (of the input embedding where the two are tied)."""
        for ends in (_OUTPUT, _INPUT):
            found = [t.shape[0] for name, t in self.tensors.items() if name.endswith(ends)]
            if found:
                return found[0]
        return None

    @property
    def width(self) -> int:
        """Width of a hidden state; 0 where the configuration has another name for it."""
        return int(self.config.get("hidden_size") or self.config.get("n_embd") or 0)

    @property
    def layers(self) -> int:
        """Number of blocks, likewise."""
        return int(self.config.get("num_hidden_layers") or self.config.get("n_layer") or 0)

    @property
    def window(self) -> int | None:
        """Longest sequence that the positions allow."""
        found = self.config.get("max_position_embeddings") or self.config.get("n_positions")
        return int(found) if found else None

    @property
    def headless(self) -> str:
        """Why this is no causal language model with a head; empty if it is one as far as can be told."""
        names = self.config.get("architectures") or []
        if names and not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
            return f"its architecture is {', '.join(names)}"
        tied = self.config.get("tie_word_embeddings")
        if tied is False and self.tensors and not any(name.endswith(_OUTPUT) for name in self.tensors):
            return "its weights have no output head, and it is not tied to the input embedding"
        return ""

    @property
    def own_code(self) -> bool:
        """Whether the folder brings Python code of its own that loading it would run."""
        return "auto_map" in self.config or "auto_map" in self.tokenizer_config

    @cached_property
    def vocabulary(self) -> dict[str, int] | None:
        """Token -> id, added tokens included; None for a tokenizer in another format than JSON."""
        if (self.path / "tokenizer.json").is_file():
            data = _json(self.path / "tokenizer.json")
            known, added = _model_vocabulary(data), data.get("added_tokens") or ()
        elif (self.path / "vocab.json").is_file():
            known = _json(self.path / "vocab.json")
            listed = self.tokenizer_config.get("added_tokens_decoder") or {}
            added = [{"content": token["content"], "id": number} for number, token in listed.items()]
        else:
            return None
        return {**known, **{str(token["content"]): int(str(token["id"])) for token in added}}

    @property
    def eos(self) -> str | None:
        """The end-of-text token as the files have it."""
        return self._special("eos_token")

    @property
    def pad(self) -> str | None:
        """The padding token."""
        return self._special("pad_token")

    @property
    def lacks_eos(self) -> bool:
        """Whether the tokenizer certainly has no EOS; a named class may have one of its own."""
        general = self.tokenizer_config.get("tokenizer_class") in (
            "PreTrainedTokenizerFast",
            "TokenizersBackend",
        )
        stated = "eos_token" in self.tokenizer_config
        return self.eos is None and (general or stated)

    @property
    def chat_template(self) -> str | None:
        """The chat template, wherever it is kept."""
        file = self.path / "chat_template.jinja"
        if file.is_file():
            return file.read_text(encoding="utf-8", errors="replace")
        found = self.tokenizer_config.get("chat_template")
        return json.dumps(found) if found is not None and not isinstance(found, str) else found

    def _special(self, name: str) -> str | None:
        found = self.tokenizer_config.get(name)
        found = found.get("content") if isinstance(found, dict) else found
        return str(found) if found else None


def _model_vocabulary(data: dict[str, Any]) -> dict[str, int]:
    vocabulary = (data.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):  # Unigram: [[token, score], ...]
        return {token: number for number, (token, _) in enumerate(vocabulary)}
    return dict(vocabulary)


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FolderError(f"{file} cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise FolderError(f"{file} is no JSON object")
    return found


def _header(file: Path) -> dict[str, Weights]:
    """The tensors of a safetensors file, whose size must be what its header says."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(_HEADER_LIMIT, size):
                raise ValueError("its header is longer than the file")
            entries: dict[str, Any] = json.loads(stream.read(length))
        entries.pop("__metadata__", None)
        found = {name: Weights(tuple(e["shape"]), str(e["dtype"])) for name, e in entries.items()}
        ends: Iterable[int] = (int(entry["data_offsets"][1]) for entry in entries.values())
        wanted = 8 + length + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise FolderError(f"{file} is no whole safetensors file ({error})") from None
    if size != wanted:
        raise FolderError(f"{file} has {size} bytes, its header says {wanted}")
    return found
