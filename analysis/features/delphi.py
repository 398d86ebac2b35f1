"""Export for delphi: its cache of latents, which its loader reads for automated interpretation.

    DIR/{hook point}/{first}_{last}.safetensors     latents first to last, both included
        locations    [n, 3] uint16, or uint32 where numbers are larger: window, position, latent - first; in the order of the text
        activations  [n] float16, those above 1e-5
        tokens       [windows, context]: all held-out text, which the loader wants in each file
    DIR/{hook point}/config.json                    delphi's CacheConfig, and `model_name`

delphi skips latents with fewer examples than it is asked for (200 by default). Give DIR to it as the directory of latents, and nothing
else may lie in it: delphi takes every directory there for a hook point.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sae_core.files import write_text, written_whole

if TYPE_CHECKING:
    from analysis.features.run import LearnedRun

LEAST_SPLITS = 5
"""delphi's own number of files."""
MOST_ENTRIES = 2**23
"""Active latents per file, about: 200 MiB of memory."""
SMALLEST = 1e-5
BATCH_SIZE = 32
"""delphi's own; it says nothing about the files."""


def export_delphi(run: LearnedRun, to: Path, latents: Sequence[int] | None = None) -> Path:
    """Write the cache of some latents; by default of all.

    Returns:
        DIR/{hook point}.

    Raises:
        ConfigError: the run has no language model.
    """
    run.model  # noqa: B018 - one message where there is none, before anything is written
    activations, config = run.activations, run.source.config
    windows = activations.windows
    assert windows is not None, "a language model reads text"
    wanted = np.ones(activations.d_sae, bool)
    if latents is not None:
        run.check_latents(latents)
        wanted = np.isin(np.arange(activations.d_sae), latents)
    directory = to / str(config.model.hook_point)
    n_splits = min(activations.d_sae, max(LEAST_SPLITS, -(-int(activations.counts.sum()) // MOST_ENTRIES)))
    bounds = np.linspace(0, activations.d_sae, n_splits + 1).astype(int)
    for number, (first, end) in enumerate(pairwise(bounds.tolist())):
        some = [int(latent) for latent in range(first, end) if wanted[latent]]
        locations, values = _split(run, some, int(first))
        if len(values):  # delphi makes no file for latents that are never active, either: it fails
            _write(directory / f"{first}_{end - 1}.safetensors", {"locations": locations, "activations": values, "tokens": windows})
        run.progress("exporting latents", number + 1, n_splits)
    content = {
        "dataset_repo": config.data.dataset,
        "dataset_split": config.data.eval_split,
        "dataset_name": config.data.subset or "",
        "dataset_column": config.data.tokens_column or config.data.text_column,
        "batch_size": BATCH_SIZE,
        "cache_ctx_len": config.model.context_size,
        "n_tokens": int(windows.size),
        "n_splits": n_splits,
        "model_name": config.model.name,
    }
    write_text(directory / "config.json", json.dumps(content, indent=4))
    return directory


def _split(run: LearnedRun, latents: Sequence[int], first: int) -> tuple[NDArray[Any], NDArray[np.float16]]:
    """Locations and activations of some latents, in the order of the text."""
    activations = run.activations
    assert activations.windows is not None, "a language model reads text"
    found = [activations.of(latent) for latent in latents]
    numbers = np.repeat(np.array(latents, np.int64) - first, [len(values) for _, values in found])
    places = activations.positions[np.concatenate([tokens for tokens, _ in found])] if found else np.empty(0, np.int64)
    values = np.concatenate([values for _, values in found]) if found else np.empty(0, np.float32)
    kept = np.flatnonzero(np.abs(values) > SMALLEST)
    kept = kept[np.lexsort((numbers[kept], places[kept]))]
    rows, positions = np.divmod(places[kept], activations.windows.shape[1])
    locations = np.stack([rows, positions, numbers[kept]], axis=1)
    largest = int(locations.max(initial=0))
    return locations.astype(np.uint16 if largest < 2**16 else np.uint32), values[kept].astype(np.float16)


def _write(file: Path, tensors: dict[str, NDArray[Any]]) -> None:
    from safetensors.numpy import save_file

    with written_whole(file) as temporary:
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, temporary)
