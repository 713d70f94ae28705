"""``--teacher-pass``: what teachers do, done before; the cells then find it and need no teacher's layers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from command import reproduce

from harness import cell as cells
from harness import distributed, estimate, methods, plan, run, teacher_pass
from harness import models as loading
from harness import teacher as reading
from harness.plan import Request, Step
from harness.store import Store


@pytest.fixture(autouse=True)
def _registry() -> None:
    methods.load()


def steps(scale: str = "tiny", **options: Any) -> dict[str, Step]:
    """The steps of table 1 by method, seed 1."""
    request = Request(scale, tables=("1", "on-policy"), seeds=(1,), **options)
    return {step.cell.method: step for step in plan.make(request, Store(Path("nowhere"))).steps}


def test_cells_share_what_their_teacher_does() -> None:
    known = {method: step.cell for method, step in steps(pairs=("same",)).items()}
    states, texts = teacher_pass.task(known["kl"]), teacher_pass.task(known["seqkd"])
    assert states and texts and states != texts
    for method in ("rkl", "dskd-v1/kl", "dskd-v2/kl"):
        assert teacher_pass.task(known[method]) == states
    for method in ("sft", "teacher", "student"):
        assert teacher_pass.task(known[method]) is None
    other_seed = dataclasses.replace(known["kl"], seed=7)
    assert teacher_pass.task(other_seed) == states
    training = known["kl"].training
    assert training is not None
    longer = dataclasses.replace(known["kl"], training=dataclasses.replace(training, max_length=128))
    faster = dataclasses.replace(known["kl"], training=dataclasses.replace(training, lr=1.0))
    assert teacher_pass.task(longer) != states
    assert teacher_pass.task(faster) == states
    held_out = dataclasses.replace(known["kl"], method="distillm/skl")  # reads fewer examples
    assert teacher_pass.task(held_out) not in (states, None)


def test_a_teacher_that_has_read_takes_no_memory_from_the_training() -> None:
    step = steps("paper", pairs=("same",))["kl"]
    wide = dataclasses.replace(step.pair, teacher="mistralai/Mistral-7B-v0.1")
    apart = estimate.gpu_gib(step.cell, wide, read=True)
    assert apart is not None
    assert apart < 8
    assert estimate.gpu_gib(step.cell, wide) == estimate.teacher_gib(step.cell, wide)


def test_a_pass_leaves_the_cells_nothing_to_read(
    student_folder: Path,
    teacher_folder: Path,
    own_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = ["--teacher", str(teacher_folder), "--student", str(student_folder)]
    what = ["--methods", "kl,rkl,seqkd,sft", "--seeds", "2", "--data", str(own_data)]
    budget = ["--budget", "examples=6,epochs=1,prompts=2,new_tokens=4", "--jobs", "1"]
    folders = ["--results", str(tmp_path / "results"), "--cache", str(tmp_path / "cache")]
    command = [*pair, *what, *budget, *folders]
    code, out, _ = reproduce(capsys, *command, "--teacher-pass")
    assert code == 0
    assert out.startswith("2 of 2 text sets")
    assert Store(tmp_path / "results").paths() == []

    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "teacher").rglob("*.bin")}
    assert len(files) == 1
    code, out, err = reproduce(capsys, *command, "--teacher-pass")
    assert (code, "start" in err) == (0, False)  # nothing is left to do
    assert not [*(tmp_path / "results" / "work").glob("?" * 16)]

    step = own_steps(teacher_folder, student_folder, own_data, tmp_path / "cache", examples=6)["kl"]
    cache = tmp_path / "cache"
    assert teacher_pass.ready(step.cell, cache)

    def no_layers(path: Path, ref: str, *rest: Any) -> Any:
        assert path != teacher_folder, "the teacher was loaded"
        return plain(path, ref, *rest)

    plain = loading.load
    monkeypatch.setattr(loading, "load", no_layers)
    monkeypatch.setattr(reading, "load", no_layers)
    assert cells.run(step.cell, context(step, tmp_path / "results", cache, own_data))["status"] == "done"
    assert {path: path.stat().st_mtime_ns for path in files} == files

    for file in files:
        file.unlink()
    assert not teacher_pass.ready(step.cell, cache)
    assert reproduce(capsys, *command, "--teacher-pass")[0] == 0
    assert teacher_pass.ready(step.cell, cache)


def own_steps(
    teacher: Path,
    student: Path,
    data: Path,
    cache: Path,
    examples: int,
    methods: tuple[str, ...] = ("kl", "seqkd", "sft"),
) -> dict[str, Step]:
    """The steps of a pair of one's own by method."""
    request = Request(
        "small", teacher=str(teacher), student=str(student), methods=methods, seeds=(1,),
        budget={"examples": examples, "epochs": 1, "prompts": 2, "new_tokens": 4}, data=data, cache=cache,
    )  # fmt: skip
    return {step.cell.method: step for step in plan.make(request, Store(Path("nowhere"))).steps}


def context(
    step: Step,
    results: Path,
    cache: Path,
    data: Path,
    progress: run.Progress = lambda *said: None,
    world: distributed.World | None = None,
) -> cells.Context:
    settings = run.Settings(results, cache, data)
    return run.context(step.cell, settings, progress, world or distributed.world("small"))


class Watched(distributed.World):
    """Counts the teachers that would be shared out among processes."""

    shared = 0

    def reader(self, model: loading.LoadedModel) -> loading.LoadedModel:
        self.shared += 1
        return super().reader(model)


@pytest.mark.filterwarnings("ignore:.*exceed the disk budget")
@pytest.mark.parametrize(("method", "shared"), [("kl", 1), ("imitkd", 0), ("minillm", 0)])
def test_a_teacher_of_student_text_is_not_shared_out(
    method: str,
    shared: int,
    student_folder: Path,
    teacher_folder: Path,
    own_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Processes read text of their own when they come to it; of shards they would wait for ever."""
    monkeypatch.setattr(reading, "_fits", lambda *_: False)  # the teacher reads at every step
    made = own_steps(teacher_folder, student_folder, own_data, tmp_path / "cache", 6, (method,))
    (step,) = (step for step in made.values() if step.cell.training)
    world = Watched("cpu")
    here = context(step, tmp_path / "results", tmp_path / "cache", own_data, world=world)
    assert cells.run(step.cell, here)["status"] == "done"
    assert world.shared == shared


def test_teacher_texts_go_on_after_the_last_whole_batch(
    student_folder: Path, teacher_folder: Path, own_data: Path, tmp_path: Path
) -> None:
    pair = (teacher_folder, student_folder, own_data)
    heard: list[float] = []

    def written(cache: Path, stop_at: float = 2.0) -> str:
        heard.clear()

        def progress(stage: str, share: float) -> None:
            if stage == "teacher writes":
                heard.append(share)
                if share >= stop_at:
                    raise InterruptedError

        step = own_steps(*pair, cache, examples=24)["seqkd"]
        assert cells.read_ahead(step.cell, context(step, tmp_path / "results", cache, own_data, progress))
        (file,) = (cache / "teacher").glob("texts-*.jsonl")
        return file.read_text()

    expected = written(tmp_path / "undisturbed")
    cache = tmp_path / "cache"
    with pytest.raises(InterruptedError):
        written(cache, stop_at=0.5)
    assert len([*(cache / "teacher").glob("*.part*")]) == 1
    (cache / "teacher" / "other.part1").touch()  # of another text set
    assert written(cache) == expected
    assert [path.name for path in (cache / "teacher").glob("*.part*")] == ["other.part1"]


def test_answers_of_a_student_that_was_lost_are_not_the_new_ones(
    student_folder: Path, teacher_folder: Path, own_data: Path, tmp_path: Path
) -> None:
    step = own_steps(teacher_folder, student_folder, own_data, tmp_path, examples=6)["sft"]

    def walked() -> cells.Walk:
        walk = cells.Walk(step.cell, context(step, tmp_path / "results", tmp_path, own_data))
        walk.trained()
        return walk

    answers = walked().work / cells.ANSWERS / "dolly-10-0.journal"
    answers.parent.mkdir()
    answers.touch()
    walked()
    assert answers.exists()  # the student is the one that gave them
    (answers.parents[1] / "student.pt").unlink()
    walked()
    assert not answers.exists()


def test_it_is_not_for_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = reproduce(capsys, "--table", "1", "--teacher-pass", "--engine", "ray")
    assert code == 2
    assert "--teacher-pass fills this machine's --cache" in err
