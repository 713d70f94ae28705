"""Trains small models in every process of a launch, and alone; ``test_distributed.py`` compares.

accelerate launch --config_file configs/fsdp2.yaml --num_processes 2 \\
    tests/two_processes.py CASES STUDENT TEACHER OUT
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]  # run as a script

from some_examples import examples  # noqa: E402

from dskd.batch import Pair  # noqa: E402
from dskd.method import create  # noqa: E402
from harness import data, launch, methods, models  # noqa: E402
from harness.cells import Lora, Training  # noqa: E402
from harness.distributed import World, whole_tensor, world  # noqa: E402
from harness.models import LoadedModel  # noqa: E402
from harness.on_policy import Limits, OnPolicy, Sides  # noqa: E402
from harness.teacher import hidden_states, teacher_side, whole_teacher  # noqa: E402
from harness.train import Trainer  # noqa: E402

EXAMPLES = examples(10)
#: Three micro-batches a step: with two processes one of them has nothing to do in the last round.
TWO = Training(examples=None, epochs=2, batch=5, micro_batch=2, lr=1e-3, max_length=96, max_prompt=48)
#: name -> method address, settings, and whether the teacher's states are too many to keep.
CASES: dict[str, tuple[str, Any, bool]] = {
    "kl": ("kl", TWO, False),
    "dskd-v1": ("dskd-v1/srkl", TWO, True),
    "dskd-v2": ("dskd-v2/kl", TWO, False),
    "lora": ("dskd-v2/kl", dataclasses.replace(TWO, lora=Lora(4, 8, 0.0)), True),
    "on-policy": ("dskd-v2/kl:on_policy=0.6", dataclasses.replace(TWO, lora=Lora(4, 8, 0.0)), True),
    "imitkd": ("imitkd", TWO, True),  # data and student text side by side in a batch
    "minillm": ("minillm", TWO, False),  # the teacher writes with the student
    "distillm": ("distillm:initial=0.4:tolerance=0:increment=0.6:capacity=4:validations=4", TWO, False),
}


def silent(stage: str, fraction: float) -> None:
    """No progress."""


def trainer(case: str, here: World, student: LoadedModel, teacher: Path, work: Path) -> Trainer:
    """As a cell makes it."""
    address, settings, recomputed = CASES[case]
    if settings.lora:
        models.add_lora(student, settings.lora)
    read = data.encode_examples(student.tokenizer, EXAMPLES, max_prompt=48, max_length=96)
    side = teacher_side(teacher, "teacher", work / "cache", torch.float32, here)
    budget = {"disk_budget": 0} if recomputed else {}
    place = work / "cache", torch.float32, silent
    method = create(address)
    asked = method.needs.student_samples
    states = hidden_states(teacher, "teacher", read, *place, **budget, world=here, whole=asked is not None)
    torch.manual_seed(3)
    parts = method.build(Pair(student.side(), side, work / "maps"))
    paired = data.PairedData(EXAMPLES, read, read, None)
    author = None
    if asked is not None:
        words = student.side().vocabulary, side.vocabulary
        reader = whole_teacher(teacher, "teacher", torch.float32, states, here)
        sides = Sides(here.mirror(student, settings.lora), reader, words, same=True)
        limits = Limits(answer=24, student=96, teacher=96)
        author = OnPolicy(asked, sides, paired, "none", limits, settings, 3, read[:3], here)
    return Trainer(
        student, method, parts, paired, settings, 3, side, states, work, silent,
        on_policy=author, world=here,
    )  # fmt: skip


def train(case: str, here: World, folders: tuple[Path, Path], work: Path, stop: int = 0) -> dict[str, Any]:
    """Train a case to its end, or so many steps; weights and what a record says of the training."""
    torch.manual_seed(3)
    student = models.load(folders[0], "student")
    if CASES[case][1].lora:
        torch.manual_seed(4)  # adapters are drawn
    run = trainer(case, here, student, folders[1], work)
    norms = _norms(run)
    if stop:
        student.lm.train()
        for step, rows in list(run._schedule(0))[:stop]:
            run._step(step, rows)
            run.trained.steps = step + 1
        run._save()
        return {}
    trained = run.run()
    own = sum(held(p) for p in run.whole.parameters())
    copy = here.mirror(student, CASES[case][1].lora)()
    parts = {} if run.parts is None else dict(run.parts.named_parameters())
    return {
        "weights": dict(copy.lm.state_dict()),
        "parts": {name: whole_tensor(p).detach().clone() for name, p in parts.items()},
        "curve": trained.curve,
        "norms": norms,
        "tokens": [trained.tokens, trained.read_tokens],
        "losses": [trained.first_loss, trained.last_loss],
        "written": {name: count for name, count in trained.written.items() if name != "seconds"},
        "sharded": own,
        "numbers": sum(getattr(p, "ds_numel", p.numel()) for p in run.whole.parameters()),
    }


def held(parameter: Any) -> int:
    """Numbers of a parameter that this process holds as its shard (FSDP2, ZeRO-3)."""
    if hasattr(parameter, "ds_tensor"):
        return int(parameter.ds_tensor.numel())
    return int(parameter.to_local().numel()) if hasattr(parameter, "to_local") else 0


def _norms(run: Trainer) -> list[float]:
    """Gradient norms of the steps to come; Adam would hide a gradient of the wrong size."""
    norms, clip = [], run.world.clip

    def recording(parameters: list[torch.nn.Parameter], limit: float) -> float:
        norms.append(clip(parameters, limit))
        return norms[-1]

    run.world.clip = recording  # type: ignore[method-assign]
    return norms


def main(cases: str, student: str, teacher: str, out: str) -> None:
    methods.load()
    folders = (Path(student), Path(teacher))
    for case in cases.split(","):
        name, _, resumed = case.partition("+")
        world.cache_clear()  # a fresh one, whose methods nobody has replaced
        here = world("tiny")
        work = Path(out) / case / f"of-{here.size}"
        if resumed:
            train(name, here, folders, work, stop=2)
        found = train(name, here, folders, work)
        if here.main:
            torch.save(found, Path(out) / f"{case}-{here.size}.pt")
    texts = here.spread([f"item {n}" for n in range(5)], lambda mine: [f"{t} done" for t in mine])
    told = here.told(lambda: [here.rank, "from the main process"])
    (Path(out) / f"process-{here.rank}-of-{here.size}.json").write_text(json.dumps([texts, told]))
    if launch.together():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
