"""Torch, imported at its first use.

Listing methods, planning a grid and explaining a formula must not wait for torch, so every module
that describes methods takes it from here: ``from dskd.lazy import torch``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch  # noqa: PLC0414 - the alias exports it
else:

    class _Torch:
        def __getattr__(self, name: str) -> Any:
            import torch as module

            return getattr(module, name)

    torch = _Torch()
