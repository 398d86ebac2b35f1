"""A sweep from Python: two architectures on the embedded model of Python code, small enough for a minute or two on two cores.

Run it again and nothing is trained: the records under results/from-python are there. Add a level, and only that is.
"""

from rich import print

from analysis import load_table, pareto_front
from sweeps import Sweep, launch

sweep = Sweep(
    name="from-python",
    model={"name": "demo", "hook_point": "blocks.2.hook_resid_post", "context_size": 128},
    data={"dataset": "demo", "train_tokens": 200_000, "eval_tokens": 20_000},
    sae={"d_sae": 512},
    train={"lr": 4e-3, "batch_size": 1024},
    architectures={"topk": {"k": [16, 32]}, "standard": {"l1_coefficient": [0.5, 2.0]}},
)
done = launch(sweep)
table = load_table(done.directory)
print(table.loc[pareto_front(table, "l0", "fvu"), ["architecture", "sparsity_value", "l0", "fvu", "delta_ce"]])
print(f"{done.finished} runs finished, {len(done.failed)} failed. Report: {done.directory / 'report' / 'report.html'}")
