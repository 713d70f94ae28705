"""Tests in one process, the program they test in another: how a jail keeps a program from judging itself.

The *checker* runs the tests; names they do not define stand for things of the *program*, which runs in a
child of the checker. Calls, attributes and answers pass between the two as plain data: numbers, texts and
collections by value, everything else of the program's as a numbered handle that only it can use. So a program
sees arguments and nothing else of its tests, an object that claims to equal everything equals nothing, and
what the program does to its interpreter, or to names like ``abs``, the tests do not meet.

Imports the standard library only; evals/jail.py says what keeps the processes in.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import random
import select
import signal
import struct
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, NoReturn

#: A message that is longer ends the conversation; so does an iterator with more items.
MAX_MESSAGE, MAX_ITEMS = 64 << 20, 1_000_000


class Gone(BaseException):
    """The program ended, or broke off the conversation, before the tests had run."""


# messages


def send(pipe: int, data: bytes) -> None:
    """Write a message: its length, then its bytes."""
    data = struct.pack("<I", len(data)) + data
    while data:
        data = data[os.write(pipe, data) :]


def receive(pipe: int) -> bytes | None:
    """Read one message and not a byte more; None at the end of the pipe or of what a message may be."""
    head = _exactly(pipe, 4)
    if head is None or (length := struct.unpack("<I", head)[0]) > MAX_MESSAGE:
        return None
    return _exactly(pipe, length)


def _exactly(pipe: int, count: int) -> bytes | None:
    parts = []
    while count:
        part = os.read(pipe, min(count, 1 << 20))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


# values

Pack = Callable[[Any], Any]

_SIMPLE: dict[type, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
#: Built-ins that mean the same on both sides. The others, say ``exec``, act where the program is.
_BUILTINS: dict[str, Any] = {
    name: value
    for name, value in vars(builtins).items()
    if (isinstance(value, type) and not name.startswith("_"))
    or name in ("abs", "all", "any", "bin", "callable", "chr", "divmod", "hash", "hex", "len", "max", "min")
    or name in ("oct", "ord", "pow", "repr", "round", "sorted", "sum")
}
_NAMES = {id(value): name for name, value in _BUILTINS.items()}
_VIEWS = {type({}.keys()): "keys", type({}.values()): "values", type({}.items()): "items"}


def pack(value: Any, other: Pack) -> Any:
    """A value as JSON can hold it; ``other`` packs what is no plain data.

    Subclasses of plain types go as those: what they add cannot be seen from the other side.
    """
    if value is None or isinstance(value, (bool, str)):
        return str.__str__(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return int(value) if abs(int(value)) < 1 << 53 else ["int", hex(int(value))]
    for kind, name in _SIMPLE.items():
        if isinstance(value, kind):
            return [name, [pack(item, other) for item in kind.__iter__(value)]]  # type: ignore[attr-defined]
    if isinstance(value, dict):
        return ["dict", [[pack(k, other), pack(v, other)] for k, v in dict.items(value)]]
    if isinstance(value, float):
        return ["float", float.hex(value)]
    if isinstance(value, complex):
        return ["complex", [float.hex(value.real), float.hex(value.imag)]]
    if isinstance(value, (bytes, bytearray)):
        return [("bytes" if isinstance(value, bytes) else "bytearray"), bytes(value).hex()]
    if isinstance(value, range):
        return ["range", [value.start, value.stop, value.step]]
    if isinstance(value, (Decimal, Fraction)):
        return [("Decimal" if isinstance(value, Decimal) else "Fraction"), str(value)]
    if type(value) in _VIEWS:
        return [_VIEWS[type(value)], [pack(item, other) for item in value]]
    if id(value) in _NAMES:
        return ["builtin", _NAMES[id(value)]]
    if hasattr(type(value), "__next__"):
        return ["iterator", [pack(item, other) for item in _limited(value)]]
    return other(value)


def _limited(items: Any) -> Iterator[Any]:
    for count, item in enumerate(items):
        if count == MAX_ITEMS:
            raise ValueError(f"an iterator of more than {MAX_ITEMS} items")
        yield item


def unpack(data: Any, handle: Callable[[str, int], Any]) -> Any:
    """The inverse; ``handle`` finds what a number stands for. Raises for what is no packed value."""
    if data is None or isinstance(data, (bool, int, str)):
        return data
    kind, content = data
    if kind in _FROM_ITEMS:
        return _FROM_ITEMS[kind]([unpack(item, handle) for item in content])
    if kind == "dict":
        return {unpack(key, handle): unpack(value, handle) for key, value in content}
    if kind in _FROM_TEXT:
        return _FROM_TEXT[kind](content)
    return handle(str(kind), int(content))


_FROM_ITEMS: dict[str, Callable[[list[Any]], Any]] = {
    **{name: kind for kind, name in _SIMPLE.items()},
    "range": lambda ends: range(*ends),
    "keys": lambda items: dict.fromkeys(items).keys(),
    "values": lambda items: dict(enumerate(items)).values(),
    "items": lambda items: dict(items).items(),
    "iterator": iter,
}
_FROM_TEXT: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "float": float.fromhex,
    "complex": lambda parts: complex(*map(float.fromhex, parts)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "Decimal": Decimal,
    "Fraction": Fraction,
    "builtin": _BUILTINS.__getitem__,
}


# the program's side


class Program:
    """The program under test: runs, then answers requests until its checker is gone."""

    def __init__(self, requests: int, answers: int) -> None:
        self.requests, self.answers = requests, answers
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.module = types.ModuleType("candidate")

    def run(self, code: str) -> NoReturn:
        """Never comes back."""
        try:
            sys.modules["candidate"] = sys.modules["__main__"] = self.module
            random.seed(0)
            self.answer(
                lambda: exec(compile(code, "<candidate>", "exec", dont_inherit=True), self.module.__dict__)
            )
            while (request := receive(self.requests)) is not None:
                self.answer(lambda: self.serve(*json.loads(request)))
        finally:
            os._exit(0)

    def answer(self, work: Callable[[], Any]) -> None:
        """Send what a piece of work gives, or what it raises."""
        try:
            message = ["gives", pack(work(), self.known)]
        except BaseException as error:
            message = ["raises", [type(error).__name__, _text(error)]]
        send(self.answers, json.dumps(message).encode())

    def serve(self, what: str, *details: Any) -> Any:
        """One request: the names a module has, a call, an attribute read or set."""
        if what == "names":
            return {name: self.module.__dict__[name] for name in details[0] if name in self.module.__dict__}
        number, *rest = details
        target = self.objects[number]
        if what == "call":
            args, kwargs = (unpack(part, self.find) for part in rest)
            return target(*args, **kwargs)
        if what == "get":
            return getattr(target, rest[0])
        return setattr(target, rest[0], unpack(rest[1], self.find))

    def known(self, thing: Any) -> Any:
        """A handle; a module of the library goes by its name, for the checker has its own."""
        if isinstance(thing, types.ModuleType):
            return ["module", self.number(thing)]
        return ["object", self.number(thing)]

    def number(self, thing: Any) -> int:
        if id(thing) not in self.numbers:
            self.numbers[id(thing)] = len(self.objects)
            self.objects.append(thing)  # kept, so that the id stays its own
        return self.numbers[id(thing)]

    def find(self, kind: str, number: int) -> Any:
        return self.objects[number]


def _text(error: BaseException) -> str:
    with contextlib.suppress(BaseException):
        return str(error)[:1000]
    return ""


# the checker's side


class Remote:
    """Something of the program's that is no plain value: a function, a class, an object of its own."""

    def __init__(self, program: Apart, number: int) -> None:
        object.__setattr__(self, "_apart", (program, number))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        program, number = self._apart
        return program.ask("call", number, program.pack(args), program.pack(kwargs))

    def __getattr__(self, name: str) -> Any:
        program, number = self._apart
        return program.ask("get", number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        program, number = self._apart
        program.ask("set", number, name, program.pack(value))


class Apart:
    """The program in its own process, as the checker knows it."""

    def __init__(self, code: str, private: tuple[int, ...]) -> None:
        """Fork it. ``private``: descriptors that are not for the program."""
        theirs, self.requests = os.pipe()
        self.answers, ours = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            for pipe in (*private, self.requests, self.answers):
                os.close(pipe)
            Program(theirs, ours).run(code)
        os.close(theirs)
        os.close(ours)
        self.remotes: dict[int, Remote] = {}
        self.lost = ""  #: why it is gone, for tests that catch whatever is raised

    def started(self) -> None:
        """Wait until its module has run; raises what it raised."""
        self.hear()

    def names(self, wanted: list[str], asked: Sequence[str]) -> dict[str, Any]:
        """What it defines of these names. Where one is a module of the library, and not what the program was
        asked for, it is the checker's own module, whatever the program calls so."""
        given = dict(self.ask("names", wanted))
        found = {name: given[name] for name in wanted if name in given}  # and nothing else, say an ``abs``
        return {
            name: __import__(name) if name in sys.stdlib_module_names and name not in asked else value
            for name, value in found.items()
        }

    def ask(self, *request: Any) -> Any:
        """The answer to a request; raises what the program raised, and Gone where it does not answer."""
        try:
            send(self.requests, json.dumps(request).encode())
        except BrokenPipeError:
            raise self.gone(self.ending()) from None
        return self.hear()

    def hear(self) -> Any:
        while not select.select([self.answers], [], [], 0.02)[0]:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended and not select.select([self.answers], [], [], 0)[0]:
                raise self.gone(ending(status))  # though a child of its may still hold the pipe
        message = receive(self.answers)
        if message is None:
            raise self.gone(self.ending())
        try:
            word, content = json.loads(message)
            if word == "gives":
                return unpack(content, self.find)
            name, text = content
            error = _exception(str(name), str(text))
        except Exception:  # whatever a made-up message leads to
            raise self.gone("the program does not answer as agreed") from None
        raise error

    def gone(self, reason: str) -> Gone:
        """The error to raise; no test can pass from here on."""
        self.lost = reason
        return Gone(reason)

    def ending(self) -> str:
        """How it ended, for the reason."""
        with contextlib.suppress(ChildProcessError):
            return ending(os.waitpid(self.pid, 0)[1])
        return "left before the tests had run"

    def pack(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return ["tuple", [pack(item, self.known) for item in value]]
        return pack(value, self.known)

    def known(self, thing: Any) -> Any:
        if not isinstance(thing, Remote):
            raise TypeError(f"tests cannot hand a {type(thing).__name__} to the program")
        return ["object", thing._apart[1]]

    def find(self, kind: str, number: int) -> Any:
        if kind == "module":
            return types.ModuleType("module")
        return self.remotes.setdefault(number, Remote(self, number))


def ending(status: int) -> str:
    """A process's exit status in words."""
    code = os.waitstatus_to_exitcode(status)
    number = -code if code < 0 else code - 128
    if number in (signal.SIGXCPU, signal.SIGKILL):
        return "out of time"
    return f"ended by signal {number}" if number > 0 else "left before the tests had run"


def _exception(name: str, text: str) -> BaseException:
    """An exception like the program's: the built-in one, or one of its name."""
    if name in ("StopIteration", "StopAsyncIteration"):  # would end a loop over answers without a word
        return RuntimeError(f"{name}: {text}")
    kind = _BUILTINS.get(name)
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        kind = type(name if name.isidentifier() else "Exception", (Exception,), {})
    try:
        return kind(text)  # type: ignore[no-any-return]
    except Exception:  # UnicodeDecodeError and the like want more than a text
        return Exception(f"{name}: {text}")


#: What the tests may rely on, the tests, and names they have from the program though they are built in.
Tests = tuple[str, str, Sequence[str]]


def judge(code: str, tests: Callable[[], Tests], private: tuple[int, ...]) -> str:
    """Why a program fails its tests; empty where it passes.

    ``tests`` is called when the program has been forked, so that its process has never held them;
    ``private``: descriptors that are not for the program.
    """
    program = Apart(code, private)
    module = types.ModuleType("tests")
    sys.modules["__main__"] = module
    random.seed(0)
    try:
        given, text, names = tests()
        checks = compile(text, "<tests>", "exec", dont_inherit=True)
        program.started()
        exec(compile(given, "<given>", "exec", dont_inherit=True), module.__dict__)
        known = {*module.__dict__, *dir(builtins)} - set(names)
        module.__dict__.update(program.names([name for name in _names(checks) if name not in known], names))
        exec(checks, module.__dict__)
    except Gone as gone:
        return str(gone)
    except BaseException as error:
        return f"{type(error).__name__}: {_text(error)[:200]}"
    return program.lost


def _names(code: types.CodeType) -> list[str]:
    """Every name that a piece of code reads from outside (and some attributes, which do no harm)."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part)]
    return list(dict.fromkeys([*code.co_names, *inner]))
