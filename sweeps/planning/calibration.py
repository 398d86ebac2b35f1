"""The calibration of a machine: what the parts of a sweep cost on it. `calibrate.py` measures it once; it is kept in the user's cache."""

import os
import platform
from pathlib import Path

from pydantic import ValidationError

from sae_core import provenance
from sae_core.config.run import ARCHITECTURES, Config
from sae_core.errors import ConfigError
from sae_core.files import write_text
from sweeps.planning.step_cost import StepCost

DIRECTORY_VARIABLE = "SAE_SWEEP_CACHE"
"""Environment variable that names the directory of calibrations; else $XDG_CACHE_HOME/sae-sweep, else ~/.cache/sae-sweep."""
_REMEDY = "Run `sae-sweep calibrate`: it takes about a minute and a half."


class ModelCost(Config):
    """What a language model costs in a slot."""

    check: float
    """Seconds of looking at model and text before anything starts, and of importing what that needs."""
    load: float
    """Seconds until it is there."""
    tokenise: float
    """Seconds per token of text."""
    product: float
    """Seconds per multiply-add of its blocks."""
    logit: float
    """Seconds per logit, beside the multiply-adds: additions and exponentials."""
    sae: float
    """Seconds per held-out token, SAE and d_in d_sae: encoding, decoding and metrics."""


class StageCost(Config):
    """Seconds that the stages of a sweep take however small it is."""

    harvest: float
    train: float
    evaluate: float
    rest: float
    """Start-up and report."""


class Calibration(Config):
    """What was measured, when and where."""

    made_at: str
    """Date, ISO."""
    machine: dict[str, str]
    """Name, hardware and versions: costs hold for no others."""
    n_slots: int
    """Processes that were at work at the same time."""
    steps: dict[str, dict[str, StepCost]]
    """Architecture -> precision -> what its training steps cost."""
    model: ModelCost
    stages: StageCost


def file() -> Path:
    """Where the calibration of this machine is, or would be. Home directories are shared between machines, so it has its name."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(os.environ.get(DIRECTORY_VARIABLE) or Path(cache) / "sae-sweep")
    return directory / f"calibration-{platform.node() or 'machine'}.json"


def machine() -> dict[str, str]:
    """What costs depend on."""
    versions = provenance.versions()
    return {"hardware": provenance.hardware()} | {name: versions.get(name, "") for name in ("python", "sae_sweep", "torch", "ray")}


def read() -> Calibration:
    """The calibration of this machine.

    Raises:
        ConfigError: there is none, or it was made with other hardware, versions or architectures.
    """
    path = file()
    if not path.is_file():
        raise ConfigError(f"this machine must be calibrated to predict times, but got no {path}. {_REMEDY}")
    try:
        found = Calibration.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ConfigError(
            f"a calibration must have the fields of this version, but got {error.error_count()} errors in {path}. {_REMEDY}"
        ) from None
    here = machine()
    for name in sorted(here.keys() | found.machine.keys()):
        if here.get(name) != found.machine.get(name):
            raise ConfigError(
                f"a calibration must be of this machine and these versions, but got {name}={found.machine.get(name)!r} in that of "
                f"{found.made_at}, and here it is {here.get(name)!r}. {_REMEDY}"
            )
    if unknown := sorted(set(ARCHITECTURES) - found.steps.keys()):
        raise ConfigError(f"a calibration must have measured every architecture, but got none of {unknown} in {path}. {_REMEDY}")
    return found


def write(calibration: Calibration) -> Path:
    """Keep a calibration in place of the one before. Returns its file."""
    path = file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, calibration.model_dump_json(indent=1) + "\n")
    return path
