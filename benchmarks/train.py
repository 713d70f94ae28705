"""Training end to end: the kl method of this repository against TRL's GKDTrainer, off-policy.

``python -m benchmarks.train --teacher DIR --student DIR --data FILE`` trains one student twice, each
time in a process of its own, on the same examples at equal batch, epochs and precision (bf16):

- ours: ``kl:rate=1:temperature=1`` through harness.train, the teacher's pass over the text included;
- trl: GKDTrainer with lmbda=0 and beta=0, which is the same objective, from the same token ids.

Tokens are those both models read (prompt and response). The loss of the first batch, before any step,
is printed for both: it has to agree, or the two did not compute the same thing.
TRL comes with ``pip install -e '.[peers]'``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import apart, machine, memory, reset_peak

KINDS = ("ours", "trl")
METHOD = "kl:rate=1:temperature=1"


@dataclass(frozen=True)
class Task:
    """What is trained on what, alike for both."""

    teacher: str
    student: str
    data: str
    examples: int = 64
    epochs: int = 3
    batch: int = 8
    lr: float = 2e-4
    max_prompt: int = 256
    max_length: int = 512


@dataclass(frozen=True)
class Measurement:
    """One training run."""

    kind: str
    seconds: float
    cpu_seconds: float  #: of all threads together
    tokens: int  #: read by the student over all epochs
    extra_mib: float  #: peak beyond the loaded models
    first_loss: float  #: of the first batch, before any step
    teacher_passes: int  #: times the teacher read each text

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


# --- the measured process -----------------------------------------------------------------------------


class Problem:
    """Both models and the encoded text."""

    def __init__(self, task: Task) -> None:
        import torch

        from harness import data, models
        from harness.examples import load_examples

        torch.manual_seed(0)
        self.task = task
        self.student = models.load(Path(task.student), task.student)
        self.examples = load_examples(Path(task.data), task.examples)
        limits = {"max_prompt": task.max_prompt, "max_length": min(task.max_length, self.student.window)}
        self.encoded = data.encode_examples(self.student.tokenizer, self.examples, **limits)

    def tokens(self) -> int:
        """Tokens the student reads in all epochs."""
        return self.task.epochs * sum(len(sequence) - 1 for sequence in self.encoded)


def run_ours(problem: Problem, work: Path) -> tuple[float, int]:
    """Train with this repository's loop; returns the first loss and the number of teacher passes."""
    import torch

    from baselines import logit  # noqa: F401 -- registers the method
    from dskd.method import create
    from harness.cells import Training
    from harness.data import PairedData
    from harness.teacher import hidden_states, teacher_side
    from harness.train import Trainer

    task, path = problem.task, Path(problem.task.teacher)
    teacher = teacher_side(path, task.teacher, work, torch.bfloat16)
    states = hidden_states(
        path, task.teacher, problem.encoded, work, torch.bfloat16, lambda stage, share: None
    )
    settings = Training(
        examples=task.examples, epochs=task.epochs, batch=task.batch, micro_batch=task.batch, lr=task.lr,
        max_length=task.max_length, max_prompt=task.max_prompt, precision="bf16",
    )  # fmt: skip
    paired = PairedData(problem.examples, problem.encoded, problem.encoded, None)
    trainer = Trainer(
        problem.student, create(METHOD), None, paired, settings, 1, teacher, states, work,
        lambda stage, share: None, None,
    )  # fmt: skip
    rows = list(range(task.batch))
    with torch.no_grad():
        first = trainer.loss(rows, paired.response_tokens(rows)).total.item()
    trainer.run()
    return first, 1


def run_trl(problem: Problem, work: Path) -> tuple[float, int]:
    """Train with TRL's GKDTrainer from the same ids."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    task = problem.task
    teacher = AutoModelForCausalLM.from_pretrained(task.teacher, dtype=torch.bfloat16)
    rows = [
        {"input_ids": [*s.prompt.tolist(), *s.response.ids.tolist()], "prompt": len(s.prompt)}
        for s in problem.encoded
    ]
    settings = GKDConfig(
        output_dir=str(work), per_device_train_batch_size=task.batch, num_train_epochs=task.epochs,
        learning_rate=task.lr, lr_scheduler_type="cosine", lmbda=0.0, beta=0.0, temperature=1.0, bf16=True,
        use_cpu=True, gradient_checkpointing=False, save_strategy="no", report_to=[], disable_tqdm=True,
        logging_strategy="no", optim="adamw_torch_fused", dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = GKDTrainer(
        model=problem.student.lm, teacher_model=teacher, args=settings, data_collator=collate,
        train_dataset=Dataset.from_list(rows), processing_class=problem.student.tokenizer,
    )  # fmt: skip
    batch = collate(rows[: task.batch])
    with torch.no_grad(), trainer.compute_loss_context_manager():
        count = (batch["labels"] != -100).sum()
        first = float(trainer.compute_loss(problem.student.lm, batch, num_items_in_batch=count))
    trainer.train()
    return first, task.epochs


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Right-padded ids, prompts masked with -100 in the labels."""
    import torch

    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for line, row in enumerate(rows):
        own = torch.tensor(row["input_ids"])
        ids[line, : len(own)] = own
        labels[line, row["prompt"] : len(own)] = own[row["prompt"] :]
        mask[line, : len(own)] = 1
    prompts = ids[:, : min(row["prompt"] for row in rows)]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "prompts": prompts}


def measure(task: Task, kind: str) -> Measurement:
    """Train once in this process."""
    problem = Problem(task)
    with tempfile.TemporaryDirectory() as folder:
        reset_peak()
        before = memory("VmRSS")
        started, cpu = time.perf_counter(), time.process_time()
        first, passes = {"ours": run_ours, "trl": run_trl}[kind](problem, Path(folder))
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return Measurement(kind, seconds, cpu, problem.tokens(), memory("VmHWM") - before, first, passes)


# --- the reporting process ----------------------------------------------------------------------------


def table(rows: list[Measurement]) -> str:
    """Markdown, with ratios to ours."""
    base = rows[0]
    lines = [
        "| training | seconds | cpu seconds | x ours | tokens/s | peak MiB | x ours | teacher passes "
        "| first loss |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.kind} | {row.seconds:.1f} | {row.cpu_seconds:.1f} "
            f"| {row.cpu_seconds / base.cpu_seconds:.2f} | {row.rate:,.0f} | {row.extra_mib:,.0f} "
            f"| {row.extra_mib / base.extra_mib:.2f} | {row.teacher_passes} | {row.first_loss:.4f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    summary = str(__doc__).split("\n\n", maxsplit=1)[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=summary)
    parser.add_argument("--teacher", metavar="DIR", help="model folder")
    parser.add_argument("--student", metavar="DIR", help="model folder with the same vocabulary")
    parser.add_argument("--data", metavar="FILE", help="training set, a JSON object a line")
    for name in ("examples", "epochs", "batch"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Task, name))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements, with the machine")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        request = json.loads(options.measure)
        result = measure(Task(**request["task"]), request["kind"])
        print(json.dumps(dataclasses.asdict(result)))
        return
    if not (options.teacher and options.student and options.data):
        parser.error("--teacher, --student and --data are needed")
    task = Task(
        options.teacher, options.student, options.data, options.examples, options.epochs, options.batch
    )
    plain = dataclasses.asdict(task)
    rows = [
        Measurement(**apart("benchmarks.train", {"task": plain, "kind": kind}, options.threads))
        for kind in KINDS
    ]
    print(table(rows))
    if options.json:
        names = {key: Path(plain[key]).name for key in ("teacher", "student", "data")}
        runs = [dataclasses.asdict(row) for row in rows]
        found = {"machine": machine(options.threads), "task": {**plain, **names}, "measurements": runs}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
