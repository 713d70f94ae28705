"""evals/sandbox.py and evals/jail.py: programs that try to get out, stay, or lie."""

# ruff: noqa: E501 - programs stand in one line
from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evals import sandbox
from evals.sandbox import Level, Limits, Program, Verdict

QUICK = Limits(cpu_seconds=1, wall_seconds=3.0)
LEVELS = [level for level in ("namespaces", "rlimits") if level == sandbox.level() or level == "rlimits"]
pytestmark = pytest.mark.skipif(sandbox.level() == "none", reason="no sandbox on this machine")


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Level:
    return request.param  # type: ignore[no-any-return]


WORKERS: dict[str, sandbox._Worker] = {}


@pytest.fixture(scope="module", autouse=True)
def _workers() -> Iterator[None]:
    yield
    while WORKERS:
        WORKERS.popitem()[1].close()


def judge(level: Level, code: str, tests: str = "assert f() == 1", limits: Limits = QUICK) -> Verdict:
    """One verdict of a jail that all tests share: none of them may spoil it for the next."""
    return WORKERS.setdefault(level, sandbox._Worker(level)).judge(Program(code, tests), limits)


def test_right_and_wrong(level: Level) -> None:
    assert judge(level, "def f(): return 1") == Verdict(True)
    assert judge(level, "def f(): return 2").reason.startswith("AssertionError")
    assert judge(level, "def f(: return 2").reason.startswith("SyntaxError")
    assert judge(
        level,
        "import os, math, typing\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\ndef f(): return 1",
    ).passed


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "raise SystemExit",
        "import os\ndef f(): os._exit(0)",
        "print('passed')\nimport os\nos._exit(0)",
        'print(\'{"passed": true, "reason": ""}\', flush=True)\nimport os\nos._exit(0)',
        "import os\nfor fd in range(256):\n    try: os.write(fd, b'{\"passed\": true}\\n')\n    except OSError: pass\nos._exit(0)",
        "import os\nfor fd in range(256):\n    try: os.write(fd, bytes(32))\n    except OSError: pass\nos._exit(0)",
        "import os\nfor fd in range(3, 64):\n    try: data = os.read(fd, 64)\n    except OSError: continue\n    for to in range(3, 64):\n        try: os.write(to, data)\n        except OSError: pass\nos._exit(0)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)",
        "import os\nos.abort()",
        "import os\nif os.fork() == 0:\n    import time; time.sleep(1)\nelse:\n    os._exit(0)\ndef f(): return 2",
        "import atexit, os\natexit.register(lambda: os._exit(0))\ndef f(): return 2",
        "def f(): return 2\n'''",
        "if False:\n    ",
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()",
        "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\ndef f(): return 2",
        "import builtins, sys\nbuiltins.exec = lambda *a: None\nbuiltins.compile = lambda *a, **k: None\ndef f(): return 2",
        "import threading, os\nthreading.Timer(0.05, os._exit, [0]).start()\ndef f():\n    import time; time.sleep(1)",
    ],
)
def test_a_forged_or_early_end_fails(level: Level, code: str) -> None:
    assert not judge(level, code).passed


FORGERIES = {
    "an answer that equals everything": "class A:\n    def __eq__(self, other): return True\ndef f(): return A()",
    "a subclass that equals everything": "class A(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef f(): return A(2)",
    "a metaclass that equals everything": "class M(type):\n    def __eq__(self, other): return True\nclass A(metaclass=M): pass\ndef f(): return A",
    "no assertion errors": "import builtins\nbuiltins.AssertionError = type('A', (BaseException,), {'__new__': lambda *a: None})\ndef f(): return 2",
    "another __eq__ through ctypes": "import ctypes\ndef f():\n    try: ctypes.pythonapi.Py_CompileString\n    except Exception: pass\n    return 2",
    "frames above": "import sys, os\nframe = sys._getframe()\nwhile frame:\n    for value in list(frame.f_locals.values()):\n        if type(value) is int:\n            try: os.write(value, b'+')\n            except OSError: pass\n    frame = frame.f_back\ndef f(): return 2",
    "the word itself, to every pipe": "import os\nfor fd in range(64):\n    try: os.write(fd, b'+')\n    except OSError: pass\ndef f(): return 2",
    "a message as agreed, before it is asked": "import os, json, struct\nm = json.dumps(['gives', 1]).encode()\nfor fd in range(64):\n    try: os.write(fd, struct.pack('<I', len(m)) + m)\n    except OSError: pass\nos._exit(0)",
    "a message of four gigabytes": "import os\nfor fd in range(64):\n    try: os.write(fd, b'\\xff' * 4)\n    except OSError: pass\nos._exit(0)",
    "a message nested too deep": "import os, struct\nm = b'[' * 200000\nfor fd in range(64):\n    try: os.write(fd, struct.pack('<I', len(m)) + m)\n    except OSError: pass\nos._exit(0)",
    "tests left out": "import sys\nfor name in list(sys.modules): sys.modules[name] = None\ndef f(): return 2",
    "an end by the parent's hand": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos._exit(0)",
    "the group's end": "import os, signal\nos.killpg(0, signal.SIGKILL)",
    "everybody's end": "import os, signal\ntry: os.kill(-1, signal.SIGKILL)\nexcept OSError: pass\ndef f(): return 2",
    "an error that tests may expect": "def f(): raise StopIteration",
    "a program that unpickling would run": "class A:\n    def __reduce__(self): return int, (1,)\ndef f(): return A()",
    "a hundred megabytes of an answer": "def f(): return 'x' * (100 << 20)",
    "a built-in that ends the tests": "f = exit",
    "a stopped checker": "import os, signal\ndef f(): os.kill(os.getppid(), signal.SIGSTOP)",
    "an interrupted checker": "import os, signal\ndef f():\n    os.kill(os.getppid(), signal.SIGINT)\n    return 2",
}

#: Leaves modules for its checker to import, which would say that all is well.
PLANTED = r"""
evil = "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'+')\n    except OSError: pass\nos._exit(0)"
for name in ("colorsys", "traceback", "_pydecimal", "sitecustomize"):
    open(name + ".py", "w").write(evil)
import colorsys
def f(): return 2
"""

#: Tests that are careless, and programs that would make use of it.
CARELESS = {
    "every error is caught": (
        "import os\ndef f(x): os._exit(0)",
        "try:\n    f(1)\n    assert False\nexcept:\n    pass",
    ),
    "an error ends the loop": ("def f(x): raise StopIteration", "assert all(map(f, [1, 2]))"),
    "an error ends the iterator": ("def f(): raise StopIteration", "assert not list(iter(f, 3))"),
    "modules are imported": (PLANTED, "import colorsys, traceback, _pydecimal\nassert f() == 1"),
    "a module of the program's is used": (PLANTED, "assert colorsys.hls_to_rgb(0, 1, 0) and f() == 1"),
    "a module is not imported": (
        "class sys:\n    def getsizeof(x): return 1\ndef f(x): return 1",
        "assert f(1) == sys.getsizeof(1)",
    ),
    "a built-in runs what it is given": ("f = exec", "x = 1\nf('x = 2')\nassert x == 2"),
    "a built-in sees the tests": ("f = globals", "SECRET = 1\nassert 'SECRET' in f()"),
}

#: What a program may put on the wire in place of an answer. None of it is more than data.
MESSAGES = (
    '["gives", ["builtin", "exec"]]',
    '["gives", ["builtin", "__import__"]]',
    '["gives", ["builtin", "NotImplemented"]]',
    '["gives", ["no such kind", 1]]',
    '["gives", ["object", -1]]',
    '["gives", ["object", "x"]]',
    '["gives", ["module", 0]]',
    '["gives", ["set", [["list", []]]]]',
    '["gives", ["dict", [[["dict", []], 1]]]]',
    '["gives", ["range", [1, 2, 0]]]',
    '["gives", ["Fraction", "1e99999999"]]',
    '["gives", ["Decimal", "x"]]',
    '["gives", ["int", "f"]]',
    '["gives", ["iterator", [1]]]',
    '["gives", NaN]',
    '["gives", {"float": 1, "x": 2}]',
    '["gives", [["list"], 1]]',
    '["gives"]',
    '["else", 1, 2]',
    '["raises", ["SystemExit", "0"]]',
    '["raises", ["GeneratorExit", ""]]',
    '["raises", ["Gone", ""]]',
    '["raises", ["BaseExceptionGroup", ""]]',
    '["raises", ["__loader__", ""]]',
    '["raises", [1, 2]]',
    '["raises", []]',
    "[" * 100_000,
    "1",
    "{}",
    "",
)


@pytest.mark.parametrize("kind", FORGERIES)
def test_no_forgery_passes(level: Level, kind: str) -> None:
    if kind == "everybody's end" and level == "rlimits" and os.getuid() != 0:
        pytest.skip("it would end all that this user runs")
    assert not judge(level, FORGERIES[kind]).passed
    assert judge(level, "def f(): return 1").passed  # and the jail stands


@pytest.mark.parametrize("kind", CARELESS)
def test_no_forgery_passes_careless_tests(level: Level, kind: str) -> None:
    assert not judge(level, *CARELESS[kind]).passed
    assert judge(level, "def f(): return 1").passed


def test_made_up_messages_are_data_and_never_pass(level: Level) -> None:
    for message in MESSAGES:
        code = f"""
import os, struct
def f():
    m = {message.encode()!r}
    for fd in range(3, 64):
        try: os.write(fd, struct.pack("<I", len(m)) + m)
        except OSError: pass
    os._exit(0)
"""
        verdict = judge(level, code, "answer = f()\nassert answer == 1, answer")
        assert not verdict.passed, (message[:80], verdict)
    assert judge(level, "def f(): return 1").passed


def test_answers_are_never_unpickled(level: Level) -> None:
    """A pickle of this object would write a file where it is read."""
    code = "class A:\n    def __reduce__(self): return open, ('made', 'w')\ndef f(): return [A()]"
    assert judge(level, code, "import os\nassert f() and not os.path.exists('made')") == Verdict(True)


def test_a_program_has_five_descriptors(level: Level) -> None:
    """Three that lead nowhere, and its two pipes."""
    code = """
import os
def f():
    found = []
    for fd in range(4096):
        try: os.fstat(fd)
        except OSError: continue
        found.append(fd)
    return len(found), {os.fstat(fd).st_rdev for fd in (0, 1, 2)} == {os.stat(os.devnull).st_rdev}
"""
    assert judge(level, code, "assert f() == (5, True), f()") == Verdict(True)


def test_output_and_threads_hold_nothing_up(level: Level) -> None:
    flood = "import sys\nfor n in range(100): print('x' * (1 << 20), file=sys.stderr if n % 2 else sys.stdout)\ndef f(): return 1"
    assert judge(level, flood, limits=Limits(cpu_seconds=5)).passed
    start = time.monotonic()
    left = "import threading, time\nfor _ in range(3): threading.Thread(target=time.sleep, args=(60,)).start()\ndef f(): return 1"
    assert judge(level, left).passed
    assert time.monotonic() - start < 30


def test_what_tests_are_made_of_is_out_of_reach(level: Level) -> None:
    """Built-ins, modules and helpers of the tests are the checker's own, whatever the program calls so."""
    cheat = "def f(x): return 2\nabs = len = min = lambda *a: 0\nclass math:\n    isclose = lambda *a: True\ndef helper(x): return 2"
    assert not judge(level, cheat, "assert abs(f(1) - 1) < 0.5").passed
    assert not judge(level, cheat, "import math\nassert math.isclose(f(1), 1)").passed
    program = Program(cheat, "assert f(1) == helper(1)", given="def helper(x): return x")
    assert not sandbox._run([program], QUICK, 1, level)[0].passed
    shadow = "def sum(a, b): return a + b"
    assert not judge(level, shadow, "assert sum([1, 2]) == 4").passed
    for name in ("sum", "string"):  # a built-in's name, a module's name
        own = f"def {name}(a, b): return a + b"
        named = Program(own, f"assert {name}(1, 2) == 3", names=(name,))
        assert sandbox._run([named], QUICK, 1, level)[0].passed
    assert judge(level, "import sys\ndef f(): return 1", "assert f() < sys.getsizeof(1)").passed


def test_a_program_cannot_read_its_tests(level: Level) -> None:
    """Neither in its frames nor in its memory, of which it sees every page; nor in its parent's."""
    code = """
import gc, os, re, sys
SECRET = "".join(["xyz", "zy"])
def found():
    frame, seen = sys._getframe(), []
    while frame:
        seen += [repr(value) for value in frame.f_locals.values()]
        frame = frame.f_back
    seen += [repr(o)[:10000] for o in gc.get_objects() if isinstance(o, (str, bytes, list, dict, tuple))]
    return sum(text.count(SECRET + "17") for text in seen)
def own_pages():
    count, needle = 0, (SECRET + "17").encode()
    try:
        maps, memory = open("/proc/self/maps"), open("/proc/self/mem", "rb", 0)
    except OSError:
        return 0
    for line in maps:
        ends = re.match(r"(\\w+)-(\\w+) r", line)
        if ends and "[v" not in line:
            start, end = (int(x, 16) for x in ends.groups())
            try:
                memory.seek(start)
                count += memory.read(end - start).count(needle)
            except (OSError, ValueError, MemoryError, OverflowError):
                pass
    return count
def f(): return found() + own_pages()
"""
    tests = "assert f() == 0, f()\nassert 'xyzzy17' != 'xyzzy18'"
    code = code.replace("\\\\", "\\")
    assert judge(level, code, tests) == Verdict(True)
    assert not judge(level, code + "HELD = [SECRET + '17']", tests).passed  # what is there would be found


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux")
def test_a_program_cannot_trace_its_checker(level: Level) -> None:
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def f():
    parent, wins = os.getppid(), []
    wins.append(libc.ptrace(16, parent, None, None) == 0)  # ATTACH
    wins.append(libc.ptrace(16902, parent, None, None) == 0)  # SEIZE
    buffer = ctypes.create_string_buffer(8)
    here = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
    there = (ctypes.c_size_t * 2)(id(os), 8)
    for call in (libc.process_vm_readv, libc.process_vm_writev):
        wins.append(call(parent, ctypes.byref(here), 1, ctypes.byref(there), 1, 0) > 0)
    for name in ("mem", "environ", "fd/1", "maps"):
        try:
            wins.append(bool(open(f"/proc/{parent}/{name}", "rb").read(8)))
        except OSError:
            wins.append(False)
    pidfd = libc.syscall(434, parent, 0)  # pidfd_open
    wins += [libc.syscall(438, pidfd, fd, 0) >= 0 for fd in range(32)]  # pidfd_getfd
    return wins
"""
    assert judge(level, code, "assert not any(f()), f()") == Verdict(True)


def test_values_pass_between_program_and_tests_as_they_are(level: Level) -> None:
    code = """
from collections import Counter, OrderedDict, namedtuple
from decimal import Decimal
from fractions import Fraction
P = namedtuple("P", "a b")
class Node:
    def __init__(self, value): self.value, self.left = value, None
def same(x): return x
def depth(node): return 0 if node is None else 1 + depth(node.left)
def made(): return [P(1, 2), Counter("aab"), OrderedDict(a=1), Decimal("1.10"), Fraction(1, 3)]
def gen(): yield from (1, 2)
def views(): return {1: 2}.keys(), {1: 2}.values(), {1: 2}.items()
def lazy(): return map(str, [1, 2]), zip("ab", "cd"), iter([3])
def raises(kind): raise kind("no")
class Own(Exception): pass
def raises_own(): raise Own("mine")
def kinds(value, kind): return [x for x in value if isinstance(x, kind)]
LIMIT = 7
"""
    tests = """
from decimal import Decimal
from fractions import Fraction
values = [None, True, 0, -1, 2**53, -2**200, 1.5, -0.0, 1e308, 1j, "", "é\\u2028\\ud800", b"\\x00\\xff", bytearray(b"a"),
          [], [[1], (2, [3])], (), {1}, frozenset({(1, 2)}), {}, {(1, 2): {"a": [None]}}, range(1, 9, 2)]
for value in values:
    back = same(value)
    assert back == value and type(back) is type(value), (value, back)
assert str(same(-0.0)) == "-0.0" and same(float("nan")) != same(float("nan")) and same(float("inf")) > 1e308
assert made() == [(1, 2), {"a": 2, "b": 1}, {"a": 1}, Decimal("1.10"), Fraction(1, 3)]
assert list(gen()) == [1, 2] and gen() != [1, 2]
keys, values, items = views()
assert keys == {1} and list(values) == [2] and list(items) == [(1, 2)] and keys != [1]
assert [list(x) for x in lazy()] == [["1", "2"], [("a", "c"), ("b", "d")], [3]]
root = Node(1)
root.left = Node(2)
assert (depth(root), root.left.value, same(root) is root, same(root) == Node(1)) == (2, 2, True, False)
for kind in (ValueError, KeyError, ZeroDivisionError):
    try:
        raises(kind)
    except kind:
        continue
    assert False, kind
try:
    raises_own()
except Exception as error:
    assert type(error).__name__ == "Own" and "mine" in str(error)
assert kinds((1, "a", 2.5), str) == ["a"] and kinds((1, "a", 2.5), (int, float)) == [1, 2.5]
assert LIMIT == 7 and same(len)("abc") == 3
"""
    assert judge(level, code, tests) == Verdict(True)


def test_endless_loop(level: Level) -> None:
    start = time.monotonic()
    assert judge(level, "while True: pass") == Verdict(False, "out of time")
    assert judge(level, "import time\ntime.sleep(60)", limits=Limits(wall_seconds=0.5)) == Verdict(
        False, "out of time"
    )
    code = "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass"
    assert judge(level, code) == Verdict(False, "out of time")
    assert time.monotonic() - start < 60


def test_memory(level: Level) -> None:
    assert judge(level, "x = bytearray(10 << 30)").reason.startswith("MemoryError")
    assert judge(level, "x = []\nwhile True: x.append(bytes(1 << 20))").reason.startswith("MemoryError")


FORK_BOMB = """
import os
made = 0
try:
    for _ in range(1000):
        if os.fork() == 0:
            import time; time.sleep(30); os._exit(0)
        made += 1
except OSError:
    pass
def f(): return made
"""


def test_fork_bomb_is_bounded(level: Level) -> None:
    assert judge(level, FORK_BOMB, "assert f() <= 8").passed
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    assert not judge(level, bomb, limits=Limits(wall_seconds=1.5)).passed
    assert judge(level, "def f(): return 1").passed


def running(mark: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "comm").read_bytes():
                found.append(process.name)
        except OSError:
            continue
    return found


def test_nothing_stays_behind(level: Level) -> None:
    mark = f"left{os.getpid() % 10000}"
    code = f"""
import ctypes, os, time
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    ctypes.CDLL(None).prctl(15, b"{mark}")
    time.sleep(60)
    os._exit(0)
time.sleep(0.2)
def f(): return 1
"""
    assert judge(level, code).passed
    assert running(mark) == []


def test_scratch_folder_is_there_and_goes(level: Level) -> None:
    before = set(Path(tempfile.gettempdir()).glob("jail-*"))
    code = "import os\nopen('x', 'w').write('1')\nos.makedirs('a/b')\nos.chmod('a', 0)\ndef f(): return int(open('x').read())"
    assert judge(level, code).passed
    verdicts = sandbox._run([Program(code, "assert f() == 1")] * 2, QUICK, 1, level)
    assert all(v.passed for v in verdicts)
    assert judge(level, "import os", "assert os.listdir('.') == []").passed
    assert set(Path(tempfile.gettempdir()).glob("jail-*")) <= before


def test_a_large_file_is_refused(level: Level) -> None:
    assert not judge(level, "f = open('x', 'wb')\nwhile True:\n    f.write(bytes(1 << 20))").passed


def test_no_secrets(level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "s3cret")
    if level in WORKERS:
        WORKERS.pop(level).close()  # so that a new one is started with the secret about
    code = """
import os
def f():
    if os.environ.get("SOME_TOKEN") or os.getenv("HOME"):
        return 2
    for pid in ("self", str(os.getppid())):
        try:
            if b"s3cret" in open(f"/proc/{pid}/environ", "rb").read():
                return 3
        except OSError:
            pass
    return 1
"""
    assert judge(level, code) == Verdict(True)
    assert judge(level, "import sys\ndef f(): return 1 if sys.stdin.read() == '' else 2").passed


@pytest.mark.skipif("namespaces" not in LEVELS, reason="no namespaces on this machine")
class TestNamespaces:
    """What only the upper level keeps out."""

    def test_writing_outside(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)
        places = [
            str(tmp_path / "x"),
            "/x",
            "/etc/x",
            "/usr/lib/x",
            "/tmp/../x",
            f"{os.getcwd()}/x",
            "/dev/shm/x",
            "/var/tmp/x",
        ]
        code = f"""
def f():
    for place in {places!r}:
        try:
            open(place, "w").write("x")
            return place
        except OSError:
            pass
    return 1
"""
        assert judge("namespaces", code) == Verdict(True)
        assert not any(Path(place).exists() for place in places)

    def test_reading_outside(self) -> None:
        code = f"import os\ndef f(): return [p for p in ({os.getcwd()!r}, '/etc/passwd', '/home', '/proc/self') if os.path.exists(p)]"
        assert judge("namespaces", code, "assert f() == [], f()") == Verdict(True)

    def test_files_without_number(self) -> None:
        code = "n = 0\ntry:\n    while True:\n        open(f'x{n}', 'w').close()\n        n += 1\nexcept OSError:\n    pass\ndef f(): return n"
        assert judge("namespaces", code, "assert 100 < f() < 2000, f()") == Verdict(True)

    def test_no_network(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            code = f"""
import socket
def f():
    try:
        socket.create_connection(("127.0.0.1", {port}), timeout=1)
    except OSError:
        return 1
"""
            assert judge("namespaces", code) == Verdict(True)

    def test_no_rights(self) -> None:
        code = """
import ctypes, os
libc = ctypes.CDLL(None)
def f():
    wins = [os.getuid() == 0]
    wins.append(libc.mount(b"none", b"/", None, 32 | 4096, None) == 0)  # remount read-write
    wins.append(libc.chroot(b"/tmp") == 0)
    wins.append(libc.setuid(0) == 0)
    wins.append(libc.sethostname(b"x", 1) == 0)
    wins.append(libc.unshare(0x10000000) == 0)  # a user namespace of its own, to be root in
    try:
        os.kill(1, 9)
        wins.append(os.getpid() == 1)
    except PermissionError:
        pass
    return wins
"""
        expected = "assert not any(f()[:6]), f()" if os.getuid() == 0 else "assert not any(f()[1:3]), f()"
        assert judge("namespaces", code, expected) == Verdict(True)


def test_below_the_floor_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "level", lambda: "rlimits")
    program = Program("def f(): return 1", "assert f() == 1")
    with pytest.raises(sandbox.SandboxError, match="rlimits only"):
        sandbox.run([program])
    assert sandbox.run([program], allow_unsafe=True) == [Verdict(True)]
    monkeypatch.setattr(sandbox, "level", lambda: "none")
    with pytest.raises(sandbox.SandboxError, match="no way"):
        sandbox.run([program], allow_unsafe=True)


def test_a_hundred_small_programs_are_quick_and_in_order(level: Level) -> None:
    programs = [Program(f"def f(): return {n % 2}", "assert f() == 1") for n in range(100)]
    start = time.monotonic()
    verdicts = sandbox._run(programs, Limits(), 2, level)
    assert [v.passed for v in verdicts] == [n % 2 == 1 for n in range(100)]
    assert time.monotonic() - start < 60  # about one on a quiet core


def test_verdicts_do_not_depend_on_hash_or_random_seeds(level: Level) -> None:
    code = "import random\ndef f(): return list({'a', 'b', 'c', 'd', 'e'}), random.random()"
    first, second = [judge(level, code, "assert False, f()").reason for _ in range(2)]
    assert first == second


def test_texts_that_break_protocols(level: Level) -> None:
    assert not judge(level, "x = '\ud800'").passed
    assert judge(level, "# \u2028 \u0085 é\ndef f(): return 1").passed
    assert not judge(level, "a = " + "(" * 100_000).passed
    assert not judge(level, "\x00").passed
    code = "class E(Exception):\n    def __str__(self): raise KeyboardInterrupt\nraise E"
    assert not judge(level, code).passed


def test_an_empty_list(level: Level) -> None:
    assert sandbox._run([], QUICK, 4, level) == []
