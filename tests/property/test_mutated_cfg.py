"""Whatever a cfg.json says, it is an SAE with finite outputs, or one ConfigError."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from mutations import mutated
from saelens_folders import D_IN, foreign, write
from small_runs import random_sae

from sae_core.config.run import ARCHITECTURES
from sae_core.errors import ConfigError
from sae_core.sae.base import SparseAutoencoder

pytestmark = pytest.mark.slow


@cache
def folders(directory: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Valid folders, ours and other programs', and what their cfg.json says."""
    for name, (cfg, tensors) in foreign().items():
        write(directory / name, cfg, tensors)
    for name in ARCHITECTURES:
        random_sae(name).to_inference().save_pretrained(directory / f"ours-{name}", {"hook_name": "x", "training_config": {"lr": 1e-3}})
    cfgs = {path.parent.name: json.loads(path.read_text()) for path in directory.glob("*/cfg.json")}
    return {name: (directory / name, {k: v for k, v in cfg.items() if k != "checksum"}) for name, cfg in sorted(cfgs.items())}


@settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_any_cfg_is_an_sae_or_one_message(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    directory = tmp_path_factory.getbasetemp() / "mutated_cfg"
    name = data.draw(st.sampled_from(sorted(folders(directory))))
    folder, cfg = folders(directory)[name]
    try:
        text = json.dumps(data.draw(mutated(cfg)))
    except ValueError:  # a list inside itself
        reject()
    (folder / "cfg.json").write_text(text)
    try:
        sae = SparseAutoencoder.from_pretrained(folder)
    except ConfigError as error:
        assert all(line.isprintable() for line in str(error).split("\n"))
        return
    with torch.no_grad():
        latents, x_hat = sae.reconstruct(torch.randn(4, D_IN, generator=torch.Generator().manual_seed(0)))
    assert bool(latents.isfinite().all()) and bool(x_hat.isfinite().all())
