"""Running a TransformerBridge as fast as the model it is made of.

A component of a bridge does in steps what the model's own module does in one (attention as products, mask and softmax; norms as means
and roots), so that a hook may lie between any two. Where no wanted hook lies within, the module itself can run, and attention be
PyTorch's fused one. Activations of a small model change by 1e-6 of the largest; whoever uses this compares them.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

FUSED = "sdpa"
"""Hugging Face's name of PyTorch's fused attention."""


def without_hooks(bridge: Any, hook_points: Collection[str]) -> list[Any]:
    """The components of a bridge that none of these hook points lies in; the unembedding is not among them.

    Args:
        hook_points: TransformerLens names.
    """
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    hooks = {id(bridge.hook_dict[name]) for name in hook_points}
    components = [one for one in bridge.modules() if isinstance(one, GeneralizedComponent) and one.original_component is not None]
    return [one for one in components if one is not bridge.unembed and not any(id(part) in hooks for part in one.modules())]


@contextmanager
def unhooked(components: Collection[Any]) -> Iterator[None]:
    """Let these components of a bridge run as the modules they are made of: no hook within fires."""
    with ExitStack() as stack:
        for one in components:
            stack.enter_context(forward_is(one, one.original_component))
        yield


@contextmanager
def forward_is(component: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace what a component of a bridge computes."""
    # Not by assignment: a bridge component passes that on to the module it wraps.
    own = vars(component)
    before = own.get("forward")
    own["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before


def may_fuse_attention(bridge: Any, components: Collection[Any]) -> bool:
    """Whether all attention of the model runs in its own modules, and is no more than the fused one computes.

    Args:
        components: those that run as the modules they are made of.
    """
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

    in_modules = {id(one) for one in components}
    # Hugging Face leaves a cap on attention scores out of the fused one without a word.
    is_capped = getattr(bridge.original_model.config, "attn_logit_softcapping", None) is not None
    return not is_capped and all(id(one) in in_modules for one in bridge.modules() if isinstance(one, AttentionBridge))


def use_attention(bridge: Any, implementation: str) -> None:
    """Choose Hugging Face's implementation of attention; a model that does not have it keeps its own."""
    try:
        bridge.original_model.set_attn_implementation(implementation)
    except ValueError:
        return
