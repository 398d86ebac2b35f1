"""Worker of sweep.py: SAELens' `MultiSAETrainingRunner` on a model, a text and a list of SAEs, in its own Python. Run by it, not by hand.

Settings not named here are SAELens' defaults. No evaluation, no checkpoints, no logging. The model is run by Hugging Face transformers
(`AutoModelForCausalLM`), in float32 and no further than the layer that is read. The buffer of activations is that of SAELens' tutorial:
with its default of 20 a batch of more than 2,560 tokens is refused.
"""

import os
import re
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
from sae_lens import LoggingConfig, MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from sae_lens.registry import get_sae_training_class
from worker import serve

BATCHES_IN_BUFFER = 64


def train(
    saes: dict[str, dict[str, Any]],
    model: str,
    hook_point: str,
    context_size: int,
    text: str,
    n_tokens: int,
    batch_size: int,
    autocast: bool,
) -> list[float]:
    """Seconds from the start of the runner's training to the moment each batch was ready, and at last to its end."""
    from datasets import Dataset

    configs = {name: _config(fields) for name, fields in saes.items()}
    runner = MultiSAETrainingRunner(
        MultiSAETrainingRunnerConfig(
            saes=configs,
            hook_names=_module_name(model, hook_point),
            model_name=model,
            model_class_name="AutoModelForCausalLM",
            model_from_pretrained_kwargs={"dtype": "float32"},  # transformers would take the file's, and CPUs are slow in float16
            context_size=context_size,
            n_batches_in_buffer=BATCHES_IN_BUFFER,
            training_tokens=n_tokens,
            train_batch_size_tokens=batch_size,
            autocast=autocast,
            logger=LoggingConfig(log_to_wandb=False),
            checkpoint_path=None,
            output_path=None,
        ),
        override_dataset=Dataset.from_parquet(text),
    )
    store, served = runner.activations_store, []
    batches = store.get_multi_hook_data_loader()
    store.get_multi_hook_data_loader = lambda: _noted(batches, served)
    started = time.perf_counter()
    runner.run()
    return [moment - started for moment in (*served, time.perf_counter())]


def _noted(batches: Iterator[Any], served: list[float]) -> Iterator[Any]:
    """The same batches; when each was ready is noted."""
    for batch in batches:
        served.append(time.perf_counter())
        yield batch


def _config(fields: dict[str, Any]) -> Any:
    fields = dict(fields)
    return get_sae_training_class(fields.pop("architecture"))[1](**fields)


def _module_name(model: str, hook_point: str) -> str:
    """The transformers module whose output is TransformerLens' `blocks.N.hook_resid_post`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    found = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", hook_point)
    if found is None:
        raise ValueError(f"the hook point must be a block's hook_resid_post, but got {hook_point!r}. Choose one.")
    config = AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(config)
    blocks = [
        name
        for name, module in outline.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    return f"{blocks[0]}.{found[1]}"


def versions() -> dict[str, str]:
    """Of SAELens and what it stands on."""
    return {name: version(name) for name in ("sae-lens", "torch", "transformer-lens", "transformers")}


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["BENCHMARK_THREADS"]))
    serve({"train": train, "versions": versions})
