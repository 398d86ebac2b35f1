"""Activations of one's own, in a file: a matrix with one row per token, as NumPy, PyTorch, safetensors or Parquet save it.

Training reads the first `train_tokens` rows, evaluation the last `eval_tokens`. Files are memory-mapped; Parquet, which cannot be, is
written as .npy into the cache first. A shard is a sample of the whole file: blocks of consecutive rows, one to each shard in turn.
Shape letters: N rows, d_in width of the activations, d_out that of the targets.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor

from sae_core.activations.files import save_tensors
from sae_core.activations.source import ActivationSource, EvalChunk
from sae_core.config.base import require
from sae_core.config.run import SOURCES, ActivationsConfig
from sae_core.errors import ConfigError, border
from sae_core.files import written_whole

BLOCK_ROWS = 256
"""Consecutive rows that stay together: reading them is one access to the disk."""


class FileActivations(ActivationsConfig):
    """Rows of a file, the held-out ones last."""

    source: Literal["file"] = "file"
    path: str
    """A .npy, .safetensors, .parquet or .pt file with at least `train_tokens` + `eval_tokens` rows."""
    column: str | None = None
    """Which tensor of a .safetensors file, or column of a .parquet file; None: the only one."""
    target: str | None = None
    """For transcoders: another such file, with what is to be reconstructed from each row of `path`; it may be the same file."""
    target_column: str | None = None
    """As `column`, of `target`."""

    @model_validator(mode="after")
    def _target_column_has_a_target(self) -> Self:
        rule = f"`target_column` must come with `target`, but got target_column={self.target_column!r} alone. Name the file in `target`."
        require(self.target is not None or self.target_column is None, rule)
        return self

    @classmethod
    def example(cls) -> Self:
        directory = Path(tempfile.mkdtemp())
        x = torch.randn(6_000, 8, generator=torch.Generator().manual_seed(0))
        return cls(**save_activations(directory / "rows.safetensors", x, eval_tokens=1_000))


def save_activations(
    path: str | Path, x: Float[Tensor, "... d_in"], *, target: Float[Tensor, "... d_out"] | None = None, eval_tokens: int
) -> dict[str, Any]:
    """Write activations in memory as a .safetensors file, for a sweep: the section `activations` of a definition.

    Args:
        x: rows along all axes but the last, such as [text, position, width].
        target: what transcoders reconstruct from x, row by row.
        eval_tokens: held-out rows, the last ones; all others are trained on.

    Raises:
        ConfigError: the path ends otherwise, there are too few rows, or not as many targets.
    """
    if _ending(str(path)) != ".safetensors":
        raise ConfigError(f"`path` must end in .safetensors, but got {str(path)!r}. Rename it.")
    rows = {"x": _flattened("x", x)} if target is None else {"x": _flattened("x", x), "target": _flattened("target", target)}
    n_rows = len(rows["x"])
    if not 0 < eval_tokens < n_rows:
        rule = f"`eval_tokens` must be above 0 and below the number of rows, which is {n_rows}, but got {eval_tokens}"
        raise ConfigError(f"{rule}. The others are trained on: leave some.")
    if target is not None:
        if len(rows["target"]) != n_rows:
            raise ConfigError(f"every row of `x` must have its target, but got {n_rows} rows and {len(rows['target'])} targets. Pair them.")
        if rows["target"].untyped_storage().data_ptr() == rows["x"].untyped_storage().data_ptr():
            rows["target"] = rows["target"].clone()  # safetensors writes no memory twice
    save_tensors(Path(path), rows)
    where = {"source": "file", "path": str(Path(path).absolute()), "column": "x"}
    sizes = {"train_tokens": n_rows - eval_tokens, "eval_tokens": eval_tokens}
    return where | ({} if target is None else {"target": where["path"], "target_column": "target"}) | sizes


def _flattened(name: str, tensor: Float[Tensor, "... width"]) -> Float[Tensor, "N width"]:
    if tensor.ndim < 2:
        raise ConfigError(f"`{name}` must have shape [..., width], but got {list(tensor.shape)}. Give it one row per token.")
    return tensor.detach().cpu().flatten(0, -2).contiguous()


class Rows:
    """A matrix in a file, of which only what is asked for is read.

    Args:
        read: rows from one number up to another.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str, read: Callable[[int, int], Tensor]) -> None:
        self.shape, self.dtype, self.read = shape, dtype, read


@SOURCES.register("file")
class FileSource(ActivationSource):
    """Rows of a .npy, .safetensors, .parquet or .pt file."""

    Config = FileActivations
    path_fields = (("path",), ("target",))
    target_field = ("target",)
    config: FileActivations

    @property
    def d_in(self) -> int:
        return self._parts[0].shape[1]

    @property
    def d_out(self) -> int | None:
        return self._parts[1].shape[1] if len(self._parts) > 1 else None

    @property
    def activations_dtype(self) -> str:
        dtypes = {part.dtype for part in self._parts}
        return dtypes.pop() if dtypes in ({"float16"}, {"bfloat16"}) else "float32"

    def check(self) -> None:
        super().check()
        problems = []
        for name, part in zip(("path", "target"), self._parts, strict=False):
            if len(part.shape) != 2 or not part.dtype.startswith(("float", "bfloat", "int", "uint")):
                rule = f"`activations.{name}` must hold real numbers of shape [tokens, width], but got {part.dtype} of {list(part.shape)}"
                problems.append(f"{rule}. Flatten all axes but the last.")
            elif part.shape[1] == 0:
                rule = f"`activations.{name}` must have at least one number per row, but got shape {list(part.shape)}"
                problems.append(f"{rule}. Save the activations again.")
        if problems:
            raise ConfigError("\n".join(problems))
        n_rows, n_needed = self._parts[0].shape[0], self.config.train_tokens + self.config.eval_tokens
        if n_rows < n_needed:
            rule = f"`activations.path` must have train_tokens + eval_tokens = {n_needed} rows, but got {n_rows} in {self.config.path!r}"
            problems.append(f"{rule}. Lower `train_tokens` or `eval_tokens`.")
        if len(self._parts) > 1 and self._parts[1].shape[0] != n_rows:
            rule = f"every row of `activations.path` must have its target, but got {n_rows} rows and {self._parts[1].shape[0]} targets"
            problems.append(f"{rule}. Pair them.")
        if problems:
            raise ConfigError("\n".join(problems))

    def prepare(self, directory: Path) -> None:
        for path, column, copy in self._files(directory):
            if _ending(path) == ".parquet" and not copy.exists():
                with border(f"{path!r} must be readable as Parquet", "Correct `activations.path`, or write the file again."):
                    _copy_parquet(Path(path), column, copy)

    def shard(self, directory: Path, index: int) -> Float[Tensor, "N width"]:
        n_shards, n_rows = self.n_shards(directory), self.config.train_tokens
        starts = range(index * BLOCK_ROWS, n_rows, n_shards * BLOCK_ROWS)
        return torch.cat([self._rows(directory, start, min(start + BLOCK_ROWS, n_rows)) for start in starts])

    def eval_chunk(self, directory: Path, index: int, mean: Float[Tensor, " d_out"]) -> EvalChunk:
        start, stop = self.eval_span(index)
        first = self._parts[0].shape[0] - self.config.eval_tokens
        rows = self._rows(directory, first + start, first + stop).to(self.device)
        return EvalChunk(rows[:, : self.d_in], target=rows[:, self.d_in :] if self.d_out else None)

    def _rows(self, directory: Path, start: int, stop: int) -> Float[Tensor, "N width"]:
        """Rows `start` to `stop` of the file, those of the target beside them.

        Raises:
            ConfigError: a value is not finite.
        """
        opened = [
            open_rows(str(copy), None) if _ending(path) == ".parquet" else part
            for part, (path, _, copy) in zip(self._parts, self._files(directory), strict=True)
        ]
        rows = torch.cat([part.read(start, stop).float() for part in opened], dim=1)
        broken = (~rows.isfinite().all(dim=1)).nonzero().flatten()
        if len(broken):
            raise ConfigError(
                f"activations must be finite, but got NaN or infinity in row {start + int(broken[0])} of {self.config.path!r} or its "
                "target. Leave such rows out, or correct what made them."
            )
        return rows

    def _files(self, directory: Path) -> list[tuple[str, str | None, Path]]:
        """Path and column of each file, and where its rows lie as .npy if it is Parquet."""
        files = [(self.config.path, self.config.column, directory / "rows.npy")]
        if self.config.target is not None:
            files.append((self.config.target, self.config.target_column, directory / "targets.npy"))
        return files

    @cached_property
    def _parts(self) -> list[Rows]:
        return [open_rows(path, column) for path, column, _ in self._files(Path())]


def _ending(path: str) -> str:
    return Path(path).suffix.lower()


def open_rows(path: str, column: str | None) -> Rows:
    """The matrix in a file.

    Args:
        column: which tensor or column, where a file has several.

    Raises:
        ConfigError: there is none, or several and no `column`.
    """
    openers = {".npy": _open_numpy, ".pt": _open_torch, ".safetensors": _open_safetensors, ".parquet": _open_parquet}
    opener = openers.get(_ending(path))
    if opener is None:
        raise ConfigError(f"`activations.path` must end in one of {list(openers)}, but got {path!r}. Save the activations as one of them.")
    with border(f"{path!r} must hold activations", "Correct `activations.path`, or save the file again."):
        return opener(path, column)


def _open_numpy(path: str, column: str | None) -> Rows:
    _check_no_column(path, column)
    array = np.lib.format.open_memmap(path, mode="r")
    native = array.dtype.newbyteorder("=")  # PyTorch knows no other order of bytes
    return Rows(array.shape, array.dtype.name, lambda start, stop: torch.from_numpy(np.array(array[start:stop], dtype=native)))


def _open_torch(path: str, column: str | None) -> Rows:
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if isinstance(content, dict):
        content = content[_only(path, list(content), column)]
    else:
        _check_no_column(path, column)
    if not isinstance(content, Tensor):
        raise ConfigError(f"{path!r} must hold a tensor, but got {type(content).__name__}. Save the tensor alone.")
    if content.layout is not torch.strided:
        raise ConfigError(f"{path!r} must hold a dense tensor, but got one of layout {content.layout}. Save its `to_dense()`.")
    return Rows(tuple(content.shape), str(content.dtype).removeprefix("torch."), lambda start, stop: content[start:stop])


def _open_safetensors(path: str, column: str | None) -> Rows:
    from safetensors import safe_open

    file = safe_open(path, framework="pt")
    tensor = file.get_slice(_only(path, list(file.keys()), column))
    dtype = str(tensor[:0].dtype).removeprefix("torch.")
    return Rows(tuple(tensor.get_shape()), dtype, lambda start, stop: tensor[start:stop])


def _open_parquet(path: str, column: str | None) -> Rows:
    """Its shape and type; rows are read from the copy of `prepare`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    name = _only(path, file.schema_arrow.names, column)
    kind = file.schema_arrow.field(name).type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise ConfigError(f"column {name!r} of {path!r} must hold a list of numbers per row, but got {kind}. Name another in `column`.")
    first = next(file.iter_batches(1, columns=[name]), None)
    width = len(first.column(0)[0].as_py() or []) if first is not None and len(first) else 0
    numpy_type = np.dtype(kind.value_type.to_pandas_dtype()).name
    _check_number_of_values(path, name, width)

    def read(start: int, stop: int) -> Tensor:
        raise ValueError(f"rows of {path!r} must be read after `prepare`.")

    return Rows((file.metadata.num_rows, width), numpy_type, read)


def _check_number_of_values(path: str, name: str, width: int) -> None:
    """Read those row groups only whose metadata tell that rows differ in length. Differences that cancel out show when copied."""
    import pyarrow.parquet as pq

    metadata, start = pq.read_metadata(path), 0
    # A leaf of a list is "<name>.list.element"; older writers' names are not looked for.
    leaves = [leaf for leaf in range(metadata.num_columns) if metadata.schema.column(leaf).path.rsplit(".", 2)[0] == name]
    for group in range(metadata.num_row_groups if len(leaves) == 1 and width else 0):
        n_rows = metadata.row_group(group).num_rows
        if metadata.row_group(group).column(leaves[0]).num_values != n_rows * width:
            for _ in _parquet_rows(path, name, width, groups=[group], start=start):
                pass
        start += n_rows


def _parquet_rows(
    path: str, name: str, width: int, groups: Sequence[int] | None = None, start: int = 0
) -> Iterator[tuple[int, np.ndarray]]:
    """A column of lists in batches, each with the number of its first row.

    Args:
        groups: row groups to read; None: all.
        start: number of the first row in them.

    Raises:
        ConfigError: a row has another number of values than `width`, or one of them is missing.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches(columns=[name], row_groups=groups):
        lists = batch.column(0)
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        others = np.flatnonzero(lengths != width)
        if len(others):
            rule = f"every row of column {name!r} in {path!r} must have {width} numbers, as its first row"
            raise ConfigError(f"{rule}, but got {lengths[others[0]]} in row {start + others[0]}. Correct the file.")
        values = lists.flatten()
        if values.null_count:
            row = start + int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]) // width
            raise ConfigError(f"column {name!r} of {path!r} must have no missing values, but got null in row {row}. Correct the file.")
        yield start, values.to_numpy(zero_copy_only=False).reshape(len(batch), width)
        start += len(batch)


def _copy_parquet(path: Path, column: str | None, copy: Path) -> None:
    """Write a column of lists as .npy, a batch of rows at a time."""
    import pyarrow.parquet as pq

    rows = _open_parquet(str(path), column)
    name = _only(str(path), pq.ParquetFile(path).schema_arrow.names, column)
    with written_whole(copy) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=rows.dtype, shape=rows.shape)
        for start, values in _parquet_rows(str(path), name, rows.shape[1]):
            array[start : start + len(values)] = values
        array.flush()


def _only(path: str, names: list[str], column: str | None) -> str:
    """The tensor or column meant."""
    if column in names:
        return str(column)
    if column is None and len(names) == 1:
        return names[0]
    rule = "`column` must name a tensor or column of the file" if column is not None else "`column` must be given where a file has several"
    raise ConfigError(f"{rule}, but got column={column!r} for {path!r}, which has {sorted(names)}. Name one of them.")


def _check_no_column(path: str, column: str | None) -> None:
    if column is not None:
        raise ConfigError(f"`column` must be left out where a file holds one matrix, but got column={column!r} for {path!r}. Remove it.")
