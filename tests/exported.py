"""A sweep of trained SAEs that is exported in tests: small, of several architectures, with every file that a run leaves."""

from pathlib import Path

import torch
from fake_results import config_of, metrics_at, record_of, write_sweep
from safetensors.torch import save_file
from small_runs import D_IN, D_SAE, random_sae

from sae_core.config.run import ARCHITECTURES
from sae_core.sparsity_file import write_sparsity

METADATA = {"model_name": "gpt2", "hook_name": "blocks.2.hook_resid_post", "context_size": 128, "prepend_bos": True}
ARCHITECTURES_IN_SAELENS = sorted(name for name, cls in ARCHITECTURES.items() if cls.saelens_architecture is not None)


def times_active_of(number: int) -> torch.Tensor:
    """Held-out tokens that each latent of the SAE is active on, of 100,352; the first is on none."""
    times = torch.randint(1, 5_000, (D_SAE,), generator=torch.Generator().manual_seed(number), dtype=torch.int32)
    times[0] = 0
    return times


def write_exported(directory: Path, *, seeds: int = 1, n_documents: int = 40) -> Path:
    """A run of every architecture that SAELens knows, with an SAE of random weights; FVU falls with the number of the run."""
    records = []
    for number, name in enumerate(ARCHITECTURES_IN_SAELENS):
        for seed in range(seeds):
            level = 8.0 + number
            config = config_of(name, level, seed)
            config["activations"]["model"]["name"], config["activations"]["data"]["dataset"] = "gpt2", "user/text"
            config["sae"]["d_sae"] = D_SAE
            metrics = metrics_at(level, 0.3 - 0.01 * number + 0.001 * seed, 0.2)
            records.append(record_of(name, level, metrics, seed, config, sparsity_parameter="k", eval_tokens=100_352))
    write_sweep(directory, records, n_documents=n_documents)
    for number, record in enumerate(records):
        run = directory / "runs" / record.run_id
        sae = random_sae(record.architecture, D_IN, D_SAE, seed=number).to_inference()
        sae.save_pretrained(run / "sae", {**METADATA, "training_config": record.config, "run_id": record.run_id})
        save_file({"times_active": times_active_of(number)}, run / "latents.safetensors")
        write_sparsity(run / "sae", times_active_of(number).numpy(), 100_352)
    return directory
