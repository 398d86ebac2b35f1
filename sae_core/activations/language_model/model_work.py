"""How much a language model computes for a token, and how much of it lies below and above a hook point. No weights are read."""

from dataclasses import dataclass

from sae_core.activations.language_model import bridge
from sae_core.activations.language_model.bridge import ModelConfig
from sae_core.activations.language_model.hook_points import HookPlace


@dataclass(frozen=True, slots=True)
class ModelWork:
    """Work per token, in multiply-adds of matrix products."""

    block: float
    """Of one block: its weights."""
    n_below: int
    """Blocks up to the hook point, that of the hook point included."""
    n_above: int
    """Blocks that run again when activations are replaced at the hook point."""
    unembedding: float
    """Of the logits."""
    d_vocab: int


def model_work(config: ModelConfig) -> ModelWork:
    """What a model computes, about a second's work.

    Raises:
        ConfigError: no such model, or none that TransformerLens knows.
    """
    found = bridge.outline(config.name)
    model = found.bridge.original_model
    embeddings = {id(one.weight): one.weight for one in (model.get_input_embeddings(), model.get_output_embeddings()) if one is not None}
    n_layers = int(found.bridge.cfg.n_layers)
    # Beside a fused projection, TransformerLens has its three parts.
    own = [one for name, one in model.named_parameters() if id(one) not in embeddings and ".qkv." not in name]
    where = HookPlace.of(config.hook_point)
    return ModelWork(
        block=sum(one.numel() for one in own) / n_layers,
        n_below=0 if where.layer is None else where.layer + 1,
        n_above=n_layers - where.n_before,
        unembedding=float(found.bridge.cfg.d_model * found.d_vocab),
        d_vocab=found.d_vocab,
    )
