"""Where in a model activations are read and replaced: the input or the output of one of its modules.

PyTorch's own hooks do both, so that values are those that the plain model computes, in any precision.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

SIDES = ("input", "output")
Change = Callable[[Tensor], Tensor | None]
"""Takes a value, and returns what is put in its place; None: it stays."""


@dataclass(frozen=True, slots=True)
class Place:
    """A module of a model, and its input or its output."""

    module: str
    """Path of the module, as `named_modules` has it."""
    side: str
    """One of SIDES."""
    layer: int | None = None
    """The block that it lies in; None: outside of the blocks."""
    n_before: int = 0
    """Blocks that have ended there."""
    is_stream: bool = False
    """Whether it is the residual stream that enters or leaves a block."""
    adds_to_stream: bool = False
    """Whether it is added to the residual stream as it is."""
    adds: tuple[str, str] | None = None
    """For the residual stream within a block: path of the block, and of the module whose output it adds to the stream."""

    def __str__(self) -> str:
        return f"{self.module}@{self.side}"


@dataclass(frozen=True, slots=True)
class Layout:
    """The parts of a model that every decoder has, as paths of modules."""

    blocks: str
    final_norm: str | None
    """What the residual stream goes through before the unembedding; None where nothing is there, or it is not known."""
    is_named: bool = True
    """Whether TransformerLens knows the model, and what is between the blocks and the unembedding."""


def path_and_side(hook_point: str) -> tuple[str, str]:
    """`model.layers.3.mlp@input` -> path of a module, and side; the output is meant where none is given."""
    path, at, side = hook_point.partition("@")
    return path, side if at else "output"


@contextmanager
def hooked(model: nn.Module, changes: Mapping[Place, Change]) -> Iterator[None]:
    """See, or change, what is at these places while the model runs."""
    with ExitStack() as stack:
        for place, change in changes.items():
            for handle in _handles(model, place, change):
                stack.callback(handle.remove)
        yield


def _handles(model: nn.Module, place: Place, change: Change) -> Sequence[Any]:
    module = model.get_submodule(place.module)
    if place.side == "output":
        return [module.register_forward_hook(lambda _, inputs, output: _changed_output(output, change))]
    if place.adds is None:
        return [module.register_forward_pre_hook(lambda _, args, kwargs: _changed_input(args, kwargs, change), with_kwargs=True)]
    block, branch = (model.get_submodule(path) for path in place.adds)
    return _stream_handles(module, branch, block, change)


def _stream_handles(module: nn.Module, branch: nn.Module, block: nn.Module, change: Change) -> Sequence[Any]:
    """Change the residual stream within a block: on the way into the module, and where the block adds the branch's output to it."""
    seen: dict[str, Tensor] = {}

    def enter(value: Tensor) -> Tensor | None:
        if (changed := change(value)) is not None:
            seen["stream"] = changed
        return changed

    def add(value: Tensor) -> None:
        seen["branch"] = value

    def leave(value: Tensor) -> Tensor | None:
        branch, stream = seen.pop("branch", None), seen.pop("stream", None)
        return None if branch is None or stream is None else stream + branch

    return [
        module.register_forward_pre_hook(lambda _, args, kwargs: _changed_input(args, kwargs, enter), with_kwargs=True),
        branch.register_forward_hook(lambda _, inputs, output: _changed_output(output, add)),
        block.register_forward_hook(lambda _, inputs, output: _changed_output(output, leave)),
    ]


def _changed_input(args: tuple[Any, ...], kwargs: dict[str, Any], change: Change) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Arguments of a module with its input changed: the first tensor among them."""
    for number, value in enumerate(args):
        if isinstance(value, Tensor):
            changed = change(value)
            return None if changed is None else ((*args[:number], changed, *args[number + 1 :]), kwargs)
    for name, value in kwargs.items():
        if isinstance(value, Tensor):
            changed = change(value)
            return None if changed is None else (args, {**kwargs, name: changed})
    return None


def _changed_output(output: Any, change: Change) -> Any:
    """What a module returns, changed: the first of several."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        changed = change(output[0])
        return None if changed is None else (changed, *output[1:])
    return None
