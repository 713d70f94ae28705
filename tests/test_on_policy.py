"""Distillation on student text: what is written, when, who reads it, and that a stop leaves no trace."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_level_tokenizer, save_llama
from hypothesis import given
from hypothesis import strategies as st
from some_examples import examples
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from dskd.alignment import decode, encode
from dskd.batch import Pair
from dskd.method import MethodError, Needs, create
from dskd.student_text import Adaptive, Fixed, Growing, StudentText
from dskd.vocabulary import Vocabulary
from evals.decoding import Companion, choose, write
from harness import data, methods, on_policy
from harness import models as harness_models
from harness.cells import Decoding, Lora, Training
from harness.examples import DataError, Example, load_held_out
from harness.on_policy import Limits, OnPolicy, Sides
from harness.teacher import hidden_states, teacher_side
from harness.train import Trainer

methods.load()
EXAMPLES = examples(12)
HELD_OUT = [Example(f"v{n}", f"Ask {n}:\n", "the miller keeps geese") for n in range(3)]
SETTINGS = Training(examples=None, epochs=3, batch=4, micro_batch=4, lr=1e-3, max_length=96, max_prompt=48)
ANSWER = 12


def silent(stage: str, fraction: float) -> None:
    """No progress."""


def sentencepiece_like() -> Any:
    """A LLaMA-like tokenizer: a mark for blanks, a dummy one in front, bytes for what it has no piece for."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False)
    words = ["▁the▁miller▁keeps▁three▁grey▁geese", "▁paints▁boats▁in▁the▁harbour", "▁Name▁item"]
    tokenizer.train_from_iterator(words, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A student that ends answers now and then, a teacher with its vocabulary, and one with another."""
    made = {
        "student": save_llama(tmp_path_factory.mktemp("s"), byte_level_tokenizer(), width=32),
        "same": save_llama(tmp_path_factory.mktemp("t"), byte_level_tokenizer(), width=64, seed=1),
        "cross": save_llama(tmp_path_factory.mktemp("x"), sentencepiece_like(), width=64, seed=1),
    }
    model = harness_models.load(made["student"], "student")
    with torch.no_grad():
        ids = torch.randint(0, len(model.tokenizer), (8, 30), generator=torch.Generator().manual_seed(0))
        usual = model.hidden(ids).mean((0, 1))
        head = model.lm.get_output_embeddings().weight
        head *= 0.3
        head[model.tokenizer.eos_token_id] = 4 * usual / usual.square().sum()
    model.lm.save_pretrained(made["student"])
    return made


def writer(
    folders: dict[str, Path], student: harness_models.LoadedModel, address: str, settings: Training, side: str
) -> tuple[OnPolicy | None, data.PairedData]:
    """What writes the text, and the data, as a cell would make them."""
    teacher = harness_models.load(folders[side], "teacher")
    limits = {"max_prompt": settings.max_prompt, "max_length": settings.max_length}
    own = data.encode_examples(student.tokenizer, EXAMPLES, **limits)
    other = own if side == "same" else data.encode_examples(teacher.tokenizer, EXAMPLES, **limits)
    words = student.side().vocabulary, teacher.side().vocabulary
    needs = create(address).needs
    paired = data.PairedData(EXAMPLES, own, other, data.align(needs.alignment, own, other, *words))
    if needs.student_samples is None:
        return None, paired
    held_out = data.encode_examples(student.tokenizer, HELD_OUT, **limits)
    sides = Sides(lambda: student, teacher, words, side == "same")
    room = Limits(ANSWER, settings.max_length, settings.max_length)
    made = OnPolicy(needs.student_samples, sides, paired, needs.alignment, room, settings, 3, held_out)
    # a random model would write bytes that are no text
    odd = [
        i for i, word in enumerate(words[0].surfaces) if not (word.isascii() and word.decode().isprintable())
    ]
    made.banned = torch.tensor([*made.banned.tolist(), *odd])
    return made, paired


def trainer(
    folders: dict[str, Path], work: Path, address: str, settings: Training = SETTINGS, side: str = "same"
) -> Trainer:
    """A trainer as a cell would make it."""
    torch.manual_seed(3)
    student = harness_models.load(folders["student"], "student")
    if settings.lora:
        harness_models.add_lora(student, settings.lora)
    author, paired = writer(folders, student, address, settings, side)
    method = create(address)
    teacher = teacher_side(folders[side], "teacher", work / "cache", torch.float32)
    assert paired.teacher is not None
    states = hidden_states(folders[side], "teacher", paired.teacher, work / "cache", torch.float32, silent)
    torch.manual_seed(3)
    parts = method.build(Pair(student.side(), teacher, work / "maps"))
    return Trainer(
        student, method, parts, paired, settings, 3, teacher, states, work, silent, on_policy=author
    )


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    """A copy of everything trained."""
    parts = {} if run.parts is None else dict(run.parts.named_parameters())
    found = {**run.student.lm.state_dict(), **parts}
    return {name: value.detach().clone() for name, value in found.items()}


ADAPTIVE = "distillm:initial=0.4:tolerance=0:increment=0.6:capacity=4:validations=9"


# a stop leaves no trace


@pytest.mark.parametrize(
    ("address", "side", "lora"),
    [
        ("kl:on_policy=0.5", "same", Lora(4, 8, 0.1)),
        ("dskd-eta:on_policy=1:on_policy_after=1", "cross", None),
        ("imitkd", "same", None),
        ("minillm", "same", None),
        (ADAPTIVE, "same", None),
    ],
)
def test_a_resumed_run_is_the_undisturbed_one(
    folders: dict[str, Path], tmp_path: Path, address: str, side: str, lora: Lora | None
) -> None:
    settings = dataclasses.replace(SETTINGS, lora=lora)
    undisturbed = trainer(folders, tmp_path / "a", address, settings, side)
    undisturbed.run()
    killed = trainer(folders, tmp_path / "b", address, settings, side)
    killed.student.lm.train()
    for step, rows in list(killed._schedule(0))[:5]:
        killed._step(step, rows)
        killed.trained.steps = step + 1
    killed._save()
    again = trainer(folders, tmp_path / "b", address, settings, side)
    again.run()
    for name, value in weights(undisturbed).items():
        assert torch.equal(weights(again)[name], value), name
    counts = ("texts", "tokens", "ended", "replayed", "threshold")
    assert [again.trained.written[c] for c in counts] == [undisturbed.trained.written[c] for c in counts]
    assert again.trained.written["texts"] > 0
    assert again.trained.tokens == undisturbed.trained.tokens
    if address == ADAPTIVE:
        assert again.trained.written["replayed"] > 0
        assert again.on_policy is not None and undisturbed.on_policy is not None
        assert list(again.on_policy.buffer) == list(undisturbed.on_policy.buffer)


@pytest.mark.parametrize("address", ["kl:on_policy=0.5", "imitkd", "minillm", "gkd:rate=0.7"])
def test_accumulation_changes_nothing(folders: dict[str, Path], tmp_path: Path, address: str) -> None:
    whole = trainer(folders, tmp_path / "a", address)
    split = trainer(folders, tmp_path / "b", address, dataclasses.replace(SETTINGS, micro_batch=2))
    whole.run(), split.run()
    assert whole.trained.written["tokens"] == split.trained.written["tokens"]
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], value, rtol=1e-3, atol=5e-5)


def test_gkd_without_student_text_is_its_divergence_on_the_data(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    off = trainer(folders, tmp_path / "a", "gkd:on_policy=0")
    plain = trainer(folders, tmp_path / "b", "jsd:rate=1:temperature=1")
    assert off.on_policy is None
    off.run(), plain.run()
    for name, value in weights(plain).items():
        assert torch.equal(weights(off)[name], value), name


# what is written


@pytest.mark.parametrize("at_once", [1, 3])
def test_company_does_not_change_a_text(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    student = harness_models.load(folders["student"], "student")
    author = writer(folders, student, "kl:on_policy=1", SETTINGS, "same")[0]
    assert author is not None
    rows = list(range(12))
    expected = [text.student.response.ids.tolist() for text in author.texts(7, rows) or []]
    monkeypatch.setattr(on_policy, "ANSWERS_AT_ONCE", at_once)
    got = [text.student.response.ids.tolist() for text in author.texts(7, rows[::-1]) or []][::-1]
    assert sum(a != b for a, b in zip(got, expected, strict=True)) <= 1  # a tie of the rounding's size
    other = [text.student.response.ids.tolist() for text in author.texts(8, rows) or []]
    assert sum(a != b for a, b in zip(other, expected, strict=True)) > 6, "another step, other words"


def test_the_end_is_supervised_where_it_was_written(folders: dict[str, Path], tmp_path: Path) -> None:
    run = trainer(folders, tmp_path, "kl:on_policy=1")
    assert run.on_policy is not None
    texts = run.on_policy.texts(0, list(range(12))) or []
    eos = run.student.tokenizer.eos_token_id
    ended = [text for text in texts if text.student.response.ids[-1] == eos]
    assert 0 < len(ended) < len(texts)
    assert len(ended) == run.on_policy.tally.ended
    for text in texts:
        assert eos not in text.student.response.ids[:-1]
        assert text in ended or len(text.student.response.ids) == ANSWER
    batch = run._text_batch(texts, 1.0)
    assert int((batch.student.labels == eos).sum()) == len(ended)
    assert batch.sampled is not None and bool(batch.sampled.all())
    hidden = batch.student.hidden.detach().requires_grad_()
    view = dataclasses.replace(batch.student, hidden=hidden)
    gold = dataclasses.replace(batch.student, hidden=torch.zeros_like(hidden))
    loss = run.method.loss(
        dataclasses.replace(batch, student=view, gold=on_policy_gold(gold)), run.parts
    ).total
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert bool((gradient[batch.student.labels == eos].abs().amax(-1) > 0).all())


def on_policy_gold(view: Any) -> Any:
    """Some gold text, since the method asks for one."""
    from dskd.batch import Gold

    return Gold(view, 1.0)


@pytest.mark.parametrize("step", [0, 1])
def test_the_teacher_reads_the_same_text_in_its_own_tokens(folders: dict[str, Path], step: int) -> None:
    student = harness_models.load(folders["student"], "student")
    author, paired = writer(folders, student, "dskd-eta:on_policy=1", SETTINGS, "cross")
    assert author is not None and paired.teacher is not None
    tokenizer = author.sides.teacher.tokenizer
    compared = 0
    for text in author.texts(step, list(range(12))) or []:
        assert text.teacher is not None and text.pairs is not None
        said = student.tokenizer.decode(text.student.response.ids, skip_special_tokens=True)
        assert np.array_equal(text.teacher.prompt, paired.teacher[text.row].prompt)
        ended = text.student.response.ids[-1] == student.tokenizer.eos_token_id
        assert (text.teacher.response.ids[-1] == tokenizer.eos_token_id) == ended
        if "\ufffd" not in said:
            read = text.teacher.response.ids
            assert tokenizer.decode(read[: len(read) - ended]) == said
            compared += 1
        for i, j in text.pairs:
            assert text.student.response.spans[i].tolist() == text.teacher.response.spans[j].tolist()
        if ended:
            assert text.pairs[-1].tolist() == [len(text.student.response.ids) - 1,
                                               len(text.teacher.response.ids) - 1]  # fmt: skip
    assert compared > 6


def test_control_tokens_are_not_written(folders: dict[str, Path]) -> None:
    student = harness_models.load(folders["cross"], "student")
    with torch.no_grad():
        student.lm.get_output_embeddings().weight[:2] = 0  # <unk>, <s>: as likely as anything
        student.lm.get_output_embeddings().weight[3:] *= 1e-3
    words = student.side().vocabulary
    banned = torch.tensor(sorted(words.special - {words.eos}))
    prompts = [[5 + n] for n in range(40)]
    free, bound = (
        write(
            student.lm, prompts, [str(n) for n in range(40)], Decoding(max_new_tokens=30), 1,
            eos=words.eos, reachable=words.size, banned=ban,
        )
        for ban in (None, banned)
    )  # fmt: skip
    assert set(banned.tolist()) & {i for answer in free for i in answer.ids}
    assert not set(banned.tolist()) & {i for answer in bound for i in answer.ids}


def test_two_models_write_in_the_shares_asked_for(folders: dict[str, Path]) -> None:
    student, teacher = (harness_models.load(folders[name], name) for name in ("student", "same"))
    prompt = student.tokenizer("Name the")["input_ids"]
    size, eos = len(student.tokenizer), student.tokenizer.eos_token_id
    with torch.no_grad():
        q, p = (m.lm(torch.tensor([prompt])).logits[0, -1, :size].softmax(-1) for m in (student, teacher))

    def first(share: float | None) -> np.ndarray:
        companion = None if share is None else Companion(teacher.lm, share)
        answers = write(
            student.lm, [prompt] * 3000, [str(n) for n in range(3000)], Decoding(max_new_tokens=1), 1,
            eos=eos, reachable=size, companion=companion, batch_size=3000,
        )  # fmt: skip
        return np.bincount([a.ids[0] if a.ids else eos for a in answers], minlength=size) / 3000

    for share, wanted in ((None, q), (0.3, 0.3 * p + 0.7 * q), (0.0, q)):
        off = np.abs(first(share) - wanted.numpy()).sum() / 2
        assert off < 0.18, "total variation of 3000 draws"
    assert np.abs(first(0.9) - q.numpy()).sum() / 2 > 0.3
    with pytest.raises(ValueError, match="temperature 1 only"):
        write(student.lm, [prompt], ["x"], Decoding(temperature=0.0), 1, eos=eos, reachable=size,
              companion=Companion(teacher.lm, 0.5))  # fmt: skip


def test_adapters_are_folded_in_and_out_bit_for_bit(folders: dict[str, Path]) -> None:
    student = harness_models.load(folders["student"], "student")
    harness_models.add_lora(student, Lora(4, 8, 0.0))
    with torch.no_grad():
        for name, parameter in student.lm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    ids = torch.tensor([[1, 2, 3, 4]])
    before = {name: value.clone() for name, value in student.lm.state_dict().items()}
    with torch.no_grad():
        apart = student.hidden(ids)
        with harness_models.merged(student):
            folded = student.hidden(ids)
            assert not torch.equal(next(iter(before.values())), folded)
        again = student.hidden(ids)
    torch.testing.assert_close(folded, apart, rtol=1e-4, atol=1e-5)
    assert torch.equal(again, apart)
    for name, value in student.lm.state_dict().items():
        assert torch.equal(before[name], value), name


# texts of tokens that a model wrote


@given(st.text(alphabet="ab éß ▁\n漢", max_size=12))
def test_decoding_undoes_encoding(text: str) -> None:
    for tokenizer in TOKENIZERS:
        words = Vocabulary.from_tokenizer(tokenizer)
        (tokens,) = encode(tokenizer, [text])
        if words.surfaces and b"".join(words.surfaces[i] for i in tokens.ids[:-1]).removeprefix(b" ") != (
            text.encode().removeprefix(b" ")
        ):
            continue  # the tokenizer rewrote the text (a literal mark)
        back, again = decode(words, tokens.ids[:-1].tolist(), True)
        if words.marked or not text.startswith(" "):
            assert back == text
        assert again.ids.tolist() == tokens.ids.tolist()
        assert again.spans.tolist() == tokens.spans.tolist()


@given(st.lists(st.integers(0, 329), max_size=15), st.booleans())
def test_any_tokens_have_a_text_and_spans_within_it(ids: list[int], ended: bool) -> None:
    for tokenizer in TOKENIZERS:
        words = Vocabulary.from_tokenizer(tokenizer)
        known = [i for i in ids if i < words.size]
        text, tokens = decode(words, known, ended)
        length = len(text.encode())
        assert len(tokens.ids) == len(tokens.spans) == len(known) + ended
        starts, ends = tokens.spans[:, 0], tokens.spans[:, 1]
        assert (starts <= ends).all() and (np.diff(starts) >= 0).all() and (np.diff(ends) >= 0).all()
        if known:
            assert starts[0] == 0 and ends[len(known) - 1] == length
        if ended:
            assert tokens.spans[-1].tolist() == [length, length]


TOKENIZERS = [byte_level_tokenizer(), sentencepiece_like()]


def test_half_a_character_becomes_the_replacement_of_its_tokens() -> None:
    words = Vocabulary.from_tokenizer(sentencepiece_like())
    byte = words.byte_ids
    ids = [byte[b"\xc3"], byte[b"\xa9"], byte[b"\xe6"], byte[b"\xbc"], words.ids[b"t"]]
    text, tokens = decode(words, ids, True)
    assert text == "é\ufffdt"
    assert tokens.spans.tolist() == [[0, 1], [1, 2], [2, 5], [2, 5], [5, 6], [6, 6]]


# schedules


def test_the_shares_of_the_schedules() -> None:
    fixed = Fixed(0.5, after=2)
    assert [fixed.at(epoch, 0.0) for epoch in range(4)] == [0, 0, 0.5, 0.5]
    assert fixed.mean(4) == 0.25
    growing = Growing(200.0)
    assert growing.at(0, 0.0) == 0
    assert growing.at(9, 1.0) == pytest.approx(1 - 1 / 200)
    steps = [growing.at(0, t / 1000) for t in range(1000)]
    assert np.mean(steps) == pytest.approx(growing.mean(5), abs=1e-3)
    assert steps == sorted(steps)


@given(
    st.floats(0, 1), st.floats(0, 1), st.booleans(), st.floats(0, 1, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
)  # fmt: skip
def test_what_the_adaptive_schedule_draws(
    threshold: float, progress: float, full: bool, draw: float, other: float
) -> None:
    """Gold from the threshold on; below it fresh text first, replay only from a full buffer."""
    source = Adaptive().source(threshold, progress, full, draw)
    assert (source == "gold") == (draw >= threshold)
    assert source != "replay" or full
    if source == "replay":
        assert draw >= threshold * (1 - progress)
    if full and source == "fresh" and other < draw:
        assert Adaptive().source(threshold, progress, full, other) == "fresh"


@given(st.lists(st.floats(0, 20), min_size=1, max_size=60), st.floats(0, 0.5), st.floats(0, 1))
def test_the_threshold_grows_when_the_validation_loss_does(
    losses: list[float], increment: float, tolerance: float
) -> None:
    schedule = Adaptive(increment, tolerance)
    threshold, reference = 0.0, float("inf")
    for loss in losses:
        before = threshold, reference
        threshold, reference = schedule.updated(threshold, reference, loss)
        rose = loss >= before[1] + tolerance
        assert threshold == (min(1.0, before[0] + increment) if rose else before[0])
        assert reference == (loss if rose else min(before[1], loss))
    if losses == sorted(losses, reverse=True) and tolerance > 1e-6:
        assert threshold == 0, "a loss that falls asks for no student text"


def test_a_loss_that_rises_and_stays_counts_once() -> None:
    schedule, state = Adaptive(0.1, 0.1), (0.0, float("inf"))
    for loss in (3.0, 2.0, 2.05, 2.3, 2.35, 2.3, 2.5):
        state = schedule.updated(*state, loss)
    assert state == (0.2, 2.5)


def test_the_buffer_keeps_the_latest_and_gives_without_repetition(folders: dict[str, Path]) -> None:
    student = harness_models.load(folders["student"], "student")
    author = writer(folders, student, ADAPTIVE, SETTINGS, "same")[0]
    assert author is not None and author.buffer.maxlen == 4
    assert author.tally.threshold == 0.4
    author.tally.threshold, author.reference = 1.0, float("inf")
    first = author.texts(1, [0, 1, 2])
    assert first is not None and [k.row for k in author.buffer] == [0, 1, 2]
    author.texts(2, [3, 4, 5])
    assert [k.row for k in author.buffer] == [2, 3, 4, 5]
    kept = [(k.row, k.written.ids) for k in author.buffer]
    replayed = author._replayed(4, 4)
    assert sorted(text.row for text in replayed) == [2, 3, 4, 5]
    for text in replayed:
        ids = dict(kept)[text.row]
        assert text.student.response.ids.tolist()[: len(ids)] == ids
    again, other = author._replayed(4, 4), author._replayed(6, 4)
    assert [t.row for t in again] == [t.row for t in replayed]
    assert any([t.row for t in author._replayed(s, 4)] != [t.row for t in other] for s in range(7, 12))


def test_validation_falls_on_even_steps_and_sees_held_out_text_only(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = harness_models.load(folders["student"], "student")
    author = writer(folders, student, "distillm:validations=3", SETTINGS, "same")[0]
    assert author is not None and author.steps == 9 and author.tally.threshold == 0
    seen: list[int] = []
    for step in range(9):
        monkeypatch.setattr(author, "_validation_loss", lambda _, step=step: float(seen.append(step) or step))
        author.texts(step, [0, 1])
    assert seen == [0, 3, 6]
    assert author.tally.threshold == pytest.approx(0.2)
    monkeypatch.undo()
    tokens = [t.response.ids for t in author.held_out]
    expected = []
    for sequence in author.held_out:
        with torch.no_grad():
            logits = student.lm(torch.from_numpy(sequence.inputs)[None]).logits[0].double().log_softmax(-1)
        at = np.arange(len(sequence.prompt) - 1, len(sequence.inputs))
        expected += (-logits[at, sequence.response.ids.astype(np.int64)]).tolist()
    assert len(expected) == sum(map(len, tokens))
    assert author._validation_loss(student) == pytest.approx(np.mean(expected), rel=1e-4)


def test_an_example_is_drawn_for_alone_where_the_method_says_so(folders: dict[str, Path]) -> None:
    student = harness_models.load(folders["student"], "student")
    rows = list(range(12))
    mixed = writer(folders, student, "imitkd:decay=4", SETTINGS, "same")[0]
    whole = writer(folders, student, "gkd", SETTINGS, "same")[0]
    assert mixed is not None and whole is not None
    found = {tuple(sorted(set(mixed._sources(step, rows)))) for step in range(9)}
    assert ("fresh", "gold") in found
    assert set(mixed._sources(0, rows)) == {"gold"}, "the schedule starts on the data"
    assert all(len(set(whole._sources(step, rows))) == 1 for step in range(9))
    assert {whole._sources(step, rows)[0] for step in range(9)} == {"fresh", "gold"}
    texts = next(t for step in range(9) if (t := mixed.texts(step, rows)) is not None)
    gold = [t for t in texts if not t.sampled]
    assert all(t.student is mixed.data.student[t.row] for t in gold)
    assert [t.row for t in texts] == rows


def test_held_out_examples_are_not_trained_on(tmp_path: Path) -> None:
    import json

    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"p{n}", "output": "x"}) + "\n" for n in range(60)))
    for limit, count in ((None, 57), (60, 57), (40, 40)):
        trained, held = load_held_out(file, limit)
        assert [e.prompt for e in trained] == [f"p{n}" for n in range(count)]
        assert held and held[0].prompt == f"p{count}"
        assert not {e.id for e in trained} & {e.id for e in held}
    file.write_text(json.dumps({"prompt": "p", "output": "x"}))
    with pytest.raises(DataError, match="both trained and validated"):
        load_held_out(file)


# needs and refusals


def test_student_text_needs_a_teacher_to_read_it() -> None:
    with pytest.raises(ValueError, match="without a teacher"):
        Needs(teacher=False, student_samples=StudentText(Fixed(0.5)))


def test_needs_follow_the_options() -> None:
    assert create("kl").needs.student_samples is None
    assert create("kl:on_policy=0.25:on_policy_after=2").needs.student_samples == StudentText(Fixed(0.25, 2))
    assert create("dskd-v2:on_policy=1:rate=1").needs.student_samples == StudentText(gold=False)
    assert create("gkd:on_policy=0").needs.student_samples is None
    assert create("minillm:teacher_mix=0.5").needs.student_samples == StudentText(teacher_mix=0.5)
    sampling = create("imitkd").needs.student_samples
    assert sampling is not None and (sampling.each, sampling.temperature) == ("example", 0)
    assert StudentText().always and not StudentText(Fixed(0.9)).always and not StudentText(Fixed(1, 1)).always
    assert StudentText(Fixed(1, 3)).unfit(3) and not StudentText(Fixed(1, 2)).unfit(3)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("kl:on_policy=1.5", "share from 0 to 1"),
        ("kl:on_policy_after=1", "without on_policy"),
        ("kl:on_policy=1:on_policy_after=-1", "number of epochs"),
        ("dskd-v1:on_policy=1", "no option"),
        ("imitkd:decay=1", "above 1"),
        ("minillm:teacher_mix=1", "teacher_mix lies"),
        ("minillm:temperature=2", "no option"),
        ("distillm:capacity=0", "capacity"),
        ("distillm:initial=2", "initial is a share"),
        ("gkd/tv", "tvd"),
    ],
)
def test_senseless_options_are_refused(address: str, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        create(address)


def test_choose_takes_a_mixture_as_it_is() -> None:
    """The mixture's logarithm through the softmax of ``choose`` is the mixture again."""
    p, q = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.2, 0.8]])
    mixed = (0.25 * p + 0.75 * q).log().expand(1000, -1)
    tokens = choose(mixed, Decoding(), (torch.arange(1000) + 0.5).double() / 1000)
    assert tokens.float().mean().item() == pytest.approx(0.625, abs=2e-3)
