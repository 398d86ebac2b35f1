"""Checkpoints: everything that a run needs to resume, bit for bit, as tensors by name and facts that JSON can hold.

Every run has its own, so that runs may be regrouped between an interruption and the next launch.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_core.activations.files import load_tensors, save_tensors
from sae_core.errors import DamagedFileError

log = logging.getLogger(__name__)


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write atomically: an older checkpoint is there until the new one is complete."""
    save_tensors(path, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {"facts": json.dumps(facts)})


def read_checkpoint(path: Path, like: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and facts of a checkpoint; None where there is none. A damaged one, or another run's, is removed with a warning.

    Args:
        like: tensors of the same names, shapes and precisions, on the device to load to.
    """
    try:
        tensors, metadata = load_tensors(path, device=next(iter(like.values())).device)
        try:
            facts = json.loads(metadata["facts"])
            found, wanted = ({name: (tensor.shape, tensor.dtype) for name, tensor in some.items()} for some in (tensors, like))
            if differing := sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)):
                raise ValueError(f"{differing[:3]} are not those of the run")
        except Exception as error:
            raise DamagedFileError.of(path, error) from error
        return tensors, facts
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DamagedFileError as error:
        log.warning("run %s starts again from step 0: %s", path.parent.name, error)
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return None


def steps_done(path: Path) -> int:
    """Steps that the run of a checkpoint has taken; 0 where there is none, or it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return int(json.loads((file.metadata() or {})["facts"])["step"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return 0
