"""Small models and tokenizers made in the test process: nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXTS = [
    "The miller of Brønd keeps three grey geese.",
    "Name the keeper of the geese.",
    "Ask again:\n- one\n- two\n- three",
    "Zoë paints boats in the harbour, and naïve gulls watch.",
    "### Instruction:\nWho paints boats?\n\n### Response:\n",
]
INSTRUCTION = "### Instruction:\n{}\n\n### Response:\n"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data and tokenizers, where a checkout has them beside it."""
    if not SHARED.is_dir():
        pytest.skip("real data is not beside this checkout")
    return SHARED


def byte_level_tokenizer(vocabulary: int = 400) -> object:
    """A GPT-2-like tokenizer."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def save_llama(folder: Path, tokenizer: object, width: int = 32, layers: int = 2, seed: int = 0) -> Path:
    """A random LLaMA folder, as ``from_pretrained`` reads it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),  # type: ignore[arg-type]
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,  # type: ignore[attr-defined]
        bos_token_id=None,
        pad_token_id=None,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random student."""
    return save_llama(tmp_path_factory.mktemp("student"), byte_level_tokenizer(), width=32)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wider random teacher with the student's vocabulary."""
    return save_llama(tmp_path_factory.mktemp("teacher"), byte_level_tokenizer(), width=64, seed=1)


@pytest.fixture(scope="session")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of the user's own: training set and one suite."""
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("dev", 24), ("test", 12)):
        rows = [
            {"instruction": f"Name boat {n}.", "input": "", "prompt": INSTRUCTION.format(f"Name boat {n}.")}
            | {"output": f"The boat is number {n},\nand Zoë paints it."}
            for n in range(count)
        ]
        file = folder / "dolly" / f"{name}.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for suite in ("self-inst", "vicuna", "s-ni", "unni"):
        (folder / suite).mkdir()
        (folder / suite / "test.jsonl").write_bytes((folder / "dolly" / "test.jsonl").read_bytes())
    return folder
