"""Where everything lies under results/. Whoever reads or writes there asks here. Standard library only.

results/
  .activations/<hash>/        activations, shared by all sweeps over the same data
  <sweep>/
    definition.yaml           of the last launch; definitions/<n>.yaml keeps that of each
    sweep.json                runs asked for, launches, stages
    orders.json               what the running launch is asked to do
    progress.json             how far the present launch is, or the last one was
    table.csv  table.parquet  stability.json  report/
    search/                   the Optuna study of a search
    runs/<run_id>/            config.json  record.json  history.jsonl  documents.parquet  latents.safetensors
                              checkpoint.safetensors  state.safetensors  sae/
      variants/<name>/        record.json  documents.parquet  latents.safetensors  sae/
"""

from dataclasses import dataclass
from pathlib import Path

CFG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"
"""Names of the files of an exported SAE, which SAELens gives them; the last is there once it was evaluated."""
PARTS = "crosscoder_parts"
"""Key of the metadata in cfg.json that a crosscoder has: hook point -> width, in the order of its columns. Only we read it."""
OF_RUN = "@"
"""Between the id of a run and the name of one of its variants, in the id of the variant."""


class _Below:
    """A path below the directory of its owner."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, owner: "RunPaths | SweepPaths", kind: type) -> Path:
        return owner.directory / self._name


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Files of one run."""

    directory: Path

    config = _Below("config.json")
    """The run's config, as JSON."""
    record = _Below("record.json")
    """The run's record; it exists once the run was trained or failed."""
    history = _Below("history.jsonl")
    """Training curves, one line per logged step."""
    documents = _Below("documents.parquet")
    """What each held-out document adds to the metrics; see `documents`."""
    latents = _Below("latents.safetensors")
    """How often each latent is active on the held-out tokens, and what it explains of them."""
    checkpoint = _Below("checkpoint.safetensors")
    """State of a run in training."""
    state = _Below("state.safetensors")
    """State in training from which a longer run continues; see `training.continuing`."""
    hang = _Below(".hang.tmp")
    """Says why a process in which the run hung was ended, until the launch has told it. Named as a temporary file."""
    sae = _Below("sae")
    """Directory of the exported SAE: cfg.json, sae_weights.safetensors, and once it was evaluated sparsity.safetensors."""
    probes = _Below("probes.json")
    """Scores of probes, of `sae-sweep probe`."""
    features = _Below("features.html")
    """The page of `sae-sweep features`."""
    variants = _Below("variants")
    """Directory of the run's variants, which are measured beside it: a snapshot of its training, or another form of its SAE."""

    def variant(self, name: str) -> "RunPaths":
        """Files of a variant."""
        return RunPaths(self.variants / name)

    def recorded_variants(self) -> "list[RunPaths]":
        """Files of each variant that has a record, sorted by name."""
        return [RunPaths(file.parent) for file in sorted(self.variants.glob("*/record.json"))]


@dataclass(frozen=True, slots=True)
class SweepPaths:
    """Files of one sweep."""

    directory: Path
    """results/<sweep>"""

    definition = _Below("definition.yaml")
    """Definition of the last launch."""
    definitions = _Below("definitions")
    """Directory of the definitions of all launches, `<n>.yaml`."""
    facts = _Below("sweep.json")
    """What no record can know."""
    orders = _Below("orders.json")
    """What the running launch is asked to do; see `orders`."""
    progress = _Below("progress.json")
    """How far the present launch is."""
    hangs = _Below(".hangs.tmp")
    """Directory of files that say why workers were ended that hung, until the launch has told it."""
    table_csv = _Below("table.csv")
    """The table as text."""
    table_parquet = _Below("table.parquet")
    """The table with types."""
    stability = _Below("stability.json")
    """How alike the latents of repeats are, per pair of runs; see `analysis.stability`."""
    report = _Below("report")
    """Directory of the report."""
    search = _Below("search")
    """Directory of the studies of a search."""
    runs = _Below("runs")
    """Directory of the runs."""

    @property
    def activations(self) -> Path:
        """Directory of all harvested activations, beside the sweeps."""
        return self.directory.parent / ".activations"

    def run(self, run_id: str) -> RunPaths:
        """Files of a run, or of a variant of one, `<run id>@<name>`."""
        run_id, _, name = run_id.partition(OF_RUN)
        paths = RunPaths(self.runs / run_id)
        return paths.variant(name) if name else paths

    def run_ids(self) -> list[str]:
        """Runs that have a record, sorted."""
        return sorted(file.parent.name for file in self.runs.glob("*/record.json"))

    def variant_ids(self, run_id: str) -> list[str]:
        """Variants of a run that have a record, sorted: `<run id>@<name>`."""
        return [f"{run_id}{OF_RUN}{variant.directory.name}" for variant in self.run(run_id).recorded_variants()]
