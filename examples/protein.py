"""SAEs on the residues of proteins, in a model of the ESM-2 family.

    python examples/protein.py facebook/esm2_t6_8M_UR50D train.fasta test.fasta

This file is the plugin, too: it registers the source `protein`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from rich import print
from torch import Tensor

from analysis import load_table, pareto_front
from sae_core.activations.module import ModuleActivations, ModuleSource
from sae_core.config import SOURCES
from sweeps import Sweep, launch


class ProteinActivations(ModuleActivations):
    """Residues of the sequences in FASTA files."""

    source: Literal["protein"] = "protein"
    model: str
    """An EsmModel on the Hugging Face Hub, or its directory."""
    train_sequences: str
    heldout_sequences: str
    context_size: int = 512
    """Residues of a protein, at most, with the two special tokens."""


@SOURCES.register("protein")
class ProteinSource(ModuleSource):
    """Activations of a protein model; special tokens and padding are left out."""

    Config = ProteinActivations
    path_fields = (("model",), ("train_sequences",), ("heldout_sequences",))
    hub_fields = ("model",)

    def load(self) -> torch.nn.Module:
        from transformers import EsmModel

        return EsmModel.from_pretrained(self.config.model, add_pooling_layer=False)

    def examples(self, part: str) -> Sequence[str]:
        file = Path(self.config.train_sequences if part == "train" else self.config.heldout_sequences)
        entries = file.read_text().split(">")[1:]
        return ["".join(entry.splitlines()[1:]) for entry in entries]

    def collate(self, examples: Sequence[str]) -> dict[str, Tensor]:
        from transformers import EsmTokenizer

        tokenizer = EsmTokenizer.from_pretrained(self.config.model)
        options = {"padding": True, "truncation": True, "max_length": self.config.context_size, "return_tensors": "pt"}
        return dict(tokenizer(list(examples), return_special_tokens_mask=True, **options))

    def forward(self, batch: dict[str, Tensor]) -> Any:
        return self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    def keep(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["special_tokens_mask"] == 0  # padding is special, too


def sweep_of(
    model: str,
    train_sequences: str,
    heldout_sequences: str,
    *,
    hook_point: str = "encoder.layer.3",
    train_tokens: int = 2_000_000,
    eval_tokens: int = 100_000,
    **sections: Any,
) -> Sweep:
    data = {
        "train_sequences": train_sequences,
        "heldout_sequences": heldout_sequences,
        "train_tokens": train_tokens,
        "eval_tokens": eval_tokens,
    }
    defaults = {
        "sae": {"d_sae": 4096},
        "train": {"lr": 4e-3, "batch_size": 1024},
        "target_l0": [16, 32, 64],
        "architectures": {"topk": {}, "batchtopk": {}},
    }
    activations = {"source": "protein", "model": model, "hook_point": hook_point, **data}
    return Sweep(name="protein", plugins=[__file__], activations=activations, **(defaults | sections))


def main(
    model: str, train_sequences: str, heldout_sequences: str, *, results: str | Path = "results", executor: str = "ray", **changes: Any
) -> Path:
    done = launch(sweep_of(model, train_sequences, heldout_sequences, **changes), results=results, executor=executor)
    table = load_table(done.directory)
    print(table.loc[pareto_front(table, "l0", "fvu"), ["architecture", "l0", "fvu", "dead_fraction"]])
    return done.directory


if __name__ == "__main__":
    main(*sys.argv[1:])
