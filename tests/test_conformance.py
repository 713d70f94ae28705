"""Every method of the registry, and the example plugin, against the properties of harness.conformance."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from dskd import method
from harness import conformance, methods

methods.load()
ADDRESSES = conformance.addresses()
PLUGIN = Path(__file__).resolve().parent.parent / "examples" / "my_method.py"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example method, registered for one test."""
    monkeypatch.setattr(method, "_REGISTRY", dict(method._REGISTRY))
    name = methods.module_name(PLUGIN)
    monkeypatch.delitem(sys.modules, name, raising=False)
    methods.load([PLUGIN])
    monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("address", ADDRESSES)
def test_every_method_has_every_property(address: str) -> None:
    results = conformance.run(address)
    assert [r for r in results if r.status == "fail"] == []
    assert {r.check for r in results} == set(conformance.CHECKS)


def test_every_variant_of_every_method_is_run() -> None:
    wanted = set(method.names())
    wanted |= {f"{name}@{variant}" for name in method.names() for variant in method.entry(name).variants}
    assert wanted <= set(ADDRESSES)


def test_declared_exceptions_name_checks_and_are_real() -> None:
    for name in method.names():
        for key, reason in method.entry(name).exceptions.items():
            check, _, variant = key.partition("@")
            assert reason
            (result,) = conformance.run(f"{name}@{variant}" if variant else name, [check])
            assert result.status == "exception", f"{name} declares {key}, which holds"


def test_the_example_plugin_conforms(plugin: None) -> None:
    assert [r for r in conformance.run("jeffreys") if r.status != "pass"] == []


def test_the_example_plugin_fits_in_forty_lines() -> None:
    assert len(PLUGIN.read_text(encoding="utf-8").splitlines()) <= 40


def test_the_random_stream_is_left_alone() -> None:
    torch.manual_seed(0)
    conformance.run("dskd-v1", ["terms"])
    after = torch.rand(())
    torch.manual_seed(0)
    assert torch.rand(()) == after


def test_detach_is_whole_again_after_the_slopes() -> None:
    before = torch.Tensor.detach
    conformance.run("dskd-v2", ["slopes"])
    assert torch.Tensor.detach is before


def test_an_error_inside_a_method_is_a_failure_with_its_name() -> None:
    class Raises(method.Method):
        def loss(self, batch, parts):
            raise KeyError("lost")

    entry = method.Entry("raises", "", "", "", method.Needs(vocabulary="same"))
    (result,) = conformance.examine(Raises(method.Spec("raises"), entry), ["terms"])
    assert result.status == "fail"
    assert "KeyError" in result.detail
