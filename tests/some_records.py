"""A store of made-up records for the leaderboard, with answers that try to break out of a page."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals import suites
from harness import external, pairs, scales
from harness.cells import UNTRAINED, Cell, SuiteRun
from harness.store import SCHEMA, Store, canonical, checksum

PAIR = "small/smollm2-same"
ITEMS = 12
SUITES = ("dolly", "self-inst")

#: Each would show itself in ``window.pwned`` if the page let it run.
NASTY = (
    "<script>window.pwned = 'script'</script>",
    "</script><script>window.pwned = 'closed'</script>",
    "<!-- <script> window.pwned = 'comment'",
    "<img src=x onerror=\"window.pwned = 'image'\">",
    "]]> --> \u2028 &lt;b&gt; ${window.pwned = 'template'} </textarea></pre></style>",
    "",
)


def data_folder(root: Path) -> Path:
    """Suites with prompts that are as nasty as the answers."""
    for suite in SUITES:
        rows = [
            {"instruction": f"Item {n} of {suite}: {NASTY[n % len(NASTY)]}", "output": f"reference {n} <b>"}
            for n in range(ITEMS)
        ]
        folder = root / suite
        folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "test.jsonl").write_text(text, encoding="utf-8")
    return root


def record(
    store: Store,
    method: str,
    seed: int,
    mean: float,
    *,
    data: Path,
    pair: str = PAIR,
    names: Sequence[str] = SUITES,
    answers: bool = True,
    versions: Sequence[tuple[str, int]] = (("decoder", 1),),
    failed: str = "",
    **training: Any,
) -> dict[str, Any]:
    """One record in the store: its items vary around ``mean``; ``training`` are settings of its own."""
    spec = pairs.get(pair)
    setting = scales.setting(spec, "instructions", method.partition("/")[0])
    trained = method not in UNTRAINED
    cell = Cell(
        scale=spec.scale,
        pair=pair,
        method=method,
        seed=seed,
        group="instructions",
        training=dataclasses.replace(setting.training, **training) if trained else None,
        decoding=setting.decoding,
        suites=tuple(SuiteRun(name, 1, setting.limit) for name in names),
        data=setting.data if trained else "",
        versions=tuple(sorted(versions)),
    )
    made = {
        "schema": SCHEMA,
        "cell": cell.id,
        "spec": cell.as_dict(),
        "status": "failed" if failed else "done",
        "reason": failed or None,
        "scores": {} if failed else {name: _scores(store, cell, name, mean, data, answers) for name in names},
        "training": _training(seed) if trained and not failed else None,
        "models": {},
        "data": [{"name": "dolly", "sha256": "", "licence": "CC-BY-SA-3.0", "state": "exact"}],
        "provenance": {
            "commit": "0123456789abcdef",
            "dirty": False,
            "command": "python reproduce.py --table 1 '<script>window.pwned = 1</script>'",
            "hardware": {"cpu": "x", "cores": 2, "memory_gib": 8, "gpus": []},
            "started": "2026-01-02T03:04:05+00:00",
        },
        "cost": {} if failed else {"train_seconds": mean / 2, "decode_seconds": 1.0, "peak_rss_mb": 900.0},
    }
    store.put(made)
    return made


def _scores(store: Store, cell: Cell, name: str, mean: float, data: Path, answers: bool) -> dict[str, Any]:
    items = suites.load(suites.get(name), data)
    hard = np.random.default_rng(len(name)).normal(0, 8, ITEMS)
    noise = np.random.default_rng([cell.seed, len(cell.method)]).normal(0, 3, ITEMS)
    values = np.round(np.clip(mean + hard + noise, 0, 100), 4).tolist()
    texts = [f"{cell.method} {cell.seed % 2}: {NASTY[n % len(NASTY)]}" for n in range(ITEMS)]
    rows = [{"id": item.id, "text": text} for item, text in zip(items, texts, strict=True)]
    run = {
        "score": float(np.mean(values)),
        "all": {"rougeL": float(np.mean(values))},
        "per_item": values,
        "generations": store.write_generations(cell, name, 10, rows) if answers else None,
    }
    return {
        "metric": "rougeL",
        "items": ITEMS,
        "items_sha256": suites.items_hash(items),
        "seeds": {"10": run},
    }


def _training(seed: int) -> dict[str, Any]:
    curve = [[step, {"ce": 2 / step + 0.01 * seed, "kd": 3 / step}] for step in (1, 5, 10, 20)]
    return {"steps": 20, "tokens": 1000, "curve": curve, "checkpoint": "last: last step"}


MEANS = {"kl": 30.0, "rkl": 29.9, "sft": 25.0, "dskd-v1/kl": 20.0}


def elsewhere(
    results: Path, sent: Path, source: str, method: str, seed: int, mean: float, *, data: Path, **changes: Any
) -> dict[str, Any]:
    """A record made in a store at ``sent``, its description changed, and imported into ``results``."""
    made = json.loads(json.dumps(record(Store(sent), method, seed, mean, data=data)))
    made["spec"].update(changes)
    made["cell"] = hashlib.sha256(canonical(made["spec"])).hexdigest()[:16]
    made["sha256"] = checksum(made)
    file = sent / f"{made['cell']}.json"
    file.write_text(json.dumps(made))
    external.take_in(results, [(str(file), external.read(file))], source)
    return made


def fill(store: Store, data: Path, means: dict[str, float] | None = None, seeds: int = 3) -> None:
    """A board with four methods, teacher and student."""
    for method, mean in (means or MEANS).items():
        for seed in range(1, seeds + 1):
            record(store, method, seed, mean, data=data)
    record(store, "teacher", 0, 60.0, data=data)
    record(store, "student", 0, 10.0, data=data)
