"""Sorted probabilities, faster than torch sorts them on a CPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from dskd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def descending(values: Tensor) -> Tensor:
    """The rows of ``values`` (n, k), each in descending order; their gradient is not followed.

    torch carries the places along, whether asked for or not. NumPy's vectorised sort of the values
    alone takes a third of that time, and gives the same numbers.
    """
    if values.device.type != "cpu" or values.dtype != torch.float32:
        return values.detach().sort(dim=-1, descending=True).values
    rows = values.detach().neg()
    chunks = np.array_split(rows.numpy(), torch.get_num_threads())
    with ThreadPoolExecutor(len(chunks)) as pool:  # NumPy sorts outside of Python's lock
        list(pool.map(lambda chunk: chunk.sort(axis=-1), chunks))
    return rows.neg_()
