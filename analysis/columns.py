"""The columns of the table: their order and types."""

import re

_OF_RUNS = (
    *("run_id", "architecture", "status", "sparsity_parameter", "sparsity_value", "seed", "lr", "d_in", "d_sae"),
    *("train_tokens", "eval_tokens"),
)
_METRICS = (
    *("l0", "mse", "fvu", "explained_variance", "cosine", "reconstruction_bias", "dead_fraction"),
    *("ce_loss_clean", "ce_loss_spliced", "ce_loss_zero_ablated", "ce_loss_mean_ablated", "delta_ce", "ce_loss_recovered", "kl"),
)
ACTIVATION_FACTS = ("d_vocab", "outlier_rows", "outlier_share")
"""Numbers about the activations that a record holds."""
COSTS = ("train_flops", "parameters")
"""What training took, beside `train_tokens` and `train_seconds`: `sae_core.costs`."""
CONFIG_FIELDS = {
    "model": "activations.model.name",
    "hook_point": "activations.model.hook_point",
    "dataset": "activations.data.dataset",
    "context_size": "activations.model.context_size",
    "batch_size": "train.batch_size",
    "normalize_activations": "train.normalize_activations",
    "data_seed": "data_seed",
}
"""Columns that are fields of the config, by the names that the config has for them."""

COLUMNS = (
    *(*_OF_RUNS, *_METRICS, "train_seconds", "tokens_per_second", "target_l0", "l0_error", *COSTS),
    *(*CONFIG_FIELDS, *ACTIVATION_FACTS),
)
"""The columns every table starts with, in this order."""
OF_TRANSCODERS = {"hook_out": "activations.model.hook_out"}
"""Columns that are fields of the config, where some run has them: where a transcoder writes; `hook_point` is where it reads."""
VARIANT_OF = "variant_of"
"""Run that a row is a variant of, of tables with variants; their `status` is their kind: `records.VARIANTS`."""
PUBLISHED = "published"
"""Where a row's SAE came from, of tables with SAEs that were not trained here."""
WIDTH_OUT = "d_out"
"""Width of what a transcoder writes, of such tables too."""
PROVENANCE = ("activations_hash", "eval_hash")
ARITHMETIC = ("arithmetic", "eval_arithmetic")
"""Columns of tables whose records say how numbers were computed."""
ENDING = (
    *("hardware", "finished_at", "error", "sweep", "variant", "setting_hash", "comparison_hash"),
    *("launch", "eval_hardware"),
)

INTEGERS = {
    *("seed", "data_seed", "d_in", "d_sae", "train_tokens", "eval_tokens", "context_size", "batch_size"),
    *("d_vocab", "outlier_rows", "launch", WIDTH_OUT),
}
TEXTS = {
    *("run_id", "architecture", "status", "sparsity_parameter", "model", "hook_point", "dataset", "normalize_activations"),
    *({*PROVENANCE, *ARITHMETIC, *ENDING, *OF_TRANSCODERS, VARIANT_OF, PUBLISHED} - {"launch"}),
}
ALL = {*COLUMNS, *OF_TRANSCODERS, WIDTH_OUT, VARIANT_OF, PUBLISHED, *PROVENANCE, *ENDING, *ARITHMETIC}
"""Every column but those of versions and of further metrics."""
STABILITY = ("pw_mcc", "recurring_latents", "recurring_explained")
"""Columns about pairs of runs, of tables in which some are known: `analysis.stability`."""
NOT_METRICS = {*ALL, *STABILITY} - {*_METRICS}
"""Columns that no metric may take the place of."""
OF_A_SETTING = (
    *("architecture", "sparsity_parameter", "target_l0", "lr", "d_in", "d_sae", "train_tokens", "comparison_hash", "variant"),
    *(name for name in CONFIG_FIELDS if name != "data_seed"),
    *(*OF_TRANSCODERS, WIDTH_OUT),
)
"""Columns in which the repeats of a setting agree: a mean of equal numbers may differ from them in the last digit."""
OF_A_REPEAT = ("seed", "data_seed", "launch")
"""Columns of numbers that have no mean."""


def arm_of_published(architecture: str, origin: str) -> str:
    """What published SAEs have in the column `architecture`: that of their publisher, so that they are neither settings nor seeds of runs.

    Args:
        origin: what the column PUBLISHED has.
    """
    name = re.match(r"hub:([^/@]+/[^/@]+)", origin)
    return f"{architecture} ({f'{PUBLISHED}, {name[1]}' if name else PUBLISHED})"
