"""One cell, walked through: load the pair, train, decode, score, and say everything in a record."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dskd import heads
from dskd.batch import Pair, Side
from dskd.method import Method, Sampling, create
from dskd.student_text import Adaptive, StudentText
from dskd.vocabulary import Vocabulary, VocabularyPair
from evals import programs, scoring, suites
from evals.decoding import batches, generate, generate_ids
from evals.prompts import encode_prompts
from evals.suites import Item, Suite
from harness import data, locate, models, origins, scales, teacher_pass, versions
from harness.cells import UNTRAINED, Cell, Decoding, SuiteRun, Training
from harness.checkpoints import BestDevRouge, CheckpointRule, Last
from harness.distributed import World
from harness.examples import Example, load_examples, load_held_out, text_hash
from harness.journal import Journal
from harness.meter import Meter
from harness.models import LoadedModel, Progress
from harness.on_policy import Limits, OnPolicy, Sides
from harness.pairs import PairSpec
from harness.provenance import provenance
from harness.saving import load_checkpoint, save_checkpoint
from harness.store import Store
from harness.teacher import (
    HiddenStates,
    RecomputedStates,
    StoredStates,
    hidden_states,
    teacher_side,
    teacher_texts,
    whole_teacher,
)
from harness.tracking import Log
from harness.train import CHECKPOINT, Trained, Trainer

#: Folder, in a cell's work folder, of the answers written so far.
ANSWERS = "answers"


def _silent(stage: str, fraction: float) -> None:
    """The default progress: none."""


@dataclass
class Context:
    """Where a cell finds things and leaves them."""

    store: Store
    cache: Path  #: models, teacher states, maps: everything that can be made again
    pair: PairSpec
    data: Path | None = None  #: the user's --data folder
    progress: Progress = _silent
    reference: bool = False  #: plain heads instead of tiled ones
    allow_unsafe: bool = False  #: see evals/sandbox.py
    trust_remote_code: bool = False  #: see models.trust_remote_code
    command: str = ""
    world: World = field(default_factory=World)
    log: Log | None = None  #: of a tracker


def run(cell: Cell, context: Context) -> dict[str, Any]:
    """Run a cell to its record, from wherever an earlier run of it was stopped.

    Of several processes, only the main one's record has scores. The caller clears the store's work folder
    once the record is stored.
    """
    made = provenance(context.command)  # now: the checkout may change while the cell runs
    name = "meter.json" if context.world.main else f"meter-{context.world.rank}.json"
    meter = Meter(context.store.work(cell.id) / name)
    context = dataclasses.replace(context, progress=meter.watching(context.progress))
    walk = Walk(cell, context)
    if cell.method in UNTRAINED:
        model, trained, chosen = walk.untrained(), None, None
    else:
        model, trained, chosen = walk.trained()
    scores, decode_seconds, new_tokens = walk.score(model)
    _log_scores(context, scores, trained.steps if trained else 0)
    record = walk.record(scores, trained, chosen)
    origin = origins.of_cell(cell, context.pair, context.cache, context.data)
    record["provenance"] = made | {"sources": origin}
    record["cost"] = {
        "train_seconds": trained.seconds if trained else 0.0,
        "tokens_per_second": trained.read_tokens / max(trained.seconds, 1e-9) if trained else 0.0,
        "decode_seconds": decode_seconds,
        "decode_tokens_per_second": new_tokens / max(decode_seconds, 1e-9),
        "peak_rss_mb": meter.peak_mb(),
        "peak_of": "cell" if meter.own_peak else "process",
        "sampling_seconds": trained.written.get("seconds", 0.0) if trained else 0.0,
        "teacher_passes": walk.teacher_passes(trained),
        "wall_seconds": meter.seconds(),
    } | _of_gpus(context.world)
    return record


def _log_scores(context: Context, scores: dict[str, Any], step: int) -> None:
    """Each suite's score, over its decoding seeds, for a tracker."""
    if context.log is not None:
        runs = {name: [run["score"] for run in entry["seeds"].values()] for name, entry in scores.items()}
        context.log({f"score/{name}": sum(found) / len(found) for name, found in runs.items()}, step)


def _of_gpus(world: World) -> dict[str, Any]:
    """What a cost says of processes and GPUs, where there is more than one process on a CPU."""
    several = {"processes": world.size} if world.size > 1 else {}
    if world.device.type != "cuda":
        return several
    peaks = world.gathered(torch.cuda.max_memory_allocated(world.device))
    return {**several, "peak_gpu_mb": max(peaks) / 2**20}


@dataclass(frozen=True)
class Retrained:
    """A cell's student, with what a saved copy of it must say."""

    student: LoadedModel
    trained: Trained
    root: Path  #: folder of suites
    batch_size: int  #: of its decoding


def retrain(cell: Cell, context: Context) -> Retrained:
    """The student of a cell, from the work folder where training was over, else trained now; not scored."""
    walk = Walk(cell, context)
    student, trained, _ = walk.trained()
    return Retrained(student, trained, walk.root, walk._batch_size())


def read_ahead(cell: Cell, context: Context) -> bool:
    """Have the teacher do what it can before the cell's training, and note it; whether all of it was kept."""
    walk = Walk(cell, context)
    made = walk.read_ahead()
    if made is not None:
        context.world.told(lambda: teacher_pass.note(cell, context.cache, made))
    with contextlib.suppress(OSError):  # nothing of the cell itself was begun
        walk.work.rmdir()
    return made is not None


class Walk:
    """The state of one cell on its way: resolved paths, the method, the pair."""

    def __init__(self, cell: Cell, context: Context) -> None:
        heads.use_reference(context.reference)
        models.trust_remote_code(context.trust_remote_code)
        self.cell, self.context, self.world = cell, context, context.world
        self.text_files: list[Path] = []  #: files of what the teacher wrote
        self.work = context.store.work(cell.id)
        self.root = locate.data_root(cell.scale, context.cache, context.data)
        self.method: Method | None = None if cell.method in UNTRAINED else create(cell.method)
        self.dtype = torch.bfloat16 if cell.training and cell.training.precision == "bf16" else torch.float32
        if cell.training is None and cell.scale != "tiny":
            self.dtype = torch.bfloat16

    def _max_prompt(self) -> int:
        """Prompts are cut alike for every row; one that is not trained takes its setting's."""
        training = self.cell.training or scales.setting(self.context.pair, self.cell.group).training
        return training.max_prompt

    def path(self, ref: str) -> Path:
        return locate.model(ref, self.context.cache, self.context.progress)

    def untrained(self) -> LoadedModel:
        """The teacher, or the student as it is before distillation."""
        pair = self.context.pair
        ref = pair.teacher if self.cell.method == "teacher" else pair.student
        return self.world.place(models.load(self.path(ref), ref, self.dtype))

    def trained(self) -> tuple[LoadedModel, Trained, str]:
        """The distilled student: from the work folder when training was over, else trained now."""
        assert self.cell.training is not None and self.method is not None
        torch.manual_seed(self.cell.seed)
        student = models.load(self.path(self.context.pair.student), self.context.pair.student)
        finished = load_checkpoint(self.work / "student.pt")
        if finished is not None:
            student.lm.load_state_dict(finished["weights"])
            models.cast(student.lm, self.dtype)
            return self.world.place(student), Trained(**finished["trained"]), str(finished["chosen"])
        if self.cell.training.lora is not None:
            models.add_lora(student, self.cell.training.lora)
        student, trained, chosen = self._train(student, self.method, self.cell.training)
        if self.cell.training.lora is not None:
            models.merge_lora(student)
        self.world.told(lambda: self._keep_student(student, trained, chosen))
        models.cast(student.lm, self.dtype)
        return student, trained, chosen

    def read_ahead(self) -> list[Path] | None:
        """Have the teacher write and read; the files made, or None where its states are too many to keep."""
        assert self.cell.training is not None and self.method is not None
        student = models.load(self.path(self.context.pair.student), self.context.pair.student)
        teacher = self._teacher() if self.method.needs.teacher else None
        _, states = self._data(student, self.method, self.cell.training, teacher)
        if isinstance(states, RecomputedStates):
            return None
        return [*self.text_files, *(states.files if isinstance(states, StoredStates) else ())]

    def _keep_student(self, student: LoadedModel, trained: Trained, chosen: str) -> None:
        """Answers that lie there are of an earlier student, whose file was lost."""
        shutil.rmtree(self.work / ANSWERS, ignore_errors=True)
        kept = {"weights": student.lm.state_dict(), "trained": vars(trained), "chosen": chosen}
        save_checkpoint(self.work / "student.pt", kept)

    def _train(
        self, student: LoadedModel, method: Method, settings: Training
    ) -> tuple[LoadedModel, Trained, str]:
        teacher = self._teacher() if method.needs.teacher else None
        paired, states = self._data(student, method, settings, teacher)
        parts = self._parts(student, teacher, method)
        current = self.world.mirror(student, settings.lora)
        author = None
        if method.needs.student_samples is not None:
            assert teacher is not None  # see Needs
            sides = self._sides(student, current, teacher, states)
            author = self._on_policy(method.needs.student_samples, method, settings, paired, student, sides)
        rule = self._checkpoint_rule(settings)
        if not rule.resumes():
            self.world.forget(self.work / CHECKPOINT)

        def at_epoch_end(epoch: int) -> None:
            rule.at_epoch_end(epoch, current())

        trainer = Trainer(
            student, method, parts, paired, settings, self.cell.seed, teacher, states, self.work,
            self.context.progress, at_epoch_end if settings.checkpoint != "last" else None,
            author, self.world, self.context.log,
        )  # fmt: skip
        trained = trainer.run()
        last = current()
        return last, trained, rule.finish(last)

    def _teacher(self) -> Side:
        ref = self.context.pair.teacher
        return teacher_side(self.path(ref), ref, self.context.cache, self.dtype, self.world)

    def _parts(self, student: LoadedModel, teacher: Side | None, method: Method) -> nn.Module | None:
        """Trainable parts, drawn from the training seed."""
        torch.manual_seed(self.cell.seed)
        return method.build(Pair(student.side(), teacher, self.context.cache / "maps"))

    def _data(
        self, student: LoadedModel, method: Method, settings: Training, teacher: Side | None
    ) -> tuple[data.PairedData, HiddenStates | None]:
        """Examples as both models read them, and the teacher's states on them."""
        examples = self._examples(method, settings)[0]
        if method.needs.teacher_text:
            examples = self._teacher_written(examples, settings, method.sampling)
        own = self._encoded(student, examples, settings)
        if teacher is None:
            return data.PairedData(examples, own, None, None), None
        ref = self.context.pair.teacher
        path = self.path(ref)
        vocabulary = student.side().vocabulary
        other = own
        if not self._same_vocabulary(vocabulary, teacher.vocabulary, method):
            wide = {"max_prompt": settings.max_prompt, "max_length": settings.max_length}
            other = data.encode_examples(models.load_tokenizer(path), examples, **wide)
        pairs = data.align(method.needs.alignment, own, other, vocabulary, teacher.vocabulary)
        paired = data.PairedData(examples, own, other, pairs)
        asked = method.needs.student_samples
        if asked is not None and asked.always:
            return paired, None
        states = hidden_states(
            path, ref, other, self.context.cache, self.dtype, self.context.progress, world=self.world,
            whole=asked is not None,
        )  # fmt: skip
        return paired, states

    def _examples(self, method: Method, settings: Training) -> tuple[list[Example], list[Example]]:
        """What is trained on, and what an adaptive schedule validates on."""
        file = locate.training_file(self.cell.data, self.root)
        asked = method.needs.student_samples
        if asked is not None and isinstance(asked.schedule, Adaptive):
            return load_held_out(file, settings.examples)
        return load_examples(file, settings.examples), []

    def _encoded(
        self, student: LoadedModel, examples: Sequence[Example], settings: Training
    ) -> list[data.Encoded]:
        window = min(settings.max_length, student.window)
        room = self._prompt_room(student, settings.max_prompt)
        return data.encode_examples(student.tokenizer, examples, max_prompt=room, max_length=window)

    def _sides(
        self,
        student: LoadedModel,
        current: Callable[[], LoadedModel],
        teacher: Side,
        states: HiddenStates | None,
    ) -> Sides:
        """Both models for the writing of text: each process asks them about text of its own."""
        ref = self.context.pair.teacher
        reader = whole_teacher(self.path(ref), ref, self.dtype, states, self.world)
        words = student.side().vocabulary, teacher.vocabulary
        return Sides(current, reader, words, VocabularyPair(*words).same)

    def _on_policy(
        self,
        asked: StudentText,
        method: Method,
        settings: Training,
        paired: data.PairedData,
        student: LoadedModel,
        sides: Sides,
    ) -> OnPolicy:
        """What writes the text of a method that needs student samples."""
        window = min(settings.max_length, student.window)
        limits = Limits(self.cell.decoding.max_new_tokens, window, settings.max_length)
        held_out = self._encoded(student, self._examples(method, settings)[1], settings)
        return OnPolicy(
            asked, sides, paired, method.needs.alignment, limits, settings, self.cell.seed, held_out,
            self.world,
        )  # fmt: skip

    def _same_vocabulary(self, student: Vocabulary, teacher: Vocabulary, method: Method) -> bool:
        """Whether one tokenizer serves both; refuses a pair that is not what it was declared to be."""
        same, declared = VocabularyPair(student, teacher).same, self.context.pair.same_vocabulary
        if declared is not None and declared != same:
            raise models.ModelError(
                f"{self.cell.pair} is declared as {'one vocabulary' if declared else 'two'}; it is not"
            )
        method.check(same)
        return same

    def _teacher_decoding(self, sampling: Sampling) -> Decoding:
        """How the teacher writes SeqKD's texts: one decoding seed per sample of a prompt."""
        like, seeds = self.cell.decoding, tuple(range(sampling.samples))
        return Decoding(
            temperature=sampling.temperature, top_p=sampling.top_p, seeds=seeds,
            max_new_tokens=like.max_new_tokens, max_length=like.max_length,
        )  # fmt: skip

    def _teacher_written(
        self, examples: list[Example], settings: Training, sampling: Sampling
    ) -> list[Example]:
        """The same prompts with the teacher's own answers (SeqKD), all first answers first."""
        ref = self.context.pair.teacher
        path, decoding = self.path(ref), self._teacher_decoding(sampling)
        sources = (models.fingerprint(path), text_hash(examples), decoding, settings.max_prompt)
        key = hashlib.sha256(repr((*sources, self.dtype, versions.DECODER)).encode())

        file = self.context.cache / "teacher" / f"texts-{key.hexdigest()[:20]}.jsonl"

        def write() -> list[tuple[str, bool]]:
            kept = Journal(file.with_suffix(f".part{self.world.rank}"))
            model = self.world.place(models.load(path, ref, self.dtype))
            return [
                answer
                for seed in decoding.seeds
                for answer in self.world.spread(
                    examples, partial(self._answers, model, decoding=decoding, seed=seed, kept=kept)
                )
            ]

        answers = teacher_texts(file, write, len(examples) * sampling.samples, self.world)
        self.text_files.append(file)
        return [
            Example(f"{example.id}#{sample + 1}" if sample else example.id, example.prompt, *answer)
            for sample in range(sampling.samples)
            for example, answer in zip(examples, answers[sample * len(examples) :], strict=False)
        ]

    def _answers(
        self, model: LoadedModel, examples: Sequence[Example], decoding: Decoding, seed: int, kept: Journal
    ) -> list[tuple[str, bool]]:
        """One answer to every prompt, each with whether it came to its end."""
        items = [Item(e.id, e.prompt, (e.response,), {}) for e in examples]
        limits = Decoding(**{**vars(decoding), "max_length": min(decoding.max_length, model.window)})
        max_prompt = self._prompt_room(model, self._max_prompt())
        done = decoding.seeds.index(seed)

        def report(part: float) -> None:
            self.context.progress("teacher writes", (done + part) / len(decoding.seeds))

        written = generate_ids(
            model.lm, model.tokenizer, items, limits, seed, max_prompt=max_prompt,
            batch_size=self._batch_size(), progress=report, kept=kept,
        )  # fmt: skip
        prompts = encode_prompts(model.tokenizer, [e.prompt for e in examples], max_prompt)
        rooms = [min(limits.max_new_tokens, limits.max_length - len(prompt)) for prompt in prompts]
        texts = model.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [(text, len(ids) < room) for text, ids, room in zip(texts, written, rooms, strict=True)]

    @staticmethod
    def _prompt_room(model: LoadedModel, max_prompt: int) -> int:
        """A prompt takes half of a short window at most, in training and in decoding alike."""
        return min(max_prompt, model.window // 2)

    def _batch_size(self) -> int:
        return 256 if self.cell.scale == "tiny" else 16

    def _generate(
        self,
        model: LoadedModel,
        items: Sequence[Item],
        decoding: Decoding,
        seed: int,
        stage: str,
        max_prompt: int,
        kept: Journal | None = None,
    ) -> list[str]:
        def progress(fraction: float) -> None:
            self.context.progress(stage, fraction)

        decoding = Decoding(**{**vars(decoding), "max_length": min(decoding.max_length, model.window)})

        def write(mine: Sequence[Item]) -> list[str]:
            return generate(
                model.lm,
                model.tokenizer,
                mine,
                decoding,
                seed,
                max_prompt=self._prompt_room(model, max_prompt),
                batch_size=self._batch_size(),
                progress=progress,
                kept=kept,
            )

        return self.world.spread(items, write)

    def _checkpoint_rule(self, settings: Training) -> CheckpointRule:
        if settings.checkpoint == "last":
            return Last()
        suite = suites.get("dolly")
        items = suites.load_file(suite, self.root / "dolly" / "dev.jsonl", None)

        def score(student: LoadedModel) -> float:
            texts = self._generate(
                student, items, self.cell.decoding, self.cell.decoding.seeds[0], "dev", settings.max_prompt
            )
            rouge = scoring.score(suite, items, texts).per_item[suite.metric]
            return sum(rouge) / len(rouge)

        return BestDevRouge(score, self.work / "best.pt", self.world)

    def score(self, model: LoadedModel) -> tuple[dict[str, Any], float, int]:
        """Decode and score every suite; returns scores, seconds of decoding, tokens written."""
        scores: dict[str, Any] = {}
        seconds, tokens = 0.0, 0
        for run in self.cell.suites:
            suite = suites.get(run.name)
            items = suites.load(suite, self.root, run.limit)
            entry: dict[str, Any] = {
                "metric": suite.metric,
                "items": len(items),
                "items_sha256": suites.items_hash(items),
            }
            entry["seeds"] = {}
            for seed in self.cell.decoding.seeds:
                texts, spent = self._decoded(model, run, items, seed)
                seconds += spent
                tokens += sum(
                    len(ids) for ids in model.tokenizer(texts, add_special_tokens=False)["input_ids"]
                )
                if self.world.main:
                    entry["seeds"][str(seed)] = self._scored(suite, items, texts, seed)
            add_pass_at_k(suite, entry)
            scores[run.name] = entry
        return scores, seconds, tokens

    def _decoded(
        self, model: LoadedModel, run: SuiteRun, items: Sequence[Item], seed: int
    ) -> tuple[list[str], float]:
        """Texts of one suite and decoding seed, and the seconds they took; a kill costs one batch of them."""
        kept = Journal(self.work / ANSWERS / f"{run.name}-{seed}-{self.world.rank}.journal")
        texts = self._generate(
            model, items, self.cell.decoding, seed, f"decode {run.name}", self._max_prompt(), kept
        )
        return texts, max(self.world.gathered(kept.seconds))

    def first_answers(
        self, model: LoadedModel, run: SuiteRun, seed: int, processes: int = 1
    ) -> dict[str, str]:
        """The first batch of a suite's answers, by item, in the company that it was written in.

        bfloat16 rounds otherwise in other company, and a long greedy answer then often goes another way.
        ``processes``: how many shared the suite.
        """
        items = suites.load(suites.get(run.name), self.root, run.limit)[::processes]
        room = self._prompt_room(model, self._max_prompt())
        prompts = encode_prompts(model.tokenizer, [item.prompt for item in items], room)
        chosen = [items[n] for n in batches(prompts, self._batch_size())[0]]
        texts = self._generate(model, chosen, self.cell.decoding, seed, "check answers", self._max_prompt())
        return {item.id: text for item, text in zip(chosen, texts, strict=True)}

    def _scored(self, suite: Suite, items: Sequence[Item], texts: list[str], seed: int) -> dict[str, Any]:
        self.context.progress(f"score {suite.name}", 0.0)
        result = scoring.score(suite, items, texts, allow_unsafe=self.context.allow_unsafe)
        return seed_entry(self.context.store, self.cell, suite.name, seed, items, texts, result)

    def teacher_passes(self, trained: Trained | None) -> float:
        """How often the teacher read a text for every example: once, and each text of the student's."""
        if trained is None or self.method is None or self.cell.training is None:
            return 0.0
        needs, written = self.method.needs, trained.written
        once = needs.teacher and not (needs.student_samples and needs.student_samples.always)
        steps = self.cell.training.epochs / max(1, trained.steps)
        texts = written.get("texts", 0) + written.get("replayed", 0)
        return once + round(texts * steps / self.cell.training.batch, 2)

    def record(self, scores: dict[str, Any], trained: Trained | None, chosen: str | None) -> dict[str, Any]:
        """Everything but provenance and cost."""
        pair, settings = self.context.pair, self.cell.training
        described = {"student": models.describe(self.path(pair.student), pair.student)}
        if self.cell.method != "student" and (
            self.method is None or self.method.needs.teacher or self.method.needs.teacher_text
        ):
            described["teacher"] = models.describe(self.path(pair.teacher), pair.teacher)
        training = None
        if trained is not None and settings is not None:
            training = {
                "steps": trained.steps,
                "tokens": trained.tokens,
                "read_tokens": trained.read_tokens,
                "curve": curve(trained),
                "checkpoint": f"{settings.checkpoint}: {chosen}",
                "accumulation": settings.accumulation(self.world.size),
                "heads": "reference" if self.context.reference else "tiled",
            }
            if self.method is not None and self.method.needs.teacher_text:
                training["teacher_decoding"] = vars(self._teacher_decoding(self.method.sampling))
            if trained.written:
                training["student_text"] = {k: v for k, v in trained.written.items() if k != "seconds"}
            if trained.divergence:
                training["diverged"] = trained.divergence
        return {
            "schema": 1,
            "cell": self.cell.id,
            "spec": self.cell.as_dict(),
            "status": "done",
            "reason": None,
            "scores": scores,
            "training": training,
            "models": described,
            "data": locate.data_report(self.cell, self.root),
            "template_sha256": _prompt_hash(self.root, self.cell.suites),
        }


def curve(trained: Trained) -> list[list[Any]]:
    """A training's losses as a record keeps them."""
    return [[step, {name: round(value, 6) for name, value in terms.items()}] for step, terms in trained.curve]


def add_pass_at_k(suite: Suite, entry: dict[str, Any]) -> None:
    """Add pass@k to a code suite's scores, where several decoding seeds are samples of each answer."""
    if suite.kind == "code" and len(entry["seeds"]) > 1:
        found = programs.pass_at_ks([run["per_item"] for run in entry["seeds"].values()])
        entry["pass@k"] = {str(k): round(value, 4) for k, value in found.items()}


def seed_entry(
    store: Store,
    cell: Cell,
    suite: str,
    seed: int,
    items: Sequence[Item],
    texts: list[str],
    result: scoring.Scores,
) -> dict[str, Any]:
    """Store generations with their scores; the part of a record that one decoding seed fills."""
    rows = [
        {
            "id": item.id,
            "text": text,
            **{metric: round(values[n], 4) for metric, values in result.per_item.items()},
        }
        for n, (item, text) in enumerate(zip(items, texts, strict=True))
    ]
    means = {metric: sum(values) / len(values) for metric, values in result.per_item.items()}
    return {
        "score": means[result.metric],
        "all": means,
        "per_item": [round(value, 4) for value in result.per_item[result.metric]],
        "generations": store.write_generations(cell, suite, seed, rows),
    }


def _prompt_hash(root: Path, runs: Sequence[SuiteRun]) -> str:
    digest = hashlib.sha256()
    for run in runs:
        for item in suites.load(suites.get(run.name), root, run.limit):
            digest.update(item.prompt.encode() + b"\0")
    return digest.hexdigest()
