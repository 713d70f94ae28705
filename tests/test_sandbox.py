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

QUICK = Limits(cpu_seconds=1, wall_seconds=6.0)
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
    try:
        os.kill(1, 9)
        wins.append(os.getpid() == 1)
    except PermissionError:
        pass
    return wins
"""
        expected = "assert not any(f()[:5]), f()" if os.getuid() == 0 else "assert not any(f()[1:3]), f()"
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
