"""Our suites under lm-eval's own command line: same model, same answers, same scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import byte_level_tokenizer, save_llama

from evals import suites
from evals.decoding import generate
from evals.scoring import score
from evals.suites import SuiteError
from harness import card, models
from harness.cells import Cell, Decoding, SuiteRun

ROOT = Path(__file__).resolve().parent.parent
DECODING = Decoding(temperature=0.0, max_new_tokens=40, max_length=512)
MAX_PROMPT = 48

#: Prompt and the answer the model is taught: right, wrong, right in one filter only, cut by a stop string.
GSM8K = [
    ("One?", "So.\n#### 18", "18"),
    ("Two?", "It is 18.", "18"),
    ("Three?", "#### 17", "18"),
    ("Four?", "#### 5\nQuestion: 6? #### 7", "5"),
    (
        "Five, which is so long that its beginning is cut away from the left: " + "and so on, " * 9,
        "#### 9",
        "9",
    ),
]
MATH = [("Half?", "$\\boxed{\\frac{2}{4}}$", "\\frac{1}{2}"), ("Ten?", "$11$", "10"), ("x?", "So $x$", "x")]
BODY = "    return a + 1\n"
HUMANEVAL = [
    ("inc", BODY),
    ("dec", "```python\ndef dec(a):\n    return a + 1\n```\nDone."),
    ("bad", "    return\n"),
]
MBPP = [(11, "def f(a):\n    return a\n"), (12, "def f(a): return -a\nprint(f(1))"), (13, "Sorry.")]


def _rows() -> dict[str, list[dict[str, Any]]]:
    gsm8k = [{"question": q, "answer": f"#### {gold}", "model_prompt": q} for q, _, gold in GSM8K]
    maths = [
        {"problem": q, "solution": f"$\\boxed{{{gold}}}$", "answer": gold, "model_prompt": q}
        for q, _, gold in MATH
    ]
    test = "def check(f):\n    assert f(1) == 2\n"
    humaneval = [
        {"task_id": f"H/{name}", "prompt": f"def {name}(a):\n", "entry_point": name, "test": test}
        | {"canonical_solution": BODY, "model_prompt": f"{name}\n"}
        for name, _ in HUMANEVAL
    ]
    mbpp = [
        {
            "task_id": n,
            "text": "Do.",
            "code": "pass",
            "test_list": ["assert f(2) == 2"],
            "model_prompt": f"{n}:",
        }
        for n, _ in MBPP
    ]
    return {"gsm8k": gsm8k, "math500": maths, "humaneval": humaneval, "mbpp": mbpp}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a few items of each suite."""
    folder = tmp_path_factory.mktemp("data")
    for name, rows in _rows().items():
        file = folder / suites.get(name).file
        file.parent.mkdir()
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that has learnt the answers above by heart."""
    import torch

    torch.set_num_threads(1)
    folder = save_llama(tmp_path_factory.mktemp("taught"), byte_level_tokenizer(), width=64)
    model = models.load(folder, "taught")
    answers = [text for _, text, _ in (*GSM8K, *MATH)] + [text for _, text in (*HUMANEVAL, *MBPP)]
    prompts = [row["model_prompt"] for rows in _rows().values() for row in rows]
    sequences = []
    for prompt, answer in zip(prompts, answers, strict=True):
        front = model.tokenizer(prompt)["input_ids"][-MAX_PROMPT:]
        back = [*model.tokenizer(answer)["input_ids"], model.tokenizer.eos_token_id]
        sequences.append((front, back))
    width = max(len(front) + len(back) for front, back in sequences)
    ids, labels = (
        torch.zeros(len(sequences), width, dtype=torch.long),
        torch.full((len(sequences), width), -100),
    )
    for row, (front, back) in enumerate(sequences):
        ids[row, : len(front) + len(back)] = torch.tensor(front + back)
        labels[row, len(front) : len(front) + len(back)] = torch.tensor(back)
    optimizer = torch.optim.AdamW(model.lm.parameters(), lr=3e-3)
    model.lm.train()
    for _ in range(150):
        loss = model.lm(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    model.lm.generation_config.eos_token_id = model.tokenizer.eos_token_id
    model.lm.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def lm_eval(folder: Path, *options: str) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The stock command on a folder's lm_eval.yaml: results, and by task the answers in order."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lm_eval", "run", "--config", card.CONFIG, "--device", "cpu"]
    done = subprocess.run(
        [*command, "--output_path", "out/x", "--log_samples", *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = folder.glob("out/**/results_*.json")
    answers = {}
    for file in folder.glob("out/**/samples_*.jsonl"):
        samples = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
        by_document = {sample["doc_id"]: sample["resps"][0][0] for sample in samples}
        answers[file.name.removeprefix("samples_").rpartition("_")[0]] = [
            by_document[n] for n in sorted(by_document)
        ]
    return json.loads(results.read_text())["results"], answers


def test_stock_lm_eval_writes_and_scores_as_we_do(taught: Path, data: Path) -> None:
    runs = tuple(SuiteRun(name, 1, None) for name in card.LM_EVAL)
    cell = Cell("small", "pair", "sft", 1, "maths", None, DECODING, runs, "", ())
    model = models.load(taught, "taught")
    lengths = card.room(cell, model.window, MAX_PROMPT)
    assert lengths == card.Room(max_length=88, max_gen_toks=40)
    card.write_lm_eval(taught, runs, lengths, data, batch_size=4)
    results, answers = lm_eval(taught)

    metrics = {
        "gsm8k": {
            "strict-match": "exact_match,strict-match",
            "flexible-extract": "exact_match,flexible-extract",
        },
        "math500": {"math-verify": "math_verify,judge", "hendrycks": "hendrycks,judge"},
        "humaneval": {"pass@1": "pass@1,run"},
        "mbpp": {"pass@1": "pass@1,run"},
    }
    means = {}
    for name, names in metrics.items():
        suite = suites.get(name)
        items = suites.load(suite, data)
        texts = generate(model.lm, model.tokenizer, items, DECODING, 0, max_prompt=MAX_PROMPT, batch_size=2)
        wanted = [text.split("Question:")[0] for text in texts] if name == "gsm8k" else texts
        assert answers[f"dskd_{name}"] == wanted
        ours = score(suite, items, texts).per_item
        means[name] = [round(sum(ours[metric]) / len(items)) for metric in names]
        theirs = [results[f"dskd_{name}"][key] for key in names.values()]
        assert theirs == pytest.approx([sum(ours[metric]) / len(items) / 100 for metric in names])
    # the model did learn: neither all right nor all wrong
    assert means == {"gsm8k": [60, 80], "math500": [67, 33], "humaneval": [67], "mbpp": [33]}


@pytest.mark.parametrize("names", [("gsm8k", "math500"), ("humaneval", "mbpp")])
def test_a_batch_of_lm_eval_has_one_of_a_students_tasks(
    names: tuple[str, ...], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The benchmark answers one suite at a time, and in bfloat16 other company rounds otherwise."""
    from lm_eval.models.utils import Collator
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    metadata = {"pretrained": "model", "data": str(data)}
    manager = TaskManager(include_path=str(card.LM_TASKS), include_defaults=False, metadata=metadata)
    requests = []
    for name, task in manager.load([f"dskd_{name}" for name in names])["tasks"].items():
        task.build_all_requests(rank=0, world_size=1)
        requests += [(name, instance.args[1]) for instance in task.instances]
    groups = Collator.group(requests, fn=lambda request: request[1]).values()
    found = [{name for name, _ in group} for group in groups]
    assert found == [{f"dskd_{name}"} for name in names]


def test_ten_answers_give_pass_at_10(taught: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The filter and the metric; sampling is lm-eval's."""
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    manager = TaskManager(
        include_path=str(card.LM_TASKS), include_defaults=False, metadata={"data": str(data)}
    )
    task = manager.load(["dskd_mbpp_10"])["tasks"]["dskd_mbpp_10"]
    assert task.config.repeats == 10
    assert task.UNSAFE_CODE
    task.build_all_requests(limit=2, rank=0, world_size=1)
    right, wrong = "def f(a):\n    return a\n", "def f(a):\n    return 3\n"
    for instance, passing in zip(task.instances, (3, 0), strict=True):
        instance.resps = [right] * passing + [wrong] * (10 - passing)
    task.apply_filters()
    scores = [task.process_results(i.doc, [i.filtered_resps["run"]]) for i in task.instances]
    assert scores == [{"pass@1": pytest.approx(0.3), "pass@10": 1.0}, {"pass@1": 0.0, "pass@10": 0.0}]


def test_without_a_folder_files_come_from_packages_and_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from evals import lm_tasks

    asked = []

    def load(path: str, config: str | None, split: str) -> list[dict[str, Any]]:
        asked.append((path, config, split))
        return [{"question": "1 + 1?", "answer": "2\n#### 2"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    (row,) = lm_tasks.gsm8k(pretrained="model", version=1.0)["test"]
    assert asked == [("openai/gsm8k", "main", "test")]
    assert row["model_prompt"] == suites.prompts.maths_prompt("1 + 1?")
    assert len(lm_tasks.humaneval()["test"]) == 164
    assert asked[1:] == []
    with pytest.raises(SuiteError, match="no such file"):
        lm_tasks.gsm8k(data="/nowhere")


@pytest.mark.parametrize(
    ("window", "new_tokens", "expected"),
    [
        (8192, 256, card.Room(512, 256)),
        (8192, 96, card.Room(352, 96)),
        (256, 256, card.Room(256, 128, total=256)),  # the answer fills what its prompt leaves
        (256, 128, card.Room(256, 128)),
        (256, 200, card.Room(256, 128, total=256, exact=False)),
    ],
)
def test_lengths_for_lm_eval(window: int, new_tokens: int, expected: card.Room) -> None:
    decoding = Decoding(temperature=0.0, max_new_tokens=new_tokens)
    cell = Cell("small", "pair", "sft", 1, "maths", None, decoding, (), "", ())
    assert card.room(cell, window, 256) == expected
