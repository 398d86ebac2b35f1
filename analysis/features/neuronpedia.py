"""Export for Neuronpedia: the directory that its bulk import reads, laid out as SAEDashboard 0.8 (main) writes it.

    DIR/{model}/{layer}-{set}__{run id}/
        release.jsonl  model.jsonl  sourceset.jsonl  source.jsonl      one row each
        features/batch-N.jsonl.gz                                      a row per latent, 128 latents each
        activations/batch-N.jsonl.gz                                   a row per example

The import takes its columns from the first line of a file, so every row has every key, null where there is nothing. Here the set is the
sweep, and the names of release, creator and set come from it; edit the one-row files before an upload to change them (they are not
written again). Left empty: correlations between latents and neurons, and what needs a transformer's heads.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis.features.examples import Example, Histogram, activation_histogram, activations_in, examples_between, top_activating_examples
from analysis.features.logits import LogitEffects, iterate_logit_effects
from analysis.features.neuronpedia_tables import ACTIVATION, FEATURE, MODEL, RELEASE, SOURCE, SOURCE_SET, Row
from sae_core.errors import ConfigError
from sae_core.files import write_text, written_whole

if TYPE_CHECKING:
    from analysis.features.run import LearnedRun

BATCH = 128
"""Latents per file."""
N_TOP, N_INTERVALS, N_PER_INTERVAL, N_LOGITS, N_ALIGNED = 20, 5, 5, 10, 3
"""SAEDashboard's: strongest examples; intervals of activation and examples of each; tokens each way; entries of a decoder row."""
DEFAULT_CREATOR_ID = "clkht01d40000jv08hvalcvly"
"""Neuronpedia's creator of bulk imports, unless the environment variable DEFAULT_CREATOR_ID names another."""

CREATOR_NAME = "sae-sweep"


def export_neuronpedia(run: LearnedRun, to: Path, latents: Sequence[int] | None = None) -> Path:
    """Write the layout for some latents; by default for all that are active on the held-out text.

    Returns:
        The directory of the source, DIR/{model}/{layer}-{set}__{run id}.

    Raises:
        ConfigError: the run has no language model, or its hook point lies in no layer or adds nothing to the residual stream.
    """
    from sae_core.activations.language_model.model_spec import layer_of

    run.model  # noqa: B018 - one message where there is none, before anything is written
    hook_point = str(run.source.config.model.hook_point)
    if (layer := layer_of(hook_point)) is None:
        raise ConfigError(f"Neuronpedia's layout needs a hook point in a layer, but got {hook_point!r}. Export another run.")
    chosen = [int(latent) for latent in np.flatnonzero(run.activations.counts)] if latents is None else list(latents)
    run.check_latents(chosen)
    names = _Names(run, layer, hook_point)
    directory = to / names.model / names.source
    _write_head(names, run, directory)
    effects = iterate_logit_effects(run, chosen, N_LOGITS)
    for first in range(0, len(chosen), BATCH):
        some = chosen[first : first + BATCH]
        features, activations = _batch(run, names, [next(effects) for _ in some])
        _write_gzip(directory / "features" / f"batch-{first // BATCH}.jsonl.gz", features)
        _write_gzip(directory / "activations" / f"batch-{first // BATCH}.jsonl.gz", activations)
        run.progress("exporting latents", first + len(some), len(chosen))
    return directory


class _Names:
    """What the rows call things."""

    def __init__(self, run: LearnedRun, layer: int, hook_point: str) -> None:
        self.model = Path(str(run.facts.get("model") or run.source.config.model.name)).name
        self.set, self.source = run.sweep, f"{layer}-{run.sweep}__{run.run_id}"
        self.hook_point = hook_point
        self.creator = os.environ.get("DEFAULT_CREATOR_ID") or DEFAULT_CREATOR_ID
        self.created_at = datetime.now(UTC).replace(tzinfo=None, microsecond=0).isoformat()

    @property
    def created(self) -> Row:
        return {"creatorId": self.creator, "createdAt": self.created_at}


def _write_head(names: _Names, run: LearnedRun, directory: Path) -> None:
    """The one-row files; those of release, model and set stay as they are where they exist."""
    windows = run.activations.windows
    assert windows is not None, "a language model reads text"
    release = RELEASE | {
        "name": names.set,
        "description": f"SAEs of the sweep {names.set}",
        "descriptionShort": f"Sweep {names.set}",
        "creatorName": CREATOR_NAME,
        "creatorNameShort": CREATOR_NAME,
    }
    model = MODEL | {
        "id": names.model,
        "instruct": names.model.endswith("-it"),
        "displayNameShort": names.model,
        "displayName": names.model,
        "updatedAt": names.created_at,
    }
    source_set = SOURCE_SET | {
        "modelId": names.model,
        "name": names.set,
        "description": f"Sweep {names.set} at {names.hook_point}",
        "creatorName": CREATOR_NAME,
        "releaseName": names.set,
    }
    source = SOURCE | {
        "id": names.source,
        "modelId": names.model,
        "setName": names.set,
        "hfRepoId": names.set,
        "hfFolderId": run.run_id,
        "num_prompts": len(windows),
        "num_tokens_in_prompt": windows.shape[1],
        "dataset": str(run.facts.get("dataset") or run.source.config.data.dataset),
    }
    for name, row in (("release", release), ("model", model), ("sourceset", source_set), ("source", source)):
        file = directory / f"{name}.jsonl"
        if name == "source" or not file.exists():
            write_text(file, json.dumps(row | names.created) + "\n")


def _batch(run: LearnedRun, names: _Names, effects: Sequence[LogitEffects]) -> tuple[list[Row], list[Row]]:
    features, activations = [], []
    for one in effects:
        rows = list(_activation_rows(run, names, one.latent))
        features.append(_feature_row(run, names, one, max((row["maxValue"] for row in rows), default=0.0)))
        activations += rows
    return features, activations


def _feature_row(run: LearnedRun, names: _Names, effects: LogitEffects, max_act: float) -> Row:
    latent = effects.latent
    row = run.sae.W_dec[latent].detach().cpu()
    aligned = row.topk(min(N_ALIGNED, len(row)))
    histogram = activation_histogram(run, latent, from_smallest=True)
    return FEATURE | {
        **names.created,
        "modelId": names.model,
        "layer": names.source,
        "index": latent,
        "maxActApprox": max_act,
        "hookName": names.hook_point,
        "neuron_alignment_indices": aligned.indices.tolist(),
        "neuron_alignment_values": _rounded(aligned.values.tolist()),
        "neuron_alignment_l1": _rounded((aligned.values.abs() / row.abs().sum().clamp_min(1e-12)).tolist()),
        "neg_str": run.texts.all(token for token, _ in effects.most_lowered),
        "neg_values": _rounded([value for _, value in effects.most_lowered]),
        "pos_str": run.texts.all(token for token, _ in effects.most_raised),
        "pos_values": _rounded([value for _, value in effects.most_raised]),
        "frac_nonzero": round(float(run.activations.density[latent]), 5),
        "freq_hist_data_bar_heights": histogram.counts.tolist(),
        "freq_hist_data_bar_values": _centers(histogram),
        "logits_hist_data_bar_heights": effects.histogram.counts.tolist(),
        "logits_hist_data_bar_values": _centers(effects.histogram),
    }


def _activation_rows(run: LearnedRun, names: _Names, latent: int) -> Iterator[Row]:
    """The strongest examples, then some of each fifth of the way from 0 to the largest activation, as SAEDashboard groups them."""
    values = run.activations.of(latent)[1]
    largest = float(values.max(initial=0.0))
    groups = [((-1.0, largest, -1.0), top_activating_examples(run, latent, N_TOP))]
    edges = np.linspace(0, largest, N_INTERVALS + 1)
    for low, high in list(pairwise(edges))[::-1]:
        inside = int(((values >= low) & (values <= high)).sum()) + (run.activations.n_tokens - len(values) if low == 0 else 0)
        bounds = (float(low), float(high), inside / run.activations.n_tokens)
        groups.append((bounds, examples_between(run, latent, float(low), float(high), N_PER_INTERVAL)))
    number = 0
    for bounds, examples in groups:
        for example in examples:
            yield _activation_row(run, names, latent, example, bounds, number)
            number += 1


def _activation_row(run: LearnedRun, names: _Names, latent: int, example: Example, bounds: tuple[float, float, float], number: int) -> Row:
    first = int(run.source.config.model.prepend_bos)  # SAEDashboard leaves the BOS of a prompt out
    assert run.activations.windows is not None, "a language model reads text"
    tokens = run.activations.windows[example.window, first:].tolist()
    shown = _rounded(activations_in(run, latent, example.window)[first:])
    low, high, contains = bounds
    return ACTIVATION | {
        **names.created,
        "id": f"c{hashlib.sha256(f'{names.source} {latent} {number}'.encode()).hexdigest()[:24]}",
        "tokens": run.texts.all(tokens),
        "index": latent,
        "layer": names.source,
        "modelId": names.model,
        "maxValue": max(shown),
        "maxValueTokenIndex": shown.index(max(shown)),
        "minValue": min(shown),
        "values": shown,
        "binMin": round(low, 5),
        "binMax": round(high, 5),
        "binContains": round(contains, 7),
        "qualifyingTokenIndex": example.position - first,
    }


def _centers(histogram: Histogram) -> list[float]:
    """The middle of each bin."""
    return _rounded(((histogram.edges[1:] + histogram.edges[:-1]) / 2).tolist())


def _rounded(values: Sequence[float]) -> list[float]:
    """Five decimals, as SAEDashboard."""
    return [round(float(value), 5) for value in values]


def _write_gzip(file: Path, rows: Sequence[Row]) -> None:
    content = "".join(json.dumps(row) + "\n" for row in rows).replace("\\u0000", "")  # the import refuses NUL
    with written_whole(file) as temporary:
        temporary.write_bytes(gzip.compress(content.encode(), compresslevel=5, mtime=0))
