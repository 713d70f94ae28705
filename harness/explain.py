"""What a method computes, in words and numbers: ``--explain ADDRESS`` and docs/methods.md.

Formulas and conventions come from the ledger entries beside the code; worked numbers come from the
code that trains, computed when printed. ``python -m harness.explain --write`` renews docs/methods.md.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dskd import divergences
from dskd.method import Entry, Method, create, entry, names
from harness import methods

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
#: The worked example: next-token probabilities of teacher and student over four tokens.
TEACHER = (0.70, 0.20, 0.08, 0.02)
STUDENT = (0.40, 0.30, 0.20, 0.10)
_VOCABULARIES = {"same": "one vocabulary", "different": "two vocabularies", "any": "one or two vocabularies"}
_LINES = {
    "formula": "formula",
    "temperature": "temperature",
    "reduction": "reduction",
    "masks": "masks",
    "stop_gradients": "no gradient",
    "released": "released code",
}


def explain(address: str) -> str:
    """A method with everything its address leaves open filled in. Raises MethodError for a bad address."""
    method = create(address)
    page = method.entry
    lines = [f"{method.spec}: {page.title}", "", *_block("source", page.citation)]
    lines += _block("needs", _needs(method))
    lines += [line for key, name in _LINES.items() for line in _block(name, getattr(page, key))]
    if getattr(method.options, "t_squared", False):
        lines += _block("t_squared", "this address asks for the factor T^2 on every divergence")
    if method.spec.variant:
        lines += _block("variant", f"@{method.spec.variant}: {page.variants[method.spec.variant]}")
    lines += ["", "options"]
    lines += [line for key, value in _options(method) for line in _block(key, _meaning(page, key, value))]
    if (rate := method.part_lr()) is not None:
        lines += _block("parts", f"trained with a learning rate of their own, {rate:g}")
    own = _divergence(method)
    if page.divergences and own is not None:
        lines += ["", f"divergence {own.name}: {own.entry.title}"]
        lines += _block("formula", own.entry.formula) + _block("source", own.entry.citation)
        lines += _block("parameters", ", ".join(f"{k}={v:g}" for k, v in own.parameters.items()))
        lines += _block("released code", own.entry.released)
    lines += ["", *_worked(method)]
    if page.exceptions:
        lines += ["", "properties it does not have by definition"]
        lines += [line for key, why in page.exceptions.items() for line in _block(key, why)]
    return "\n".join(lines) + "\n"


def _block(name: str, text: str) -> list[str]:
    """``  name   text`` with the text wrapped; nothing for an empty text."""
    if not text:
        return []
    return textwrap.wrap(text, 110, initial_indent=f"  {name:<13} ", subsequent_indent=" " * 16)


def _options(method: Method) -> Iterator[tuple[str, Any]]:
    """Every option with the value in force, the divergence's parameters among them."""
    for field in dataclasses.fields(method.options):
        yield field.name, getattr(method.options, field.name)
    yield from getattr(getattr(method, "divergence", None), "parameters", {}).items()


def _meaning(page: Entry, key: str, value: Any) -> str:
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    return f"{shown:<9} {page.parameters.get(key, '')}".rstrip()


def _needs(method: Method) -> str:
    needs = method.needs
    parts = [
        "the teacher's hidden states on the training text" if needs.teacher else "no teacher states",
        _VOCABULARIES[needs.vocabulary],
    ]
    if needs.alignment != "none":
        parts.append(f"positions aligned by {needs.alignment.replace('-', ' ')}")
    if needs.teacher_text:
        parts.append("responses written by the teacher")
    if needs.student_samples:
        parts.append("fresh samples of the student")
    return "; ".join(parts)


def _divergence(method: Method) -> Any:
    found = getattr(method, "divergence", None)
    return found if isinstance(found, divergences.Divergence) else None


def _worked(method: Method) -> list[str]:
    pair = f"teacher p = {_vector(TEACHER)}, student q = {_vector(STUDENT)}"
    lines = [f"worked example: {pair}, gold label 0"]
    temperature = float(getattr(method.options, "temperature", 1.0))
    by = getattr(method, "divergence", None)
    if by is None:
        return [*lines, *_block("CE", f"{_cross_entropy():.4f}")]
    lines += _block("CE", f"{_cross_entropy():.4f} (always at temperature 1)")
    for t in dict.fromkeys((1.0, temperature)):
        value = _value(by, t)
        squared = f", with T^2 {value * t * t:.4f}" if getattr(method.options, "t_squared", False) else ""
        lines += _block(f"D at T = {t:g}", f"{value:.4f}{squared}")
    return lines


def _vector(values: Iterable[float]) -> str:
    return "[" + ", ".join(f"{v:.2f}" for v in values) + "]"


def _value(divergence: Any, temperature: float) -> float:
    """The divergence of the worked example at a temperature, by the code that trains."""
    import torch

    p, q = (torch.tensor([row], dtype=torch.float64).log() / temperature for row in (TEACHER, STUDENT))
    return float(divergence(q, p))


def _cross_entropy() -> float:
    return -math.log(STUDENT[0])


def document() -> str:
    """docs/methods.md: every built-in method, then every divergence, then their worked values."""
    methods.load()
    built_in = [name for name in names() if _is_built_in(name)]
    lines = [
        "# Methods and their conventions",
        "",
        "Generated by `python -m harness.explain --write`; do not edit. A method is addressed as",
        "`name[@variant][/divergence[@variant]][:option=value]...`; `python reproduce.py --explain ADDRESS`",
        "prints one of these pages with every option filled in.",
        "",
        "p is the teacher's distribution, q the student's, h hidden states, W heads, s and t student and",
        "teacher, r the rate, T the temperature, sg a stop-gradient, CE the student's cross-entropy on gold",
        "labels.",
        "",
        "| method | title | vocabularies | variants |",
        "|---|---|---|---|",
    ]
    for name in built_in:
        page = entry(name)
        variants = ", ".join(f"`@{v}`" for v in page.variants)
        lines.append(f"| [`{name}`](#{name}) | {page.title} | {page.needs.vocabulary} | {variants} |")
    for name in built_in:
        lines += ["", f"## {name}", "", *_page(create(name))]
    lines += [
        "",
        "## Divergences",
        "",
        "After the slash of an address, or as the method of the same name.",
        "",
    ]
    lines += ["| divergence | formula | parameters | source |", "|---|---|---|---|"]
    for name, page in divergences.ENTRIES.items():
        texts = (page.formula, "; ".join(f"{k}: {v}" for k, v in page.parameters.items()), page.citation)
        lines.append(f"| `{name}` | " + " | ".join(text.replace("|", "\\|") for text in texts) + " |")
    lines += ["", "## Worked values", "", f"p = {_vector(TEACHER)}, q = {_vector(STUDENT)}, no T^2.", ""]
    lines += ["| divergence | T = 1 | T = 2 |", "|---|---|---|"]
    for address, parameters in _examples():
        by = divergences.get(address, **parameters)
        shown = address + "".join(f":{k}={v:g}" for k, v in parameters.items())
        lines.append(f"| `{shown}` | {_value(by, 1.0):.4f} | {_value(by, 2.0):.4f} |")
    return "\n".join(lines) + "\n"


def _is_built_in(name: str) -> bool:
    return type(create(name)).__module__ in methods.BUILT_IN


def _examples() -> Iterator[tuple[str, dict[str, float]]]:
    for name in divergences.NAMES:
        yield name, {}
        if name.startswith("jsd"):
            yield name, {"beta": 0.9}


def _page(method: Method) -> list[str]:
    page = method.entry
    lines = [f"**{page.title}.** {page.citation}.", "", f"- needs: {_needs(method)}"]
    lines += [f"- {name}: {getattr(page, key)}" for key, name in _LINES.items() if getattr(page, key)]
    lines += [f"- option `{key}`: {text}" for key, text in page.parameters.items()]
    lines += [f"- variant `@{key}`: {text}" for key, text in page.variants.items()]
    lines += [f"- exception from conformance, `{key}`: {text}" for key, text in page.exceptions.items()]
    return lines


def main(arguments: list[str]) -> None:
    """``--write`` renews docs/methods.md; otherwise explain each address given."""
    if arguments == ["--write"]:
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(document(), encoding="utf-8")
        return
    methods.load()
    print("\n".join(explain(address) for address in arguments), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
