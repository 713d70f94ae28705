"""Cells of a request: identity, deduplication, refusal before loading, order, estimates."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from test_run import record

from dskd import method as methods_by_address
from dskd.method import Spec
from harness import conformance, estimate, methods, pairs, plan, scales, tables
from harness.cells import UNTRAINED, Cell, SuiteRun
from harness.estimate import History
from harness.plan import Plan, PlanError, Request
from harness.store import Store

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _registry() -> None:
    methods.load()


def make(results: Path, **changes: object) -> Plan:
    request = Request("tiny", tables=("2",), cache=results / "cache")
    return plan.make(dataclasses.replace(request, **changes), Store(results))  # type: ignore[arg-type]


def test_cells_are_rows_by_seeds_and_untrained_rows_come_once(tmp_path: Path) -> None:
    made = make(tmp_path, seeds=(1, 2, 3))
    table = tables.load("2")
    trained = sum(row.trained for row in table.rows)
    assert len(made.steps) == 3 * trained + (len(table.rows) - trained)
    assert {step.cell.seed for step in made.steps if step.cell.training is None} == {0}
    assert {step.cell.seed for step in made.steps if step.cell.training is not None} == {1, 2, 3}


def test_a_cell_of_two_tables_is_planned_once(tmp_path: Path) -> None:
    both = make(tmp_path, tables=("1", "3"))
    ids = [step.cell.id for step in both.steps]
    assert len(ids) == len(set(ids))
    shared = [step for step in both.steps if len({row.partition(" ")[0] for row in step.rows}) == 2]
    assert {step.cell.method for step in shared} >= {"teacher", "sft", "kl", "dskd-v2/kl"}


def test_ids_survive_json_and_depend_on_the_settings(tmp_path: Path) -> None:
    for step in make(tmp_path).steps:
        assert Cell.from_dict(json.loads(json.dumps(step.cell.as_dict()))).id == step.cell.id
    plain = {step.cell.id for step in make(tmp_path).steps}
    assert plain == {step.cell.id for step in make(tmp_path).steps}
    assert plain.isdisjoint(step.cell.id for step in make(tmp_path, budget={"prompts": 7.0}).steps)
    reference = make(tmp_path, reference=True).steps
    assert all((step.cell.id in plain) == (step.cell.training is None) for step in reference)


def test_a_method_version_is_part_of_the_cell(tmp_path: Path) -> None:
    (step,) = make(tmp_path, methods=("kl",), pairs=("same",), seeds=(1,)).steps
    assert {"method", "trainer", "decoder", "tiny", "world"} <= dict(step.cell.versions).keys()


def test_budget_is_recorded_in_the_cell(tmp_path: Path) -> None:
    budget = scales.parse_overrides("examples=64,epochs=2,prompts=5,decodings=3,lr=0.5")
    step = make(tmp_path, methods=("kl",), budget=budget).steps[0]
    assert step.cell.training is not None
    assert (step.cell.training.examples, step.cell.training.epochs, step.cell.training.lr) == (64, 2, 0.5)
    assert isinstance(step.cell.training.examples, int)
    assert {run.limit for run in step.cell.suites} == {5}
    assert step.cell.decoding.seeds == (10, 20, 30)


@pytest.mark.parametrize(
    "text", ["nonsense=1", "epochs=0", "epochs=x", "epochs", "epochs=1,epochs=2", "lr=inf", "lr=nan"]
)
def test_a_wrong_budget_is_refused(text: str) -> None:
    with pytest.raises(scales.ScaleError):
        scales.parse_overrides(text)


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("kl", {"kl"}),
        ("KL", {"kl"}),
        ("dskd-v2/kl", {"dskd-v2/kl"}),
        ("seqkd", {"seqkd"}),
        ("teacher", {"teacher"}),
    ],
)
def test_rows_are_chosen_by_address_or_label(tmp_path: Path, word: str, found: set[str]) -> None:
    assert {step.cell.method for step in make(tmp_path, methods=(word,)).steps} == found


def test_a_bare_name_takes_all_rows_of_the_method(tmp_path: Path) -> None:
    chosen = {step.cell.method for step in make(tmp_path, methods=("dskd-v2",)).steps}
    assert len(chosen) > 1
    assert all(address.startswith("dskd-v2") for address in chosen)


def test_rows_told_in_percent_of_the_teacher_bring_the_teacher(tmp_path: Path) -> None:
    found = make(tmp_path, tables=("retention",), methods=("sft",))
    assert {step.cell.method for step in found.steps} == {"sft", "teacher"}
    assert {step.cell.method for step in make(tmp_path, tables=("kq",), methods=("student",)).steps} == {
        "student"
    }


@pytest.mark.parametrize(
    ("text", "one"),
    [
        ("dskd-cma", "dskd-cma/kl"),
        ("dskd-v1/kl", "dskd-v1/kl"),
        ("dskd-v1:rate=0.50", "dskd-v1/kl"),
        ("dskd-v2:rate=0.30", "dskd-v2/kl:rate=0.3"),
        ("dskd-cma-ct@released", "dskd-cma-ct@released/kl"),
        ("dskd-v2/srkl:init=ideal", "dskd-v2/srkl"),
        ("dskd-v2:on_policy=1.00:on_policy_after=1", "dskd-v2/kl:on_policy=1:on_policy_after=1"),
        ("distillm", "distillm/skl"),
        ("gkd/jsd", "gkd"),
        ("hidden-mse/kl", "hidden-mse"),
        ("kl:temperature=1", "kl:temperature=1.0"),
        ("teacher", "teacher"),
    ],
)
def test_a_row_has_one_address_however_it_is_asked_for(text: str, one: str) -> None:
    assert plan.row_address(text) == one
    assert plan.row_address(one) == one


def test_the_address_of_a_row_is_the_same_computation() -> None:
    for text in conformance.addresses():
        asked, row = (methods_by_address.create(one) for one in (text, plan.row_address(text)))
        assert row.options == asked.options
        assert row.canonical() == asked.canonical()


def test_what_the_tables_write_stays_as_it_is() -> None:
    """Records know their cells by it; two spellings of one computation would be two cells."""
    for name in tables.ids():
        for row in tables.load(name).rows:
            assert plan.row_address(row.method) == row.method


def test_every_record_at_tiny_is_a_cell_of_a_table() -> None:
    store = Store(Path(__file__).resolve().parents[1] / "results")
    planned = plan.make(Request("tiny", tables.ids()), store).of("done")
    assert {step.cell.id for step in planned} == {record["cell"] for record in store.all("tiny")}


def test_a_method_of_no_row_has_one_cell_on_every_way(tmp_path: Path) -> None:
    """Named bare beside a table without it, with its divergence, and where a table has it."""
    ways = (("2", "dskd-cma/kl"), ("on-policy", "dskd-cma"), ("on-policy", "dskd-cma/kl:rate=0.5"))
    made = [make(tmp_path, tables=(table,), methods=(word,), seeds=(1,)) for table, word in ways]
    assert len({step.cell.id for each in made for step in each.steps}) == 1
    twice = make(tmp_path, tables=("on-policy",), methods=("dskd-cma:rate=0.5", "dskd-cma/kl"), seeds=(1,))
    assert [step.rows for step in twice.steps] == [["on-policy cross/dskd-cma/kl"]]
    own = {"teacher": "tiny:teacher-sp", "student": "tiny:student-bpe", "seeds": (1,)}
    bare, said = (
        make(tmp_path, tables=(), methods=(word,), **own).steps for word in ("dskd-cma", "dskd-cma/kl")
    )
    assert {step.cell.id for step in bare} == {step.cell.id for step in said}


def test_a_method_without_a_row_goes_where_it_fits(tmp_path: Path) -> None:
    """Table 3 has pairs of one vocabulary only, table kq of two."""
    (step,) = make(tmp_path, tables=("3",), methods=("dskd-cma",), seeds=(1,)).steps
    assert step.rows == ["3 same/dskd-cma/kl"]
    (step,) = make(tmp_path, tables=("1", "kq"), methods=("kl",), seeds=(1,)).steps
    assert step.rows == ["1 same/kl"]
    with pytest.raises(PlanError, match="kl needs pairs of one vocabulary, and these tables have none"):
        make(tmp_path, tables=("kq",), methods=("kl",))


def test_unknown_names_are_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="dskd-v2"):
        make(tmp_path, methods=("dskd-v22/kl",))
    with pytest.raises(PlanError, match="sp-same"):
        make(tmp_path, pairs=("tiny/sp-sam",))
    with pytest.raises(tables.TableError, match="there is no table"):
        make(tmp_path, tables=("17",))
    with pytest.raises(pairs.PairError, match="did you mean"):
        pairs.get("tiny/sp-sam")


def test_pairs_by_name_or_side(tmp_path: Path) -> None:
    for word in ("tiny/sp-cross", "sp-cross", "cross"):
        assert {step.pair.name for step in make(tmp_path, pairs=(word,)).steps} == {"tiny/sp-cross"}


def test_an_unfit_method_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    made = make(
        tmp_path,
        tables=(),
        teacher="tiny:teacher-sp",
        student="tiny:student-bpe",
        methods=("kl", "uld"),
        seeds=(1,),
    )
    states = {step.cell.method: step for step in made.steps}
    assert states["kl"].state == "refused"
    assert "one vocabulary" in states["kl"].reason
    assert states["uld"].state == "run"
    assert {"teacher", "student"} <= states.keys()


def test_an_own_pair_needs_methods_or_a_table(tmp_path: Path) -> None:
    own = {"teacher": "tiny:teacher-sp", "student": "tiny:student-sp"}
    with pytest.raises(PlanError, match="--methods"):
        make(tmp_path, tables=(), **own)
    made = make(tmp_path, tables=("math",), **own)
    assert made.tables[0].id == "own"
    assert {step.cell.group for step in made.steps} == {"maths"}


def test_own_pairs_are_found_by_name_alone(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    vocabulary = {"model": {"vocab": {"x": 0, "y": 1}}}
    (tmp_path / "a" / "tokenizer.json").write_text(json.dumps(vocabulary))
    (tmp_path / "b" / "tokenizer.json").write_text(json.dumps(vocabulary))
    pair = pairs.own(str(tmp_path / "a"), str(tmp_path / "b"), "small")
    assert pair.same_vocabulary is None  # equal tokens may differ in their roles, such as EOS
    assert pairs.get(pair.name) == pair
    (tmp_path / "b" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"x": 0}}}))
    assert pairs.get(pair.name).same_vocabulary is False
    assert pairs.own("org/one", "org/other", "small").same_vocabulary is None


def test_changed_weights_change_the_fingerprint(tmp_path: Path) -> None:
    for folder, tail in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_bytes(b"0" * 200_000 + tail)
    a, b, c = (plan.fingerprint(tmp_path / folder) for folder in "abc")
    assert a == c != b


def test_pairs_take_turns_and_teacher_texts_come_first(tmp_path: Path) -> None:
    steps = make(tmp_path).steps
    assert steps[0].cell.method == "seqkd"
    assert steps[0].pair.name != steps[1].pair.name


def test_models_are_built_once_and_only_those_needed(tmp_path: Path) -> None:
    assert make(tmp_path, methods=("student",)).builds == ["tiny:student-sp"]
    builds = make(tmp_path).builds
    assert len(builds) == len(set(builds)) == 3


def test_a_damaged_record_stands_in_the_way_and_says_so(tmp_path: Path) -> None:
    (step,) = make(tmp_path, methods=("kl",), seeds=(1,)).steps
    file = Store(tmp_path).record_path(step.cell.id, "tiny")
    file.parent.mkdir(parents=True)
    file.write_text("{")
    (step,) = make(tmp_path, methods=("kl",), seeds=(1,)).steps
    assert step.state == "refused"
    assert "remove it" in step.reason


#: Settings of the published runs: pair -> epochs, rate, global batch, LoRA, temperature.
PUBLISHED = {
    "paper/gpt2-same": (20, 5e-4, 32, None, 2.0),
    "paper/gpt2-cross": (20, 5e-4, 32, None, 2.0),
    "paper/tinyllama-same": (10, 1e-3, 32, (256, 8, 0.1), 2.0),
    "paper/tinyllama-cross": (10, 1e-3, 32, (256, 8, 0.1), 2.0),
    "paper/math-same": (3, 1e-5, 128, None, 1.0),
    "paper/math-cross": (3, 1e-5, 128, None, 1.0),
    "paper/code-same": (1, 1e-5, 128, None, 1.0),
    "paper/code-cross": (1, 1e-5, 128, None, 1.0),
}
#: What single methods were given instead.
OTHER_BATCH = {("paper/gpt2-same", "dskd-v2"): 64, ("paper/gpt2-cross", "dskd-cma-ga"): 8}
OTHER_BATCH[("paper/code-cross", "dskd-eta")] = 32


@pytest.fixture
def published(tmp_path: Path) -> list[plan.Step]:
    """All cells of the paper scale, with a row for the method that has a batch of its own."""
    made = make(tmp_path, scale="paper", tables=("1", "2", "math", "code"))
    extra = make(tmp_path, scale="paper", tables=("1",), methods=("dskd-cma-ga",))
    return [*made.steps, *extra.steps]


def test_paper_scale_trains_as_published(published: list[plan.Step]) -> None:
    seen = set()
    for step in published:
        training, name = step.cell.training, Spec.parse(step.cell.method).name
        seen.add(step.pair.name)
        if training is None:
            continue
        epochs, lr, batch, lora, temperature = PUBLISHED[step.pair.name]
        found = training.lora and (training.lora.rank, training.lora.alpha, training.lora.dropout)
        assert (training.epochs, training.lr, found, step.cell.seed) == (epochs, lr, lora, 10)
        assert training.batch == OTHER_BATCH.get((step.pair.name, name), batch)
        assert (training.weight_decay, training.clip, training.min_lr) == (1e-2, 1.0, 1e-7)
        assert (training.max_length, training.max_prompt, training.precision) == (512, 256, "bf16")
        dolly = training.checkpoint == "best-dev-rouge"
        assert dolly == (step.cell.data == "dolly")
        method = methods_by_address.create(step.cell.method)
        if method.needs.teacher and name not in ("uld", "tvd"):  # published without a temperature
            assert method.options.temperature == temperature
        if method.needs.teacher:
            assert method.options.rate == 0.5
        lr_of_parts = {"dskd-v1": 1e-3, "dskd-cma": 1e-3, "dskd-v2": 5e-4}.get(name)
        assert lr_of_parts is None or method.part_lr() == lr_of_parts
    assert seen == PUBLISHED.keys()
    assert {name for _, name in OTHER_BATCH} <= {Spec.parse(s.cell.method).name for s in published}


def test_paper_scale_decodes_as_published(published: list[plan.Step]) -> None:
    from evals import suites

    for step in published:
        decoding, names = step.cell.decoding, {run.name for run in step.cell.suites}
        assert {run.limit for run in step.cell.suites} == {None}
        if step.cell.group != "instructions":
            assert decoding.temperature == 0
            continue
        assert names == {"dolly", "self-inst", "vicuna", "s-ni", "unni"}
        assert decoding.seeds == (10, 20, 30, 40, 50)
        sampling = (decoding.temperature, decoding.top_p, decoding.top_k, decoding.no_repeat_ngram)
        assert (*sampling, decoding.max_length) == (1.0, 1.0, 0, 6, 512)
    assert suites.get("unni").cap == 10_000


def test_options_of_ones_own_stand_above_those_of_the_published_runs(tmp_path: Path) -> None:
    own = make(tmp_path, scale="paper", tables=("math",), methods=("kl:temperature=3", "kl", "uld", "sft"))
    assert {step.cell.method for step in own.steps} == {
        *("kl:temperature=3.0", "kl:temperature=1.0"),
        *("uld", "sft"),  # at 1 by their own default; without a teacher
    }
    rows = {place for step in own.steps for place in step.rows}
    assert rows >= {"math same/kl", "math same/kl:temperature=3.0"}
    tiny = make(tmp_path, tables=("math",), methods=("kl",))
    assert {step.cell.method for step in tiny.steps} == {"kl"}


def test_accumulation_restores_the_global_batch_on_any_number_of_gpus(published: list[plan.Step]) -> None:
    for training in (step.cell.training for step in published):
        for world in range(1, 9):
            if training is not None:
                taken = training.accumulation(world) * world * training.micro_batch
                assert training.batch <= taken < training.batch + world * training.micro_batch


def test_memory_on_a_gpu_falls_with_their_number(published: list[plan.Step]) -> None:
    for step in published:
        shared = [estimate.gpu_gib(step.cell, step.pair, world) for world in (2, 4, 8)]
        assert shared == sorted(shared, reverse=True)  # type: ignore[type-var]
        cell = step.cell
        if cell.training is not None:  # no copy for scoring epochs, which one GPU does without
            cell = dataclasses.replace(cell, training=dataclasses.replace(cell.training, checkpoint="last"))
        sizes = [estimate.gpu_gib(cell, step.pair, world) for world in (1, 2, 4, 8)]
        assert None not in [*shared, *sizes]
        assert sizes == sorted(sizes, reverse=True)  # type: ignore[type-var]
        assert 0 < (sizes[-1] or 0) <= (sizes[0] or 0) < 80


def test_a_teacher_whose_states_cannot_be_kept_stays_beside_the_student(published: list[plan.Step]) -> None:
    by_row = {(step.pair.name, step.cell.method): step for step in published}
    maths, code = (by_row[f"paper/{name}-same", "kl:temperature=1.0"] for name in ("math", "code"))
    assert estimate.states_bytes(maths.cell, 3584) > estimate.DISK_BUDGET
    assert estimate.states_bytes(code.cell, 3584) < estimate.DISK_BUDGET
    gib = [estimate.gpu_gib(step.cell, step.pair) or 0 for step in (maths, code)]
    assert gib[0] - gib[1] > 10
    alone = by_row["paper/math-same", "sft"]
    assert (estimate.gpu_gib(alone.cell, alone.pair) or 0) < gib[0] - 10


def test_paper_scale_without_a_gpu_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "gpus", lambda: ())
    made = make(tmp_path, scale="paper")
    assert {step.state for step in made.steps} == {"refused"}
    assert all("needs GPUs" in step.reason for step in made.steps)


def test_paper_scale_takes_gpus_that_are_large_enough_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "gpus", lambda: (("GPU", 24 * 1024),) * 8)
    refused = {}
    for processes in ("1", "8"):
        monkeypatch.setenv("WORLD_SIZE", processes)
        steps = make(tmp_path, scale="paper", tables=("math",)).steps
        refused[processes] = {step.cell.id for step in steps if "needs GPUs" in step.reason}
    assert refused["8"] < refused["1"]


def test_estimates_learn_from_records_and_scale_with_the_models(tmp_path: Path) -> None:
    (step,) = make(tmp_path, methods=("kl",), pairs=("same",), seeds=(1,)).steps
    history = History.of(
        [{"status": "done", "spec": step.cell.as_dict(), "cost": {"train_seconds": 7, "decode_seconds": 2}}]
    )
    assert history.guess(step.cell, step.pair) == 9
    assert History().guess(step.cell, step.pair) > 0
    paper = {
        s.pair.name: s
        for s in make(tmp_path, scale="paper", tables=("1", "2")).steps
        if s.cell.method in ("kl", "uld")
    }
    small, large = (paper[name] for name in ("paper/gpt2-same", "paper/tinyllama-same"))
    assert (
        0
        < (estimate.gpu_hours(small.cell, small.pair) or 0)
        < (estimate.gpu_hours(large.cell, large.pair) or 0)
    )
    assert 2 < (estimate.gpu_gib(small.cell, small.pair) or 0) < 40
    assert [estimate.duration(s) for s in (0.2, 59, 600, 7200)] == ["1 s", "59 s", "10 min", "2.0 h"]


def test_student_text_is_part_of_the_cell_and_of_its_cost(tmp_path: Path) -> None:
    wanted = ("kl", "kl:on_policy=1", "kl:on_policy=0.5", "distillm", "minillm")
    steps = {s.cell.method: s for s in make(tmp_path, methods=wanted, pairs=("same",), seeds=(1,)).steps}
    off, full, half = (steps[name] for name in ("kl", "kl:on_policy=1.0", "kl:on_policy=0.5"))
    assert "student-text" not in dict(off.cell.versions)
    assert dict(full.cell.versions)["student-text"] == 1
    texts = {name: estimate.student_texts(step.cell) for name, step in steps.items()}
    assert texts["kl"] == 0
    assert texts["kl:on_policy=1.0"] == 2 * texts["kl:on_policy=0.5"] == texts["minillm"] == 240 * 6
    assert 0 < texts["distillm/skl"] < 240 * 6
    record = {
        "status": "done",
        "spec": off.cell.as_dict(),
        "cost": {"train_seconds": 18, "decode_seconds": 4},
    }
    record |= {"training": {"steps": 180}, "scores": {"dolly": {"items": 400, "seeds": {"10": {}}}}}
    history = History.of([record, {**record, "spec": half.cell.as_dict(), "cost": {"train_seconds": 99}}])
    each = 2 * 4 / 400 + 18 / (180 * 8)  # written at twice the time of scoring, and trained on
    assert history.text_guess(full.cell, full.pair) == pytest.approx(1440 * each)
    assert history.guess(full.cell, full.pair) == pytest.approx(22 + 1440 * each)
    assert (history.guess(off.cell, off.pair), history.guess(half.cell, half.pair)) == (22, 99)
    assert History().text_guess(full.cell, full.pair) > History().text_guess(half.cell, half.pair) > 0


def test_small_estimates_are_near_the_committed_records() -> None:
    """By arithmetic alone. One in four may be off more than threefold: machines pause and do other work."""
    ratios: list[tuple[float, ...]] = []
    for made in Store(ROOT / "results").all("small"):
        cell, cost = Cell.from_dict(made["spec"]), made["cost"]
        pair = pairs.get(cell.pair)
        scored = estimate.first_guess(dataclasses.replace(cell, training=None), pair)
        total = estimate.first_guess(cell, pair)
        trained = (total - scored) / cost["train_seconds"] if cost["train_seconds"] else 1.0
        both = total / (cost["train_seconds"] + cost["decode_seconds"])
        ratios.append((trained, scored / cost["decode_seconds"], both))
    assert len(ratios) >= 9
    near = [all(1 / 3 < ratio < 3 for ratio in three) for three in ratios]
    assert np.mean(near) >= 0.75, ratios
    assert 2 / 3 < np.median([both for *_, both in ratios]) < 3 / 2


def test_small_estimates_grow_with_the_budget_and_the_models(tmp_path: Path) -> None:
    def seconds(method: str = "kl", pair: str = "small/smollm2-same", **budget: float) -> float:
        spec = pairs.get(pair)
        given = scales.setting(spec, "instructions", "", {"examples": 128, "prompts": 40, **budget})
        suites = (SuiteRun("dolly", 1, given.limit),)
        training = None if method in UNTRAINED else given.training
        parts = (training, given.decoding, suites, given.data, ())
        return History().guess(Cell("small", pair, method, 1, "instructions", *parts), spec)

    base = seconds()
    for more in ({"examples": 256}, {"epochs": 2}, {"prompts": 80}, {"new_tokens": 256}, {"decodings": 2}):
        assert 1.02 * base < seconds(**more) < 2 * base + 1, more
    assert seconds(examples=1280, prompts=400) == pytest.approx(10 * base)
    assert seconds("student") < seconds("teacher") < seconds("sft") < base < seconds("kl:on_policy=1.0")
    assert seconds(pair="small/smollm2-stories") < base < seconds(pair="small/qwen-smollm2")
    assert seconds(new_tokens=64, prompts=200) < 600  # not the half hour of a cell with everything


def test_the_size_of_a_model_is_looked_up_or_read(tmp_path: Path) -> None:
    assert estimate.size("small:stories15m") == 15_191_712
    assert estimate.size("nobody/knows") == estimate.UNKNOWN_SIZE
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    assert estimate.size(str(tmp_path)) == estimate.UNKNOWN_SIZE
    header = json.dumps({"a": {"dtype": "F32", "shape": [3, 5], "data_offsets": [0, 60]}}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(60)
    (tmp_path / "model.safetensors").write_bytes(data)
    assert estimate.size(str(tmp_path)) == 15


def test_student_text_costs_gpu_hours_and_memory(tmp_path: Path) -> None:
    wanted = ("kl", "kl:on_policy=1", "minillm", "gkd:on_policy=1")
    made = make(tmp_path, scale="paper", tables=("2",), methods=wanted, pairs=("same",))
    steps = {s.cell.method: s for s in made.steps}
    off, on, mixed, alone = (
        steps[name] for name in ("kl", "kl:on_policy=1.0", "minillm", "gkd:on_policy=1.0")
    )
    hours = {step.cell.method: estimate.gpu_hours(step.cell, step.pair) or 0 for step in steps.values()}
    text = {step.cell.method: estimate.text_gpu_hours(step.cell, step.pair) for step in steps.values()}
    assert text["kl"] == 0
    assert hours["kl:on_policy=1.0"] == pytest.approx(hours["kl"] + text["kl:on_policy=1.0"])
    assert text["minillm"] > text["kl:on_policy=1.0"] > text["gkd:on_policy=1.0"] > 0
    memory = [estimate.gpu_gib(step.cell, step.pair) or 0 for step in (off, on, mixed, alone)]
    assert memory[0] < memory[1] == memory[2] == memory[3]
    shared = [estimate.gpu_gib(step.cell, step.pair, 64) or 0 for step in (off, on)]
    teacher, student = (pairs.MODELS[ref].parameters for ref in (on.pair.teacher, on.pair.student))
    assert shared[1] - shared[0] > 1.9 * teacher / 2**30, "a whole teacher reads"
    assert off.cell.training is not None
    assert off.cell.training.checkpoint != "last"
    last = dataclasses.replace(off.cell.training, checkpoint="last")
    unscored = dataclasses.replace(off.cell, training=last)
    assert estimate.gpu_gib(unscored, off.pair, 64) == pytest.approx(shared[0] - 4 * student / 2**30)
    unscored = dataclasses.replace(on.cell, training=last)
    assert estimate.gpu_gib(unscored, on.pair, 64) == pytest.approx(shared[1]), "whole copies write"


def test_student_text_that_would_never_come_is_refused(tmp_path: Path) -> None:
    (step,) = make(tmp_path, methods=("kl:on_policy=1:on_policy_after=6",), pairs=("same",), seeds=(1,)).steps
    assert step.state == "refused"
    assert "student text from epoch 7 on, but the training has 6" in step.reason
    made = make(tmp_path, tables=(), teacher="tiny:teacher-sp", student="tiny:student-bpe",
                methods=("gkd", "minillm", "dskd-eta:on_policy=1"), seeds=(1,))  # fmt: skip
    states = {step.cell.method: step for step in made.steps if step.cell.training}
    assert states["dskd-eta/kl:on_policy=1.0"].state == "run"
    assert all("one vocabulary" in states[name].reason for name in ("gkd", "minillm"))


def test_every_table_has_settings_at_every_scale() -> None:
    for table in map(tables.load, tables.ids()):
        for scale in scales.SCALES:
            for name in table.pairs[scale].values():
                setting = scales.setting(pairs.get(name), table.group)
                assert setting.data in scales.DATA
                assert setting.training.batch % setting.training.micro_batch == 0


def test_two_overlapping_models_of_a_pair_say_whether_they_share_a_vocabulary() -> None:
    for pair in pairs.PAIRS.values():
        assert pair.name.startswith(f"{pair.scale}/")
        assert pair.scale == "paper" or all(
            ref.startswith(f"{pair.scale}:") for ref in (pair.teacher, pair.student)
        )
        assert pair.scale == "tiny" or {pair.teacher, pair.student} <= pairs.MODELS.keys()


def test_a_method_that_no_row_names_becomes_a_row(tmp_path: Path) -> None:
    request = Request("tiny", ("1",), ("kl", "kl:temperature=1", "uld@original"), cache=tmp_path)
    made = plan.make(request, Store(tmp_path))
    rows = {place for step in made.steps for place in step.rows}
    assert rows == {"1 same/kl", "1 same/kl:temperature=1.0", "1 cross/uld@original"}


def test_a_table_may_bring_its_own_budget_and_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = dataclasses.replace(
        tables.load("2"), budget={"tiny": {"epochs": 2, "examples": 9}}, seeds={"tiny": 5}
    )
    monkeypatch.setattr(tables, "load", lambda name: table)
    steps = make(tmp_path, methods=("kl",), budget={"examples": 7}).steps
    assert [step.cell.seed for step in steps] == [1, 2, 3, 4, 5]
    training = steps[0].cell.training
    assert training is not None
    assert (training.epochs, training.examples) == (2, 7)  # the request goes first
    assert len(make(tmp_path, methods=("kl",), seeds=(4,)).steps) == 1


# records of machines that had models and data which this one has not

SUITES = ("dolly", "s-ni")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with the cells of a small table as a machine with its own weights and data makes them."""
    machine(monkeypatch, weights=1, data=2)
    planned = small(tmp_path)
    assert {step.state for step in planned.steps} == {"run"}
    for step in planned.steps:
        assert [run.name for run in step.cell.suites] == list(SUITES)
        Store(tmp_path).put(record(step.cell, "elsewhere"))
    assert {step.state for step in small(tmp_path).steps} == {"done"}
    return tmp_path


def machine(monkeypatch: pytest.MonkeyPatch, *, weights: int | None, data: int | None) -> None:
    """What is on this machine: weights and data with these hashes, or none."""

    def resolve(ref: str, cache: Path) -> tuple[Path | None, str]:
        return (None, "fetch it") if weights is None else (Path("/models") / ref, "")

    def data_file(name: str, folder: Path, given: Path | None) -> tuple[Path | None, str, str]:
        if data is None and not name.startswith("s-ni"):
            return None, "", "give it with --data"
        return Path(name), f"{data or 2:064x}"[::-1], ""

    monkeypatch.setattr(plan, "resolve", resolve)
    monkeypatch.setattr(plan, "fingerprint", lambda path: weights)
    monkeypatch.setattr(plan, "data_file", data_file)


def small(results: Path, **changes: object) -> Plan:
    return make(results, scale="small", tables=("check",), **changes)


@pytest.mark.parametrize(("weights", "data"), [(None, 2), (1, None), (None, None)])
def test_records_are_found_without_the_weights_and_the_data(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, weights: int | None, data: int | None
) -> None:
    whole = {step.cell.id for step in small(elsewhere).steps}
    machine(monkeypatch, weights=weights, data=data)
    found = small(elsewhere)
    assert {step.state for step in found.steps} == {"done"}
    assert {step.cell.id for step in found.steps} == whole
    assert all(step.lacking for step in found.steps)
    assert found.absent == []  # every suite is in the records


@pytest.mark.parametrize(("weights", "data"), [(7, 2), (7, None), (1, 9), (None, 9)])
def test_what_is_here_must_fit(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, weights: int | None, data: int | None
) -> None:
    """Other weights or other data than the record's are another cell."""
    machine(monkeypatch, weights=weights, data=data)
    assert not small(elsewhere).of("done")


def test_without_the_weights_other_settings_are_still_other_cells(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, weights=None, data=None)
    assert not [s for s in small(elsewhere, budget={"epochs": 2}).of("done") if s.cell.training]
    assert not [s for s in small(elsewhere, seeds=(3,)).of("done") if s.cell.training]
    assert not small(elsewhere, budget={"decodings": 2}).of("done")
    versions = dict(small(elsewhere).steps[0].cell.versions)
    monkeypatch.setattr(plan.versions, "DECODER", versions["decoder"] + 1)
    assert not small(elsewhere).of("done")


def test_of_several_records_the_one_with_most_suites_then_the_latest(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, weights=3, data=2)
    later = small(elsewhere, methods=("kl",), seeds=(1,)).steps[0].cell
    Store(elsewhere).put({**record(later, "later"), "provenance": {"started": "2031-01-01T00:00:00+00:00"}})
    machine(monkeypatch, weights=4, data=None)
    fewer = small(elsewhere, methods=("kl",), seeds=(1,)).steps[0].cell
    assert [run.name for run in fewer.suites] == ["s-ni"]
    Store(elsewhere).put({**record(fewer, "fewer"), "provenance": {"started": "2032-01-01T00:00:00+00:00"}})
    machine(monkeypatch, weights=None, data=None)
    (step,) = small(elsewhere, methods=("kl",), seeds=(1,)).steps
    assert step.cell == later
