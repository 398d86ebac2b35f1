"""Which kernels do the sparse work on a tensor: those made for its device, or the reference.

`reference.py` says what each kernel computes, in plain PyTorch, for every device; `cpu.py` does the same several times faster on
CPUs, and `gpu.py` on CUDA GPUs, where Triton is installed, as it is with PyTorch's builds for CUDA. Results agree up to the order of
additions, and where scores tie.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

Choice = Literal["fast", "reference"]

_choice: Choice = "fast"


@runtime_checkable
class Kernels(Protocol):
    """Shape letters: B rows (tokens), D columns (latents), N entries, R rows of a sum, M rows of a source of width d."""

    def entries_above(
        self, products: Float[Tensor, "B D"], bias: Float[Tensor, " D"], bound: Float[Tensor, " D"], most: int
    ) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"], Int[Tensor, " B_plus_1"]] | None:
        """Columns, values and row offsets of all values above their column's bound; None where there are more than `most`.

        A value is product + bias, in float32.
        """

    def largest_entries(
        self,
        columns: Int[Tensor, " N"],
        values: Float[Tensor, " N"],
        offsets: Int[Tensor, " B_plus_1"],
        scores: Float[Tensor, " N"],
        n: int,
    ) -> tuple[Int[Tensor, " M"], Float[Tensor, " M"], Int[Tensor, " B_plus_1"], Float[Tensor, ""]]:
        """Columns, values and row offsets of the n entries of largest score, and the smallest score among them.

        All entries where there are no more than n. Those that tie with the smallest are all kept, so M can exceed n. There is at least one.
        """

    def topk_rows(
        self, products: Float[Tensor, "B D"], bias: Float[Tensor, " D"], factors: Float[Tensor, " D"], k: int
    ) -> tuple[Int[Tensor, "B k"], Float[Tensor, "B k"]]:
        """Columns, ascending, and values of the k entries of every row for which value * factor is largest."""

    def sort_columns(
        self, columns: Int[Tensor, " N"], offsets: Int[Tensor, " B_plus_1"], n_columns: int
    ) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Int[Tensor, " D_plus_1"]]:
        """Entries sorted by column, rows ascending within one: their numbers, their rows, and the offsets of the columns."""

    def weighted_sums(
        self, offsets: Int[Tensor, " R_plus_1"], which: Int[Tensor, " N"], weights: Float[Tensor, " N"], source: Float[Tensor, "M d"]
    ) -> Float[Tensor, "R d"]:
        """Row r: the sum of weights[e] * source[which[e]] over the entries e from offsets[r] to offsets[r + 1]."""

    def dots(
        self, offsets: Int[Tensor, " R_plus_1"], which: Int[Tensor, " N"], rows: Float[Tensor, "R d"], source: Float[Tensor, "M d"]
    ) -> Float[Tensor, " N"]:
        """Entry e of row r: the inner product of rows[r] and source[which[e]]."""


def kernels_for(x: Tensor) -> Kernels:
    """The kernels for tensors on the device of `x`."""
    if has_fast_kernels(x):
        if x.device.type == "cpu":
            from sae_core.sparse.kernels import cpu

            return cpu
        from sae_core.sparse.kernels import gpu

        return gpu
    from sae_core.sparse.kernels import reference

    return reference


def has_fast_kernels(x: Tensor) -> bool:
    """Whether kernels made for the device of `x` are used."""
    return _choice == "fast" and (x.device.type == "cpu" or (x.device.type == "cuda" and _has_triton()))


def lists_are_faster(x: Tensor) -> bool:
    """Whether a loss that could see all pre-activations should see a list of those that matter, where they are few.

    On CPUs. On GPUs products of whole matrices cost little, and the length of a list would have to be waited for.
    """
    return _choice == "fast" and x.device.type == "cpu"


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def use_kernels(choice: Choice) -> None:
    """Use the fastest kernels there are, or the reference, from now on in this process."""
    global _choice
    _choice = choice


@contextmanager
def using_kernels(choice: Choice) -> Iterator[None]:
    """`use_kernels` for a block of code."""
    before = _choice
    use_kernels(choice)
    try:
        yield
    finally:
        use_kernels(before)
