"""A trained student as a folder that transformers, lm-eval and the hub take.

A cell's weights are cleared once its record is stored. With ``--keep-students`` they are saved first; later
the student is trained again and shown to be the record's: same loss curve, same answers from the saved
folder.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import card, pairs, plan, run
from harness.cells import UNTRAINED, Cell
from harness.plan import Request
from harness.run import Progress, Settings
from harness.store import Store, StoreError


class StudentError(ValueError):
    """A student that cannot be had; the message says why and what to do."""


def kept(results: Path, cell_id: str) -> Path:
    """Where ``--keep-students`` saves a cell's student."""
    return results / "students" / cell_id


def find(store: Store, cell_id: str) -> dict[str, Any]:
    """The record of a trained cell. Raises StudentError."""
    try:
        record = store.get(cell_id)
    except StoreError as error:
        raise StudentError(str(error)) from None
    if record is None:
        raise StudentError(
            f"cell {cell_id} has no record under {store.root}; --dry-run shows the cells of a table, and a "
            "run with --keep-students saves its students"
        )
    if record["status"] != "done":
        raise StudentError(f"cell {cell_id} failed ({record['reason']}); there is no student to save")
    spec = record["spec"]
    if spec["method"] in UNTRAINED:
        pair = pairs.get(spec["pair"])
        ref = pair.teacher if spec["method"] == "teacher" else pair.student
        raise StudentError(f"cell {cell_id} trained nothing; its model is {ref} as it came")
    return record


def check_repeatable(record: Mapping[str, Any], settings: Settings) -> None:
    """Raise StudentError, before any work, where training again cannot give the record's student."""
    cell = Cell.from_dict(record["spec"])
    request = Request(
        scale=cell.scale, data=settings.data, cache=settings.cache, reference=_reference(record)
    )
    if reason := plan.unrepeatable(cell, request):
        raise StudentError(f"cell {cell.id} cannot be trained again: {reason}")


def _reference(record: Mapping[str, Any]) -> bool:
    return bool(record["training"]["heads"] == "reference")


# in the worker


def try_to_keep(cell_id: str, settings: Settings, progress: Progress) -> str:
    """As ``keep``, for a record that is whole whatever becomes of its student; what a user should hear."""
    try:
        keep(cell_id, settings, progress)
    except StudentError as error:
        return f"its student was not saved: {error}"
    return ""


def keep(cell_id: str, settings: Settings, progress: Progress) -> None:
    """Save the student of a cell that was just finished, before its work folder is cleared."""
    write(find(Store(settings.results), cell_id), settings, kept(settings.results, cell_id), progress)


def save(cell_id: str, output: Path, settings: Settings, progress: Progress) -> str:
    """Train a finished cell's student again and save it in ``output``; says how it was checked.

    Raises pool.Busy while another process works on the cell, StudentError if the student is not the record's.
    """
    from harness.run import held

    store = Store(settings.results)
    with held(store, cell_id):
        said = write(find(store, cell_id), settings, output, progress)
        shutil.rmtree(store.work(cell_id), ignore_errors=True)
    return said


def write(record: Mapping[str, Any], settings: Settings, output: Path, progress: Progress) -> str:
    """Save the student of a record: from the cell's work folder where it still lies, else trained again."""
    from harness import cell as cells
    from harness import distributed, methods

    methods.load(settings.plugins)
    cell = Cell.from_dict(record["spec"])
    settings = dataclasses.replace(settings, reference=_reference(record))
    context = run.context(cell, settings, progress, distributed.alone(cell.scale))
    made = cells.retrain(cell, context)
    _check_curve(record, made.trained)
    fresh = output.with_name(f".{output.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        _save_model(cell, made, fresh)
        progress("check answers", 0.0)
        origin = ["The weights have the record's loss curve, at every step that it keeps."]
        if check := _check_answers(record, context, made, fresh):
            origin.append(f"Read from this folder, they gave {check}.")
        _save_papers(record, context, made, fresh, origin)
        shutil.rmtree(output, ignore_errors=True)
        fresh.replace(output)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return check or "loss curve as in the record"


def _check_curve(record: Mapping[str, Any], trained: Any) -> None:
    """Losses to six digits over a whole training agree only if the weights do."""
    from harness.cell import curve

    kept, made = record["training"]["curve"], curve(trained)
    if kept == made:
        return
    first = next((step for (step, a), (_, b) in zip(kept, made, strict=False) if a != b), "the end")
    raise StudentError(
        f"the student trained again is not the record's: losses differ from step {first} on; other packages, "
        "hardware or number of threads (--jobs)? Nothing was saved; a run of its own "
        "(--results DIR --keep-students) saves the student that is made here"
    )


def _save_model(cell: Cell, made: Any, folder: Path) -> None:
    """Weights in the type they were scored in, tokenizer, and the decoding as generation config."""
    from transformers import GenerationConfig

    from harness.sources.convert import normalise

    lm, tokenizer, decoding = made.student.lm, made.student.tokenizer, cell.decoding
    sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
    reachable, rows = max(tokenizer.get_vocab().values()) + 1, lm.config.vocab_size
    lm.generation_config = GenerationConfig(
        do_sample=decoding.temperature > 0,
        **(sampling if decoding.temperature > 0 else {}),
        no_repeat_ngram_size=decoding.no_repeat_ngram,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # rows of the head that no token id reaches get no probability here either
        suppress_tokens=list(range(reachable, rows)) or None,
    )
    tokenizer.clean_up_tokenization_spaces = False
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    normalise(folder)


def _check_answers(record: Mapping[str, Any], context: Any, made: Any, folder: Path) -> str:
    """How many of a batch of the record's answers the saved folder gives again; empty without stored ones."""
    from harness import models
    from harness.cell import Walk

    cell = Cell.from_dict(record["spec"])
    run, seed = cell.suites[0], cell.decoding.seeds[0]
    reference = record["scores"][run.name]["seeds"][str(seed)].get("generations")
    try:
        stored = context.store.read_generations(reference) if reference else []
    except StoreError:
        return ""  # the record came without its answers
    walk = Walk(cell, context)
    loaded = context.world.place(models.load(folder, str(folder), made.student.lm.dtype))
    if not stored:
        return ""
    known = {row["id"]: row["text"] for row in stored}
    texts = walk.first_answers(loaded, run, seed, record["cost"].get("processes", 1))
    same = sum(known[name] == text for name, text in texts.items())
    said = f"{same} of {len(texts)} answers to {run.name}, a whole batch, as in the record"
    if 2 * same <= len(texts):
        raise StudentError(f"the saved student gives {said}; nothing was saved")
    return said


def _save_papers(record: Mapping[str, Any], context: Any, made: Any, folder: Path, origin: list[str]) -> None:
    cell = Cell.from_dict(record["spec"])
    lengths = card.room(cell, made.student.window, cell.training.max_prompt if cell.training else 0)
    card.write_lm_eval(folder, cell.suites, lengths, made.root, made.batch_size)
    licences = {entry["ref"]: _licence(entry["ref"], context.cache) for entry in record["models"].values()}
    (folder / "record.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    card.write_card(folder, record, licences, origin, lengths)


def _licence(ref: str, cache: Path) -> str | None:
    if ref.startswith("tiny:"):
        return "Apache-2.0 (made by this project)"
    from harness import sources

    return sources.resolve(ref, cache).licence
