"""L0 against the fraction of variance unexplained."""

from analysis.plots import PLOTS
from analysis.plots.frontier import FrontierPlot


@PLOTS.register("l0_fvu")
class L0Fvu(FrontierPlot):
    """The headline: sparsity against reconstruction."""

    title = "Sparsity against reconstruction"
    caption = (
        "Lower left is better. Lines: Pareto front of each architecture, through the means over seeds. "
        "Faint: settings that another one of the same architecture dominates."
    )
    order = 10
    y = "fvu"
    log_y = True
