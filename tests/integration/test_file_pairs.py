"""Tensors in memory, as a sweep of SAEs and, with targets, of transcoders."""

from pathlib import Path

import pytest
import torch
from inline import launch

from analysis.table import load_table
from sae_core import SparseAutoencoder, measure, save_activations
from sweeps import Sweep


def test_pairs_in_a_file_train_transcoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.report.write_report", lambda *_: None)
    generator = torch.Generator().manual_seed(0)
    latents = (torch.rand(6_000, 24, generator=generator) > 0.9).float()
    x, target = (latents @ torch.nn.functional.normalize(torch.randn(24, width, generator=generator)) for width in (16, 12))
    sweep = Sweep(
        name="pairs",
        activations=save_activations(tmp_path / "pairs.safetensors", x, target=target, eval_tokens=1_000),
        sae={"d_sae": 48},
        train={"batch_size": 100, "lr": 1e-2},
        target_l0=[3, 6],
        architectures={"topk": {}},
    )
    done = launch(sweep, results=tmp_path)
    table = load_table(done.directory).sort_values("l0")
    assert (table.status == "finished").all() and (table.fvu < 0.6).all() and table.fvu.is_monotonic_decreasing
    best = table.iloc[-1]
    sae = SparseAutoencoder.from_pretrained(done.directory / "runs" / best.run_id / "sae")
    assert sae(x).shape == target.shape
    assert measure(sae, x[5_000:], target[5_000:])["fvu"] == pytest.approx(best.fvu, rel=1e-6)
