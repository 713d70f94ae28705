"""The leaderboard's page: who competes with whom, what the page says, and that nothing breaks out of it."""

from __future__ import annotations

import base64
import gzip
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from some_records import ITEMS, MEANS, NASTY, PAIR, SUITES, data_folder, elsewhere, fill, record

from evals import suites
from harness import cli, external, methods, ranking, statistics
from harness.leaderboard import Made, boards, make
from harness.leaderboard.boards import Board, gather
from harness.leaderboard.page import inert
from harness.store import Store

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _registry() -> None:
    methods.load()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return data_folder(tmp_path / "data")


@pytest.fixture
def store(tmp_path: Path, data: Path) -> Store:
    made = Store(tmp_path / "results")
    fill(made, data)
    return made


def page(store: Store, data: Path, **more: Any) -> Made:
    return make(store, store.root / "leaderboard.html", store.root / "cache", data=data, **more)


class _Reader(HTMLParser):
    """Every element with its attributes, and the text of every script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, text: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + text)


def body(made: Made) -> dict[str, Any]:
    found = next(text for attrs, text in _Reader(made.html).scripts if attrs.get("id") == "data")
    loaded: dict[str, Any] = json.loads(found)
    return loaded


def unpack(made: Made, name: str) -> Any:
    found = next(text for attrs, text in _Reader(made.html).scripts if attrs.get("id") == name)
    return json.loads(gzip.decompress(base64.b64decode(found)))


def one(store: Store) -> Board:
    (board,) = gather(store.all())
    return board


# who competes


def test_a_whole_board(store: Store) -> None:
    board = one(store)
    assert board.id == PAIR and board.suites == SUITES and board.seeds == (1, 2, 3)
    assert [entrant.method for entrant in board.entrants] == sorted(MEANS)
    assert [entrant.method for entrant in board.references] == ["student", "teacher"]
    assert not board.apart and not board.notes and not board.budget


def test_incomplete_methods_stand_apart_and_are_not_averaged(store: Store, data: Path) -> None:
    record(store, "js", 1, 99.0, data=data)
    for seed in (1, 2, 3):
        record(store, "skl", seed, 99.0, data=data, names=SUITES[:1])
    record(store, "srkl", 1, 99.0, data=data)
    record(store, "srkl", 2, 0, data=data, failed="loss is not finite")
    record(store, "srkl", 3, 99.0, data=data)
    board = one(store)
    assert {some.method: some.reason for some in board.apart} == {
        "js": "no training seed 2, 3",
        "skl": "no self-inst",
        "srkl": "seed 2 failed: loss is not finite",
    }
    made = body(page(store, data))["boards"][0]
    places = {name for name, *_ in made["views"]["avg"]["places"]}
    assert places == set(MEANS)
    part = next(some for some in made["apart"] if some["method"] == "skl")
    assert len(part["runs"]["dolly"]) == 3 and part["runs"]["self-inst"] == []
    assert "columns" not in part


def test_rows_without_any_record_are_named(store: Store, data: Path) -> None:
    """Rows of the board's tables that nobody ran are not run, which is another thing than absent."""
    made = body(page(store, data))["boards"][0]
    assert [table["id"] for table in made["tables"]] == ["3", "field", "retention"]
    missing = {some["method"]: some["reason"] for some in made["apart"]}
    assert missing["dskd-v2/srkl"] == "not run: not yet"
    assert not set(missing) & set(MEANS)


def test_the_seeds_of_most_count_and_more_are_noted(store: Store, data: Path) -> None:
    record(store, "kl", 4, 90.0, data=data)
    board = one(store)
    assert board.seeds == (1, 2, 3)
    assert board.notes == ["training seed 4 of kl not ranked: others lack it"]
    assert len(next(some for some in board.entrants if some.method == "kl").records) == 3


def test_another_budget_is_another_board(store: Store, data: Path) -> None:
    for seed in (1, 2, 3):
        record(store, "kl", seed, 50.0, data=data, examples=64)
    usual, other = gather(store.all())
    assert (usual.id, usual.budget) == (PAIR, {})
    assert other.budget == {"examples": 64}
    assert re.fullmatch(PAIR + "~[0-9a-f]{6}", other.id)
    assert [some.method for some in other.entrants] == ["kl"]
    assert {some.method for some in other.references} == {"teacher", "student"}
    assert [table.id for table in boards.tables_of(usual)] == ["3", "field", "retention"]
    assert boards.tables_of(other) == []  # no published figure stands beside another protocol


def test_a_table_s_budget_is_its_protocol() -> None:
    """The small records were made with the budget their table states."""
    found = [board for board in gather(Store(ROOT / "results").all("small")) if "smollm2-same" in board.id]
    examples = {
        tuple(table.id for table in boards.tables_of(board)): board.budget.get("examples") for board in found
    }
    examples.pop((), None)  # boards of untrained rows alone
    assert examples == {("1",): 128, ("check",): 64}


def test_the_method_s_own_setting_is_no_budget() -> None:
    """Where released scripts give one method another batch, it still competes with the others."""
    spec: dict[str, Any] = {"scale": "paper", "pair": "paper/gpt2-same", "group": "instructions"}
    batches = {"kl": 32, "dskd-v2/kl": 64}
    for method, batch in batches.items():
        pair = boards.pairs.get(spec["pair"])
        setting = boards.scales.setting(pair, "instructions", method.split("/")[0])
        assert setting.training.batch == batch
        cell = {
            **spec, "method": method, "seed": 1, "data": setting.data, "versions": [],
            "training": boards.dataclasses.asdict(setting.training),
            "decoding": boards.dataclasses.asdict(setting.decoding),
            "suites": [{"name": "dolly", "version": 1, "limit": None}],
        }  # fmt: skip
        assert boards._budget(cell) == {}


def test_other_versions_do_not_mix(store: Store, data: Path) -> None:
    for seed in (1, 2, 3):
        record(store, "js", seed, 50.0, data=data, versions=(("decoder", 2),))
        record(store, "kl", seed, 90.0, data=data, versions=(("decoder", 1), ("method", 2)))
    board = one(store)
    (apart,) = board.apart
    assert (apart.method, apart.reason) == ("js", "decoder 2, the board has 1")
    assert board.notes == ["3 records of kl are of older versions of it"]
    kl = next(some for some in board.entrants if some.method == "kl")
    assert statistics.estimate(kl.sample).mean > 60  # the newer records count


def test_other_items_stand_apart(store: Store, data: Path, tmp_path: Path) -> None:
    other = data_folder(tmp_path / "other")
    file = other / "dolly" / "test.jsonl"
    file.write_text(file.read_text().replace("Item 3", "Item three"))
    for seed in (1, 2, 3):
        record(store, "js", seed, 50.0, data=other)
    (apart,) = one(store).apart
    assert (apart.method, apart.reason) == ("js", "other items of dolly")


# what the page says


def test_numbers_are_those_of_the_statistics(store: Store, data: Path) -> None:
    board = one(store)
    made = body(page(store, data))["boards"][0]
    samples = {entrant.method: entrant.sample for entrant in board.entrants}
    for column in ("avg", *SUITES):
        parts = {name: x if column == "avg" else x.only(column) for name, x in samples.items()}
        for shown in made["methods"]:
            if shown["ranked"]:
                estimate = statistics.estimate(parts[shown["method"]])
                said = shown["columns"][column]
                assert (said["mean"], said["low"], said["high"]) == pytest.approx(
                    (estimate.mean, estimate.low, estimate.high), abs=1e-4
                )
        ranked = ranking.rank(parts)
        view = made["views"][column]
        assert [place[:2] for place in view["places"]] == [[p.name, p.rank] for p in ranked.places]
        assert view["groups"] == [list(group) for group in ranked.groups]
        assert sum(place[4] for place in view["places"]) == pytest.approx(1, abs=1e-3)
        against = [row for row in view["contrasts"] if row[1] == "teacher"]
        assert len(against) == len(MEANS) and all(row[2] < 0 and row[6] is None for row in against)


def test_published_figures_stand_beside_ours_with_their_status(store: Store, data: Path) -> None:
    made = body(page(store, data))["boards"][0]
    kl = next(shown for shown in made["methods"] if shown["method"] == "kl")
    assert kl["label"] == "KL" and kl["family"] == "logit"
    assert kl["columns"]["dolly"]["published"] == "24.54?"
    assert kl["columns"]["dolly"]["source"] == "dskd-v1:1, unverified"
    assert kl["columns"]["dolly"]["verdict"] == "not comparable"
    # the table's average is over five suites, the board's over two
    assert kl["columns"]["avg"]["published"] == "none"
    assert "other suites" in kl["columns"]["avg"]["why"]


def test_records_from_elsewhere_stand_beside_and_change_nothing(
    store: Store, data: Path, tmp_path: Path
) -> None:
    before = body(page(store, data))["boards"]
    for seed in (1, 2, 7):
        elsewhere(store.root, tmp_path / "sent", "Uni X", "kl", seed, 90.0, data=data)
    old = [["decoder", 0]]
    elsewhere(store.root, tmp_path / "sent", "Uni Y", "teacher", 0, 50.0, data=data, versions=old)
    made = page(store, data)
    assert (made.records, made.external) == (14, 4)
    after = body(made)["boards"]
    shown = after[0].pop("external")
    assert before[0].pop("external") == []
    assert after == before
    assert [(row["label"], row["source"], row["seeds"]) for row in shown] == [
        ("KL", "Uni X", [1, 2, 7]),
        ("Teacher", "Uni Y", [0]),
    ]
    assert [row["note"] for row in shown] == ["", "decoder 0, the board has 1"]
    kept = [record for source, record in external.kept(store.root) if source == "Uni X"]
    mean = statistics.sample(kept, SUITES).runs().mean()
    assert shown[0]["columns"]["avg"]["mean"] == pytest.approx(mean, abs=1e-4)


def test_a_record_from_elsewhere_without_a_board_has_its_own(
    store: Store, data: Path, tmp_path: Path
) -> None:
    sent = tmp_path / "sent"
    longer = json.loads(json.dumps(record(Store(sent), "kl", 1, 9.0, data=data)))["spec"]["training"]
    longer["epochs"] += 1
    elsewhere(store.root, sent, "X", "kl", 1, 9.0, data=data, training=longer)
    other = {"pair": "a -> b", "group": "code"}
    elsewhere(store.root, tmp_path / "more", "X", "theirs/zz:a=1", 1, 1.0, data=data, **other)
    first, second, third = body(page(store, data))["boards"]
    assert (first["pair"], first["external"]) == (PAIR, [])
    assert (second["pair"], second["budget"], second["methods"]) == (PAIR, {"epochs": longer["epochs"]}, [])
    assert (third["pair"], third["external"][0]["label"]) == ("a -> b", "theirs/zz:a=1")
    assert not any(method["cells"] for board in (second, third) for method in board["apart"])


def test_one_seed_gives_no_ranks(tmp_path: Path, data: Path) -> None:
    store = Store(tmp_path / "single")
    fill(store, data, seeds=1)
    view = body(page(store, data))["boards"][0]["views"]["avg"]
    assert all(place[2] is None and place[4] is None for place in view["places"])
    assert len(view["groups"]) == 1


def test_answers_prompts_curves_and_log_can_be_looked_up(store: Store, data: Path) -> None:
    log = store.root / "work" / "run.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(
        f"2026-01-02 03:04:05 start {PAIR} kl seed 1\n"
        f"2026-01-02 03:05:05 [1/2] {PAIR} kl seed 1: done in 60 s\n"
        f"2026-01-02 03:06:05 start {PAIR} kl seed 11\n"
    )
    made = page(store, data)
    board = body(made)["boards"][0]
    for suite in SUITES:
        examples = unpack(made, board["examples"][suite])
        prompts = unpack(made, board["prompts"][suite])
        items = suites.load(suites.get(suite), data)
        assert prompts == [[item.prompt, list(item.references)] for item in items]
        assert examples["ids"] == [item.id for item in items]
        for number, (method, seed, _, cell) in enumerate(examples["runs"]):
            run = store.get(cell)["scores"][suite]["seeds"]["10"]  # type: ignore[index]
            shown = [
                texts[given[number]]
                for texts, given in zip(examples["texts"], examples["given"], strict=True)
            ]
            assert [score for _, score in shown] == run["per_item"]
            assert [text for text, _ in shown] == [
                row["text"] for row in store.read_generations(run["generations"])
            ]
            assert shown[0][0].startswith(f"{method} {seed % 2}: <script>")
    records = unpack(made, board["records"])
    kl = next(
        r
        for r in records.values()
        if r["record"]["spec"]["method"] == "kl" and r["record"]["spec"]["seed"] == 1
    )
    assert [step for step, _ in kl["curve"]] == [1, 5, 10, 20]
    assert [line[11:19] for line in kl["log"]] == ["03:04:05", "03:05:05"]
    assert "per_item" not in json.dumps(kl["record"]) and "curve" not in kl["record"]["training"]
    assert not made.left_out


def test_what_is_left_out_is_said(store: Store, data: Path) -> None:
    made = page(store, data, room=4000)
    (said,) = made.left_out
    assert re.fullmatch(r"answers of \d+ runs, for want of room; their scores are here", said)
    assert body(made)["leftOut"] == [said]
    examples = unpack(made, body(made)["boards"][0]["examples"]["dolly"])
    held = {tuple(run[:2]): examples["texts"][0][given][0] is not None
            for run, given in zip(examples["runs"], examples["given"][0], strict=True)}  # fmt: skip
    assert held["teacher", 0] and held["kl", 1] and not held["kl", 3]  # first seeds first
    assert all(score is not None for texts in examples["texts"] for _, score in texts)


def test_answers_that_are_gone_or_changed_are_not_shown(store: Store, data: Path) -> None:
    files = sorted((store.root / "generations").glob("*/*/dolly-10.jsonl.gz"))
    files[0].unlink()
    files[1].write_bytes(files[2].read_bytes())
    made = page(store, data)
    assert made.left_out == ("answers of 1 runs, whose files are not beside the records",)
    examples = unpack(made, body(made)["boards"][0]["examples"]["dolly"])
    (fault,) = examples["faults"]
    assert "is not the file its record was made from" in fault
    gone = {files[0].parent.name, files[1].parent.name}
    for number, run in enumerate(examples["runs"]):
        text = examples["texts"][0][examples["given"][0][number]][0]
        assert (text is None) == (run[3] in gone)


def test_other_data_give_no_prompts(store: Store, data: Path, tmp_path: Path) -> None:
    other = data_folder(tmp_path / "other")
    file = other / "dolly" / "test.jsonl"
    file.write_text(file.read_text().replace("Item 3", "Item three"))
    made = page(store, other)
    assert list(body(made)["boards"][0]["prompts"]) == ["self-inst"]
    assert made.left_out == (
        "prompts of dolly at scale small: the data here are not those that were answered",
    )


# that nothing breaks out


def test_text_of_models_never_meets_the_parser(store: Store, data: Path) -> None:
    made = page(store, data)
    reader = _Reader(made.html)
    packs = [attrs for attrs, _ in reader.scripts if attrs.get("type") == "text/plain"]
    assert [attrs.get("type") for attrs, _ in reader.scripts if attrs not in packs] == [
        "application/json",
        None,
    ]
    assert not any(tag in ("img", "iframe", "object", "embed", "form", "base") for tag, _ in reader.tags)
    assert "window.pwned" not in made.html  # packed, or not there
    for tag, attrs in reader.tags:
        for name in ("src", "href", "action"):
            assert (attrs.get(name) or "#").startswith(("#", "data:,")), (tag, attrs)
    assert not re.search(r"\bhttps?://(?!www\.w3\.org/2000/svg)", made.html)
    script = reader.scripts[-1][1]
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "fetch(",
        "import(",
    ):
        assert word not in script
    policy = next(attrs["content"] for tag, attrs in reader.tags if attrs.get("http-equiv"))
    assert policy and "default-src 'none'" in policy and "unsafe" not in policy


@pytest.mark.parametrize("text", NASTY)
def test_inert_json_is_the_same_json(text: str) -> None:
    made = inert({text: [text]})
    assert "<" not in made
    assert json.loads(made) == {text: [text]}


def test_the_same_records_give_the_same_page(store: Store, data: Path) -> None:
    assert page(store, data).html == page(store, data).html


# the command


def call(*arguments: str) -> int:
    return cli.main(["--leaderboard", *arguments])


def test_the_command_writes_one_file(
    store: Store, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new" / "page.html"
    cache = ("--cache", str(tmp_path / "cache"))
    assert call("--results", str(store.root), "--data", str(data), "--output", str(target), *cache) == 0
    assert f"{target}: 14 records on 1 board," in capsys.readouterr().out
    assert list(target.parent.iterdir()) == [target]
    made = json.loads(re.search(r'id="data">(.*?)</script>', target.read_text(), re.DOTALL)[1])  # type: ignore[index]
    assert made["results"] == "../results"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--results", "{tmp}/nowhere"), "holds no records"),
        (("--results", "{results}", "--output", "{tmp}"), "cannot be written"),
        (("--results", "{results}", "--scale", "paper"), "holds no records of scale paper"),
        (("--results", "{results}", "--data", "{tmp}/nowhere"), "is no folder"),
        (("--results", "{results}", "--table", "1"), "ask for one of"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: tuple[str, ...], says: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [text.format(tmp=tmp_path, results=store.root) for text in arguments]
    assert call(*given) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and says in lines[0]


def test_a_damaged_record_is_refused(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    file = next((store.root / "records").glob("*/*.json"))
    file.write_text(file.read_text().replace('"done"', '"fine"'))
    assert call("--results", str(store.root)) == 2
    assert "was changed after it was written" in capsys.readouterr().err


def test_output_belongs_to_the_leaderboard(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--list", "--output", "x.html"]) == 2
    assert "--output belongs to --save-student and --leaderboard" in capsys.readouterr().err


def test_nothing_heavy_is_loaded(store: Store, data: Path) -> None:
    heavy = ("torch", "transformers", "datasets", "pandas", "scipy", "peft", "lm_eval")
    code = (
        "import sys\nfrom harness.cli import main\n"
        f"assert main(['--leaderboard', '--results', {str(store.root)!r}, '--data', {str(data)!r}, "
        f"'--cache', {str(store.root / 'cache')!r}]) == 0\n"
        f"heavy = [name for name in {heavy!r} if name in sys.modules]\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_the_committed_records_make_a_page_of_a_few_megabytes(tmp_path: Path) -> None:
    """Every record is on a board, every answer in the page, and it can be sent by mail."""
    store = Store(ROOT / "results")
    made = make(store, tmp_path / "page.html", tmp_path / "cache", scale="tiny")
    assert len(made.html.encode()) < 8_000_000
    assert not made.left_out
    shown = [cell["id"] for board in body(made)["boards"] for kind in ("methods", "apart")
             for method in board[kind] for cell in method["cells"]]  # fmt: skip
    assert sorted(shown) == sorted(file.stem for file in (store.root / "records" / "tiny").glob("*.json"))


def test_items_are_few_enough_to_see_the_fixture_is_sound(data: Path) -> None:
    assert len(suites.load(suites.get("dolly"), data)) == ITEMS
