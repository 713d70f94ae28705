"""Packaged weights -> Hugging Face folders: bf16 safetensors, config, generation config, tokenizer.

Every function writes one complete folder to ``out`` (which the caller then moves into place) and reads
only files the caller has already checked. Torch and transformers are imported inside the functions.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.sources.catalogue import SourceError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ConversionError(SourceError):
    """A package's file does not hold what the conversion expects."""


def gguf(source: Path, out: Path, *, tokenizer: Path | None = None) -> None:
    """A GGUF file of any quantization, unpacked to bf16 by transformers, with its chat template.

    ``tokenizer`` is a folder with the model's own tokenizer.json where one is packaged; without it the
    tokenizer is rebuilt from the GGUF's vocabulary, which is exact for byte-level BPE but not for
    SentencePiece (its treatment of leading spaces is not written in the file).
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        str(source.parent),
        gguf_file=source.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(gguf_file=source.name, dequantize=True),
    )
    _detach_quantizer(model)
    inside = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    if tokenizer is None:
        inside.save_pretrained(str(out))
        _mend_vocabulary(source, out)
        loaded = AutoTokenizer.from_pretrained(str(out))
    else:
        loaded = AutoTokenizer.from_pretrained(str(_fast_tokenizer(tokenizer, out)))
        loaded.chat_template = inside.chat_template
    _save(model, loaded, out)


def check_tokenizer(source: Path) -> None:
    """Raise ConversionError for a GGUF whose tokenizer cannot be rebuilt from the file alone."""
    from gguf import GGUFReader

    try:
        kind = GGUFReader(str(source)).fields["tokenizer.ggml.model"].contents()
    except (OSError, ValueError, KeyError) as error:
        raise ConversionError(f"{source.name} cannot be read as a GGUF model ({error})") from None
    if kind != "gpt2":
        raise ConversionError(
            f"{source.name} has a tokenizer of kind {kind!r}, which the file does not hold whole; put the "
            "model's tokenizer.json and tokenizer_config.json beside it"
        )


def _mend_vocabulary(source: Path, folder: Path) -> None:
    """Make a tokenizer rebuilt from a GGUF the model's own in two points that the rebuilding misses.

    Names that only fill a padded output head ([PAD151665] ...) leave the vocabulary, or their rows would
    pass for reachable tokens; and the digit-by-digit splitting of SmolLM2 (pre-tokenizer "smollm") comes
    back, without which "\\n\\n1" loses its double line break.
    """
    from gguf import GGUFReader, TokenType

    fields = GGUFReader(str(source)).fields
    types = fields["tokenizer.ggml.token_type"].contents()
    unused = {index for index, kind in enumerate(types) if kind == TokenType.UNUSED}
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {token: index for token, index in vocabulary.items() if index not in unused}
    split = content["pre_tokenizer"]
    if fields["tokenizer.ggml.pre"].contents() == "smollm" and split["type"] == "ByteLevel":
        digits = {"type": "Digits", "individual_digits": True}
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, split]}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def every_nth_layer(source: Path, out: Path, *, step: int) -> None:
    """A shallower model: layers 0, step, 2 step ... of a converted folder, everything else unchanged."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.bfloat16)
    kept = list(model.model.layers)[::step]
    for index, layer in enumerate(kept):
        layer.self_attn.layer_idx = index  # the key-value cache is addressed by it
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[::step]
    _save(model, AutoTokenizer.from_pretrained(str(source)), out)


def llama2c(source: Path, out: Path, *, tokenizer: Path) -> None:
    """A llama2.c checkpoint of the first format: seven int32, then float32 weights in a fixed order.

    The order is that of llama2.c's ``memory_map_weights``; rotary pairs there are neighbours, so the
    rows of the query and key projections are re-ordered to the halves that transformers rotates.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with source.open("rb") as file:
        width, inner, layers, heads, kv_heads, vocabulary, context = struct.unpack("<7i", file.read(28))
        weights = np.fromfile(file, dtype="<f4")
    if vocabulary <= 0:
        raise ConversionError(f"{source.name}: an untied output head is not expected here")
    kv_width = width // heads * kv_heads
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=1,
        eos_token_id=2,
    )
    shapes = {
        "embed_tokens": (vocabulary, width),
        "input_layernorm": (layers, width),
        "self_attn.q_proj": (layers, width, width),
        "self_attn.k_proj": (layers, kv_width, width),
        "self_attn.v_proj": (layers, kv_width, width),
        "self_attn.o_proj": (layers, width, width),
        "post_attention_layernorm": (layers, width),
        "mlp.gate_proj": (layers, inner, width),
        "mlp.down_proj": (layers, width, inner),
        "mlp.up_proj": (layers, inner, width),
        "norm": (width,),
    }
    rotary = context * (width // heads)  # two tables of cosines and sines, which transformers recomputes
    expected = sum(int(np.prod(shape)) for shape in shapes.values()) + rotary
    if weights.size != expected:
        raise ConversionError(f"{source.name}: {weights.size} weights, its header says {expected}")
    state: dict[str, torch.Tensor] = {}
    offset = 0
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        block = torch.from_numpy(weights[offset : offset + count].reshape(shape))
        offset += count
        if name in ("embed_tokens", "norm"):
            state[f"model.{name}.weight"] = block
            continue
        for layer in range(layers):
            row = block[layer]
            if name in ("self_attn.q_proj", "self_attn.k_proj"):
                row = _pairs_to_halves(row, heads if name.endswith("q_proj") else kv_heads)
            state[f"model.layers.{layer}.{name}.weight"] = row
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(state, strict=True)
    folder = _fast_tokenizer(tokenizer, out, max_length=context)
    model.bfloat16()
    _save(model, AutoTokenizer.from_pretrained(str(folder)), out)


def onnx_int8(source: Path, out: Path) -> None:
    """An ONNX export with dynamically quantized (int8) matrix products, back to its Llama weights.

    ``source`` is a folder with config.json, tokenizer files and onnx/model_quantized.onnx. Needs `onnx`.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    state = {name: torch.from_numpy(array) for name, array in _dequantized(source).items()}
    described = json.loads((source / "config.json").read_text())
    other = ("dtype", "transformers_version", "rope_scaling", "rope_theta", "model_type", "architectures")
    shape = {key: value for key, value in described.items() if key not in other}
    rotary = {"rope_type": "default", "rope_theta": float(described["rope_theta"])}
    model = LlamaForCausalLM(LlamaConfig(**shape, rope_parameters=rotary))
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    model.load_state_dict(state, strict=True)
    model.bfloat16()
    _save(model, AutoTokenizer.from_pretrained(str(source)), out)


def _dequantized(source: Path) -> dict[str, NDArray[np.float32]]:
    """Llama parameter name -> weights: (quantized - zero point) * scale, transposed from ONNX's (in, out)."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise ConversionError("reading this model needs `onnx`: pip install 'dskd-bench[small]'") from error

    graph = onnx.load(str(source / "onnx" / "model_quantized.onnx")).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def dense(name: str) -> NDArray[np.float32]:
        quantized, zero = arrays[f"{name}_quantized"], arrays[f"{name}_zero_point"]
        shifted = quantized.astype(np.float32) - zero.astype(np.float32)
        return np.asarray(shifted * arrays[f"{name}_scale"], dtype=np.float32)

    state = {name: array.astype(np.float32) for name, array in arrays.items() if name.endswith("norm.weight")}
    state["model.embed_tokens.weight"] = dense("model.embed_tokens.weight")
    for node in graph.node:
        if node.op_type != "MatMulInteger":
            continue
        found = re.match(r"/model/(layers)\.(\d+)/(self_attn|mlp)/(\w+)/MatMul_quant", node.name)
        if found is None:
            continue  # the output head, which is the embedding (tied)
        weight = dense(node.input[1].removesuffix("_quantized"))
        state[f"model.layers.{found[2]}.{found[3]}.{found[4]}.weight"] = np.ascontiguousarray(weight.T)
    return state


def _pairs_to_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows (heads * 2k, d) with rotary partners side by side -> partners k rows apart, per head."""
    rows, columns = weight.shape
    paired = weight.reshape(heads, rows // heads // 2, 2, columns)
    return paired.transpose(1, 2).reshape(rows, columns).contiguous()


def _fast_tokenizer(source: Path, out: Path, *, max_length: int | None = None) -> Path:
    """Lay out ``source``'s tokenizer.json so that it is used exactly as written.

    transformers 5 rebuilds a tokenizer of class LlamaTokenizer from its vocabulary and then drops one
    leading space of a text; named as a plain fast tokenizer, the file's own rules (SentencePiece's dummy
    prefix, exactly) are kept.
    """
    folder = out / ".tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    given = json.loads((source / "tokenizer_config.json").read_text())
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config["clean_up_tokenization_spaces"] = False
    for name in ("bos_token", "eos_token", "unk_token", "pad_token", "chat_template"):
        if given.get(name):
            config[name] = given[name]["content"] if isinstance(given[name], dict) else given[name]
    if max_length is not None:
        config["model_max_length"] = max_length
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _detach_quantizer(model: PreTrainedModel) -> None:
    """The weights are plain by now; save_pretrained refuses while the model still says otherwise."""
    loaded: Any = model
    loaded.hf_quantizer = None
    loaded.is_quantized = False
    loaded.config.__dict__.pop("quantization_config", None)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write the folder; special tokens agree between tokenizer, config and generation config."""
    from transformers import GenerationConfig

    if tokenizer.eos_token_id is None:
        raise ConversionError(f"{out.name}: the tokenizer has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for name, value in ids.items():
        setattr(model.config, name, value)
    tokenizer.model_max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    model.generation_config = GenerationConfig(**ids)  # greedy unless the caller says otherwise
    model.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
    shutil.rmtree(out / ".tokenizer", ignore_errors=True)
    normalise(out)


#: What transformers writes about itself and this machine; without it, equal weights give equal folders.
_INCIDENTAL = (
    "transformers_version",
    "_name_or_path",
    "_model_name_or_path",
    "is_local",
    "local_files_only",
    "backend",
)


def normalise(folder: Path) -> None:
    """Leave only what belongs to the model, so that a folder's hash is the same wherever it was made."""
    for path in folder.glob("*config.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: value for key, value in content.items() if key not in _INCIDENTAL}
        text = json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes for its owner alone
