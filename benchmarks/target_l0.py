"""Ways to reach a wanted L0, side by side on the demo: a controller during training, and short probe runs with interpolation.

    python benchmarks/target_l0.py --results results          # after `make demo`, whose activations it reads

For every architecture with a sparsity coefficient and every target, four runs:
- controller: what `target_l0` does, one run.
- replay: the coefficient the controller ended at, fixed, from the first step. Trained beside a second controlled run, step by step on
  the same batches, so that the ratio of their times is that of their costs.
- probe: two runs of a tenth of the tokens at half and twice the expected coefficient, a line through ln L0 over ln coefficient,
  then a run at the coefficient the line gives. The two probes are shared by all targets of the architecture.
- rule: the expected coefficient, coefficient_times_l0 / target, alone.
L0 and FVU are of the inference form on the last tenth of the training tokens, which no run here trains on.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import torch
from measuring import activations_of
from rich.console import Console

from sae_core.activations.stream import Stream
from sae_core.config.run import ARCHITECTURES, RunConfig
from sae_core.training.loop import TrainResult, train_group
from sweeps.definition.sweep import Sweep

PROBE_FRACTION = 0.1
HELDOUT_FRACTION = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--definition", default="demo")
    parser.add_argument("--set", action="append", default=[], help="settings of the definition, as for `sae-sweep run`")
    parser.add_argument("--architectures", nargs="+", default=["standard", "gated", "jumprelu"])
    parser.add_argument("--targets", nargs="+", type=int, default=[16, 32, 64])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sweep = Sweep.from_yaml(arguments.definition, [*arguments.set, f"target_l0={arguments.targets}"])
    runs = [run for run in sweep.runs() if run.sae.architecture in arguments.architectures]
    Comparison(runs, activations_of(runs[0], arguments.results)[1]).show(arguments.architectures)


class Comparison:
    def __init__(self, runs: Sequence[RunConfig], cache: Path) -> None:
        n_tokens = runs[0].activations.train_tokens
        self.runs = [with_tokens(run, round((1 - HELDOUT_FRACTION) * n_tokens)) for run in runs]
        self.stream = Stream(cache, batch_size=runs[0].train.batch_size, data_seed=runs[0].data_seed)
        self.heldout = torch.cat(list(islice(self.stream.batches(runs[0].n_steps - 98), 97)))

    def show(self, architectures: Sequence[str]) -> None:
        console = Console(width=120)
        console.print("architecture target  way         coefficient      L0   error     FVU   cost")
        for architecture in architectures:
            runs = [run for run in self.runs if run.sae.architecture == architecture]
            controlled = train_group(runs, self.stream)
            beside = train_group([*runs, *[fixed(one.run, one.sparsity_value) for one in controlled]], self.stream)
            again, replays = beside[: len(runs)], beside[len(runs) :]
            cost = sum(one.seconds for one in again) / sum(one.seconds for one in replays)
            line = self.probe_line(runs)
            probed = train_group([fixed(run, math.exp(line(math.log(target_of(run))))) for run in runs], self.stream)
            ruled = train_group([fixed(run, run.sae.sparsity_value) for run in runs], self.stream)
            probes = 2 * PROBE_FRACTION / len(runs)
            ways = {"controller": (controlled, cost), "replay": (replays, 1.0), "probe": (probed, 1 + probes), "rule": (ruled, 1.0)}
            for index, run in enumerate(runs):
                for way, (results, ratio) in ways.items():
                    one = results[index]
                    l0, fvu = self.measure(one)
                    error = l0 / target_of(run) - 1
                    console.print(
                        f"{architecture:<12}{target_of(run):>7g}  {way:<11}{one.sparsity_value:>12.4g}{l0:>8.2f}"
                        f"{error:>+8.1%}{fvu:>8.4f}{ratio:>7.2f}"
                    )

    def probe_line(self, runs: Sequence[RunConfig]) -> Callable[[float], float]:
        """ln L0 -> ln coefficient, through two short runs."""
        middle = math.exp(sum(math.log(run.sae.sparsity_value) for run in runs) / len(runs))
        n_tokens = round(PROBE_FRACTION * runs[0].activations.train_tokens)
        short = train_group([with_tokens(fixed(runs[0], factor * middle), n_tokens) for factor in (0.5, 2.0)], self.stream)
        (x0, y0), (x1, y1) = [(math.log(self.measure(one)[0]), math.log(one.sparsity_value)) for one in short]
        return lambda x: y0 + (y1 - y0) * (x - x0) / (x1 - x0)

    @torch.no_grad()
    def measure(self, result: TrainResult) -> tuple[float, float]:
        """Held-out inference L0 and FVU."""
        assert result.sae is not None, result.error
        sae = result.sae.to_inference()
        latents = sae.encode(self.heldout)
        error = (sae.decode(latents) - self.heldout).pow(2).sum()
        return float((latents != 0).sum() / len(self.heldout)), float(error / (self.heldout - self.heldout.mean(dim=0)).pow(2).sum())


def target_of(run: RunConfig) -> float:
    target = run.sae.target_l0
    assert target is not None
    return target


def fixed(run: RunConfig, coefficient: float) -> RunConfig:
    """The run with its coefficient fixed instead of a target."""
    sae = run.sae.model_dump() | {"target_l0": None, run.sae.sparsity_parameter: coefficient}
    return run.model_copy(update={"sae": ARCHITECTURES[run.sae.architecture].Config.model_validate(sae)})


def with_tokens(run: RunConfig, n_tokens: int) -> RunConfig:
    return run.model_copy(update={"activations": run.activations.model_copy(update={"train_tokens": n_tokens})})


if __name__ == "__main__":
    main()
