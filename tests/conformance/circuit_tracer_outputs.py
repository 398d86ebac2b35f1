"""Run by test_circuit_tracer.py with a Python that has circuit-tracer: loads sets and models, and writes what it makes of them.

Usage: circuit_tracer_outputs.py DIRECTORY, which holds x.safetensors (x [rows, d], tokens [positions]), sets/ and models/; a model has the
set of its name. Writes outputs.safetensors there: of each set without a model latents and outputs of x; of each model logits, activations
at the set's hook points, and an attribution graph.
"""

import sys
from pathlib import Path

import torch
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.utils.hf_utils import load_transcoder_from_hub
from safetensors.torch import load_file, save_file
from transformer_lens.loading_from_pretrained import OFFICIAL_MODEL_NAMES

CPU = torch.device("cpu")


@torch.no_grad()
def of_set(folder: Path, x: torch.Tensor) -> dict[str, torch.Tensor]:
    transcoders, _ = load_transcoder_from_hub(str(folder), device=CPU)
    rows = x.expand(len(transcoders), *x.shape)
    latents = transcoders.encode(rows)
    return {"latents": latents, "outputs": transcoders.decode(latents, rows)}


def of_model(model: Path, transcoders: Path, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    OFFICIAL_MODEL_NAMES.append(str(model))  # TransformerLens loads models of its list; of a path in it, what is there
    replacement = ReplacementModel.from_pretrained(str(model), str(transcoders), device=CPU)
    hooks = {"in": replacement.feature_input_hook, "out": replacement.original_feature_output_hook}
    with torch.no_grad():
        logits, cache = replacement.run_with_cache(tokens[None])
    layers = range(len(replacement.blocks))
    values = {side: torch.stack([cache[f"blocks.{layer}.{hook}"][0] for layer in layers]) for side, hook in hooks.items()}
    graph = attribute(tokens, replacement, max_n_logits=3)
    of_graph = {"adjacency": graph.adjacency_matrix, "features": graph.active_features, "activations": graph.activation_values}
    return {"logits": logits[0], **values, **of_graph}


def main(directory: Path) -> None:
    given = load_file(directory / "x.safetensors")
    outputs = {}
    for folder in (folder for folder in (directory / "sets").iterdir() if not (directory / "models" / folder.name).exists()):
        outputs |= {f"{folder.name}/{name}": value for name, value in of_set(folder, given["x"]).items()}
    for model in (directory / "models").iterdir():
        made = of_model(model, directory / "sets" / model.name, given["tokens"])
        outputs |= {f"{model.name}/{name}": value for name, value in made.items()}
    save_file({name: value.detach().clone().contiguous() for name, value in outputs.items()}, directory / "outputs.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
