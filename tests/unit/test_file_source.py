"""The source `file`: a matrix on disk, in each format, as training and held-out rows."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from sae_core.activations.file import FileActivations, FileSource, save_activations
from sae_core.errors import ConfigError

N_ROWS, D_IN = 70_000, 4
ROWS = torch.arange(N_ROWS * D_IN, dtype=torch.float32).view(N_ROWS, D_IN)


def written(directory: Path, ending: str, rows: torch.Tensor = ROWS) -> Path:
    path = directory / f"rows{ending}"
    match ending:
        case ".npy":
            np.save(path, rows.numpy())
        case ".pt":
            torch.save(rows, path)
        case ".safetensors":
            save_file({"acts": rows}, path)
        case ".parquet":
            pq.write_table(pa.table({"acts": pa.FixedSizeListArray.from_arrays(rows.numpy().ravel(), rows.shape[1])}), path)
    return path


def source(path: Path, **fields: object) -> FileSource:
    made = FileSource(FileActivations(**{"path": str(path), "train_tokens": 66_000, "eval_tokens": 4_000} | fields))
    made.check()
    return made


@pytest.mark.parametrize("ending", [".npy", ".pt", ".safetensors", ".parquet"])
@pytest.mark.slow
def test_every_format_gives_each_training_row_once_and_the_last_rows_held_out(tmp_path: Path, ending: str) -> None:
    made, cache = source(written(tmp_path, ending)), tmp_path / "cache"
    made.prepare(cache)
    shards = [made.shard(cache, index) for index in range(made.n_shards(cache))]
    assert [len(shard) for shard in shards] == [33_024, 32_976], "both are samples of the whole file"
    assert sorted(torch.cat(shards)[:, 0].tolist()) == ROWS[:66_000, 0].tolist()
    assert torch.equal(made.eval_chunk(cache, 0, torch.zeros(D_IN)).x, ROWS[66_000:])
    assert (made.d_in, made.d_out, made.activations_dtype) == (D_IN, None, "float32")


def test_rows_of_another_length_are_named_before_any_work_unless_they_cancel_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pairs = [[1.0, 2.0]] * 3
    cases: list[tuple[list[list[float | None] | None], bool, str]] = [
        ([*pairs, [1.0]], False, "2 numbers, as its first row, but got 1 in row 3"),
        ([*pairs, None, [1.0, 2.0]], False, "but got 0 in row 3"),
        ([*pairs, [1.0], [1.0, 2.0, 3.0]], True, "but got 1 in row 3"),
        ([*pairs, [1.0, None]], True, "no missing values, but got null in row 3"),
    ]
    for rows, shows_when_copied, problem in cases:
        pq.write_table(pa.table({"other": range(len(rows)), "acts": rows}), path, row_group_size=3)
        made = FileSource(FileActivations(path=str(path), column="acts", train_tokens=1, eval_tokens=1))
        if shows_when_copied:
            made.check()
        with pytest.raises(ConfigError, match=problem):
            made.prepare(tmp_path / "cache") if shows_when_copied else made.check()
        assert not (tmp_path / "cache" / "rows.npy").exists()


def test_a_fixed_size_list_that_is_missing_is_named(tmp_path: Path) -> None:
    lists = pa.array([[1.0, 2.0], None, [3.0, 4.0]], type=pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"acts": lists}), tmp_path / "rows.parquet")
    with pytest.raises(ConfigError, match="but got 0 in row 1"):
        source(tmp_path / "rows.parquet", train_tokens=1, eval_tokens=1)


def test_numbers_in_the_other_order_of_bytes_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS[:500].numpy().astype(">f4"))
    made = source(tmp_path / "rows.npy", train_tokens=400, eval_tokens=100)
    assert torch.equal(made.shard(tmp_path, 0), ROWS[:400]) and made.activations_dtype == "float32"


def test_tensors_of_many_axes_in_memory_become_rows(tmp_path: Path) -> None:
    x = ROWS[:600].view(20, 30, D_IN)
    config = FileActivations(**save_activations(tmp_path / "x.safetensors", x, eval_tokens=100))
    made = FileSource(config)
    made.check()
    assert config.train_tokens == 500 and torch.equal(made.shard(tmp_path, 0), ROWS[:500])


@pytest.mark.parametrize("first", [0, 1])
def test_targets_may_share_the_memory_of_what_they_are_reconstructed_from(tmp_path: Path, first: int) -> None:
    x = ROWS[:500]
    target = ROWS[1:501] if first else x
    made = FileSource(FileActivations(**save_activations(tmp_path / "x.safetensors", x, target=target, eval_tokens=100)))
    made.check()
    assert torch.equal(made.shard(tmp_path, 0), torch.cat([x, target], dim=1)[:400])


def test_tensors_in_memory_that_are_no_rows_to_train_on_are_refused(tmp_path: Path) -> None:
    path, x = tmp_path / "x.safetensors", ROWS[:10]
    with pytest.raises(ConfigError, match=r"must end in \.safetensors, but got '.*x\.npy'"):
        save_activations(tmp_path / "x.npy", x, eval_tokens=1)
    for eval_tokens in (0, 10):
        with pytest.raises(ConfigError, match=f"below the number of rows, which is 10, but got {eval_tokens}"):
            save_activations(path, x, eval_tokens=eval_tokens)
    with pytest.raises(ConfigError, match="but got 10 rows and 9 targets"):
        save_activations(path, x, target=x[:9], eval_tokens=1)
    with pytest.raises(ConfigError, match=r"`x` must have shape \[..., width\], but got \[4\]"):
        save_activations(path, x[0], eval_tokens=1)
    assert not path.exists()


def test_tensors_in_memory_become_pairs_of_a_definition(tmp_path: Path) -> None:
    x, target = ROWS[:500].half(), ROWS[:500, :3].half() + 1
    config = FileActivations(**save_activations(tmp_path / "pairs.safetensors", x, target=target, eval_tokens=100))
    made = FileSource(config)
    made.check()
    assert (made.d_in, made.d_out, made.activations_dtype, config.train_tokens) == (4, 3, "float16", 400)
    assert torch.equal(made.shard(tmp_path, 0), torch.cat([x, target], dim=1)[:400].float())
    chunk = made.eval_chunk(tmp_path, 0, torch.zeros(3))
    assert torch.equal(chunk.x, x[400:].float()) and chunk.target is not None and torch.equal(chunk.target, target[400:].float())


def test_what_is_wrong_with_a_file_is_said_before_any_work(tmp_path: Path) -> None:
    few, cube, text = ROWS[:10], ROWS[:8].view(2, 4, 4), tmp_path / "rows.txt"
    text.write_text("1 2 3")
    save_file({"a": few, "b": few + 1}, tmp_path / "two.safetensors")
    np.save(tmp_path / "words.npy", np.array([["a"]]))
    np.save(tmp_path / "scalar.npy", np.float32(1))
    np.save(tmp_path / "empty.npy", np.zeros((10, 0), np.float32))
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(few.to_sparse(), tmp_path / "sparse.pt")
    nine = written(tmp_path, ".safetensors", ROWS[:9])
    cases: list[tuple[Path, dict[str, object], str]] = [
        (tmp_path / "none.npy", {}, "must exist, but got '.*none.npy'"),
        (text, {}, r"must end in one of \['.npy', .*'.parquet'\], but got '.*rows.txt'"),
        (written(tmp_path, ".npy", few), {}, "= 70000 rows, but got 10"),
        (written(tmp_path, ".pt", cube), {}, r"real numbers of shape \[tokens, width\], but got float32 of \[2, 4, 4\]"),
        (tmp_path / "words.npy", {}, r"but got str\d+ of"),
        (tmp_path / "scalar.npy", {}, r"but got float32 of \[\]"),
        (tmp_path / "empty.npy", {}, r"at least one number per row, but got shape \[10, 0\]"),
        (tmp_path / "list.pt", {}, "must hold a tensor, but got list"),
        (tmp_path / "sparse.pt", {}, "must hold a dense tensor, but got one of layout torch.sparse_coo"),
        (tmp_path / "two.safetensors", {}, r"`column` must be given .* column=None .* \['a', 'b'\]"),
        (tmp_path / "two.safetensors", {"column": "c"}, "column='c'"),
        (tmp_path / "rows.npy", {"column": "c"}, "one matrix, but got column='c'"),
        (
            tmp_path / "rows.npy",
            {"train_tokens": 5, "eval_tokens": 5, "target": str(nine)},
            "10 rows and 9",
        ),
    ]
    for path, fields, problem in cases:
        with pytest.raises(ConfigError, match=problem):
            source(path, **fields)
    with pytest.raises(ValueError, match="target_column='t' alone"):
        FileActivations(path="a.npy", target_column="t", train_tokens=1, eval_tokens=1)


def test_a_row_that_is_not_finite_is_named(tmp_path: Path) -> None:
    rows = ROWS[:600].clone()
    rows[301, 2] = torch.nan
    made = source(written(tmp_path, ".npy", rows), train_tokens=500, eval_tokens=100)
    with pytest.raises(ConfigError, match=r"infinity in row 301 of '.*rows.npy'"):
        made.shard(tmp_path, 0)
