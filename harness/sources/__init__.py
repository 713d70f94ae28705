"""Models and data: a local folder, a package that carries them, the hub; and ``--fetch``.

Importing this loads neither torch nor transformers.
"""

from __future__ import annotations

from harness.sources.catalogue import SourceError
from harness.sources.datasets import DataFile, data_files, data_root
from harness.sources.fetching import fetch
from harness.sources.resolving import Resolution, resolve

__all__ = ["DataFile", "Resolution", "SourceError", "data_files", "data_root", "fetch", "resolve"]
