"""Starting and stopping Ray, and what it can hold: the slots in which trials and workers run."""

import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from sae_core.errors import ConfigError
from sweeps import provenance

# Read by Ray when it is imported or when trials start. Facts behind each: docs/reliability.md.
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0, Tune prints nothing: progress is ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no progress.csv, result.json, tensorboard files: records are ours
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C reaches us instead of ending fit() as if all were well
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the behaviour to come; trials ask Ray for their GPUs anyway
}


class Cluster:
    """A Ray cluster in use: one started on this machine, or a running one.

    Args:
        address: of a running cluster; None starts one on this machine for the time of the launch.
        cpus: cores of each slot.
        gpus: GPUs of each slot; a fraction shares one.

    Raises:
        ConfigError: no slot fits, e.g. a GPU is asked for where there is none. For this machine it is known before Ray starts.
    """

    def __init__(self, *, address: str | None, cpus: int, gpus: float) -> None:
        self.address, self.cpus, self.gpus = address, cpus, gpus
        if address is None:
            self.n_slots = _slots({"CPU": provenance.n_cores(), "GPU": provenance.n_gpus()}, cpus, gpus)

    def __enter__(self) -> "Cluster":
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import ray

        # Workers import this package from where the driver did, also when it is not installed.
        paths = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")]))
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "runtime_env": {"env_vars": {"PYTHONPATH": paths}}}
        if self.address is None:
            ray.init(num_cpus=provenance.n_cores(), num_gpus=provenance.n_gpus(), include_dashboard=False, **options)
        else:
            ray.init(address=self.address, **options)
            self.n_slots = _slots(ray.cluster_resources(), self.cpus, self.gpus)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        import ray

        ray.shutdown()

    @property
    def actor(self) -> dict[str, float]:
        """A slot, in the words of Ray actors."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}

    @property
    def trial(self) -> dict[str, float]:
        """A slot, in the words of Ray Tune."""
        return {"cpu": self.cpus, "gpu": self.gpus}


def _slots(there: dict[str, float], cpus: int, gpus: float) -> int:
    """How many slots the resources hold."""
    n_cpus, n_gpus = there.get("CPU", 0), there.get("GPU", 0)
    if gpus > n_gpus:
        raise ConfigError(f"`--gpus-per-trial` must be at most the {n_gpus:g} GPUs there are, but got {gpus:g}. Lower it, or use a GPU machine.")
    if gpus > 1 and gpus != int(gpus):
        raise ConfigError(f"`--gpus-per-trial` must be a whole number above 1, but got {gpus:g}. Round it.")
    if cpus > n_cpus:
        raise ConfigError(f"`--cpus-per-trial` must be at most the {n_cpus:g} cores there are, but got {cpus}. Lower it.")
    by_gpu = int(n_gpus // gpus) if gpus >= 1 else int(n_gpus) * int(1 // gpus) if gpus > 0 else None
    by_cpu = int(n_cpus // cpus)
    return min(by_cpu, by_gpu) if by_gpu is not None else by_cpu
