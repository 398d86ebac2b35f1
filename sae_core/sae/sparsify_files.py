"""Folders of sparsify, `cfg.json` and `sae.safetensors`, as plain data (EleutherAI/sparsify 1.3.3).

latents = the k largest of relu(encoder(x - b_dec)); `W_dec` has a row per latent. `k` in cfg.json is the one of the moment of saving:
a folder saved while k still falls has a larger one than the finished SAE.
"""

from pathlib import Path
from typing import Any

from sae_core.activations.files import load_tensors
from sae_core.files import read_json
from sae_core.sae.foreign_files import as_float, check_shapes, refuse
from sae_core.sae.saelens_files import StoredSAE

CONFIG = "cfg.json"
WEIGHTS = "sae.safetensors"

_ONLY: dict[str, Any] = {"activation": "topk", "signed": False, "transcode": False, "skip_connection": False}
"""Keys that decide what is computed -> the value that is read, which an absent key means too."""
_OTHER_KEYS = ("d_in", "k", "num_latents", "expansion_factor", "normalize_decoder", "multi_topk")


def read(directory: Path) -> StoredSAE:
    """Read a folder of sparsify.

    Raises:
        ConfigError: it is a transcoder, has another activation, or says something that is not known here.
        Exception: whatever reading what is not such a file raises.
    """
    cfg, tensors = read_json(directory / CONFIG), load_tensors(directory / WEIGHTS)[0]
    problems = [f"`{key}` must be {value!r}, but got {cfg[key]!r}" for key, value in _ONLY.items() if cfg.get(key, value) != value]
    problems += [f"keys of cfg.json must be known, but got {key!r}" for key in cfg if key not in (*_ONLY, *_OTHER_KEYS)]
    problems += [f"`{key}` must be a whole number above 0, but got {cfg.get(key)!r}" for key in ("d_in", "k") if not _count(cfg.get(key))]
    d_sae = cfg.get("num_latents") or (cfg.get("d_in") or 0) * cfg.get("expansion_factor", 32)
    refuse(problems, directory, "Only TopK SAEs of sparsify are read.")
    d_in = cfg["d_in"]
    wanted = {"encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    check_shapes(tensors, wanted, directory)
    ours = {"W_enc": tensors["encoder.weight"].T, "b_enc": tensors["encoder.bias"], "W_dec": tensors["W_dec"], "b_dec": tensors["b_dec"]}
    fields = {"d_sae": d_sae, "k": cfg["k"], "rescale_acts_by_decoder_norm": False}
    return StoredSAE("topk", fields, d_in, None, False, as_float(ours))


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
