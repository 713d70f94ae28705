"""Addresses, options and refusals; the registry without torch; plugins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dskd import method
from dskd.method import MethodError, Spec, create
from harness import conformance, methods

methods.load()


@pytest.mark.parametrize("address", conformance.addresses())
def test_an_address_comes_back_as_it_went_in(address: str) -> None:
    assert str(create(address).spec) == address
    assert Spec.parse(address) == create(address).spec


def test_options_are_sorted_in_the_address() -> None:
    assert str(Spec.parse("dskd-v2/kl:space=student:rate=0.3")) == "dskd-v2/kl:rate=0.3:space=student"


@pytest.mark.parametrize(
    ("address", "canonical"),
    [
        ("kl:rate=0.50", "kl"),
        ("kl:temperature=4:rate=.3", "kl:rate=0.3:temperature=4.0"),
        ("jsd@gkd:beta=0.5", "jsd"),
        ("jsd@distillm:beta=0.90", "jsd@distillm:beta=0.9"),
        ("akl@official", "akl"),
        ("dskd-v2/kl:init=ideal", "dskd-v2"),
        ("dskd-v2@kdflow/akl@dskd:t_squared=true", "dskd-v2@kdflow/akl@dskd:t_squared=true"),
        ("dskd-v1/jsd@gkd:beta=0.5:space=student", "dskd-v1/jsd:space=student"),
        ("uld@original:weight=1.5", "uld@original"),
        ("sft", "sft"),
        ("seqkd:samples=1:temperature=0:top_p=1", "seqkd"),
        ("seqkd:temperature=1:samples=4", "seqkd:samples=4:temperature=1.0"),
        ("abkd:alpha=0.20:beta=0.5", "abkd:beta=0.5"),
        ("dskd-v2/abkd:alpha=1:beta=0", "dskd-v2/abkd:alpha=1.0:beta=0.0"),
        ("csd@ss:temperature=1", "csd"),
        ("hidden-mse/kl:hidden_weight=1", "hidden-mse"),
        ("glmkd-kd:t_squared=true:temperature=10", "glmkd-kd"),
        ("dskd-cma-ga@described/kl:kq_rate=1", "dskd-cma-ga"),
        ("simct/rkl:temperature=1", "simct"),
        ("simct/kl", "simct/kl"),
        ("simple-ctkd/kl", "simple-ctkd"),
        ("alm:f=kl:tau=100", "alm"),
        ("dskd-cma-ct@released/srkl", "dskd-cma-ct@released/srkl"),
    ],
)
def test_one_computation_has_one_canonical_address(address: str, canonical: str) -> None:
    assert str(create(address).canonical()) == canonical
    assert str(create(canonical).canonical()) == canonical
    assert create(canonical).options == create(address).options


def test_every_promised_name_is_there() -> None:
    promised = {"sft", "seqkd", "kl", "rkl", "js", "jsd", "skl", "srkl", "akl", "tvd", "dskd-v1", "dskd-v2"}
    promised |= {"uld", "mined", "dskd-cma", "dskd-eta", "abkd", "csd", "glmkd-kd", "hidden-mse"}
    promised |= {"dskd-cma-ga", "dskd-cma-ct", "alm", "gold", "simct", "simple-ctkd"}
    promised |= {"multilevel-ot"}
    assert promised <= set(method.names())


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("dskd-v3", "dskd-v1"),
        ("KL", "no method address"),
        ("kl:rate=0.5:rate=0.6", "twice"),
        ("kl@dskd", "no variant"),
        ("dskd-v2@kdflo", "kdflow"),
        ("kl/rkl", "takes no divergence"),
        ("sft:rate=0.5", "no option"),
        ("sft:samples=2", "no option"),
        ("seqkd:samples=0:temperature=1", "samples >= 1"),
        ("seqkd:temperature=-1", "temperature >= 0"),
        ("seqkd:temperature=1:top_p=1.5", "top_p <= 1"),
        ("seqkd:samples=4", "add temperature=1"),
        ("seqkd:top_p=0.9", "greedy"),
        ("kl:rat=0.5", "rate"),
        ("kl:rate=half", "a float"),
        ("kl:t_squared=yes", "true or false"),
        ("dskd-v2:space=both-of-them", "both, student, teacher"),
        ("dskd-v2/akl@dsk", "akl@dskd"),
        ("dskd-v2/jsd:beta=x", "a number"),
        ("dskd-v2:beta=0.5", "no parameter"),
        ("kl:alpha=0.1", "no parameter"),
        ("skl:alpha=1.5", "between 0 and 1"),
        ("uld@original:rate=0.5", "no option"),
        ("uld:weight=1", "no option"),
        ("dskd-v1:init=ideal", "no option"),
        ("dskd-cma:t2s_agreement=1", "no option"),
        ("abkd:alpha=-1", "at least 0"),
        ("csd@st", "no variant"),
        ("glmkd-kd:rate=0.5", "no option"),
        ("dskd-cma-ga:kq_width=0", "at least 1"),
        ("dskd-cma-ct@describe", "described"),
        ("alm:tau=0", "above 0"),
        ("alm:f=chi", "kl, rkl, tvd"),
        ("gold:beta=1", "between 0 and 1"),
        ("gold@hybrid", "no variant"),
        ("multilevel-ot:top=0", "top >= 1"),
        ("multilevel-ot:rate=0.5", "no option"),
        ("hidden-mse:hidden_weigth=2", "hidden_weight"),
    ],
)
def test_a_bad_address_is_refused_with_its_reason(address: str, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        create(address)


def test_a_pair_that_does_not_fit_is_refused() -> None:
    for address in ("kl", "dskd-v1", "dskd-v2/srkl"):
        create(address).check(same_vocabulary=True)
        with pytest.raises(MethodError, match="one vocabulary"):
            create(address).check(same_vocabulary=False)
    for address in ("sft", "seqkd", "uld", "mined", "dskd-cma", "dskd-eta"):
        create(address).check(same_vocabulary=True)
        create(address).check(same_vocabulary=False)


def test_needs_are_stated() -> None:
    needs = {name: create(name).needs for name in method.names()}
    assert not needs["sft"].teacher
    assert needs["seqkd"].teacher_text and not needs["seqkd"].teacher
    assert needs["dskd-eta"].alignment == "spans"
    assert needs["mined"].alignment == "edit-distance"
    assert needs["alm"].alignment == needs["gold"].alignment == needs["simct"].alignment == "chunks"
    assert needs["uld"].alignment == needs["dskd-cma"].alignment == "none"


def test_projectors_have_a_rate_of_their_own() -> None:
    rates = {name: create(name).part_lr() for name in ("dskd-v1", "dskd-v2", "dskd-eta", "dskd-cma", "kl")}
    assert rates == {"dskd-v1": 1e-3, "dskd-v2": 5e-4, "dskd-eta": 5e-4, "dskd-cma": 1e-3, "kl": None}
    assert create("dskd-v2:projector_lr=0.002").part_lr() == 0.002


def test_every_entry_is_complete() -> None:
    for name in method.names():
        page = method.entry(name)
        assert page.title and page.citation and page.formula and page.masks and page.stop_gradients, name
        options = set(getattr(create(name).options, "__dataclass_fields__", {}))
        assert options <= set(page.parameters), f"{name} leaves options unexplained"


def test_a_name_is_taken_once() -> None:
    with pytest.raises(MethodError, match=r"registered already.*baselines\.logit"):
        method.register(method.entry("kl"))(method.Method)


def test_listing_and_parsing_wait_for_no_torch() -> None:
    code = (
        "import sys; from harness import methods; methods.load(); from dskd import method;"
        "[method.create(n) for n in method.names()]; method.create('dskd-v2/akl@dskd:rate=0.3');"
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).resolve().parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "_REGISTRY", dict(method._REGISTRY))


def test_a_plugin_is_loaded_once(registry: None, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dskd.method import *\n@register(Entry('mine', 'Mine', '-', '-'))\nclass Mine(Method): pass\n"
    )
    methods.load([file])
    methods.load([file, str(file)])
    assert "mine" in method.names()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no Python file"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("1 +", "SyntaxError"),
    ],
)
def test_a_bad_plugin_is_refused(registry: None, tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "bad.py"
    if text is not None:
        file.write_text(text)
    for _ in range(2):  # the second attempt is refused as well
        with pytest.raises(MethodError, match=message):
            methods.load([file])
