"""Reproduce the tables: ``python reproduce.py --help``."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from harness.cli import main

        sys.exit(main())
    except KeyboardInterrupt:  # so early that nothing had begun
        print("stopped", file=sys.stderr)
        sys.exit(130)
