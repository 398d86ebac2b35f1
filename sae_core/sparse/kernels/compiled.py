"""How a function becomes machine code by Numba, and gets its rows and arrays."""

import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch
from numba.extending import intrinsic
from torch import Tensor

ROWS_PER_THREAD = 256
"""Fewer are not worth waking a thread for."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Additions in any order, and fused multiply-adds: without them no sum is vectorised. NaN and infinity keep their meaning."""
    options: dict[str, Any] = {"nogil": True, "boundscheck": False, "fastmath": {"nsz", "contract", "reassoc", "arcp"}}
    plain = inspect.unwrap(function)  # the function itself, also where checks of types were put around it
    try:
        return numba.njit(plain, cache=True, **options)
    except RuntimeError:  # neither this directory nor the user's cache can be written to: each process compiles anew
        return numba.njit(plain, **options)


def instruction(function: Callable[..., Any]) -> Any:
    """A function in LLVM's own terms, for what LLVM does not make well of a loop."""
    return intrinsic(function)


def array(x: Tensor) -> np.ndarray:
    """The numbers of a tensor, in its memory where that is contiguous."""
    numbers: np.ndarray = x.detach().contiguous().numpy()
    return numbers


def over_rows(kernel: Callable[..., Any], n_rows: int, *arguments: Any) -> list[Any]:
    """What `kernel(first, last, *arguments)` returns, in calls that share the threads; every row is in one of them, in order."""
    n_threads = min(torch.get_num_threads(), max(1, n_rows // ROWS_PER_THREAD))
    if n_threads == 1:
        return [kernel(0, n_rows, *arguments)]
    cuts = [n_rows * part // n_threads for part in range(n_threads + 1)]
    calls = [_threads(n_threads).submit(kernel, first, last, *arguments) for first, last in pairwise(cuts[1:])]
    return [kernel(cuts[0], cuts[1], *arguments), *(call.result() for call in calls)]


@cache
def _threads(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n)
