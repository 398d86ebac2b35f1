"""A sweep over activations that you have already: a tensor in memory, or the file that it lies in.

    python examples/plain_tensor.py [activations.npy]

Without a file, rows are made up of 128 sparse directions in 64 dimensions, so that there is something to find.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from rich import print

from analysis import load_table, pareto_front
from sae_core import save_activations
from sweeps import Sweep, launch

N_ROWS, D_IN, N_DIRECTIONS, EVAL_TOKENS = 120_000, 64, 128, 20_000


def made_up_rows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(N_DIRECTIONS, D_IN, generator=generator))
    return (torch.rand(N_ROWS, N_DIRECTIONS, generator=generator) > 0.97).float() @ directions  # 3.8 of them per row


def sweep_of(activations: dict[str, Any]) -> Sweep:
    """Two architectures at three sparsities; the last rows are held out."""
    return Sweep(
        name="plain-tensor",
        activations=activations,
        sae={"d_sae": 256},
        train={"lr": 8e-3, "batch_size": 512, "dead_after_tokens": 20_000},
        target_l0=[2, 4, 8],
        architectures={"batchtopk": {}, "standard": {}},
    )


def main(file: str | None = None, *, results: str | Path = "results", executor: str = "ray") -> Path:
    if file is None:
        activations = save_activations(Path(results) / "plain-tensor.safetensors", made_up_rows(), eval_tokens=EVAL_TOKENS)
    else:  # a definition in YAML says the same: activations: {source: file, path: activations.npy, ...}
        activations = {"source": "file", "path": file, "train_tokens": 100_000, "eval_tokens": EVAL_TOKENS}
    done = launch(sweep_of(activations), results=results, executor=executor)
    table = load_table(done.directory)
    print(table.loc[pareto_front(table, "l0", "fvu"), ["architecture", "target_l0", "l0", "fvu", "dead_fraction"]])
    return done.directory


if __name__ == "__main__":
    main(*sys.argv[1:])
