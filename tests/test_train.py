"""The training loop: accumulation changes nothing, resume is exact, trouble is reported."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from pathlib import Path

import pytest
import torch
from some_examples import examples

from dskd.batch import Batch, Loss, Pair
from dskd.method import Method, create
from harness import data, methods, models, train
from harness.cells import Lora, Training
from harness.checkpoints import BestDevRouge
from harness.saving import load_checkpoint, save_checkpoint
from harness.teacher import hidden_states, teacher_side
from harness.train import DivergedError, Trainer

EXAMPLES = examples(10)
SETTINGS = Training(examples=None, epochs=2, batch=5, micro_batch=5, lr=1e-3, max_length=96, max_prompt=48)


def silent(stage: str, fraction: float) -> None:
    """No progress."""


def trainer(student: Path, teacher: Path, work: Path, address: str, settings: Training = SETTINGS) -> Trainer:
    """A trainer as a cell would make it."""
    methods.load()
    torch.manual_seed(3)
    model = models.load(student, "student")
    if settings.lora:
        models.add_lora(model, settings.lora)
    encoded = data.encode_examples(
        model.tokenizer, EXAMPLES, max_prompt=settings.max_prompt, max_length=settings.max_length
    )
    method = create(address)
    side = teacher_side(teacher, "teacher", work / "cache", torch.float32)
    states = hidden_states(teacher, "teacher", encoded, work / "cache", torch.float32, silent)
    torch.manual_seed(3)
    parts = method.build(Pair(model.side(), side, work / "maps"))
    paired = data.PairedData(EXAMPLES, encoded, encoded, None)
    return Trainer(model, method, parts, paired, settings, 3, side, states, work, silent)


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    """A copy of the student's weights."""
    return {name: value.clone() for name, value in run.student.lm.state_dict().items()}


@pytest.mark.parametrize("address", ["sft", "kl", "dskd-v1/kl"])
def test_accumulation_changes_nothing(
    student_folder: Path, teacher_folder: Path, tmp_path: Path, address: str
) -> None:
    whole = trainer(student_folder, teacher_folder, tmp_path / "a", address)
    split = trainer(
        student_folder, teacher_folder, tmp_path / "b", address, dataclasses.replace(SETTINGS, micro_batch=2)
    )
    whole.run(), split.run()
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("lora", [None, Lora(4, 8, 0.1)])
def test_resume_is_exact(
    student_folder: Path, teacher_folder: Path, tmp_path: Path, lora: Lora | None
) -> None:
    settings = dataclasses.replace(SETTINGS, lora=lora)
    undisturbed = trainer(student_folder, teacher_folder, tmp_path / "a", "dskd-v1/kl", settings)
    undisturbed.run()
    killed = trainer(student_folder, teacher_folder, tmp_path / "b", "dskd-v1/kl", settings)
    killed.student.lm.train()
    for step, rows in list(killed._schedule(0))[:3]:
        killed._step(step, rows)
        killed.trained.steps = step + 1
    killed._save()
    again = trainer(student_folder, teacher_folder, tmp_path / "b", "dskd-v1/kl", settings)
    again.run()
    for name, value in weights(undisturbed).items():
        assert torch.equal(weights(again)[name], value), name
    assert again.trained.tokens == undisturbed.trained.tokens


def test_dear_checkpoints_are_rarer(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most a twentieth of the time goes to them, whatever pause is asked for."""
    monkeypatch.setattr(train.time, "monotonic", lambda: 1000.0)
    for pause, cost, wait in ((20.0, 0.1, 20), (20.0, 3.0, 60), (600.0, 3.0, 600), (5.0, 1.0, 20)):
        monkeypatch.setattr(train, "SECONDS_BETWEEN_CHECKPOINTS", pause)
        assert train._due(999.0 - wait, cost)
        assert not train._due(1001.0 - wait, cost)
    monkeypatch.setattr(train, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    assert train._due(999.9, 60.0), "tests of kills want one after every step"


def test_models_do_not_outlive_their_training(
    student_folder: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    """Scoring, and the next cell, begin beside whatever a ring of references keeps until a collection."""
    run = trainer(student_folder, teacher_folder, tmp_path, "dskd-v1/kl", SETTINGS)
    run.run()
    held = [weakref.ref(run), weakref.ref(run.student.lm), weakref.ref(run.optimizer)]
    gc.collect()
    gc.disable()
    try:
        del run
        assert [ref() for ref in held] == [None] * 3
    finally:
        gc.enable()


def test_damaged_checkpoint_is_not_used(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    save_checkpoint(file, {"x": torch.ones(100)})
    assert load_checkpoint(file) is not None
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    assert load_checkpoint(file) is None


def test_lora_trains_adapters_only_and_merges(
    student_folder: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    run = trainer(
        student_folder, teacher_folder, tmp_path, "kl", dataclasses.replace(SETTINGS, lora=Lora(4, 8, 0.0))
    )
    head = run.student.lm.get_output_embeddings().weight.clone()
    run.run()
    assert torch.equal(run.student.lm.get_output_embeddings().weight, head)
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        adapted = run.student.hidden(ids)
        models.merge_lora(run.student)
        merged = run.student.hidden(ids)
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-5)
    assert not any("lora" in name for name, _ in run.student.lm.named_parameters())


class _Explodes(Method):
    """A method whose loss is not a number from the second step on."""

    calls = 0

    def loss(self, batch: Batch, parts: torch.nn.Module | None) -> Loss:
        type(self).calls += 1
        total = batch.student.hidden.sum() * (float("nan") if self.calls > 1 else 1.0)
        return Loss(total, {"ce": total.detach()})


def test_divergence_is_reported(student_folder: Path, teacher_folder: Path, tmp_path: Path) -> None:
    run = trainer(student_folder, teacher_folder, tmp_path, "sft")
    run.method = _Explodes(run.method.spec, run.method.entry)
    with pytest.raises(DivergedError, match=r"step 2: .*ce=nan.*examples \d"):
        run.run()


def test_truncated_teacher_states_are_rebuilt(
    student_folder: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    run = trainer(student_folder, teacher_folder, tmp_path, "kl")
    assert run.states is not None
    before = run.states.rows([0, 3]).clone()
    file = next((tmp_path / "cache").rglob("hidden.bin"))
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.warns(UserWarning, match="rebuilding"):
        again = trainer(student_folder, teacher_folder, tmp_path, "kl")
    assert again.states is not None
    assert torch.equal(again.states.rows([0, 3]), before)


class _Hides(Method):
    """A term is infinite, but neither the total nor any gradient shows it."""

    def loss(self, batch: Batch, parts: torch.nn.Module | None) -> Loss:
        total = batch.student.hidden.square().sum() * 0.0
        return Loss(total, {"ce": total.detach(), "kd": torch.tensor(float("inf"))})


def test_an_infinite_term_ends_the_training_before_a_weight_moves(
    student_folder: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    run = trainer(student_folder, teacher_folder, tmp_path, "sft")
    run.method = _Hides(run.method.spec, run.method.entry)
    before = weights(run)
    with pytest.raises(DivergedError, match=r"step 1: the loss is 0.0 \(ce=0, kd=inf; examples \d"):
        run.run()
    assert all(torch.equal(value, before[name]) for name, value in weights(run).items())
    assert not (tmp_path / "checkpoint.pt").exists()


def test_weights_broken_by_the_last_step_are_told(
    student_folder: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    run = trainer(student_folder, teacher_folder, tmp_path, "sft")

    def breaking(*_: object) -> None:
        if run.trained.steps == run.total_steps - 1:
            next(iter(run.student.lm.parameters())).data[0] = float("nan")

    run.optimizer.register_step_post_hook(breaking)
    with pytest.raises(DivergedError, match=r"after step 4: .* not finite"):
        run.run()


@pytest.mark.parametrize(("rate", "diverged"), [(1e-3, False), (5.0, True)])
def test_divergence_has_a_rule(
    student_folder: Path, teacher_folder: Path, tmp_path: Path, rate: float, diverged: bool
) -> None:
    settings = dataclasses.replace(SETTINGS, lr=rate, epochs=5)
    done = trainer(student_folder, teacher_folder, tmp_path, "sft", settings).run()
    assert done.first_loss == pytest.approx(done.curve[0][1]["ce"], rel=1e-5)  # ten steps: a tenth is one
    assert done.last_loss == pytest.approx(done.curve[-1][1]["ce"], rel=1e-5)
    assert (done.last_loss > 2 * done.first_loss) == diverged
    assert done.divergence.startswith("mean loss") == diverged


def test_the_best_epoch_survives_a_damaged_file(student_folder: Path, tmp_path: Path) -> None:
    """A training whose best weights are gone starts over: their epochs would not be scored again."""
    scores = iter([10.0, 5.0])
    student = models.load(student_folder, "s")
    rule = BestDevRouge(lambda whole: next(scores), tmp_path / "best.pt")
    assert not rule.resumes()
    rule.at_epoch_end(1, student)
    assert rule.resumes()
    rule.at_epoch_end(2, student)
    assert rule.finish(student) == "epoch 1 (dev Rouge-L 10.00)"
    (tmp_path / "best.pt").write_bytes((tmp_path / "best.pt").read_bytes()[:-1])
    assert not rule.resumes()
    with pytest.raises(OSError, match="missing or damaged"):
        rule.finish(student)


def test_a_student_cast_to_bfloat16_is_the_one_that_is_loaded_in_it(
    student_folder: Path, tmp_path: Path
) -> None:
    cast = models.load(student_folder, "student")
    models.cast(cast.lm, torch.bfloat16)
    cast.lm.save_pretrained(tmp_path)
    cast.tokenizer.save_pretrained(tmp_path)
    loaded = models.load(tmp_path, "saved", torch.bfloat16)
    ids = torch.arange(200)[None] % 90
    with torch.no_grad():
        assert torch.equal(cast.lm(ids).logits, loaded.lm(ids).logits)
        cast.lm.to(torch.bfloat16)  # rounds the rotary frequencies too
        assert not torch.equal(cast.lm(ids).logits, loaded.lm(ids).logits)
