"""L0 against the share of the language model's loss that the reconstruction keeps."""

from analysis.plots import PLOTS
from analysis.plots.frontier import FrontierPlot


@PLOTS.register("l0_ce_loss_recovered")
class L0CeLossRecovered(FrontierPlot):
    """Sparsity against cross-entropy recovered."""

    title = "Sparsity against cross-entropy recovered"
    caption = "Upper left is better. 1: the reconstruction predicts as well as the activation itself; 0: no better than zeros in its place."
    order = 12
    y = "ce_loss_recovered"
    log_y = False
