"""The ledger page is up to date, and explanations say what an address leaves open."""

from __future__ import annotations

import pytest

from dskd.divergences import NAMES
from dskd.method import MethodError
from harness import conformance, explain, methods

methods.load()


def test_the_generated_page_is_not_stale() -> None:
    message = "run `python -m harness.explain --write`"
    assert explain.DOCUMENT.read_text(encoding="utf-8") == explain.document(), message


def test_worked_values_of_the_conventions_are_printed() -> None:
    page = explain.document()
    for line in ("| `kl` | 0.2051 ", "| `rkl` | 0.2420 ", "| `jsd@gkd:beta=0.9` | 0.0210 ",
                 "| `jsd@distillm:beta=0.9` | 0.0186 "):  # fmt: skip
        assert line in page
    assert all(f"| `{name}` |" in page for name in NAMES)


@pytest.mark.parametrize("address", conformance.addresses())
def test_every_address_explains_itself(address: str) -> None:
    text = explain.explain(address)
    assert text.startswith(address)
    assert max(map(len, text.splitlines())) <= 110
    assert "worked example" in text


def test_resolved_options_and_divergence_are_shown() -> None:
    text = explain.explain("dskd-v2@kdflow/srkl:alpha=0.2:space=student:t_squared=true")
    for piece in ("student", "alpha=0.2", "Skew reverse", "0.0005", "@kdflow", "with T^2", "neighbours"):
        assert piece in text
    assert "0.1833" not in text, "the worked value is that of alpha 0.2, not of the default"


def test_an_unknown_address_is_refused() -> None:
    with pytest.raises(MethodError, match="did you mean"):
        explain.explain("dskd-v22")


def test_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    explain.main(["kl", "sft"])
    printed = capsys.readouterr().out
    assert "kl: Logit distillation" in printed
    assert "sft: Supervised" in printed
