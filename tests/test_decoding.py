"""evals/decoding.py: the same answers whatever the batch, and the settings do what they say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_level_tokenizer
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from evals.decoding import BrokenModelError, choose, generate, generate_ids, uniforms
from evals.suites import Item


@dataclass(frozen=True)
class Settings:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    no_repeat_ngram: int = 0
    max_new_tokens: int = 14
    max_length: int = 128


GREEDY = Settings(temperature=0.0)
WORDS = ["the", "miller", "keeps", "three", "grey", "geese", "who", "paints", "boats", "in", "harbour"]
ITEMS = [
    Item(f"x/{n}", " ".join(WORDS[(n * i) % 11] for i in range(1, 2 + n * 7 % 23)), ()) for n in range(24)
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_level_tokenizer()


def models(vocabulary: int) -> dict[str, Any]:
    # two rows of the head more than the tokenizer has ids, as in released models
    size = {"vocab_size": vocabulary + 2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    block = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = LlamaConfig(
        **size, **block, num_key_value_heads=2, initializer_range=0.3, max_position_embeddings=128
    )
    qwen = Qwen2Config(
        **size, **block, num_key_value_heads=2, initializer_range=0.3, max_position_embeddings=128
    )
    gpt2 = GPT2Config(**size, n_embd=48, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3)
    torch.manual_seed(0)
    return {"llama": LlamaForCausalLM(llama), "gpt2": GPT2LMHeadModel(gpt2), "qwen2": Qwen2ForCausalLM(qwen)}


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen2"])
def model(request: pytest.FixtureRequest, tokenizer: Any) -> Any:
    made = models(len(tokenizer))[request.param].eval()
    # logits flat enough, and EOS likely enough, that rows end at different steps
    with torch.no_grad():
        made.lm_head.weight[:] *= 0.3
        made.lm_head.weight[tokenizer.eos_token_id] *= 4
    return made


def plain(model: Any, tokenizer: Any, item: Item, settings: Settings, seed: int) -> list[int]:
    """One item without cache, padding or batch."""
    ids = list(tokenizer(item.prompt)["input_ids"])
    start, random = len(ids), torch.from_numpy(uniforms(seed, item.id, settings.max_new_tokens))
    for step in range(settings.max_new_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[:, -1, : len(tokenizer)].float()
        n = settings.no_repeat_ngram
        for i in range(len(ids) - n + 1 if n else 0):
            if ids[i : i + n - 1] == ids[len(ids) - n + 1 :]:
                logits[0, ids[i + n - 1]] = -torch.inf
        token = int(choose(logits, settings, random[step : step + 1]))
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
    return ids[start:]


@pytest.mark.parametrize("settings", [GREEDY, Settings(), Settings(no_repeat_ngram=2, top_p=0.9, top_k=50)])
def test_any_batch_gives_the_plain_answer(model: Any, tokenizer: Any, settings: Settings) -> None:
    expected = [plain(model, tokenizer, item, settings, 10) for item in ITEMS]
    lengths = {len(e) for e in expected}
    assert settings.temperature == 0 or len(lengths) > 3, "rows should end at different steps"
    for batch_size in (1, 5, 32):
        got = generate_ids(model, tokenizer, ITEMS, settings, 10, batch_size=batch_size)
        # Rounding differs with the shape of a matrix product; an answer changes only at a tie of that size.
        ties = sum(a != b for a, b in zip(got, expected, strict=True))
        assert ties <= 1, f"{ties} of {len(ITEMS)} answers differ at batch size {batch_size}"


def test_order_and_company_do_not_matter(model: Any, tokenizer: Any) -> None:
    whole = dict(
        zip(
            [i.id for i in ITEMS],
            generate(model, tokenizer, ITEMS, Settings(), 10, batch_size=7),
            strict=True,
        )
    )
    some = ITEMS[20:4:-3]
    assert (
        sum(
            whole[i.id] != t
            for i, t in zip(some, generate(model, tokenizer, some, Settings(), 10), strict=True)
        )
        <= 1
    )


def test_seeds_and_ids_change_the_answer(model: Any, tokenizer: Any) -> None:
    first, again, other = (generate(model, tokenizer, ITEMS, Settings(), seed) for seed in (10, 10, 20))
    assert first == again
    assert sum(a != b for a, b in zip(first, other, strict=True)) > 10
    same = [Item(f"y/{n}", "the miller", ()) for n in range(20)]
    assert len(set(generate(model, tokenizer, same, Settings(), 10))) > 10
    assert len(set(generate(model, tokenizer, same, GREEDY, 10))) == 1


def test_greedy_is_that_of_the_library(model: Any, tokenizer: Any) -> None:
    for item in ITEMS[:8]:
        ids = torch.tensor([tokenizer(item.prompt)["input_ids"]])
        theirs = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20,
            no_repeat_ngram_size=3,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
            suppress_tokens=[len(tokenizer), len(tokenizer) + 1],
        )[0, ids.shape[1] :].tolist()  # fmt: skip
        (ours,) = generate_ids(
            model, tokenizer, [item], replace(GREEDY, no_repeat_ngram=3, max_new_tokens=20), 0
        )
        assert ours == [t for t in theirs if t != tokenizer.eos_token_id]


def test_no_ngram_comes_twice(model: Any, tokenizer: Any) -> None:
    settings = replace(GREEDY, no_repeat_ngram=2, max_new_tokens=60)
    for item, answer in zip(ITEMS, generate_ids(model, tokenizer, ITEMS, settings, 0), strict=True):
        ids = tokenizer(item.prompt)["input_ids"] + answer
        pairs = list(pairwise(ids))
        new = pairs[len(pairs) - len(answer) :]
        assert len(set(new)) == len(new)
        assert not set(new) & set(pairs[: len(pairs) - len(answer)])


def test_room(model: Any, tokenizer: Any) -> None:
    ids = generate_ids(model, tokenizer, ITEMS, replace(GREEDY, max_length=40), 0)
    assert all(
        len(tokenizer(i.prompt)["input_ids"]) + len(a) <= 40 for i, a in zip(ITEMS, ids, strict=True) if a
    )
    long = Item("x", "the miller keeps geese " * 60, ())
    with pytest.raises(ValueError, match="leaves no room"):
        generate(model, tokenizer, [long], Settings(max_length=10_000), 0, max_prompt=200)
    (answer,) = generate_ids(
        model, tokenizer, [long], replace(GREEDY, max_length=10_000, max_new_tokens=99), 0, max_prompt=100
    )
    assert len(answer) <= 28  # the model's window is 128


def test_state_of_the_model_is_put_back(model: Any, tokenizer: Any) -> None:
    model.train()
    seen: list[float] = []
    texts = generate(model, tokenizer, ITEMS, Settings(), 10, batch_size=10, progress=seen.append)
    assert model.training
    model.eval()
    assert texts == generate(model, tokenizer, ITEMS, Settings(), 10, batch_size=10)
    assert seen == [10 / 24, 20 / 24, 1.0]
    assert generate(model, tokenizer, [], Settings(), 10) == []
    model(torch.tensor([[1, 2]])).logits.sum().backward()  # nothing of inference mode is left in it
    model.zero_grad()


@pytest.mark.parametrize(
    "change", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}, {"max_new_tokens": 0}]
)
def test_senseless_settings_are_refused(tokenizer: Any, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r">= 0|at least 1"):
        generate(SimpleNamespace(), tokenizer, ITEMS, replace(Settings(), **change), 0)


LOGITS = torch.tensor([[0.5, 0.2, 0.05, 0.25]]).log()


def frequencies(settings: Settings, logits: Tensor = LOGITS, draws: int = 4000) -> Tensor:
    chosen = choose(logits.expand(draws, -1), settings, (torch.arange(draws) + 0.5).double() / draws)
    return torch.bincount(chosen, minlength=logits.shape[1]) / draws


def test_choose_follows_the_distribution() -> None:
    torch.testing.assert_close(frequencies(Settings()), LOGITS.exp()[0], atol=1e-3, rtol=0)
    half = torch.softmax(LOGITS / 0.5, -1)[0]
    torch.testing.assert_close(frequencies(Settings(temperature=0.5)), half, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        frequencies(Settings(top_k=2)), torch.tensor([2 / 3, 0, 0, 1 / 3]), atol=1e-3, rtol=0
    )
    expected = torch.tensor([0.5, 0.2, 0, 0.25]) / 0.95
    torch.testing.assert_close(frequencies(Settings(top_p=0.8)), expected, atol=1e-3, rtol=0)
    assert frequencies(Settings(top_p=1e-9)).tolist() == [1, 0, 0, 0]
    assert frequencies(GREEDY).tolist() == [1, 0, 0, 0]


def test_choose_at_the_edges() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    edges = torch.tensor([0.0, 0.5 - 1e-12, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert choose(logits.expand(4, -1), Settings(), edges).tolist() == [1, 1, 3, 3]
    wide = torch.randn(1, 5000, generator=torch.Generator().manual_seed(0)) * 3
    assert choose(wide, Settings(), torch.tensor([1 - 2**-53], dtype=torch.float64)).item() < 5000


def test_uniforms() -> None:
    numbers = uniforms(10, "dolly/3", 1000)
    assert np.array_equal(numbers[:10], uniforms(10, "dolly/3", 10))
    assert 0.45 < numbers.mean() < 0.55
    assert numbers.max() < 1 <= 1 + numbers.min()
    assert not np.array_equal(numbers, uniforms(1, "0dolly/3", 1000))
    # a golden value: old records must stay reproducible
    assert uniforms(10, "dolly/0", 1)[0] == pytest.approx(GOLDEN, abs=1e-15)


GOLDEN = 0.49989401127619604


@pytest.mark.parametrize("name", ["llama2-7b-hf", "gpt2-base"])
def test_text_is_what_encoding_it_as_a_response_gives_back(shared_data: Path, name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / name)
    answers = ["Two geese.", " - a list", "def f():\n    return 1\n", "Zoë , don ' t !", "    return a + b"]

    class Parrot:
        """Says its answers, one token at a time."""

        training, config = False, SimpleNamespace(max_position_embeddings=512)

        def __init__(self, answer: str) -> None:
            self.ids, self.step = tokenizer(answer, add_special_tokens=False)["input_ids"], 0

        def parameters(self) -> Any:
            return iter([torch.zeros(1)])

        def eval(self) -> None: ...
        def train(self, mode: bool) -> None: ...

        def __call__(self, input_ids: Tensor, **_: Any) -> Any:
            logits = torch.zeros(len(input_ids), 1, 33000 if "llama" in name else 51000)
            ids = self.ids
            logits[:, 0, ids[self.step] if self.step < len(ids) else tokenizer.eos_token_id] = 9.0
            self.step += 1
            return SimpleNamespace(logits=logits)

    for answer in answers:
        parrot = Parrot(answer)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("transformers.DynamicCache", lambda config=None: None)
            (text,) = generate(parrot, tokenizer, [Item("x", "Q", ())], replace(GREEDY, max_new_tokens=40), 0)
        assert text == tokenizer.decode(parrot.ids)  # LLaMA's own round trip loses a leading blank
        assert text.strip() == answer.strip()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_broken_model_writes_nothing(student_folder: Path, temperature: float) -> None:
    model = LlamaForCausalLM.from_pretrained(student_folder)
    model.get_output_embeddings().weight.data[7] = float("nan")
    with pytest.raises(BrokenModelError, match="not numbers"):
        generate(model, byte_level_tokenizer(), ITEMS[:2], Settings(temperature=temperature), 1)
