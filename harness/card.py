"""The papers of a saved student: its model card, and the settings under which lm-eval scores it as we do.

Loads neither torch nor transformers.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evals import suites
from harness.cells import Cell, SuiteRun

#: Suites with a task under evals/lm_tasks.
LM_EVAL = ("gsm8k", "math500", "humaneval", "mbpp")
LM_TASKS = Path(suites.__file__).parent / "lm_tasks"
CONFIG = "lm_eval.yaml"

#: Licences as the hub writes them.
_HUB_LICENCES = {"apache-2.0": "apache-2.0", "mit": "mit"}


@dataclass(frozen=True)
class Room:
    """How lm-eval is told of the lengths under which a cell's answers were written."""

    max_length: int  #: of the model: prompts are cut to this less ``max_gen_toks``
    max_gen_toks: int
    total: int | None = None  #: prompt and answer together, where an answer may fill what its prompt leaves
    exact: bool = True  #: whether every answer has the room it had


def room(cell: Cell, window: int, max_prompt: int) -> Room:
    """The lengths of a cell's decoding, for a model whose window is ``window``.

    An answer of ours has ``min(max_new_tokens, total - prompt)`` tokens. lm-eval has one number for all
    answers, or one for prompt and answer together; only where neither says it all is the result not exact.
    """
    total = min(cell.decoding.max_length, window)
    prompt = min(max_prompt, window // 2)
    wanted = cell.decoding.max_new_tokens
    if total - prompt >= wanted:
        return Room(prompt + wanted, wanted)
    return Room(total, total - prompt, total, exact=wanted >= total - 1)


def write_lm_eval(folder: Path, runs: Sequence[SuiteRun], lengths: Room, data: Path, batch_size: int) -> None:
    """Write ``lm_eval.yaml`` and the tasks it names, for ``lm_eval run --config lm_eval.yaml`` in the folder.

    ``data`` is the folder of suites. Nothing is written where lm-eval has a task for none of the suites.
    """
    mine = [run for run in runs if run.name in LM_EVAL]
    if not mine:
        return
    tasks = folder / "lm_tasks"
    tasks.mkdir()
    for run in mine:
        shutil.copyfile(LM_TASKS / f"{run.name}.yaml", tasks / f"{run.name}.yaml")
    generation: dict[str, Any] = {"max_gen_toks": lengths.max_gen_toks}
    if lengths.total is not None:
        generation["max_length"], batch_size = lengths.total, 1  # padding would count as prompt
    config = {
        "model": "hf",
        "model_args": {"pretrained": ".", "max_length": lengths.max_length},
        "tasks": [f"dskd_{run.name}" for run in mine],
        "include_path": "lm_tasks",
        "metadata": {"data": str(data)},
        "gen_kwargs": generation,
        "batch_size": batch_size,
        "confirm_run_unsafe_code": any(suites.get(run.name).kind == "code" for run in mine),
        **({"limit": mine[0].limit} if mine[0].limit is not None else {}),
    }
    text = yaml.safe_dump(config, sort_keys=False)
    (folder / CONFIG).write_text(text, encoding="utf-8")


def write_card(
    folder: Path,
    record: Mapping[str, Any],
    licences: Mapping[str, str | None],
    origin: Sequence[str],
    lengths: Room,
) -> None:
    """Write README.md: head for the hub, what the model is, its scores, how to use and to score it again.

    ``licences`` of teacher and student by reference; ``origin`` are sentences on how these weights were had.
    """
    cell = Cell.from_dict(record["spec"])
    student, teacher = record["models"]["student"], record["models"].get("teacher")
    blocks = [
        f"---\n{_head(cell, record, licences.get(student['ref']))}---",
        f"# {_name(cell, student['ref'])}",
        _what(cell, student, teacher),
        _scores(record),
        "## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n```\n\n'
        "`generation_config.json` is the decoding under which the scores were measured, but for its limit of "
        f"{cell.decoding.max_new_tokens} new tokens. The model reads Alpaca-style prompts "
        "(`### Instruction:` ... `### Response:`), no chat template.",
    ]
    if (folder / CONFIG).is_file():
        blocks.append(_again(lengths))
    blocks += [_papers(record, licences), _record(record, origin)]
    (folder / "README.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def _name(cell: Cell, ref: str) -> str:
    return f"{_short(ref)}, {cell.method}, seed {cell.seed}"


def _short(ref: str) -> str:
    """A reference without the folders of the machine it was used on."""
    return Path(ref).name if Path(ref).is_absolute() else ref


def _head(cell: Cell, record: Mapping[str, Any], licence: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=name,
            dataset_name=suites.get(name).title,
            metric_type=metric,
            metric_value=value,
        )
        for name, metric, value, _ in _means(record)
    ]
    data = ModelCardData(
        license=_HUB_LICENCES.get((licence or "").split(" ")[0].lower(), "other"),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["knowledge-distillation", "dskd-bench"],
        model_name=_name(cell, record["models"]["student"]["ref"]),
        eval_results=results,
    )
    return f"{data.to_yaml()}\n"


def _what(cell: Cell, student: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> str:
    assert cell.training is not None
    source = f" from {_short(teacher['ref'])}" if teacher else " without a teacher"
    settings = cell.training
    amount = "all examples" if settings.examples is None else f"the first {settings.examples} examples"
    return (
        f"{_short(student['ref'])} ({student['architecture']}, {student['layers']} layers of width "
        f"{student['width']}) trained with `{cell.method}`{source} on {amount} of {_short(cell.data)}: "
        f"{settings.epochs} epochs, batches of {settings.batch}, learning rate {settings.lr:g}, "
        f"seed {cell.seed}{', LoRA merged' if settings.lora else ''}. "
        f"`python reproduce.py --explain {cell.method}` prints the method's formula and sources."
    )


def _means(record: Mapping[str, Any]) -> list[tuple[str, str, float, int]]:
    """(suite, metric, mean over decoding seeds in percent, items)."""
    return [
        (name, metric, sum(run["all"][metric] for run in runs) / len(runs), scores["items"])
        for name, scores in record["scores"].items()
        for runs in [list(scores["seeds"].values())]
        for metric in runs[0]["all"]
    ]


def _scores(record: Mapping[str, Any]) -> str:
    lines = [
        f"| {suites.get(name).title} | {metric} | {value:.2f} | {items} |"
        for name, metric, value, items in _means(record)
    ]
    return "\n".join(["| suite | metric | score, % | items |", "|---|---|---:|---:|", *lines])


def _again(lengths: Room) -> str:
    text = (
        "## Scored by lm-eval\n\n```sh\ncd FOLDER && lm_eval run --config lm_eval.yaml --device cpu\n```\n\n"
        "gives the scores above; `dskd-bench` must be installed, which has the prompts and the scorers, and "
        "`metadata: data:` in that file must name the folder of suites (without it they come from the hub). "
        f"Greedy, at most {lengths.max_gen_toks} new tokens, prompts cut from the left to "
        f"{lengths.max_length - lengths.max_gen_toks} tokens, no chat template. What may still differ: "
        "where a prompt is cut, lm-eval drops the tokenizer's BOS and the benchmark keeps it; an answer that "
        "spells the end-of-text token in plain letters ends there under lm-eval; batches of another size "
        "round differently."
    )
    if not lengths.exact:
        text += " Here answers to short prompts could be longer than lm-eval can be told: scores may differ."
    return text


def _papers(record: Mapping[str, Any], licences: Mapping[str, str | None]) -> str:
    lines = [f"- {_short(ref)}: {licence or 'licence not stated'}" for ref, licence in licences.items()]
    lines += [f"- {row['name']}: {row['licence']} ({row['state']})" for row in record["data"]]
    return "\n".join(["## Licences of what it is made of", "", *lines])


def _record(record: Mapping[str, Any], origin: Sequence[str]) -> str:
    made = record["provenance"]
    commit = f", commit {made['commit']}" if made.get("commit") else ""
    return (
        f"## Record\n\n`record.json` is the benchmark's record of cell `{record['cell']}`: settings, "
        f"versions, hashes, one score per item. Made by `{made['command']}`{commit}. {' '.join(origin)}"
    )
