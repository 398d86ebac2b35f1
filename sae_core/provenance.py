"""Where a result came from: versions, commit, hardware. Nothing heavy is imported to find out."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

_PACKAGES = ("sae_sweep", "torch", "transformer_lens", "transformers", "datasets", "ray", "optuna", "numpy")
SHIPPED_VERSIONS = "SAE_SWEEP_SHIPPED_VERSIONS"
"""In the environment of processes whose code came from the launch: version and commit there, in JSON."""


def versions() -> dict[str, str]:
    """Version of this package and of what it stands on; `commit` of the checkout it runs from, "+changes" if its code is modified."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _commit(Path(__file__).resolve().parent.parent)
    return found | ({"commit": commit} if commit else {}) | json.loads(os.environ.get(SHIPPED_VERSIONS, "{}"))


def hardware() -> str:
    """One line: processor, cores this process may use, memory, GPUs."""
    names = gpu_names()
    gpus = [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    return ", ".join([_processor(), f"{n_cores()} cores", f"{memory_bytes() / 2**30:.0f} GiB memory", *gpus])


@cache
def node() -> dict[str, Any]:
    """Fields of a record that say where its numbers were made: in this process, where these do not change."""
    return {"versions": versions(), "hardware": hardware()}


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def n_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory this process may use: the machine's, or its container's where that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(file).read_text().strip() if Path(file).is_file() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)


def n_gpus() -> int:
    """GPUs this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = len(gpu_names())
    return found if visible is None else min(found, len([device for device in visible.split(",") if device.strip() not in ("", "-1")]))


def gpu_names() -> list[str]:
    """The machine's GPUs, e.g. ["NVIDIA H100", "NVIDIA H100"]; empty where nvidia-smi is missing or finds none."""
    return [line.strip() for line in _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines() if line.strip()]


def gpu_memory_bytes() -> list[int]:
    """Memory of each of the machine's GPUs; empty where nvidia-smi is missing or finds none."""
    lines = _output("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits").splitlines()
    return [int(line) * 2**20 for line in lines if line.strip().isdigit()]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return model.group(1).strip() if model else platform.processor() or platform.machine()


def _commit(checkout: Path) -> str:
    if not (checkout / ".git").exists():
        return ""
    commit = _output("git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD").strip()
    but_results = ("--", ".", ":!results", ":!benchmarks/results")
    changed = _output("git", "-C", str(checkout), "status", "--porcelain", "--untracked-files=no", *but_results).strip()
    return f"{commit}+changes" if commit and changed else commit


def _output(*command: str) -> str:
    """What a command prints; empty if it is missing or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
