"""The inside of evals/sandbox.py: a program that runs candidate programs, one at a time, each in a jail.

It is started as a script with an empty environment and imports the standard library only. Requests come as
JSON lines on stdin and verdicts leave as JSON lines on stdout; a candidate has neither of the two.

Processes, each the parent of the next: the *server* (this script), a *guard* for each candidate, in the pid
namespace an *init*, and the *candidate*. When init ends, the kernel kills whatever the candidate left behind.

The verdict is a secret in two halves. One is known to the candidate's wrapper; the other is drawn after
the candidate was forked and puts into a pipe. Only when every test has run does the wrapper take it out and
send both, combined, back. So leaving early, by whatever door, fails, and so does writing what was found into
every open file. What this cannot stop is a program written against this very file, or one whose answers
compare equal to everything: a candidate shares a process with its tests, as in HumanEval.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import time
import types
from collections.abc import Iterator
from typing import Any, NoReturn

# Loaded once here, so that forked candidates have them at once.
PRELOADED = (
    *(
        "bisect",
        "cmath",
        "collections",
        "copy",
        "datetime",
        "decimal",
        "fractions",
        "functools",
        "hashlib",
        "heapq",
    ),
    *(
        "itertools",
        "math",
        "operator",
        "queue",
        "re",
        "statistics",
        "string",
        "typing",
        "dataclasses",
        "enum",
    ),
)

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x20000,
    0x4000000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
SYS_MOUNT_SETATTR, AT_RECURSIVE = 442, 0x8000  # one number on every architecture since Linux 5.12
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38
SYS_CAPSET = {"x86_64": 126, "aarch64": 91}

#: Candidates of a root server run as a user of their own from here on (systemd's range for such users).
FIRST_UID, UIDS = 61184, 4000

libc: Any = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """Raise OSError when a system call of libc failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    texts = [None if text is None else text.encode() for text in (source, target, kind)]
    check(libc.mount(*texts, ctypes.c_ulong(flags), options.encode() if options else None), f"mount {target}")


def read_only(target: str) -> None:
    """Make a mount and everything mounted below it read-only (mount_setattr(2))."""
    attributes = (ctypes.c_uint64 * 4)(MS_RDONLY | MS_NOSUID, 0, 0, 0)  # MOUNT_ATTR_* have the same two bits
    call = (
        ctypes.c_long(SYS_MOUNT_SETATTR),
        -100,
        target.encode(),
        AT_RECURSIVE,
        attributes,
        ctypes.c_size_t(32),
    )
    check(libc.syscall(*call), f"mount_setattr {target}")


class Server:
    """Sets the jail up once, then runs candidates in it."""

    def __init__(self, level: str, stage: str) -> None:
        self.level = level
        self.stage = stage  #: an empty folder: the jail's root, or where candidates get their folders
        self.root = os.geteuid() == 0
        self.uid = FIRST_UID + os.getpid() % UIDS if self.root else os.getuid()
        self.null = os.open(os.devnull, os.O_RDWR)
        if level == "namespaces":
            self.enter()

    def enter(self) -> None:
        """New mount, network and IPC namespaces whose root holds Python's library, read-only, only."""
        uid, gid = os.getuid(), os.getgid()
        check(libc.unshare((0 if self.root else NEWUSER) | NEWNS | NEWNET | NEWIPC | NEWUTS), "unshare")
        if not self.root:
            for file, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{uid} {uid} 1"),
                ("gid_map", f"{gid} {gid} 1"),
            ):
                with open(f"/proc/self/{file}", "w") as map_file:
                    map_file.write(text)
        mount("none", "/", None, MS_REC | MS_PRIVATE)
        mount("tmpfs", self.stage, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
        for path in self.visible():
            place = self.stage + path
            if os.path.islink(path):  # /lib -> usr/lib
                os.makedirs(os.path.dirname(place), exist_ok=True)
                os.symlink(os.readlink(path), place)
                continue
            os.makedirs(place, exist_ok=True)
            mount(path, place, None, MS_BIND | MS_REC)
        os.makedirs(self.stage + "/dev")
        for device in ("/dev/null", "/dev/urandom"):
            with open(self.stage + device, "w"):
                pass
            mount(device, self.stage + device, None, MS_BIND)
        os.makedirs(self.stage + "/tmp")
        read_only(self.stage)
        os.chroot(self.stage)
        os.chdir("/")

    @staticmethod
    def visible() -> list[str]:
        """Folders of Python's library and of the shared libraries it loads, none inside another."""
        paths: list[str] = []
        for path in sorted({sys.base_prefix, "/usr/lib", "/usr/lib64", "/lib", "/lib64"}):
            inside = any(path == p or path.startswith(p.rstrip("/") + "/") for p in paths)
            if os.path.isdir(path) and path != "/" and not inside:
                paths.append(path)
        return paths

    def serve(self) -> None:
        """Answer requests until stdin ends."""
        for line in sys.stdin:
            print(json.dumps(self.judge(json.loads(line))), flush=True)

    def judge(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run one candidate under a guard; the guard's pipe carries the verdict."""
        reader, writer = os.pipe()
        with self.folder() as folder:
            guard = os.fork()
            if guard == 0:
                os.close(reader)
                answer = {"passed": False, "reason": "the guard failed"}
                try:
                    answer = Guard(self, job, folder).run()
                except BaseException as error:
                    answer["reason"] = f"the guard failed: {error!r}"
                finally:
                    os.write(writer, json.dumps(answer).encode())
                    os._exit(0)
            os.close(writer)
            with os.fdopen(reader, "rb") as pipe:
                reply = pipe.read()
            os.waitpid(guard, 0)
        return dict(json.loads(reply)) if reply else {"passed": False, "reason": "the guard was killed"}

    @contextlib.contextmanager
    def folder(self) -> Iterator[str]:
        """The candidate's own folder. In a namespace the guard mounts one, and it ends with the guard."""
        if self.level == "namespaces":
            yield "/tmp"
            return
        path = os.path.join(self.stage, "work")
        os.mkdir(path, 0o700)
        if self.root:
            os.chown(path, self.uid, self.uid)
        try:
            yield path
        finally:
            for place, folders, _ in os.walk(path):
                for name in folders:  # a candidate may have locked its folders
                    if not os.path.islink(os.path.join(place, name)):
                        os.chmod(os.path.join(place, name), 0o700)
            shutil.rmtree(path, ignore_errors=True)


class Guard:
    """Runs one candidate, waits no longer than allowed, and leaves nothing of it behind."""

    def __init__(self, server: Server, job: dict[str, Any], folder: str) -> None:
        self.server, self.job, self.folder = server, job, folder
        self.limits = job["limits"]

    def run(self) -> dict[str, Any]:
        """The verdict on the job."""
        apart = self.server.level == "namespaces"
        if sys.platform == "linux":
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        if apart:
            check(libc.unshare(NEWNS | NEWPID | NEWIPC), "unshare")
            uid, gid = self.server.uid, self.server.uid if self.server.root else os.getgid()
            options = f"size={self.limits['file_bytes']},mode=700,uid={uid},gid={gid}"
            mount("tmpfs", self.folder, "tmpfs", MS_NOSUID | MS_NODEV, options)
        ask = os.pipe()  # half the secret, to the wrapper
        tell = os.pipe()  # the secret or a reason, from the wrapper
        half = os.urandom(32)
        child = os.fork()
        if child == 0:
            run = self.init if apart else self.candidate
            run(ask[0], tell[1], half)
        os.close(ask[0])
        os.close(tell[1])
        nonce = os.urandom(32)
        with contextlib.suppress(BrokenPipeError):
            os.write(ask[1], nonce)
        reply, status = self.listen(child, tell[0])
        self.sweep(child, status is None)
        if reply == combined(half, nonce):
            return {"passed": True, "reason": ""}
        return {"passed": False, "reason": self.reason(reply, status)}

    def listen(self, child: int, pipe: int) -> tuple[bytes, int | None]:
        """What the wrapper says, and the child's exit status if it ended first (None while it runs)."""
        deadline = time.monotonic() + self.limits["wall_seconds"]
        while time.monotonic() < deadline:
            if select.select([pipe], [], [], 0.01)[0]:
                reply = os.read(pipe, 512)
                if reply:
                    return reply, None
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                rest = os.read(pipe, 512) if select.select([pipe], [], [], 0)[0] else b""
                return rest, status
        return b"", None

    @staticmethod
    def sweep(child: int, running: bool) -> None:
        """Kill the child, its group and, since orphans of ours come to us, every process it started."""
        for kill, target in ((os.killpg, child), (os.kill, child)):
            if running or kill is os.killpg:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    kill(target, signal.SIGKILL)
        while True:
            for orphan in children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(orphan, signal.SIGKILL)
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.001)
            except ChildProcessError:
                return

    @staticmethod
    def reason(reply: bytes, status: int | None) -> str:
        if reply[:1] == b"!":
            return reply[1:].decode("utf-8", "replace")
        if reply:
            return "a forged verdict"
        if status is None:
            return "out of time"
        code = os.waitstatus_to_exitcode(status)
        number = -code if code < 0 else code - 128
        if number in (signal.SIGXCPU, signal.SIGKILL):
            return "out of time"
        return f"ended by signal {number}" if number > 0 else "left before the tests had run"

    def init(self, ask: int, tell: int, half: bytes) -> NoReturn:
        """Process 1 of the namespace: reaps, and ends with the candidate, and the namespace with it."""
        status = 255
        try:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            child = os.fork()
            if child == 0:
                self.candidate(ask, tell, half)
            # the wrapper's end of the pipe must be the candidate's alone
            os.close(tell)
            while True:
                done, status = os.wait()
                if done == child:
                    break
            code = os.waitstatus_to_exitcode(status)
            status = code if code >= 0 else 128 - code
        finally:
            os._exit(status & 255)

    def candidate(self, ask: int, tell: int, half: bytes) -> NoReturn:
        """Give up every right, then run the program and its tests."""
        try:
            os.setsid()
            self.confine(ask, tell)
            judge(self.job["code"], self.job["tests"], ask, tell, half)
        finally:
            os._exit(1)

    def confine(self, ask: int, tell: int) -> None:
        """Limits, files, user and capabilities of the candidate."""
        for stream in (0, 1, 2):
            os.dup2(self.server.null, stream)
        for fd in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else map(str, range(3, 256)):
            if int(fd) not in (0, 1, 2, ask, tell):
                with contextlib.suppress(OSError):
                    os.close(int(fd))
        os.chdir(self.folder)
        os.environ.clear()
        for limit, amount in (
            (resource.RLIMIT_AS, self.limits["memory_bytes"]),
            (resource.RLIMIT_CPU, self.limits["cpu_seconds"]),
            (resource.RLIMIT_FSIZE, self.limits["file_bytes"]),
            (resource.RLIMIT_NPROC, self.limits["processes"]),
            (resource.RLIMIT_NOFILE, 64),
            (resource.RLIMIT_CORE, 0),
        ):
            if sys.platform == "darwin" and limit == resource.RLIMIT_AS:
                continue  # refused there
            hard = resource.getrlimit(limit)[1]
            amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
            resource.setrlimit(limit, (amount, amount))
        if self.server.root:
            os.setgroups([])
            os.setresgid(self.server.uid, self.server.uid, self.server.uid)
            os.setresuid(self.server.uid, self.server.uid, self.server.uid)
        elif self.server.level == "namespaces":
            header = (ctypes.c_uint32 * 2)(0x20080522, 0)
            nothing = (ctypes.c_uint32 * 6)()
            check(libc.syscall(ctypes.c_long(SYS_CAPSET[os.uname().machine]), header, nothing), "capset")
        if sys.platform == "linux":
            check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def children() -> list[int]:
    """Live processes whose parent is this one (Linux; elsewhere none can be found)."""
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(int(name))
    return found


def combined(half: bytes, other: bytes) -> bytes:
    """The two halves of the secret in one."""
    return bytes(a ^ b for a, b in zip(half, other, strict=True))


def judge(code: str, tests: str, ask: int, tell: int, half: bytes) -> None:
    """Run the candidate and then its tests in one module, and send the secret when nothing was raised.

    The two are compiled apart: a text cannot swallow its tests in an open string or an ``if False:``.
    """
    # held here, since the candidate may replace what the names mean elsewhere
    execute, read, write, describe, combine = exec, os.read, os.write, str, combined
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = sys.modules["__main__"] = module
    random.seed(0)
    try:
        checks = compile(tests, "<tests>", "exec", dont_inherit=True)
        execute(compile(code, "<candidate>", "exec", dont_inherit=True), module.__dict__)
        execute(checks, module.__dict__)
    except BaseException as error:
        write(tell, f"!{type(error).__name__}: {describe(error)[:200]}".encode("utf-8", "replace")[:500])
    else:
        write(tell, combine(half, read(ask, 32)))


def main() -> None:
    """Set up, say so, serve."""
    del sys.path[0]  # our own folder, put there because this is a script
    for name in PRELOADED:
        __import__(name)
    level, stage = sys.argv[1:]
    try:
        server = Server(level, stage)
    except (OSError, AttributeError) as error:
        print(json.dumps({"ready": False, "reason": str(error)}), flush=True)
        return
    print(json.dumps({"ready": True}), flush=True)
    server.serve()


if __name__ == "__main__":
    main()
