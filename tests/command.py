"""The command line, called in this process."""

from __future__ import annotations

import pytest

from harness import cli


def reproduce(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``reproduce.py`` with these arguments."""
    try:
        code = cli.main(arguments)
    except SystemExit as stopped:
        code = int(str(stopped.code))
    said = capsys.readouterr()
    return code, said.out, said.err
