"""What the published protocol takes: downloads, GPU hours, memory on so many GPUs, accumulation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness import estimate, pairs, scales
from harness.plan import Plan, Step

#: Numbers of GPUs that a training is reckoned for.
WORLDS = (1, 2, 4, 8)


def lines(planned: Plan) -> list[str]:
    """The part of a dry run that only the paper scale has."""
    return [*_models(planned.steps), *_data(planned.steps), *_costs(planned.steps)]


def _models(steps: Sequence[Step]) -> Iterable[str]:
    refs = dict.fromkeys(ref for step in steps for ref in (step.pair.teacher, step.pair.student))
    known = {ref: facts for ref in refs if (facts := pairs.MODELS.get(ref))}
    total = sum(facts.download for facts in known.values())
    yield f"models to download, {_bytes(total)} in all"
    for ref, facts in known.items():
        size = f"{facts.parameters / 1e9:.2f} B parameters, {_bytes(facts.download)}"
        yield f"  {ref}: {size}, {facts.licence}" + (f"; {facts.note}" if facts.note else "")


def _data(steps: Sequence[Step]) -> Iterable[str]:
    yield "training sets to download"
    for name in sorted({step.cell.data for step in steps if step.cell.data}):
        if known := scales.DATA.get(name):
            source = f", from {known.source}" if known.source else ""
            yield f"  {name}: {known.examples} examples, {known.state}, {known.megabytes} MB{source}"


def _costs(steps: Sequence[Step]) -> Iterable[str]:
    yield "cost: A100 hours of all cells; the dearest training, as GiB on each of N GPUs x its micro-batches"
    yield f"  {'':<23}{'cells':>6}{'hours':>7}" + "".join(f"{f'N={world}':>9}" for world in WORLDS)
    total = 0.0
    for name in dict.fromkeys(step.pair.name for step in steps):
        mine = [step for step in steps if step.pair.name == name]
        hours = sum(estimate.gpu_hours(step.cell, step.pair) or 0.0 for step in mine)
        total += hours
        worlds = "".join(f"{_on(mine, world):>9}" for world in WORLDS)
        text = sum(estimate.text_gpu_hours(step.cell, step.pair) for step in mine)
        shown = f"  ({text:.0f} hours for student text)" if text else ""
        yield f"  {name:<23}{len(mine):>6}{hours:>7.0f}{worlds}{shown}"
    yield f"  in all {total:.0f} A100 hours, within a factor of two: {estimate.BASIS}"


def _on(steps: Sequence[Step], world: int) -> str:
    """``13 x 4``: GiB on each GPU of the dearest training, and its micro-batches per GPU and step."""
    trained = [step for step in steps if step.cell.training is not None]
    sizes = [(estimate.gpu_gib(step.cell, step.pair, world) or 0.0, step) for step in trained]
    gib, dearest = max(sizes, key=lambda item: item[0], default=(0.0, None))
    if dearest is None or dearest.cell.training is None:
        return "-"
    return f"{gib:.0f} x {dearest.cell.training.accumulation(world)}"


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
