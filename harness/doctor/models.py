"""Findings about model folders, alone and in pairs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.doctor.findings import Finding, Severity
from harness.folder import FolderError, ModelFolder

#: What config.json may hold where its author had something else in mind.
_ODD = (FolderError, AttributeError, KeyError, OSError, TypeError, ValueError)


@dataclass(frozen=True)
class Model:
    """A model of a plan as it lies here, and the cells that need it."""

    ref: str
    folder: ModelFolder
    licence: str | None
    cells: frozenset[str]
    precision: str = "fp32"  #: of the cells' training
    trust_remote_code: bool = False

    def found(self, severity: Severity, reason: str, remedy: str) -> Finding:
        """A finding about this model."""
        return Finding(severity, self.ref, reason, remedy, self.cells)


def check_model(model: Model) -> list[Finding]:
    """All findings about one model; what cannot even be read is an error, and the only one."""
    try:
        return [finding for check in _CHECKS for finding in check(model)]
    except _ODD as error:
        said = str(error) if isinstance(error, FolderError) else f"its files cannot be understood ({error!r})"
        return [model.found("error", said, "fetch or copy the model again")]


def _weights(model: Model) -> Iterator[Finding]:
    if model.folder.tensors:
        return
    pickles = model.folder.pickles
    if pickles:
        reason = f"its weights are pickles ({', '.join(pickles[:3])}), which run code when they are read"
        remedy = "convert them to safetensors where you trust them: save_pretrained writes it"
        yield model.found("error", reason, remedy)
    else:
        yield model.found("error", "it has no weights in safetensors format", "give a whole model folder")


def _head(model: Model) -> Iterator[Finding]:
    if model.folder.headless:
        reason = f"it is no causal language model with an output head: {model.folder.headless}"
        yield model.found("error", reason, "give a model that was saved with its head (...ForCausalLM)")


def _code(model: Model) -> Iterator[Finding]:
    if not model.folder.own_code:
        return
    known = _known_to_transformers(str(model.folder.config.get("model_type", "")))
    if model.trust_remote_code:
        reason = "Python files of its folder will be run"
        yield model.found("warning", reason, "make sure that you have read them")
    elif not known:
        reason = "it can only be loaded by Python code that its folder brings, which is not run"
        yield model.found("error", reason, "read that code and allow it with --trust-remote-code")


def _known_to_transformers(model_type: str) -> bool:
    """Whether the package has the architecture itself (found without importing it)."""
    spec = importlib.util.find_spec("transformers")
    if not model_type or spec is None or spec.origin is None:
        return False
    return (Path(spec.origin).parent / "models" / model_type.replace("-", "_")).is_dir()


def _quantized(model: Model) -> Iterator[Finding]:
    if "quantization_config" in model.folder.config:
        reason = "its weights are quantized, and training here needs plain ones"
        yield model.found("error", reason, "take the unquantized model")


def _rows(model: Model) -> Iterator[Finding]:
    rows, vocabulary = model.folder.rows, model.folder.vocabulary
    if rows is None or not vocabulary:
        remedy = "nothing to do: it is checked again when the model is loaded"
        yield model.found("note", "its head or its tokenizer cannot be counted without loading it", remedy)
        return
    ids = max(vocabulary.values()) + 1
    if ids > rows:
        reason = f"the tokenizer has ids up to {ids - 1}, the head only {rows} rows"
        yield model.found("error", reason, "resize the embeddings, or take the tokenizer that belongs to it")
    elif ids < rows:
        reason = f"{rows - ids} of the head's {rows} rows have no token"
        yield model.found("note", reason, "nothing to do: they are cut off, here and in decoding")


def _end_of_text(model: Model) -> Iterator[Finding]:
    folder = model.folder
    if folder.lacks_eos:
        reason = "the tokenizer has no EOS token, so no answer could end"
        yield model.found("error", reason, "set eos_token in tokenizer_config.json")
        return
    vocabulary = folder.vocabulary or {}
    if folder.eos is None or not vocabulary:
        return
    if folder.eos not in vocabulary:
        reason = f"its EOS token {folder.eos!r} is not in its vocabulary"
        yield model.found("error", reason, "set eos_token to a token of the vocabulary")
    else:
        stated = folder.config.get("eos_token_id")
        ids = stated if isinstance(stated, list) else [stated]
        if stated is not None and vocabulary[folder.eos] not in ids:
            reason = f"config.json ends texts with id {stated}, the tokenizer with {vocabulary[folder.eos]}"
            remedy = "make sure that the tokenizer is right: training and decoding here use its EOS"
            yield model.found("warning", reason, remedy)


def _padding(model: Model) -> Iterator[Finding]:
    folder = model.folder
    if folder.eos is not None and folder.pad == folder.eos:
        reason = f"padding and EOS are one token ({folder.eos!r}), so masking by id would mask EOS too"
        yield model.found("note", reason, "nothing to do: padding is masked by position here")


def _dtype(model: Model) -> Iterator[Finding]:
    dtypes = model.folder.dtypes
    if "F16" in dtypes and model.precision == "bf16":
        reason = "its weights are fp16 and are read as bf16, which rounds away three bits"
        yield model.found("warning", reason, "take bf16 or fp32 weights if there are any")
    if any(dtype.startswith("F8") for dtype in dtypes):
        reason = "some of its weights are 8 bit numbers"
        yield model.found("error", reason, "take the model in bf16 or fp32")


def _licence(model: Model) -> Iterator[Finding]:
    yield from licence(model.ref, model.licence, model.cells)


def licence(about: str, stated: str | None, cells: frozenset[str]) -> Iterator[Finding]:
    """Licences that are unknown, or not open."""
    if stated is None or stated == "unknown":
        remedy = "make sure that you may use it, and results made from it"
        yield Finding("note", about, "no licence is stated", remedy, cells)
        return
    lower = stated.lower()
    restricted = ("non-commercial", "-nc", " nc", "none stated", "gated", "research", "llama")
    if any(word in lower for word in restricted):
        remedy = "make sure that your use, and what you publish, is within it"
        yield Finding("warning", about, f"its licence is {stated}", remedy, cells)
    else:
        yield Finding("note", about, f"its licence is {stated}", "nothing to do but to name it", cells)


_CHECKS: tuple[Callable[[Model], Iterator[Finding]], ...] = (
    *(_weights, _head, _code, _quantized, _rows, _end_of_text, _padding, _dtype, _licence),
)


def check_pair(teacher: Model, student: Model, own: bool, declared: bool | None) -> list[Finding]:
    """Findings about two models together. ``own``: the user chose them; ``declared``: one vocabulary."""
    pair = f"{teacher.ref} -> {student.ref}"
    cells = teacher.cells & student.cells
    try:
        return [
            *_larger(pair, teacher.folder, student.folder, cells if own else None),
            *_declared(pair, teacher.folder, student.folder, declared, cells),
            *_templates(pair, teacher.folder, student.folder, cells),
        ]
    except _ODD:
        return []  # told of the model itself


def _larger(
    pair: str, teacher: ModelFolder, student: ModelFolder, cells: frozenset[str] | None
) -> Iterator[Finding]:
    if cells is not None and student.parameters > teacher.parameters > 0:
        reason = f"the student has {student.parameters:,} parameters, the teacher {teacher.parameters:,}"
        yield Finding("error", pair, reason, "exchange --teacher and --student", cells)


def _declared(
    pair: str, teacher: ModelFolder, student: ModelFolder, declared: bool | None, cells: frozenset[str]
) -> Iterator[Finding]:
    theirs, ours = teacher.vocabulary, student.vocabulary
    if declared and theirs and ours and theirs != ours:
        reason = "the pair is declared to share one vocabulary, but the tokenizers differ"
        yield Finding("error", pair, reason, "take the models the pair is named after", cells)


def _templates(
    pair: str, teacher: ModelFolder, student: ModelFolder, cells: frozenset[str]
) -> Iterator[Finding]:
    theirs, ours = teacher.chat_template, student.chat_template
    remedy = "nothing to do, but do not expect chat quality: both read this benchmark's own template"
    if theirs is None and ours is None:
        yield Finding("note", pair, "neither model has a chat template", remedy, cells)
    elif theirs is None or ours is None:
        who = "teacher" if ours is None else "student"
        yield Finding("warning", pair, f"only the {who} has a chat template", remedy, cells)
    elif theirs != ours:
        yield Finding("warning", pair, "the two models have different chat templates", remedy, cells)
    else:
        yield Finding("note", pair, "both models have the same chat template", remedy, cells)
