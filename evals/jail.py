"""The inside of evals/sandbox.py: a program that runs candidate programs, one at a time, each in a jail.

It runs with an empty environment and imports the standard library only. Requests come as messages on stdin, a
job and then its tests, and verdicts leave as JSON lines on stdout; a candidate has neither of the two.

Processes, each the parent of the next: the *server* (this program), a *guard* for each candidate, in the
pid namespace an *init*, the *checker*, which runs the tests, and the *candidate* (evals/apart.py). When init
ends, the kernel kills whatever the candidate left behind. The verdict is the checker's word on a pipe that
the candidate never had; and the candidate can neither trace the checker nor read its memory, which is not
dumpable. The tests come when the candidate has been forked: they are not in its own memory either.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from evals.apart import Tests, ending, judge, receive, send

# Loaded once here, so that forked candidates have them at once, and have them where their user cannot read
# Python's library.
PRELOADED = (
    *("array", "bisect", "calendar", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal"),
    *("enum", "fractions", "functools", "hashlib", "heapq", "itertools", "json", "math", "operator", "queue"),
    *("random", "re", "statistics", "string", "struct", "textwrap", "threading", "typing", "unicodedata"),
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
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
SYS_CAPSET = {"x86_64": 126, "aarch64": 91}

#: Candidates of a root server run as a user of their own from here on (systemd's range for such users).
FIRST_UID, UIDS = 61184, 4000

#: Files and folders of a candidate in a namespace: each takes memory of the kernel's.
MAX_FILES = 1024

#: The checker's word for a program that passes; any other is ``!`` and a reason.
PASSED = b"+"

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
        if sys.platform == "linux":
            check(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")

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
        """Answer requests until stdin ends, which is read to the byte: see ``judge``."""
        while (job := receive(0)) is not None:
            print(json.dumps(self.judge(json.loads(job))), flush=True)

    def judge(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run one candidate under a guard, then fetch its tests; the guard's pipe carries the verdict."""
        reader, writer = os.pipe()
        tests = os.pipe()
        with self.folder() as folder:
            guard = os.fork()
            if guard == 0:
                os.close(reader)
                os.close(tests[1])
                answer = {"passed": False, "reason": "the guard failed"}
                try:
                    answer = Guard(self, job, folder, tests[0]).run()
                except BaseException as error:
                    answer["reason"] = f"the guard failed: {error!r}"
                finally:
                    os.write(writer, json.dumps(answer).encode())
                    os._exit(0)
            os.close(writer)
            os.close(tests[0])
            with contextlib.suppress(BrokenPipeError):
                send(tests[1], receive(0) or b"")
            os.close(tests[1])
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

    def __init__(self, server: Server, job: dict[str, Any], folder: str, tests: int) -> None:
        self.server, self.job, self.folder, self.tests = server, job, folder, tests
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
            options = f"size={self.limits['file_bytes']},nr_inodes={MAX_FILES},mode=700,uid={uid},gid={gid}"
            mount("tmpfs", self.folder, "tmpfs", MS_NOSUID | MS_NODEV, options)
        tell = os.pipe()  # the checker's word
        child = os.fork()
        if child == 0:
            (self.init if apart else self.checker)(tell[1])
        os.close(self.tests)
        os.close(tell[1])
        reply, status = self.listen(child, tell[0])
        self.sweep(child, status is None)
        if reply == PASSED:
            return {"passed": True, "reason": ""}
        return {"passed": False, "reason": self.reason(reply, status)}

    def listen(self, child: int, pipe: int) -> tuple[bytes, int | None]:
        """What the checker says, and the child's exit status if it ended first (None while it runs)."""
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
        if reply:
            return reply[1:].decode("utf-8", "replace")
        return "out of time" if status is None else ending(status)

    def init(self, tell: int) -> NoReturn:
        """Process 1 of the namespace: reaps, and ends with the checker, and the namespace with it."""
        status = 255
        try:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            child = os.fork()
            if child == 0:
                self.checker(tell)
            # the checker's ends of the pipes must be its alone
            os.close(tell)
            os.close(self.tests)
            while True:
                done, status = os.wait()
                if done == child:
                    break
            code = os.waitstatus_to_exitcode(status)
            status = code if code >= 0 else 128 - code
        finally:
            os._exit(status & 255)

    def checker(self, tell: int) -> NoReturn:
        """Give up every right, then let the program be tested by evals/apart.py."""
        try:
            os.setsid()
            self.confine(tell)
            reason = judge(self.job["code"], self.read_tests, (self.tests, tell))
            os.write(tell, b"!" + reason.encode("utf-8", "replace")[:500] if reason else PASSED)
        finally:
            os._exit(1)

    def read_tests(self) -> Tests:
        """See evals/apart.py."""
        given, tests, names = json.loads(receive(self.tests) or b"")
        return given, tests, names

    def confine(self, tell: int) -> None:
        """Limits, files, user and capabilities of the checker, and so of the candidate."""
        for stream in (0, 1, 2):
            os.dup2(self.server.null, stream)
        for fd in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else map(str, range(3, 256)):
            if int(fd) not in (0, 1, 2, self.tests, tell):
                with contextlib.suppress(OSError):
                    os.close(int(fd))
        os.chdir(self.folder)
        os.environ.clear()
        shared = 0 if self.server.root or self.server.level == "namespaces" else tasks()
        for limit, amount in (
            (resource.RLIMIT_AS, self.limits["memory_bytes"]),
            (resource.RLIMIT_CPU, self.limits["cpu_seconds"]),
            (resource.RLIMIT_FSIZE, self.limits["file_bytes"]),
            (resource.RLIMIT_NPROC, self.limits["processes"] + shared),
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


def tasks() -> int:
    """Processes and threads of this user, which RLIMIT_NPROC counts together (Linux; elsewhere 0)."""
    count = 0
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        if name.isdigit():
            with contextlib.suppress(OSError, KeyError, ValueError), open(f"/proc/{name}/status") as file:
                status = dict(line.split(":", 1) for line in file)
                if int(status["Uid"].split()[0]) == os.getuid():
                    count += int(status["Threads"])
    return count


def main() -> None:
    """Set up, say so, serve."""
    del sys.path[0]  # this project's folder
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
