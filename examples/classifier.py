"""SAEs in a text classifier, with its accuracy before and after the splice beside FVU and L0 in the table.

    python examples/classifier.py ./my-gpt2-classifier train.jsonl test.jsonl

The model is a GPT2ForSequenceClassification with its tokenizer; a line of the files is {"text": ..., "label": 0}. This file is the plugin,
too: it registers the source `classifier` and the evaluator `accuracy`.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from rich import print

from analysis import load_table
from sae_core import MetricSpec, SparseAutoencoder
from sae_core.activations.module import ModuleActivations, ModuleSource
from sae_core.config import SOURCES
from sae_core.metrics.evaluators import HeldOutData, evaluator
from sweeps import Sweep, launch


class ClassifierActivations(ModuleActivations):
    """Tokens of labeled texts."""

    source: Literal["classifier"] = "classifier"
    model: str
    """A GPT2ForSequenceClassification on the Hugging Face Hub, or its directory."""
    train_texts: str
    heldout_texts: str
    context_size: int = 128
    """Tokens of a text, at most."""


@SOURCES.register("classifier")
class ClassifierSource(ModuleSource):
    """Activations of a sequence classifier, padding left out."""

    Config = ClassifierActivations
    path_fields = (("model",), ("train_texts",), ("heldout_texts",))
    hub_fields = ("model",)

    def load(self) -> torch.nn.Module:
        from transformers import GPT2ForSequenceClassification

        model = GPT2ForSequenceClassification.from_pretrained(self.config.model)
        model.config.pad_token_id = model.config.eos_token_id  # GPT-2 has no padding of its own
        return model

    def examples(self, part: str) -> Sequence[dict[str, torch.Tensor]]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.config.model, padding_side="right")
        tokenizer.pad_token = tokenizer.eos_token
        file = Path(self.config.train_texts if part == "train" else self.config.heldout_texts)
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        length = min(self.config.context_size, self.model.config.n_positions)
        options = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        tokens = tokenizer([row["text"] for row in rows], **options)
        return [
            {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(row["label"])}
            for ids, mask, row in zip(tokens["input_ids"], tokens["attention_mask"], rows, strict=True)
        ]


@evaluator(
    MetricSpec("accuracy", "Accuracy of the classifier", "", "none"),
    MetricSpec("accuracy_spliced", "Accuracy with the reconstruction in its place", "", "max"),
)
def accuracy(sae: SparseAutoencoder, heldout: HeldOutData) -> dict[str, float]:
    """Accuracy on the held-out texts, before and after the splice."""
    n_right, n_texts = [0, 0], 0
    for batch in heldout.source.batches("heldout"):
        for index, reconstruct in enumerate((None, sae)):
            guesses = heldout.source.run(batch, reconstruct).logits.argmax(dim=-1)
            n_right[index] += int((guesses == batch["labels"]).sum())
        n_texts += len(batch["labels"])
    return {"accuracy": n_right[0] / n_texts, "accuracy_spliced": n_right[1] / n_texts}


def sweep_of(
    model: str,
    train_texts: str,
    heldout_texts: str,
    *,
    hook_point: str = "transformer.h.6",
    train_tokens: int = 500_000,
    eval_tokens: int = 50_000,
    **sections: Any,
) -> Sweep:
    data = {"train_texts": train_texts, "heldout_texts": heldout_texts, "train_tokens": train_tokens, "eval_tokens": eval_tokens}
    defaults = {
        "sae": {"d_sae": 4096},
        "train": {"lr": 4e-3, "batch_size": 1024},
        "target_l0": [8, 16, 32],
        "architectures": {"batchtopk": {}, "jumprelu": {}},
    }
    activations = {"source": "classifier", "model": model, "hook_point": hook_point, **data}
    return Sweep(name="classifier", plugins=[__file__], activations=activations, **(defaults | sections))


def main(
    model: str, train_texts: str, heldout_texts: str, *, results: str | Path = "results", executor: str = "ray", **changes: Any
) -> Path:
    done = launch(sweep_of(model, train_texts, heldout_texts, **changes), results=results, executor=executor)
    table = load_table(done.directory).sort_values("l0")
    print(table[["architecture", "l0", "fvu", "accuracy", "accuracy_spliced"]])
    return done.directory


if __name__ == "__main__":
    main(*sys.argv[1:])
