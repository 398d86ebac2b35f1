"""Harvesting activations, against the model's own forward pass over the same tokens, on one thread.

    python benchmarks/harvest.py --results results/demo     # a finished sweep; its model and its training tokens

Four ways, alternating, each on the tokens of the same shard:
- harvest: what a sweep does. `source.shard` (run, select, shuffle) and `write_shard` (statistics, file).
- to the hook point: the model up to the hook point as the harvest runs it, results thrown away.
- Hugging Face: the model as Hugging Face loads it, fused attention included, up to the end of the block that the hook point is in.
- whole model: that, to its logits.
All bare ways run on as many tokens at a time as the harvest. Printed: seconds per shard, and median ratios of `harvest` to each with
their range.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from measuring import Spread, activations_of, console, parser, ratio, write_result
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from sae_core.activations.language_model.bridge import load_model
from sae_core.activations.language_model.hook_points import HookPlace
from sae_core.activations.language_model.hooked_model import HookedModel
from sae_core.activations.language_model.loading import local_or_hub
from sae_core.activations.language_model.source import MODEL_TOKENS, SHARD_TOKENS
from sae_core.activations.shards import write_shard
from sweeps.definition.sweep import Sweep


def main() -> None:
    options = parser(__doc__)
    options.set_defaults(threads=1)
    options.add_argument("--results", type=Path, default=Path("results/demo"), help="directory of a finished sweep")
    options.add_argument("--rounds", type=int, default=4, help="shards, each measured in all ways")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    results = Comparison(arguments.results.absolute()).measure(arguments.rounds)
    write_result(arguments.out, "harvest", results)


class _Ended(Exception):  # noqa: N818 - not an error: it ends a run
    pass


class Comparison:
    def __init__(self, directory: Path) -> None:
        self.source, self.cache = activations_of(Sweep.from_yaml(directory / "definition.yaml").runs()[0], directory.parent)
        config = self.source.config
        bridge = load_model(config.model)
        self.model = HookedModel(bridge, config.model.hook_point)
        disable_progress_bar()
        self.plain = AutoModelForCausalLM.from_pretrained(local_or_hub(config.model.name), dtype=getattr(torch, config.model.dtype))
        last = bridge.blocks[HookPlace.of(config.model.hook_point).layer or 0]
        self.last_block = next(name for name, module in bridge.original_model.named_modules() if module is last)
        self.windows = load_file(self.cache / "tokens.safetensors")["train"].long()
        self.per_shard, self.at_a_time = (tokens // config.model.context_size for tokens in (SHARD_TOKENS, MODEL_TOKENS["cpu"]))

    def measure(self, n_rounds: int) -> dict[str, Any]:
        """Seconds per shard, and ratios of the harvest to the bare ways; also told."""
        told = console()
        ways = {"harvest": self.harvest, "to the hook point": self.to_hook_point, "Hugging Face": self.to_block_end}
        ways["whole model"] = self.whole_model
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way(0)  # loads and warms up
        for index in range(n_rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                way(index % self.source.n_shards(self.cache))
                seconds[name].append(time.perf_counter() - start)
        ratios = {name: ratio(seconds["harvest"], times) for name, times in seconds.items()}
        told.print("per shard: time, and ratio of harvest to it")
        for name, times in seconds.items():
            told.print(f"{name:<20}{Spread.of(times).text('s', digits=2):<24}{ratios[name].text(digits=2)}")
        return {"seconds": seconds, "ratios": ratios}

    def harvest(self, index: int) -> None:
        with tempfile.TemporaryDirectory() as directory:
            write_shard(Path(directory), index, self.source.shard(self.cache, index), self.source.activations_dtype)

    def to_hook_point(self, index: int) -> None:
        self.bare(index, self.model.read)

    def to_block_end(self, index: int) -> None:
        def stop(*_: object) -> None:
            raise _Ended

        def run(tokens: torch.Tensor) -> None:
            with suppress(_Ended):
                self.plain(tokens, use_cache=False)

        with self.plain.get_submodule(self.last_block).register_forward_hook(stop):
            self.bare(index, run)

    def whole_model(self, index: int) -> None:
        self.bare(index, lambda tokens: self.plain(tokens, use_cache=False))

    @torch.no_grad()
    def bare(self, index: int, run: Callable[[torch.Tensor], object]) -> None:
        for tokens in self.windows[index * self.per_shard : (index + 1) * self.per_shard].split(self.at_a_time):
            run(tokens)


if __name__ == "__main__":
    main()
