"""The contract that every method keeps, and the registry that knows them by name.

A method is addressed as ``name[@variant][/divergence[@variant]][:option=value]...``, for example
``dskd-v2@kdflow/srkl:space=student:rate=0.5``. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_type_hints

from dskd.student_text import StudentText

if TYPE_CHECKING:
    from torch import nn

    from dskd.batch import Batch, Loss, Pair


class MethodError(ValueError):
    """A request no method can serve: unknown name, variant or option, or an unfit pair."""


@dataclass(frozen=True)
class Needs:
    """What a method takes from its pair and from the harness."""

    teacher: bool = True  #: the teacher's hidden states on the training text
    vocabulary: Literal["same", "different", "any"] = "any"
    #: which pairs of positions; of "chunks", the last positions of runs of tokens over the same text
    alignment: Literal["none", "spans", "edit-distance", "chunks"] = "none"
    teacher_text: bool = False  #: trains on the teacher's generations instead of the gold responses
    student_samples: StudentText | None = None  #: on-policy: distils on text the student writes

    def __post_init__(self) -> None:
        if self.student_samples is not None and not self.teacher:
            raise ValueError("student_samples without a teacher, which alone would read the text")


@dataclass(frozen=True)
class Sampling:
    """How a teacher writes the texts that a method with ``teacher_text`` trains on."""

    samples: int = 1  #: answers to each prompt, each a training example
    temperature: float = 0.0  #: 0 is greedy
    top_p: float = 1.0


@dataclass(frozen=True)
class Entry:
    """A method's page in the convention ledger: what exactly is computed, and by whose authority."""

    name: str
    title: str
    citation: str  #: paper with equation or section
    formula: str
    needs: Needs = Needs()
    parameters: Mapping[str, str] = field(default_factory=dict)  #: option -> direction and meaning
    temperature: str = "logits / T on both sides; no T^2 factor"
    reduction: str = "sum over response tokens / response tokens of the global batch"
    masks: str = "response tokens and the EOS that ends them"
    stop_gradients: str = "teacher"
    released: str = ""  #: where released codes differ from this
    variants: Mapping[str, str] = field(default_factory=dict)  #: variant -> what it changes
    divergences: bool = False  #: takes a /divergence
    #: conformance property broken by definition (``check`` or ``check@variant``) -> why
    exceptions: Mapping[str, str] = field(default_factory=dict)
    version: int = 1  #: raised whenever the numbers it produces change


@dataclass(frozen=True)
class Options:
    """Options that every method understands; a method adds its own by subclassing."""

    rate: float = 0.5  #: r in L = (1 - r) CE + r L_kd
    temperature: float = 2.0
    t_squared: bool = False  #: multiply the distillation terms by T^2 (DistillKit's convention)


_SPEC = re.compile(
    r"^(?P<name>[a-z0-9][a-z0-9-]*)(@(?P<variant>[a-z0-9-]+))?"
    r"(/(?P<divergence>[a-z0-9-]+(@[a-z0-9-]+)?))?(?P<options>(:[a-z][a-z0-9_]*=[^:=,\s]+)*)$"
)


@dataclass(frozen=True)
class Spec:
    """A parsed address. ``str(spec)`` gives the address back, options sorted."""

    name: str
    variant: str = ""
    divergence: str = ""
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Spec:
        match = _SPEC.match(text)
        if not match:
            raise MethodError(f"{text!r} is no method address (name[@variant][/divergence][:option=value])")
        pairs = [item.split("=", 1) for item in match["options"].split(":")[1:]]
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise MethodError(f"{text!r} gives an option twice")
        options = tuple(sorted((key, value) for key, value in pairs))
        return cls(match["name"], match["variant"] or "", match["divergence"] or "", options)

    def __str__(self) -> str:
        variant = f"@{self.variant}" if self.variant else ""
        divergence = f"/{self.divergence}" if self.divergence else ""
        return f"{self.name}{variant}{divergence}" + "".join(f":{k}={v}" for k, v in self.options)


class Method:
    """Base of all methods.

    A subclass states ``Options`` (a frozen dataclass) and implements ``loss``; one with trainable
    parts also ``build``. It holds no state of its own: what is trained lives in the parts.
    """

    Options: ClassVar[type[Any]] = Options

    def __init__(self, spec: Spec, entry: Entry) -> None:
        if spec.variant and spec.variant not in entry.variants:
            near = _nearest(spec.variant, entry.variants)
            raise MethodError(f"{entry.name} has no variant {spec.variant!r}{near}")
        if spec.divergence and not entry.divergences:
            raise MethodError(f"{entry.name} takes no divergence (got {spec.divergence!r})")
        self.spec, self.entry = spec, entry
        self.options = self.parse_options(dict(spec.options))

    def parse_options(self, given: dict[str, str]) -> Any:
        """Typed options from the address; unknown names and unreadable values are refused."""
        return read_options(self.Options, given, self.entry.name)

    @property
    def needs(self) -> Needs:
        """What this method, with these options, needs."""
        return self.entry.needs

    @property
    def sampling(self) -> Sampling:
        """How the teacher writes, where ``needs.teacher_text``."""
        return Sampling()

    def canonical(self) -> Spec:
        """The one address of this computation: no option at its default, every number in one form.

        ``kl:rate=0.50`` is ``kl``, so that one computation has one cell id.
        """
        default = type(self.options)()
        values = {key: getattr(self.options, key) for key, _ in self.spec.options if hasattr(default, key)}
        moved = {key: value for key, value in values.items() if value != getattr(default, key)}
        options = tuple((key, write_value(value)) for key, value in moved.items())
        return dataclasses.replace(self.spec, options=options)

    def check(self, same_vocabulary: bool) -> None:
        """Refuse a pair this method cannot serve; called before anything is loaded."""
        wanted = self.needs.vocabulary
        if wanted == "same" and not same_vocabulary:
            raise MethodError(f"{self.spec} needs one vocabulary; this pair has two")
        if wanted == "different" and same_vocabulary:
            raise MethodError(f"{self.spec} is for two vocabularies; this pair has one")

    def build(self, pair: Pair) -> nn.Module | None:
        """Trainable parts and constants for this pair, or None. Draws from torch's global generator."""
        return None

    def loss(self, batch: Batch, parts: nn.Module | None) -> Loss:
        """Named loss terms of one micro-batch, normalised by ``batch.normaliser``."""
        raise NotImplementedError

    def part_lr(self) -> float | None:
        """Learning rate of the parts; None means the student's."""
        return getattr(self.options, "projector_lr", None)


def read_options(cls: type[Any], given: Mapping[str, str], owner: str) -> Any:
    """Make an options dataclass from strings, by its field types (float, int, bool, str, Literal)."""
    hints = get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, text in given.items():
        if key not in fields:
            raise MethodError(f"{owner} has no option {key!r}" + _nearest(key, fields))
        values[key] = _read_value(hints[key], text, f"{owner}:{key}")
    return cls(**values)


def write_value(value: Any) -> str:
    """An option's value as an address writes it; ``read_options`` reads it back."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read_value(kind: Any, text: str, what: str) -> Any:
    choices = getattr(kind, "__args__", None)
    if choices is not None:
        if text not in choices:
            raise MethodError(f"{what} is one of {', '.join(map(str, choices))}, not {text!r}")
        return text
    if kind is bool:
        if text not in ("true", "false"):
            raise MethodError(f"{what} is true or false, not {text!r}")
        return text == "true"
    try:
        return kind(text)
    except ValueError:
        raise MethodError(f"{what} is a {kind.__name__}, not {text!r}") from None


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; known: {', '.join(sorted(known))}" if known else ""


M = TypeVar("M", bound=type[Method])
_REGISTRY: dict[str, tuple[Entry, type[Method]]] = {}


def register(*entries: Entry) -> Callable[[M], M]:
    """Class decorator: the class serves these names. A name already taken is refused."""

    def add(cls: M) -> M:
        for entry in entries:
            if entry.name in _REGISTRY:
                owner = _REGISTRY[entry.name][1].__module__
                raise MethodError(f"a method named {entry.name!r} is registered already ({owner})")
            _REGISTRY[entry.name] = (entry, cls)
        return cls

    return add


def names() -> list[str]:
    """Registered names, sorted. The caller imports the modules that register them."""
    return sorted(_REGISTRY)


def entry(name: str) -> Entry:
    """A method's ledger entry. Raises MethodError with the nearest names."""
    if name not in _REGISTRY:
        raise MethodError(f"no method is named {name!r}" + _nearest(name, _REGISTRY))
    return _REGISTRY[name][0]


def create(address: str) -> Method:
    """The method behind an address. Raises MethodError for a name, variant or option that does not exist."""
    spec = Spec.parse(address)
    found = entry(spec.name)
    return _REGISTRY[spec.name][1](spec, found)
