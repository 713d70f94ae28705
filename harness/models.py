"""Models as the harness handles them: found, loaded, adapted, and reduced to what methods may see."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dskd.batch import Side
from dskd.vocabulary import Vocabulary
from harness.cells import Lora
from harness.files import file_hash, write_whole

Progress = Callable[[str, float], None]


_trusted = False


def trust_remote_code(trusted: bool) -> None:
    """Whether Python files that a model folder brings may be run in this process; at first they may not."""
    global _trusted  # noqa: PLW0603 - as the libraries below keep theirs
    _trusted = trusted


class ModelError(ValueError):
    """A model that cannot take part, with the reason."""


@dataclass
class LoadedModel:
    """A causal language model with its tokenizer and where it came from."""

    lm: Any  #: transformers causal LM
    tokenizer: Any
    path: Path
    ref: str

    @property
    def window(self) -> int:
        """Longest sequence the model's positions allow."""
        config = self.lm.config
        return int(getattr(config, "max_position_embeddings", 1 << 20))

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return torch.device(next(self.lm.parameters()).device)

    def side(self) -> Side:
        """Head, input embedding and vocabulary, cut to the rows that tokenizer ids reach."""
        return cut_side(self.lm, Vocabulary.from_tokenizer(self.tokenizer))

    def hidden(self, ids: Tensor) -> Tensor:
        """Final hidden states (B, L, width) of right-padded ids; causality makes a padding mask needless."""
        output: Tensor = self.lm.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return output


def cut_side(lm: Any, vocabulary: Vocabulary) -> Side:
    """The part of a causal LM that methods may see; refuses heads that are more than one matrix."""
    head, config = lm.get_output_embeddings(), lm.config
    if head is None:
        raise ModelError(f"{type(lm).__name__} has no language-model head")
    if getattr(head, "bias", None) is not None:
        raise ModelError(f"{type(lm).__name__}: a head with a bias is not supported")
    for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, key, None) not in (None, 1.0):
            raise ModelError(f"{type(lm).__name__}: a head with {key} is not supported")
    if vocabulary.size > head.weight.shape[0]:
        raise ModelError(
            f"the tokenizer has ids up to {vocabulary.size - 1}, the head only {head.weight.shape[0]} rows"
        )
    rows = vocabulary.size
    return Side(head.weight[:rows], lm.get_input_embeddings().weight[:rows], vocabulary)


def load(path: Path, ref: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Load a model folder (safetensors only, no remote code)."""
    tokenizer = load_tokenizer(path)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{ref}: the tokenizer has no EOS token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        use_safetensors=True,
        attn_implementation="sdpa",
        trust_remote_code=_trusted,
        output_loading_info=True,
    )
    lm, told = loaded
    lacking = sorted({*told["missing_keys"], *(str(found[0]) for found in told["mismatched_keys"])})
    if lacking:  # transformers draws them at random and only warns
        raise ModelError(f"{ref}: its weights do not hold {', '.join(lacking[:3])}; a whole model is needed")
    lm.eval()
    return LoadedModel(lm, tokenizer, path, ref)


def cast(lm: nn.Module, dtype: torch.dtype) -> None:
    """Change the type of a model's weights, as loading it in that type would.

    ``lm.to(dtype)`` also rounds the rotary frequencies, which loading keeps in float32: at position 200 an
    angle would be off by up to .3.
    """
    for parameter in lm.parameters():
        parameter.data = parameter.data.to(dtype)


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a model folder."""
    return AutoTokenizer.from_pretrained(path, trust_remote_code=_trusted)


def add_lora(model: LoadedModel, lora: Lora) -> None:
    """Freeze the model and put adapters on all linear layers of its blocks, in place (peft)."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model.lm.requires_grad_(False)
    inject_adapter_in_model(config, model.lm)
    for name, parameter in model.lm.named_parameters():
        parameter.requires_grad_("lora_" in name)


def merge_lora(model: LoadedModel) -> None:
    """Fold adapters into the weights, leaving a plain model."""
    for name, layer in _adapted(model):
        layer.merge()
        parent = model.lm.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], layer.get_base_layer())


@contextmanager
def merged(model: LoadedModel) -> Iterator[None]:
    """Adapters folded into the weights for a while, which halves the work of writing text.

    The weights come back bit for bit, which subtracting the adapters again would not give.
    """
    layers = [layer for _, layer in _adapted(model)]
    kept = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    for layer in layers:
        layer.merge()
    try:
        yield
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.get_base_layer().weight.data.copy_(weight)
            layer.merged_adapters.clear()


def _adapted(model: LoadedModel) -> list[tuple[str, Any]]:
    """The model's layers that carry adapters, by name."""
    if "peft" not in sys.modules:  # slow to import, and without it there are none
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, part) for name, part in model.lm.named_modules() if isinstance(part, BaseTunerLayer)]


def autocast(student: LoadedModel, precision: str) -> AbstractContextManager[Any]:
    """What a student of a training in this precision reads and writes under."""
    if precision == "bf16" and next(student.lm.parameters()).dtype == torch.float32:
        return torch.autocast(student.device.type, dtype=torch.bfloat16)
    return nullcontext()


def trainable(module: nn.Module | None) -> list[nn.Parameter]:
    """Parameters that an optimiser moves; a tied one counts once."""
    return [] if module is None else [p for p in module.parameters() if p.requires_grad]


def fingerprint(path: Path) -> str:
    """SHA-256 over config, weights and tokenizer files of a model folder, remembered by size and time."""
    kinds = (".safetensors", ".json", ".model", ".txt", ".py")
    files = sorted(p for p in path.iterdir() if p.suffix in kinds)
    stamp = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    memo = path / ".fingerprint"
    try:
        known = json.loads(memo.read_text())
        if known["check"] == _check(stamp, known["sha256"]):
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or not whole: the hash is computed
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + bytes.fromhex(file_hash(file)))
    found = digest.hexdigest()
    with contextlib.suppress(OSError):  # a folder that may only be read: computed again next time
        write_whole(memo, json.dumps({"sha256": found, "check": _check(stamp, found)}).encode())
    return found


def _check(stamp: list[list[Any]], sha256: str) -> str:
    """Binds a remembered hash to the files it is of, and tells when the memory itself was damaged."""
    return hashlib.sha256(json.dumps([stamp, sha256]).encode()).hexdigest()


def describe(path: Path, ref: str) -> dict[str, Any]:
    """What a record says of a model."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=_trusted)
    return {
        "ref": ref,
        "sha256": fingerprint(path),
        "architecture": (config.architectures or [type(config).__name__])[0],
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
    }
