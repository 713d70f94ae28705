"""Fills the registry: the built-in methods and those of plugin files."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from dskd.method import Method, MethodError

BUILT_IN = (
    "baselines.supervised",
    "baselines.logit",
    "baselines.cross_tokenizer",
    "baselines.chunks",
    "baselines.transport",
    "baselines.on_policy",
    "dskd.dual_space",
    "dskd.cross_model_attention",
    "dskd.key_query_matching",
    "dskd.exact_alignment",
    "dskd.gated",
)


#: Modules made from plugin files begin so.
PLUGIN = "dskd_plugin_"


def plugin_file(method: Method) -> Path | None:
    """The file a method of the user's own comes from; None for a built-in one."""
    module = type(method).__module__
    return Path(str(sys.modules[module].__file__)) if module.startswith(PLUGIN) else None


def load(plugins: Sequence[str | Path] = ()) -> None:
    """Import every built-in method and the given files; a file is imported once, by its resolved path.

    Raises MethodError where a plugin does not exist or cannot be imported, with the reason.
    """
    for module in BUILT_IN:
        importlib.import_module(module)
    for plugin in plugins:
        _load_file(Path(plugin))


def module_name(file: Path) -> str:
    """The name a plugin file is imported under."""
    return PLUGIN + "".join(c if c.isalnum() else "_" for c in str(file.resolve()))


def _load_file(file: Path) -> None:
    name = module_name(file)
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, file) if file.is_file() else None
    if spec is None or spec.loader is None:
        raise MethodError(f"plugin {file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before running it: dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise MethodError(f"plugin {file} cannot be imported: {type(error).__name__}: {error}") from error
