"""Time and memory of distillation losses: ours against the plain computation of the same formulas.

``python -m benchmarks.losses`` compares one training step's loss, forward and backward, from given
hidden states, of several computations:

- ours: the method behind ``dskd.method.create``, over packed response positions;
- response-only: the formulas written out with whole logits, over the same positions;
- response-only-fp32: the same with float32 heads and states;
- padded: bfloat16 again, over every position of the padded batch, masked, as released codes do;
- trl-chunked: TRL's chunked divergence kernel (for ``kl``, where ``pip install -e '.[peers]'`` was run);
- its products alone: the matrix products of the first shape without which there is no such loss.

Each runs in a process of its own, which reports the time of its fastest step after one to warm up (by
the clock, and of all threads of the process: the second suffers less from neighbours) and the peak
memory it took beyond models, states and everything a method builds once. Times compare only within one
run.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import apart, machine, memory, reset_peak

KINDS = ("ours", "response-only", "response-only-fp32", "padded")
PRODUCTS = "its products alone"  #: what bounds ours
RATE, TEMPERATURE = 0.5, 2.0
TILE = 4096  #: vocabulary rows of a product


@dataclass(frozen=True)
class Shape:
    """A batch and a pair: ``tokens`` response positions in each of ``batch`` rows of ``length``."""

    method: str = "dskd-v2/kl"
    batch: int = 8
    length: int = 512
    tokens: int = 60
    student: tuple[int, int] = (50_257, 768)  #: vocabulary, width
    teacher: tuple[int, int] = (50_257, 1600)
    overlap: int = 0  #: tokens both vocabularies know; 0 where there is one vocabulary
    aligned: float = 1.0  #: share of response positions with a counterpart

    def __str__(self) -> str:
        (v, d), (w, e) = self.student, self.teacher
        return f"{self.method}, {self.batch} x {self.tokens} tokens, {w:,}/{e} -> {v:,}/{d}"


SAME = Shape()
KL = Shape(f"kl:rate=1:temperature={TEMPERATURE:g}")
CROSS = Shape("dskd-eta/kl", teacher=(151_936, 1536), overlap=42_257, aligned=0.9)
CROSS_ULD = Shape("uld", teacher=(151_936, 1536), overlap=42_257)
SWEEP_TOKENS = (15, 60, 240)
SWEEP_VOCABULARIES = (32_000, 50_257, 100_352)


@dataclass(frozen=True)
class Measurement:
    """One computation of one shape."""

    shape: Shape
    kind: str
    seconds: float  #: fastest of the repeats
    cpu_seconds: float  #: the same, of all threads together
    extra_mib: float  #: peak beyond the inputs
    loss: float | None
    kept: float | None = None  #: share of positions in the student-space term, where the method has one


# --- the measured process -----------------------------------------------------------------------------


@dataclass
class _Vocabularies:
    """Stands in for a VocabularyPair: the first ``overlap`` ids mean the same on both sides."""

    same: bool
    overlap: tuple[Any, Any]
    translation: Any

    @classmethod
    def make(cls, shape: Shape) -> _Vocabularies:
        import numpy as np

        common = shape.overlap or shape.student[0]
        ids = np.arange(common)
        translation = np.full(shape.teacher[0], -1)
        translation[:common] = ids
        return cls(not shape.overlap, (ids, ids), translation)


class Problem:
    """Heads and hidden states, and the parts a method builds once."""

    def __init__(self, shape: Shape, *, full_precision: bool = False) -> None:
        import torch

        torch.manual_seed(0)
        self.shape = shape
        (vocabulary, narrow), (teacher_vocabulary, wide) = shape.student, shape.teacher
        rows = shape.batch * shape.tokens
        dtype = torch.float32 if full_precision else torch.bfloat16
        self.w_s = (torch.randn(vocabulary, narrow) / narrow**0.5).to(dtype).requires_grad_()
        # The teacher's head is near the image of the student's, so that many projected argmaxes agree.
        common = shape.overlap or vocabulary
        w_t = torch.randn(teacher_vocabulary, wide)
        w_t[:common] = 0.35 * w_t[:common] + self.w_s[:common].detach().float() @ torch.randn(narrow, wide)
        self.w_t = (w_t / wide**0.5).to(dtype)
        self.h_s = torch.randn(rows, narrow).mul_(4).to(dtype).requires_grad_()
        self.h_t = (torch.randn(rows, narrow) @ torch.randn(narrow, wide) * 4 / narrow**0.5).to(dtype)
        self.labels = torch.randint(common, (rows,))
        self.pairs = torch.randperm(rows)[: int(rows * shape.aligned)].sort().values
        self.method, self.parts = self._method()
        # Made once; the plain computation's copy in the dtype of its products is no part of its step.
        self.inverse = None if self.parts is None else self.parts.inverse.to(dtype)

    def _method(self) -> tuple[Any, Any]:
        from baselines import cross_tokenizer, logit, supervised  # noqa: F401 -- they register their methods
        from dskd import dual_space, exact_alignment  # noqa: F401
        from dskd.batch import Pair, Side
        from dskd.method import create

        nothing: Any = None
        w_s = self.w_s.detach()
        pair = Pair(Side(w_s, w_s, nothing), Side(self.w_t, self.w_t, nothing))
        pair.__dict__["vocabulary"] = _Vocabularies.make(self.shape)  # a cached property: its value
        method = create(self.shape.method)
        return method, method.build(pair)

    def step(self, kind: str) -> Any:
        """The loss of one step, ready for backward."""
        peers = {"padded": self.padded, "trl-chunked": self.trl_chunked, PRODUCTS: self.products}
        steps = {"ours": self.ours, **peers}
        return steps.get(kind, self.response_only)()

    def ours(self) -> Any:
        """The method of this repository."""
        import torch

        from dskd.batch import Batch, Pairs, View

        offsets = torch.arange(self.shape.batch + 1) * self.shape.tokens
        student = View(self.h_s, self.w_s, self.w_s, self.labels, self.labels, offsets)
        teacher = View(self.h_t, self.w_t, self.w_t, self.labels, self.labels, offsets)
        batch = Batch(student, teacher, Pairs(self.pairs, self.pairs), float(len(self.h_s)))
        return self.method.loss(batch, self.parts).total

    def response_only(self) -> Any:
        """The formulas over response positions, all of them weighted."""
        import torch

        real = torch.ones(len(self.h_s), dtype=torch.bool)
        return self.plain(self.h_s, self.h_t, self.labels, real, self.pairs)

    def padded(self) -> Any:
        """The formulas over the padded batch; the response stands at the end of each row's first half."""
        import torch

        real = torch.zeros(self.shape.batch, self.shape.length, dtype=torch.bool)
        real[:, self.shape.length // 2 - self.shape.tokens : self.shape.length // 2] = True
        where = real.flatten().nonzero().squeeze(-1)

        def spread(packed: Any) -> Any:
            whole = packed.new_zeros(real.numel(), *packed.shape[1:])
            return whole.index_copy(0, where, packed)

        everywhere = torch.arange(real.numel())
        pairs = everywhere if not self.shape.overlap else where[self.pairs]
        return self.plain(spread(self.h_s), spread(self.h_t), spread(self.labels), real.flatten(), pairs)

    def trl_chunked(self) -> Any:
        """Mean forward KL by TRL's kernel."""
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        values, _ = ChunkedDivergenceFunction.apply(
            self.h_s, self.w_s, None, self.h_t, self.w_t, None, 0.0, TEMPERATURE
        )
        return values.mean()

    def products(self) -> Any:
        """No loss, but the matrix products that none of one vocabulary and two spaces can do without.

        Logits of both models and of both projections, gradients in the hidden states of all but the
        teacher and in the student's head, and the projector that v2 makes anew from the student's head.
        """
        import torch

        w_s, h_s = self.w_s.detach(), self.h_s.detach()
        w_s.T @ self.inverse
        for rows, wide in zip(w_s.split(TILE), self.w_t.split(TILE), strict=True):
            gradient = h_s @ rows.T
            for hidden, head in ((h_s, rows), (self.h_t, wide), (self.h_t, wide)):
                hidden @ head.T
            for head in (rows, rows, wide):
                gradient @ head
            gradient.T @ h_s
        return torch.zeros((), requires_grad=True)

    def plain(self, h_s: Any, h_t: Any, labels: Any, real: Any, pairs: Any) -> Any:
        """Whole logits and autograd; rows where not ``real`` are computed and masked."""
        import torch
        from torch.nn.functional import cross_entropy

        logits = (h_s @ self.w_s.T).float()
        if self.shape.method.startswith("kl"):
            with torch.no_grad():
                teacher = (h_t @ self.w_t.T).float()
            return (kl(logits, teacher) * real).sum() / real.sum()
        ce = (cross_entropy(logits, labels, reduction="none") * real).sum() / real.sum()
        if self.shape.method.startswith("uld"):
            return (1 - RATE) * ce + RATE * self.plain_uld(logits, h_t, real)
        return (1 - RATE) * ce + RATE * self.plain_dual_space(logits, h_s, h_t, real, pairs)

    def plain_uld(self, logits: Any, h_t: Any, real: Any) -> Any:
        """Sum of absolute differences of sorted probabilities, at temperature 1."""
        import torch
        from torch.nn.functional import pad

        with torch.no_grad():
            p = (h_t @ self.w_t.T).float().softmax(-1).sort(-1, descending=True).values
        q = logits.softmax(-1).sort(-1, descending=True).values
        q = pad(q, (0, p.shape[-1] - q.shape[-1]))
        return ((q - p).abs().sum(-1) * real).sum() / real.sum()

    def plain_dual_space(self, logits: Any, h_s: Any, h_t: Any, real: Any, pairs: Any) -> Any:
        """DSKD v2: student-space KD, CE of the projected teacher, teacher-space KD."""
        import torch
        from torch.nn.functional import cross_entropy

        frozen, common = self.w_s.detach(), self.shape.overlap or len(self.w_s)
        logits, h_s, h_t, real = logits[pairs], h_s[pairs], h_t[pairs], real[pairs]
        with torch.no_grad():
            teacher = (h_t @ self.w_t.T).float()
            predictions = teacher.argmax(-1)
            real = real & (predictions < common)
            predictions = predictions * real
        projected = (self.parts.t2s(h_t) @ frozen.T).float()
        ce = (cross_entropy(projected, predictions, reduction="none") * real).sum() / real.sum()
        kept = (projected.argmax(-1) == predictions) & real
        student_kd = (kl(logits, projected.detach()) * kept).sum() / kept.sum().clamp_min(1)
        s2t = frozen[:common].T @ self.inverse
        carried = (h_s @ s2t @ self.w_t.T).float()
        teacher_kd = (kl(carried, teacher) * real).sum() / real.sum()
        self.kept = float(kept.sum() / real.sum())
        return student_kd + ce + teacher_kd

    kept: float | None = None


def kl(student_logits: Any, teacher_logits: Any) -> Any:
    """KL(p, q) of each row at the benchmark's temperature."""
    log_q = (student_logits / TEMPERATURE).log_softmax(-1)
    log_p = (teacher_logits / TEMPERATURE).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def measure(shape: Shape, kind: str, repeats: int) -> Measurement:
    """Run one computation in this process."""
    import torch

    problem = Problem(shape, full_precision=kind.endswith("fp32"))
    trained = [problem.h_s, problem.w_s, *([] if problem.parts is None else problem.parts.parameters())]
    seconds: list[float] = []
    cpu_seconds: list[float] = []
    losses: list[float] = []
    reset_peak()
    before = memory("VmRSS")
    for _ in range(1 + repeats):
        with torch.no_grad():
            if losses:
                problem.w_s.mul_(1.01)  # as an optimiser would: what is kept from step to step is out of date
        for tensor in trained:
            tensor.grad = None
        start, cpu_start = time.perf_counter(), time.process_time()
        total = problem.step(kind)
        total.backward()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
        losses.append(float(total.detach()))
    extra = memory("VmHWM") - before
    times = min(seconds[1:]), min(cpu_seconds[1:])
    loss = None if kind == PRODUCTS else losses[0]
    return Measurement(shape, kind, *times, extra, loss, problem.kept)


# --- the reporting process ----------------------------------------------------------------------------


def measure_apart(shape: Shape, kind: str, options: argparse.Namespace) -> Measurement:
    """``measure`` in a process of its own."""
    repeats = 1 if kind == "padded" else options.repeats
    request = {"shape": dataclasses.asdict(shape), "kind": kind, "repeats": repeats}
    return read_measurement(apart("benchmarks.losses", request, options.threads))


def read_measurement(data: dict[str, Any]) -> Measurement:
    """A Measurement from its JSON form."""
    return Measurement(**{**data, "shape": read_shape(data["shape"])})


def read_shape(data: dict[str, Any]) -> Shape:
    """A Shape from its JSON form."""
    return Shape(**{**data, "student": tuple(data["student"]), "teacher": tuple(data["teacher"])})


def table(rows: list[Measurement]) -> str:
    """Markdown: each computation of a shape, with ratios to ours."""
    lines = [
        "| computation | seconds | x ours | cpu seconds | x ours | extra MiB | x ours | loss | kept |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    base = next(row for row in rows if row.kind == "ours")
    kept = next((row.kept for row in rows if row.kept is not None), None)
    for row in rows:
        share = "" if kept is None or row.loss is None else f"{kept:.2f}"
        loss = "" if row.loss is None else f"{row.loss:.4f}"
        lines.append(
            f"| {row.kind} | {row.seconds:.2f} | {row.seconds / base.seconds:.2f} "
            f"| {row.cpu_seconds:.2f} | {row.cpu_seconds / base.cpu_seconds:.2f} "
            f"| {row.extra_mib:,.0f} | {row.extra_mib / base.extra_mib:.1f} | {loss} | {share} |"
        )
    return "\n".join(lines)


def plan(options: argparse.Namespace) -> list[tuple[Shape, tuple[str, ...]]]:
    """Which computations of which shapes to run."""
    main = KINDS if options.padded else KINDS[:-1]
    peers = ("trl-chunked",) if importlib.util.find_spec("trl") else ()
    out: list[tuple[Shape, tuple[str, ...]]] = [(SAME, (*main, PRODUCTS)), (KL, (*KINDS[:2], *peers))]
    if options.cross:
        out += [(CROSS, KINDS[:2]), (CROSS_ULD, KINDS[:2])]
    if options.sweep:
        tokens = [dataclasses.replace(SAME, tokens=n) for n in SWEEP_TOKENS if n != SAME.tokens]
        sizes = [n for n in SWEEP_VOCABULARIES if n != SAME.student[0]]
        wide = [dataclasses.replace(SAME, student=(n, 768), teacher=(n, 1600)) for n in sizes]
        out += [(shape, KINDS[:2]) for shape in tokens + wide]
    return out


def run(options: argparse.Namespace, show: Callable[[str], None] = print) -> list[Measurement]:
    """Measure the plan, showing a table per shape as it comes."""
    everything: list[Measurement] = []
    for shape, kinds in plan(options):
        rows = [measure_apart(shape, kind, options) for kind in kinds]
        everything += rows
        show(f"\n{shape}\n\n{table(rows)}")
    return everything


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    summary = str(__doc__).split("\n\n", maxsplit=1)[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses", description=summary)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements, with the machine")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps per computation (padded: 1)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parts = {"padded": "the padded computation (12 GB)", "cross": "two vocabularies", "sweep": "the sweep"}
    for name, what in parts.items():
        parser.add_argument(f"--no-{name}", dest=name, action="store_false", help=f"leave out {what}")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        request = json.loads(options.measure)
        result = measure(read_shape(request["shape"]), request["kind"], request["repeats"])
        print(json.dumps(dataclasses.asdict(result)))
        return
    rows = run(options)
    if options.json:
        measurements = [dataclasses.asdict(row) for row in rows]
        times = f"fastest of {options.repeats} steps after one to warm up"
        data = {"machine": machine(options.threads), "times": times, "measurements": measurements}
        options.json.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
