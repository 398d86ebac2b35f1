"""Sweep directories with made-up but realistic runs, for the tests of `analysis`: six architectures, four levels each."""

import dataclasses
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae_core.documents import Ratio, StoredDocuments, write_documents
from sae_core.files import write_json, write_text
from sae_core.layout import SweepPaths
from sae_core.records import MetricSpec, RunRecord

SPECS = [
    MetricSpec("l0", "L0", "active latents per token", "min"),
    MetricSpec("mse", "Squared error", "squared activation units", "min"),
    MetricSpec("fvu", "Fraction of variance unexplained", "", "min"),
    MetricSpec("explained_variance", "Explained variance", "", "max"),
    MetricSpec("cosine", "Cosine similarity of input and reconstruction", "", "max"),
    MetricSpec("reconstruction_bias", "Norm ratio of reconstruction and input", "", "none"),
    MetricSpec("dead_fraction", "Dead latents", "", "min"),
    MetricSpec("ce_loss_clean", "Cross-entropy of the language model", "nats per token", "none"),
    MetricSpec("ce_loss_spliced", "Cross-entropy with the SAE spliced in", "nats per token", "min"),
    MetricSpec("ce_loss_zero_ablated", "Cross-entropy with zeros spliced in", "nats per token", "none"),
    MetricSpec("ce_loss_mean_ablated", "Cross-entropy with the mean spliced in", "nats per token", "none"),
    MetricSpec("delta_ce", "Added cross-entropy", "nats per token", "min"),
    MetricSpec("ce_loss_recovered", "Cross-entropy recovered", "", "max"),
    MetricSpec("kl", "KL divergence from the clean model", "nats per token", "min"),
    MetricSpec("mcc", "MCC of latents and true features", "", "max"),
]

ARCHITECTURES: dict[str, tuple[str, list[float], float, float]] = {
    # architecture: (sparsity parameter, its values, FVU at L0 16, delta CE at L0 16)
    "standard": ("l1_coefficient", [4.0, 2.0, 1.0, 0.5], 0.128, 0.325),
    "gated": ("l1_coefficient", [6.0, 3.0, 1.0, 0.3], 0.080, 0.178),
    "topk": ("k", [8, 16, 32, 64], 0.080, 0.135),
    "batchtopk": ("k", [8, 16, 32, 64], 0.074, 0.113),
    "jumprelu": ("l0_coefficient", [0.4, 0.2, 0.1, 0.05], 0.078, 0.120),
    "matryoshka_batchtopk": ("k", [8, 16, 32, 64], 0.088, 0.134),
}


def metrics_at(l0: float, fvu: float, delta_ce: float) -> dict[str, float | None]:
    """Every metric of the table, consistent with the three given."""
    clean, zero, mean = 4.177, 10.477, 7.9
    return {
        "l0": l0,
        "mse": 128 * fvu * 0.4,
        "fvu": fvu,
        "explained_variance": 1 - fvu,
        "cosine": math.sqrt(max(1 - fvu, 0)),
        "reconstruction_bias": 1 - 0.3 * fvu,
        "dead_fraction": min(0.02 * math.log2(1 + 128 / max(l0, 1)), 1.0),
        "ce_loss_clean": clean,
        "ce_loss_spliced": clean + delta_ce,
        "ce_loss_zero_ablated": zero,
        "ce_loss_mean_ablated": mean,
        "delta_ce": delta_ce,
        "ce_loss_recovered": 1 - delta_ce / (zero - clean),
        "kl": 0.9 * delta_ce,
    }


def densities_at(l0: float, dead_fraction: float) -> list[int]:
    """Latents per bin of density: 1,024, most of them active on about l0 / 1,024 of the tokens."""
    bins = [math.exp(-((-8 + (place + 0.5) / 4 - math.log10(l0 / 2048)) ** 2) / 0.5) for place in range(32)]
    never = round(1024 * dead_fraction)
    counts = [int((1024 - never) * part / sum(bins)) for part in bins]
    return [1024 - sum(counts), *counts]


def config_of(architecture: str, level: float, seed: int, **train: Any) -> dict[str, Any]:
    """A run's config in the shape of RunConfig's dump."""
    parameter = ARCHITECTURES[architecture][0] if architecture in ARCHITECTURES else "k"
    return {
        "activations": {
            "source": "language_model",
            "train_tokens": 1_000_000,
            "eval_tokens": 100_000,
            "model": {"name": "demo", "hook_point": "blocks.2.hook_resid_post"},
            "data": {"dataset": "demo"},
        },
        "sae": {"architecture": architecture, "d_sae": 1024, parameter: level},
        "train": {"lr": 4e-3, "batch_size": 2048, **train},
        "seed": seed,
        "data_seed": 0,
    }


def record_of(
    architecture: str, level: float, metrics: dict[str, float | None], seed: int = 0, config: dict[str, Any] | None = None, **changes: Any
) -> RunRecord:
    """A finished run's record."""
    fields: dict[str, Any] = {
        "run_id": f"{architecture}-{level:g}-{seed}",
        "status": "finished",
        "config": config or config_of(architecture, level, seed),
        "architecture": architecture,
        "sparsity_parameter": ARCHITECTURES[architecture][0] if architecture in ARCHITECTURES else "k",
        "sparsity_value": float(level),
        "seed": seed,
        "d_in": 128,
        "metrics": metrics,
        "metric_specs": SPECS,
        "train_tokens": 999_424,
        "eval_tokens": 100_352,
        "train_seconds": 21.5,
        "tokens_per_second": 46_500.0,
        "activations_hash": "6f1d0c2ab9e4",
        "eval_hash": "b82e7745aa01",
        "versions": {"sae_sweep": "0.1.0", "commit": "1a2b3c4d", "python": "3.11.9", "torch": "2.13.0", "ray": "2.60.0"},
        "hardware": "2 CPU cores, x86_64",
        "finished_at": "2026-05-01T12:00:00Z",
    }
    return RunRecord(**(fields | changes))


def target_record(architecture: str, target: float, metrics: dict[str, float | None], seed: int = 0, **train: Any) -> RunRecord:
    """A finished run that was asked for an L0; the coefficient it ended with differs by seed."""
    parameter, levels, *_ = ARCHITECTURES[architecture]
    start = target if parameter == "k" else levels[0] * 8 / target
    config = config_of(architecture, start, seed, **train)
    config["sae"]["target_l0"] = target
    found = start if parameter == "k" else start * (1.1 + 0.01 * seed)
    run_id = "-".join([architecture, f"target{target:g}", *(f"{name}{value:g}" for name, value in train.items()), str(seed)])
    return record_of(architecture, start, metrics, seed, config, run_id=run_id, sparsity_value=found)


def variant_record(record: RunRecord, name: str, l0: float, fvu: float, **changes: Any) -> RunRecord:
    """The record of a variant of a run, on its L0 and FVU."""
    kind = "snapshot" if name.startswith("tokens-") else "form"
    metrics = {**record.metrics, **metrics_at(l0, fvu, 2 * fvu)}
    of = {"run_id": f"{record.run_id}@{name}", "variant_of": record.run_id, "variant_kind": kind}
    return dataclasses.replace(record, metrics=metrics, **{**of, **changes})


def failed(architecture: str, level: float, seed: int = 0) -> RunRecord:
    """The record of a run that diverged."""
    error = {
        "type": "DivergenceError",
        "message": "loss must be finite, but got loss=nan at step 212.",
        "traceback": "...",
    }
    nothing = {"train_tokens": None, "eval_tokens": None, "eval_hash": None, "tokens_per_second": None, "metric_specs": []}
    return record_of(architecture, level, {}, seed, status="failed", error=error, **nothing)


def pruned(architecture: str, level: float, seed: int = 0) -> RunRecord:
    """The record of a run that was stopped early."""
    error = {"type": "StoppedEarly", "message": "others at L0 16 have an FVU 12 % lower after 25 % of the steps.", "traceback": ""}
    nothing = {"eval_tokens": None, "eval_hash": None, "tokens_per_second": None, "metric_specs": []}
    return record_of(architecture, level, {}, seed, status="pruned", error=error, train_tokens=250_880, **nothing)


RATIOS = {
    "l0": Ratio({"active": 1}, {"n_tokens": 1}),
    "mse": Ratio({"error": 1}, {"n_tokens": 1}),
    "fvu": Ratio({"error": 1}, {"variance": 1}),
    "explained_variance": Ratio({"variance": 1, "error": -1}, {"variance": 1}),
    "ce_loss_clean": Ratio({"clean": 1}, {"n_predicted": 1}),
    "ce_loss_spliced": Ratio({"spliced": 1}, {"n_predicted": 1}),
    "delta_ce": Ratio({"spliced": 1, "clean": -1}, {"n_predicted": 1}),
    "ce_loss_recovered": Ratio({"zero_ablated": 1, "spliced": -1}, {"zero_ablated": 1, "clean": -1}),
    "kl": Ratio({"kl": 1}, {"n_tokens": 1}),
}


def documents_of(record: RunRecord, n_documents: int, *, spread: float = 0.3, noise: float = 0.03) -> StoredDocuments:
    """Made-up sums per document that add up to the metrics of the record (l0, fvu, delta_ce and what follows from them).

    Args:
        spread: how much documents differ, in ln, in the same way for every run: paired differences do not see it.
        noise: how much a run differs from that on a document, in ln.
    """
    text, own = np.random.default_rng(0), np.random.default_rng(list(record.run_id.encode()))
    n_tokens = text.integers(100, 900, n_documents).astype(float)
    n_predicted = np.floor(0.99 * n_tokens)
    variance = n_tokens * np.exp(text.normal(0, spread, n_documents))
    variance *= 51.2 * n_tokens.sum() / variance.sum()
    clean = 4.177 * n_predicted * np.exp(text.normal(0, spread / 3, n_documents))

    def shared(mean: float | None, weights: np.ndarray) -> np.ndarray:
        """A sum of weights.sum() * mean over documents."""
        sums = weights * np.exp(text.normal(0, spread, n_documents) + own.normal(0, noise, n_documents))
        return sums * ((mean or 0.0) * weights.sum() / sums.sum())

    metrics = record.metrics
    clean *= (metrics.get("ce_loss_clean") or 4.177) * n_predicted.sum() / clean.sum()
    sums = {
        "n_tokens": n_tokens,
        "n_predicted": n_predicted,
        "variance": variance,
        "active": shared(metrics.get("l0"), n_tokens),
        "error": shared(metrics.get("fvu"), variance),
        "clean": clean,
        "spliced": clean + shared(metrics.get("delta_ce"), n_predicted),
        "zero_ablated": (metrics.get("ce_loss_zero_ablated") or 10.477) / (metrics.get("ce_loss_clean") or 4.177) * clean,
        "kl": shared(metrics.get("kl"), n_tokens),
    }
    ratios = {name: ratio for name, ratio in RATIOS.items() if metrics.get(name) is not None}
    return StoredDocuments(np.arange(n_documents), sums, ratios)


def write_run(sweep: Path, record: RunRecord, *, steps: int = 60, documents: StoredDocuments | None = None) -> None:
    """Write a run's record and history, and its sums per document where given."""
    directory = SweepPaths(sweep).run(record.run_id).directory
    if documents is not None:
        record = dataclasses.replace(record, documents_checksum=write_documents(directory / "documents.parquet", documents))
    record.write(directory / "record.json")
    if record.variant_kind:
        return
    final = record.metrics.get("l0") or 20.0
    noise = random.Random(record.run_id)
    lines = []
    for step in range(1, steps + 1):
        done = step / steps
        mse = 128 * (0.04 + 0.9 * math.exp(-6 * done)) * math.exp(noise.gauss(0, 0.03)) * (16 / final) ** 0.3
        line = {"step": step * 8, "tokens": step * 8 * 2048, "loss": mse * 1.1, "mse_loss": mse, "l0": final + 400 * math.exp(-9 * done)}
        lines.append(json.dumps({**line, "lr": 4e-3, "dead_latents": 3}))
    write_text(directory / "history.jsonl", "\n".join(lines) + "\n")


def realistic_records(seeds: Sequence[int] = (0,)) -> list[RunRecord]:
    """Six architectures, four levels, with noise between seeds."""
    records = []
    for architecture, (_, levels, fvu, delta_ce) in ARCHITECTURES.items():
        for index, level in enumerate(levels):
            for seed in seeds:
                noise = random.Random(f"{architecture}{level}{seed}")
                l0 = 8 * 2**index * (level / (8 * 2**index) if level >= 8 else math.exp(noise.gauss(0.05, 0.12)))
                scale = (16 / l0) ** 0.85 * math.exp(noise.gauss(0, 0.03))
                metrics = metrics_at(l0, fvu * scale, delta_ce * scale**1.2)
                # A language model has no known features; plots of them get something to draw all the same.
                more = {"latent_densities": densities_at(l0, metrics["dead_fraction"] or 0.0)}
                records.append(record_of(architecture, level, {**metrics, "mcc": 1 - fvu * scale, "true_l0": 16.0}, seed, **more))
    return records


def write_sweep(
    directory: Path, records: Sequence[RunRecord], missing: Sequence[tuple[str, float, int]] = (), *, n_documents: int = 0, **facts: Any
) -> Path:
    """A whole sweep directory: records, histories, definition and sweep.json, which also names the `missing` runs.

    Args:
        n_documents: documents whose sums finished runs get; 0: no such files, as results of earlier versions.
    """
    for record in records:
        has_documents = n_documents > 0 and record.status == "finished"
        write_run(directory, record, documents=documents_of(record, n_documents) if has_documents else None)
    runs = [
        *(record for record in records if not record.variant_kind),
        *(record_of(name, level, {}, seed) for name, level, seed in missing),
    ]
    names = ("run_id", "architecture", "sparsity_parameter", "sparsity_value", "seed", "config")
    planned = [{name: getattr(record, name) for name in names} for record in runs]
    write_json(directory / "sweep.json", {"name": directory.name, "runs": planned, **facts})
    write_text(directory / "definition.yaml", f"name: {directory.name}\nmodel: {{name: demo, hook_point: blocks.2.hook_resid_post}}\n")
    return directory
