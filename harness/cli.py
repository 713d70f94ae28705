"""The command line: read the request, hand it to the command that serves it, turn errors into one line.

Exit codes: 0 all asked for is there; 1 a cell failed or could not run; 2 wrong input; 130 stopped.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn

from dskd.method import MethodError
from harness import commands, launch, run, scales, tables, tracking
from harness.cluster import EngineError
from harness.commands import Options
from harness.launch import LaunchError
from harness.pairs import PairError
from harness.plan import PlanError, Request
from harness.references import ReferencesError
from harness.scales import ScaleError
from harness.shards import Shard, ShardError
from harness.store import StoreError
from harness.students import StudentError
from harness.tables import TableError
from harness.tracking import TrackerError

INPUT_ERRORS = (
    *(EngineError, LaunchError, MethodError, PairError, PlanError, ReferencesError, ScaleError, ShardError),
    *(StoreError, StudentError, TableError, TrackerError),
)
EXPORTS = ("md", "csv", "tex", "json")
STOPPED = 130

EPILOG = """\
examples:
  python reproduce.py --table 2                         table 2 on this machine
  python reproduce.py --table 2 --methods sft,kl --seeds 1
  python reproduce.py --table 1 --scale paper --dry-run what the published protocol would take
  python reproduce.py --teacher MODEL --student MODEL --methods sft,dskd-v2/kl --data DIR
  python reproduce.py --explain dskd-v2/srkl            what exactly is computed, and by whose authority
  python reproduce.py --check                           whether losses, records and tables are what they were
  python reproduce.py --compare HEAD~1 HEAD             what moved between two commits or results folders
  python reproduce.py --import FILE --source "Uni X"    show somebody else's record as external

A finished cell is never run again: after an interruption, the same command goes on.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(arguments)
    _heed_signals()
    if not sys.stderr.isatty():  # a log wants lines, and none of the libraries' bars
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if launch.rank():
        _hush(options.results / "work" / "logs" / f"process-{launch.rank()}.log")
    try:
        return _serve(options, arguments)
    except launch.AbandonedError as error:
        print(f"failed: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # the other processes are waiting; the launcher ends them when this one is gone
    except INPUT_ERRORS as error:
        print(f"reproduce.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:  # the reader, say `| head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"reproduce.py: {where}{error.strerror or error}", file=sys.stderr)
        return 1


def _hush(log: Path) -> None:
    """Of several processes only the main one speaks; the others write a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(handle, stream.fileno())
    os.close(handle)


def _heed_signals() -> None:
    """A polite kill and a closed terminal count as Ctrl-C; under nohup the latter stays ignored."""
    signal.signal(signal.SIGTERM, _interrupt)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """See _heed_signals."""
    raise KeyboardInterrupt


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def parser() -> argparse.ArgumentParser:
    """All options, in the groups a reader looks for them."""
    root = _Parser(
        prog="reproduce.py",
        description="Reproduce the tables of Dual-Space Knowledge Distillation, or run your own pair.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _what(root.add_argument_group("what to do"))
    _which(root.add_argument_group("which cells"))
    _own(root.add_argument_group("a pair of your own"))
    _how(root.add_argument_group("how"))
    return root


def _what(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--table",
        metavar="T",
        help="1, 2, 3, math, code, or paper:table such as dskd-v1:2; several with commas",
    )
    group.add_argument("--list", action="store_true", help="methods, tables, suites and pairs")
    group.add_argument(
        "--dry-run", action="store_true", help="cells, what is cached, time, and what cannot run and why"
    )
    group.add_argument(
        "--doctor", action="store_true", help="what is wrong or will surprise, with remedies, before any run"
    )
    group.add_argument(
        "--teacher-pass",
        action="store_true",
        help="only what teachers do before training: their hidden states and texts, kept for the cells",
    )
    group.add_argument("--rescore", action="store_true", help="score stored answers again, without a model")
    group.add_argument("--leaderboard", action="store_true", help="write one HTML page from all records")
    group.add_argument("--explain", metavar="ADDRESS", help="a method's page of the convention ledger")
    group.add_argument(
        "--conformance",
        metavar="ADDRESS",
        nargs="?",
        const="",
        help="check a method (or all) against the contract",
    )
    group.add_argument(
        "--save-student",
        metavar="CELL",
        help="save the student of a finished cell as a model folder, trained again if it was not kept",
    )
    group.add_argument(
        "--fetch", metavar="WHAT", help="small (all it needs), small:NAME, data, a hub name, or a .gguf file"
    )
    group.add_argument(
        "--merge",
        metavar="DIR",
        type=Path,
        nargs="+",
        help="bring the records of other --results folders into this one",
    )
    group.add_argument(
        "--check",
        metavar="TIER",
        nargs="?",
        const="0",
        choices=("0", "1", "2"),
        help="hold results against references: 0 losses and records (default), 1 also cells trained anew, "
        "2 also at small",
    )
    group.add_argument(
        "--accept", action="store_true", help="make results and losses of now the references; needs --reason"
    )
    group.add_argument("--reason", metavar="TEXT", help="why the references change; kept in their file")
    group.add_argument(
        "--compare", metavar=("A", "B"), nargs=2, help="differences between two results folders or commits"
    )
    group.add_argument(
        "--import",
        metavar="FILE",
        nargs="+",
        type=Path,
        help="take in records from elsewhere, to be shown as external and counted nowhere; needs --source",
    )
    group.add_argument("--source", metavar="NAME", help="whose records --import takes in")


def _which(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--scale",
        choices=scales.SCALES,
        help="default: tiny; an own pair: small",
    )
    group.add_argument(
        "--methods", metavar="A,B", type=_words, default=(), help="rows by address, name or label"
    )
    group.add_argument(
        "--pairs", metavar="P,Q", type=_words, default=(), help="pairs by name, or same, cross"
    )
    group.add_argument(
        "--seeds",
        metavar="S",
        type=_seeds,
        default=(),
        help="training seeds 1,2,3, or one number N for 1..N",
    )
    group.add_argument(
        "--budget",
        metavar="K=V,..",
        type=_budget,
        default={},
        help="examples=, epochs=, prompts= ..: kept in the cell",
    )
    group.add_argument(
        "--shard", metavar="I/N", type=_shard, help="share I of N of the cells: for arrays of machines"
    )


def _own(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--teacher", metavar="MODEL", help="folder, hub name, or tiny:/small: reference")
    group.add_argument("--student", metavar="MODEL", help="the same; --methods says what to run")
    group.add_argument(
        "--plugin",
        metavar="FILE",
        action="append",
        default=[],
        help="Python file with a method of your own",
    )


def _how(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--data", metavar="DIR", type=Path, help="folder of suites and training files")
    group.add_argument(
        "--results", metavar="DIR", type=Path, default=Path("results"), help="default: results/"
    )
    group.add_argument(
        "--cache",
        metavar="DIR",
        type=Path,
        help="models and teacher states; default: $DSKD_CACHE or .cache/",
    )
    group.add_argument(
        "--jobs", metavar="N", type=_count, help="cells side by side; default: what the machine can bear"
    )
    group.add_argument(
        "--keep-students", action="store_true", help="save every student trained now in RESULTS/students"
    )
    group.add_argument(
        "--output",
        metavar="PATH",
        type=Path,
        help="of --leaderboard (RESULTS/leaderboard.html) or --save-student (RESULTS/students/CELL)",
    )
    group.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="where: this machine, or a Ray cluster"
    )
    group.add_argument(
        "--tracker", choices=tracking.TRACKERS, help="log losses, rates and scores of what runs there too"
    )
    group.add_argument("--export", choices=EXPORTS, help="print the tables in this format")
    group.add_argument(
        "--reference", action="store_true", help="plain heads, whole logits: slow, to check the tiled ones"
    )
    group.add_argument(
        "--allow-unsafe",
        action="store_true",
        help="run programs written by models although this machine has no namespaces to lock them in",
    )
    group.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python files that a model's folder brings; read them first",
    )


def _words(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise argparse.ArgumentTypeError("is empty")
    return words


def _seeds(text: str) -> tuple[int, ...]:
    """``1,2,3`` as it stands; a single number N means 1 to N."""
    try:
        numbers = [int(word) for word in _words(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers") from None
    if min(numbers) < 1 or len(set(numbers)) < len(numbers) or max(numbers) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text!r}: seeds are different whole numbers from 1 on")
    if len(numbers) == 1 and "," not in text:
        if numbers[0] > 100:
            raise argparse.ArgumentTypeError(
                f"{text} seeds are too many; for the one seed {text} write {text},"
            )
        return tuple(range(1, numbers[0] + 1))
    return tuple(numbers)


def _budget(text: str) -> dict[str, float]:
    try:
        return scales.parse_overrides(text)
    except ScaleError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _shard(text: str) -> Shard:
    try:
        return Shard.parse(text)
    except ShardError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 1 or more")
    return int(text)


def _serve(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Choose the command. Exactly one thing is done; a request without one is wrong input."""
    single: dict[str, Callable[[], int]] = {
        "list": lambda: commands.listing(options.plugin),
        "explain": lambda: commands.explain(options.explain, options.plugin),
        "conformance": lambda: commands.conformance(options.conformance, options.plugin),
        "fetch": lambda: commands.fetch(options.fetch, _cache(options)),
        "merge": lambda: commands.merge(options.merge, options.results),
        "check": lambda: _upkeep().check(options.check, _chosen(options, arguments)),
        "compare": lambda: _upkeep().compare(*options.compare, _chosen(options, arguments)),
        "import": lambda: _upkeep().take_in(
            getattr(options, "import"), options.source, _chosen(options, arguments)
        ),
        "accept": lambda: _upkeep().accept(options.reason or "", _chosen(options, arguments)),
        "save_student": lambda: commands.save_student(
            options.save_student, options.output, _settings(options, arguments), options.jobs
        ),
        "leaderboard": lambda: _leaderboard(options),
    }
    asked = [name for name in single if getattr(options, name) not in (None, False)]
    own = options.teacher is not None or options.student is not None
    _check_together(options, asked)
    if options.doctor and not asked and not (options.table or own):
        return commands.doctor(None, Options(_settings(options, arguments), 1, None))
    if len(asked) + bool(options.table or own) != 1:
        several = ", ".join(map(_flag, single))
        raise PlanError(f"ask for one of --table (or --teacher and --student), {several}; see --help")
    if asked:
        if launch.together():
            raise LaunchError("processes of a launch only train; run this command without accelerate launch")
        return single[asked[0]]()
    request = _request(options)
    chosen = _chosen(options, arguments, request.scale)
    tracking.check(options.tracker)
    way = next((way for name, way in _WAYS.items() if getattr(options, name)), commands.reproduce)
    return way(request, chosen)


#: What may be done with a table or a pair of one's own, instead of running it.
_WAYS: dict[str, Callable[[Request, Options], int]] = {
    "doctor": commands.doctor,
    "dry_run": commands.dry_run,
    "rescore": commands.rescore,
    "teacher_pass": commands.teacher_first,
}


def _check_together(options: argparse.Namespace, asked: Sequence[str]) -> None:
    """Refuse options that say nothing beside the others; ``asked``: what is to be done without a table."""
    ways = [_flag(name) for name in _WAYS if getattr(options, name)]
    if len(ways) > 1:
        raise PlanError(f"{' and '.join(ways)} are two things to do; ask for one of them")
    if ways and asked:
        raise PlanError(f"{ways[0]} goes with --table or a pair of your own, not with {_flag(asked[0])}")
    if options.output is not None and not options.leaderboard and options.save_student is None:
        raise PlanError("--output belongs to --save-student and --leaderboard")
    if options.source is not None and getattr(options, "import") is None:
        raise PlanError("--source goes with --import")
    if getattr(options, "import") is not None and options.source is None:
        raise PlanError("--import needs --source NAME: whose records are these?")
    if options.compare and options.export == "tex":
        raise PlanError("--compare prints md, csv or json, not tex")
    if options.reason is not None and not options.accept:
        raise PlanError("--reason goes with --accept")
    if options.tracker is not None and asked:
        raise PlanError("--tracker goes with --table or a pair of your own")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _leaderboard(options: argparse.Namespace) -> int:
    results = options.results.resolve()
    target = (options.output or results / "leaderboard.html").resolve()
    if not any((results / name).is_dir() for name in ("records", "external")):
        raise PlanError(f"--results {options.results} holds no records")
    if target.is_dir() or not os.access(_first_folder(target), os.W_OK):
        raise PlanError(f"--output {options.output or target} cannot be written")
    if options.data is not None and not options.data.is_dir():
        raise PlanError(f"--data {options.data} is no folder")
    return commands.leaderboard(
        results, target, _cache(options), scale=options.scale, data=options.data, plugins=options.plugin
    )


def _first_folder(path: Path) -> Path:
    """The nearest folder above a path that exists."""
    return next(folder for folder in path.parents if folder.exists())


def _upkeep() -> ModuleType:
    """Only these commands need it, and it needs more than the others."""
    from harness import upkeep

    return upkeep


def _chosen(options: argparse.Namespace, arguments: Sequence[str], scale: str = "tiny") -> Options:
    engine = _engine(options)
    jobs = options.jobs or run.default_jobs(scale, engine)
    return Options(_settings(options, arguments), jobs, options.export, engine)


def _engine(options: argparse.Namespace) -> run.Engine:
    if not launch.together():
        return "ray" if options.engine == "ray" else "local"
    if options.engine == "ray":
        raise LaunchError("processes of a launch work together; --engine ray is for single ones")
    launch.check()
    return "launched"


def _request(options: argparse.Namespace) -> Request:
    if (options.teacher is None) != (options.student is None):
        raise PlanError("--teacher and --student go together")
    if options.data is not None and not options.data.is_dir():
        raise PlanError(f"--data {options.data} is no folder")
    names = _words(options.table) if options.table else ()
    for name in names:
        tables.load(name)
    return Request(
        scale=options.scale or _default_scale(options),
        tables=names,
        methods=options.methods,
        pairs=options.pairs,
        seeds=options.seeds,
        budget=options.budget,
        teacher=options.teacher,
        student=options.student,
        data=options.data,
        cache=_cache(options),
        reference=options.reference,
        shard=options.shard,
        teacher_pass=options.teacher_pass,
    )


def _default_scale(options: argparse.Namespace) -> str:
    """Tiny needs nothing; an own pair of real models is small."""
    if options.teacher is None:
        return "tiny"
    models = (options.teacher, options.student)
    return "tiny" if all(ref.startswith("tiny:") for ref in models) else "small"


def _cache(options: argparse.Namespace) -> Path:
    return (options.cache or run.default_cache()).resolve()


def _settings(options: argparse.Namespace, arguments: Sequence[str]) -> run.Settings:
    return run.Settings(
        results=options.results.resolve(),
        cache=_cache(options),
        data=options.data.resolve() if options.data else None,
        reference=options.reference,
        allow_unsafe=options.allow_unsafe,
        trust_remote_code=options.trust_remote_code,
        command=shlex.join(["python", "reproduce.py", *arguments]),
        plugins=tuple(str(Path(file).resolve()) for file in options.plugin),
        keep_students=options.keep_students,
        tracker=options.tracker,
    )
