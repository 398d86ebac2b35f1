"""Where everything lies under results/. Whoever reads or writes there asks here. Standard library only.

results/
  .activations/<hash>/        activations, shared by all sweeps over the same data
  <sweep>/
    definition.yaml           of the last launch; definitions/<n>.yaml keeps that of each
    sweep.json                runs asked for, launches, stages
    orders.json               what the running launch is asked to do
    progress.json             how far the present launch is, or the last one was
    table.csv  table.parquet  report/
    search/                   the Optuna study of a search
    runs/<run_id>/            config.json  record.json  history.jsonl  checkpoint.safetensors  sae/
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Files of one run."""

    directory: Path

    @property
    def config(self) -> Path:
        """The run's config, as JSON."""
        return self.directory / "config.json"

    @property
    def record(self) -> Path:
        """The run's record; it exists once the run was trained or failed."""
        return self.directory / "record.json"

    @property
    def history(self) -> Path:
        """Training curves, one line per logged step."""
        return self.directory / "history.jsonl"

    @property
    def checkpoint(self) -> Path:
        """State of a run in training."""
        return self.directory / "checkpoint.safetensors"

    @property
    def hang(self) -> Path:
        """Says why a process in which the run hung was ended, until the launch has told it. Named as a temporary file."""
        return self.directory / ".hang.tmp"

    @property
    def sae(self) -> Path:
        """Directory of the exported SAE: cfg.json and sae_weights.safetensors."""
        return self.directory / "sae"


@dataclass(frozen=True, slots=True)
class SweepPaths:
    """Files of one sweep."""

    directory: Path
    """results/<sweep>"""

    @property
    def definition(self) -> Path:
        """Definition of the last launch."""
        return self.directory / "definition.yaml"

    @property
    def definitions(self) -> Path:
        """Directory of the definitions of all launches, `<n>.yaml`."""
        return self.directory / "definitions"

    @property
    def facts(self) -> Path:
        """What no record can know: sweep.json."""
        return self.directory / "sweep.json"

    @property
    def orders(self) -> Path:
        """What the running launch is asked to do; see `orders`."""
        return self.directory / "orders.json"

    @property
    def progress(self) -> Path:
        """How far the present launch is."""
        return self.directory / "progress.json"

    @property
    def hangs(self) -> Path:
        """Directory of files that say why workers were ended that hung, until the launch has told it."""
        return self.directory / ".hangs.tmp"

    @property
    def table_csv(self) -> Path:
        """The table as text."""
        return self.directory / "table.csv"

    @property
    def table_parquet(self) -> Path:
        """The table with types."""
        return self.directory / "table.parquet"

    @property
    def report(self) -> Path:
        """Directory of the report."""
        return self.directory / "report"

    @property
    def search(self) -> Path:
        """Directory of the studies of a search."""
        return self.directory / "search"

    @property
    def activations(self) -> Path:
        """Directory of all harvested activations, beside the sweeps."""
        return self.directory.parent / ".activations"

    @property
    def runs(self) -> Path:
        """Directory of the runs."""
        return self.directory / "runs"

    def run(self, run_id: str) -> RunPaths:
        """Files of a run."""
        return RunPaths(self.runs / run_id)

    def run_ids(self) -> list[str]:
        """Runs that have a record, sorted."""
        return sorted(file.parent.name for file in self.runs.glob("*/record.json"))
