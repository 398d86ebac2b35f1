"""L0 against what splicing the SAE in costs the language model, in nats."""

from analysis.plots import PLOTS
from analysis.plots.frontier import FrontierPlot


@PLOTS.register("l0_delta_ce")
class L0DeltaCe(FrontierPlot):
    """Sparsity against the loss it costs the language model."""

    title = "Sparsity against added cross-entropy"
    caption = (
        "Lower left is better. How much worse the language model predicts the next token when the SAE's reconstruction "
        "replaces the activation."
    )
    order = 11
    y = "delta_ce"
    log_y = True
