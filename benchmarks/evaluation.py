"""Evaluating the SAEs of a sweep together, against each alone with its own baselines, on one thread.

    python benchmarks/evaluation.py --results results/demo     # a finished sweep; its SAEs and its held-out text

Three ways, each on the same chunk of held-out text; the first two alternate, the third, the slowest and there to check them, comes first
and once:
- together: what a sweep does. Clean run and ablations once, then every SAE.
- alone: `evaluate_chunk` for one SAE at a time. Clean run and ablations for each, with the same fast splices.
- whole runs: the sparsest SAE of each architecture alone, as evaluators usually do it. The whole model runs four times (clean, spliced,
  zero- and mean-ablated), with log-probabilities of the whole vocabulary for each. Its cross-entropies and KL are compared with those of
  `together`.
Loading models and SAEs is not counted. Printed: milliseconds per SAE and chunk, and median ratios to `together` with their range.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import Spread, activations_of, console, parser, ratio, write_result
from safetensors import safe_open
from torch import Tensor

from sae_core.activations.language_model.bridge import ModelConfig, load_model
from sae_core.activations.shards import read_manifest
from sae_core.evaluation import combine, evaluate_chunk
from sae_core.sae.base import SparseAutoencoder
from sweeps.definition.sweep import Sweep

Values = dict[str, dict[str, float | None]]


def main() -> None:
    options = parser(__doc__)
    options.set_defaults(threads=1)
    options.add_argument("--results", type=Path, default=Path("results/demo"), help="directory of a finished sweep")
    options.add_argument("--rounds", type=int, default=3, help="chunks of held-out text")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    results = Comparison(arguments.results.absolute()).measure(arguments.rounds)
    write_result(arguments.out, "evaluation", results)


class Comparison:
    def __init__(self, directory: Path) -> None:
        runs = Sweep.from_yaml(directory / "definition.yaml").runs()
        self.sparsest = {run.sae.architecture: run.run_id for run in reversed(runs)}
        """Architecture -> the SAE of its lowest L0, which changes most."""
        self.source, self.cache = activations_of(runs[0], directory.parent)
        self.mean = torch.tensor(read_manifest(self.cache).mean)
        self.saes = {run.run_id: SparseAutoencoder.from_pretrained(directory / "runs" / run.run_id / "sae") for run in runs}
        self.whole = WholeRuns(self.source.config.model, self.cache, self.mean)

    def measure(self, n_rounds: int) -> dict[str, Any]:
        """Seconds per SAE and chunk, ratios to `together`, and the largest difference of a metric; also told."""
        told = console()
        self.together(0)  # loads the model, and checks the fast ways against the plain ones
        whole_seconds, plain = _timed(self.whole_runs, 0)
        ways: dict[str, Callable[[int], Values]] = {"together": self.together, "alone": self.alone}
        rounds = [{name: _timed(way, index) for name, way in ways.items()} for index in range(n_rounds)]
        _, together = rounds[0]["together"]
        difference = max(abs(value - together[run_id][name]) for run_id, values in plain.items() for name, value in values.items())
        told.print(f"{len(self.saes)} SAEs; per SAE and chunk of held-out text: time, and ratio to together")
        times = {name: [one[name][0] / len(self.saes) for one in rounds] for name in ways}
        ratios = {name: ratio(values, times["together"]) for name, values in times.items()}
        times["whole runs"] = [whole_seconds / len(plain)]
        ratios["whole runs"] = ratio(times["whole runs"], times["together"][:1])
        for name, values in times.items():
            told.print(f"{name:<12}{Spread.of(values).text('ms', scale=1e3):<24}{ratios[name].text(digits=2)}")
        told.print(f"largest difference of cross-entropies and KL, together and whole runs: {difference:.1e} nats per token")
        return {"seconds": times, "ratios": ratios, "largest_difference": difference, "saes": len(self.saes)}

    def together(self, index: int) -> Values:
        return combine([evaluate_chunk(self.source.eval_chunk(self.cache, index, self.mean), self.saes)])[0]

    def alone(self, index: int) -> Values:
        def evaluate(run_id: str) -> dict[str, float | None]:
            chunk = self.source.eval_chunk(self.cache, index, self.mean)
            return combine([evaluate_chunk(chunk, {run_id: self.saes[run_id]})])[0][run_id]

        return {run_id: evaluate(run_id) for run_id in self.saes}

    def whole_runs(self, index: int) -> Values:
        return {run_id: self.whole.evaluate(index, self.saes[run_id]) for run_id in self.sparsest.values()}


def _timed(way: Callable[[int], Values], index: int) -> tuple[float, Values]:
    """Seconds that it takes for a chunk, and what it finds."""
    start = time.perf_counter()
    values = way(index)
    return time.perf_counter() - start, values


class WholeRuns:
    """Cross-entropies and KL by plain runs of the whole model; positions that hold a special token are left as they are, and out."""

    def __init__(self, model: ModelConfig, cache: Path, mean: Tensor) -> None:
        self.hook_point, self.mean, self.model = model.hook_point, mean, load_model(model)
        with safe_open(cache / "tokens.safetensors", framework="pt") as file:
            self.chunks = file.get_tensor("heldout").long().split(int(file.metadata()["chunk_windows"]))
            self.special_ids = file.get_tensor("special_ids")

    @torch.no_grad()
    def evaluate(self, index: int, sae: SparseAutoencoder) -> dict[str, float]:
        tokens = self.chunks[index]
        keep = ~torch.isin(tokens, self.special_ids)[..., None]
        sums = dict.fromkeys(("ce_loss_clean", "ce_loss_spliced", "ce_loss_zero_ablated", "ce_loss_mean_ablated", "kl"), 0.0)
        for some, at in zip(tokens.split(4), keep.split(4), strict=True):  # as many windows as are fastest here
            log_p = self.log_p(some, lambda x: x)
            log_q = self.log_p(some, lambda x, at=at: torch.where(at, sae.reconstruct(x.flatten(0, 1))[1].view_as(x), x))
            sums["kl"] += float((log_p.exp() * (log_p - log_q)).sum(-1)[at[..., 0]].double().sum())
            sums["ce_loss_clean"] += ce(log_p, some, at)
            sums["ce_loss_spliced"] += ce(log_q, some, at)
            sums["ce_loss_zero_ablated"] += ce(self.log_p(some, torch.zeros_like), some, at)
            sums["ce_loss_mean_ablated"] += ce(self.log_p(some, lambda x, at=at: torch.where(at, self.mean, x)), some, at)
        return {name: value / int((keep if name == "kl" else keep[:, :-1]).sum()) for name, value in sums.items()}

    def log_p(self, tokens: Tensor, replace: Callable[[Tensor], Tensor]) -> Tensor:
        hooks = [(self.hook_point, lambda x, hook: replace(x.flatten(2)).view(x.shape))]
        return self.model.run_with_hooks(tokens, fwd_hooks=hooks, return_type="logits", use_cache=False).log_softmax(-1)


def ce(log_p: Tensor, tokens: Tensor, keep: Tensor) -> float:
    return -float(log_p[:, :-1].gather(-1, tokens[:, 1:, None])[keep[:, :-1]].double().sum())


if __name__ == "__main__":
    main()
