"""Which kernels do the sparse work on a tensor.

`reference.py` has the kernels in plain PyTorch, for every device; `cpu.py` does the same several times faster on CPUs; `gpu.py` has two of
them in Triton, for CUDA. Results agree up to the order of additions, and where scores tie.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_core.errors import ConfigError

Choice = Literal["fast", "triton", "reference"]
"""fast: compiled kernels on CPUs, plain PyTorch on GPUs. triton: also Triton kernels on CUDA. reference: plain PyTorch everywhere."""
Used = Literal["cpu", "torch", "triton", "reference"]

_choice: Choice = "fast"


@runtime_checkable
class Kernels(Protocol):
    """Shape letters: B rows (tokens), D columns (latents), N entries, R rows of a sum, M rows of a source of width d."""

    def values_above(
        self, products: Float[Tensor, "B D"], bias: Float[Tensor, " D"], bound: Float[Tensor, " D"], most: int
    ) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"], Int[Tensor, " B_plus_1"]] | None:
        """Columns, values and row offsets of all values above their column's bound; None where there are more than `most`.

        A value is product + bias, in float32.
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
        self, offsets: Int[Tensor, " R_plus_1"], indices: Int[Tensor, " N"], weights: Float[Tensor, " N"], source: Float[Tensor, "M d"]
    ) -> Float[Tensor, "R d"]:
        """Row r: the sum of weights[e] * source[indices[e]] over the entries e from offsets[r] to offsets[r + 1]."""

    def dots(
        self, offsets: Int[Tensor, " R_plus_1"], indices: Int[Tensor, " N"], rows: Float[Tensor, "R d"], source: Float[Tensor, "M d"]
    ) -> Float[Tensor, " N"]:
        """Entry e of row r: the inner product of rows[r] and source[indices[e]]."""


def kernels_used(device: torch.device) -> Used:
    """Name of the kernels that do the sparse work on a device, for records."""
    if _choice == "reference":
        return "reference"
    if device.type == "cpu":
        return "cpu"
    return "triton" if _choice == "triton" and device.type == "cuda" else "torch"


def kernels_for(x: Tensor) -> Kernels:
    """The kernels for tensors on the device of `x`."""
    match kernels_used(x.device):
        case "cpu":
            from sae_core.sparse.kernels import cpu

            return cpu
        case "triton":
            from sae_core.sparse.kernels import gpu

            return gpu
    from sae_core.sparse.kernels import reference

    return reference


def sparse_is_faster(x: Tensor) -> bool:
    """Whether a loss that could see all pre-activations should see only those that matter, where they are few.

    On CPUs. On GPUs products of whole matrices cost little, and the number of active latents would have to be waited for.
    """
    return kernels_used(x.device) == "cpu"


def use_kernels(choice: Choice) -> None:
    """Use these kernels from now on in this process.

    Raises:
        ConfigError: Triton is chosen and not installed.
    """
    global _choice
    if choice == "triton" and find_spec("triton") is None:
        raise ConfigError("Triton must be installed for `kernels` to be 'triton', but it is not. Install it, or use 'fast'.")
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
