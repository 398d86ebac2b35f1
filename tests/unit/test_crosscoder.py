"""Crosscoders: SAEs of the activations of several hook points side by side, each normalized by itself."""

import json
from pathlib import Path

import pytest
import torch
from fake_results import metrics_at, record_of, write_sweep
from torch import Tensor

from analysis.plots.hook_points import HookPoints
from analysis.table import load_table
from sae_core import RunConfig, SparseAutoencoder, TensorStream, TrainConfig, train_group, train_run
from sae_core.activations.shards import cache_directory, finish, harvest
from sae_core.activations.source import ActivationSource, EvalChunk
from sae_core.activations.stream import Stream, scale_of
from sae_core.architectures.standard import Standard, StandardConfig
from sae_core.architectures.topk import TopK, TopKConfig
from sae_core.config.run import ARCHITECTURES, ActivationsConfig
from sae_core.errors import ConfigError
from sae_core.evaluation import combine, evaluate_chunk
from sae_core.metrics.at_hook_points import specs_of
from sae_core.records import MetricSpec
from sae_core.sae.loss import LossContext
from sae_core.sae.normalization import Affine
from sae_core.training.transcoders import check_kind

PARTS = {"blocks.0.hook_resid_post": 5, "blocks.10.hook_resid_post": 4, "blocks.2.hook_resid_post": 3}
WIDTHS = list(PARTS.values())
AFFINE = ["expected_norm", "whitening", "none"]


@pytest.fixture(scope="module")
def x() -> Tensor:
    """Hook points on scales a hundred apart, which share their features."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(600, 4, generator=generator).relu()
    scales = zip(WIDTHS, (0.1, 10.0, 1.0), strict=True)
    return torch.cat([scale * (latents @ torch.randn(4, width, generator=generator)) + scale for width, scale in scales], dim=1)


def run_of(config: object, **train: object) -> RunConfig:
    activations = ActivationsConfig(source="test", train_tokens=600, eval_tokens=10)
    return RunConfig(activations=activations, sae=config, train=TrainConfig(**{"batch_size": 60, "dead_after_tokens": 200, **train}))  # type: ignore[arg-type]


def stream_of(x: Tensor, normalization: str = "expected_norm") -> TensorStream:
    return TensorStream(x, parts=PARTS, batch_size=60, normalize_activations=normalization)


@pytest.mark.parametrize("name", AFFINE)
def test_each_hook_point_is_normalized_as_if_it_were_alone(x: Tensor, name: str) -> None:
    normalization = stream_of(x, name).normalization
    alone = [TensorStream(part.contiguous(), batch_size=60, normalize_activations=name).normalization for part in x.split(WIDTHS, dim=1)]
    expected = torch.cat([one(part) for one, part in zip(alone, x.split(WIDTHS, dim=1), strict=True)], dim=1)
    torch.testing.assert_close(normalization(x), expected, rtol=1e-4, atol=1e-4)
    if name == "expected_norm":
        assert [float(part.norm(dim=1).mean()) for part in normalization(x).split(WIDTHS, dim=1)] == pytest.approx([n**0.5 for n in WIDTHS])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [name for name, cls in ARCHITECTURES.items() if not cls.Config.is_tied])
@pytest.mark.parametrize("name", AFFINE)
def test_what_is_exported_computes_in_the_units_of_the_model_what_training_computed(
    x: Tensor, architecture: str, name: str, tmp_path: Path
) -> None:
    kind = ARCHITECTURES[architecture]
    result = train_run(run_of(kind.Config.example(12, 16), normalize_activations=name), stream_of(x, name))
    assert result.sae is not None and isinstance(result.normalization, Affine)
    sae, exported = result.sae.to_inference(), result.exported()
    y_hat = sae(result.normalization(x))
    expected = result.normalization.map_decoder(y_hat) + (0 if result.normalization.mean is None else result.normalization.mean)
    torch.testing.assert_close(exported(x), expected, rtol=1e-3, atol=1e-3)
    exported.save_pretrained(tmp_path, {"hook_name": " + ".join(PARTS)})
    loaded = SparseAutoencoder.from_pretrained(tmp_path)
    assert torch.equal(loaded(x), exported(x))
    assert list(loaded.parts.items()) == list(PARTS.items())
    assert "crosscoder" in loaded._repr_html_()


def test_the_sparsity_weight_is_the_sum_of_the_norms_at_each_hook_point() -> None:
    """Rows (3, 4 | 0, 0) and (3, 0 | 0, 4): the same norm, 5, but weights 5 and 7."""
    sae = Standard(StandardConfig(d_sae=2, l1_coefficient=1.0), 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor([[3.0, 4.0, 0.0, 0.0], [3.0, 0.0, 0.0, 4.0]]))
        sae.W_enc.copy_(torch.eye(4)[:, :2])
    x = torch.tensor([[2.0, 3.0, 0.0, 0.0]])
    assert sae.loss(x, LossContext()).terms["l1_loss"].item() == pytest.approx(2 * 5 + 3 * 5)
    sae.parts = {"a": 2, "b": 2}
    assert sae.decoder_norms().tolist() == [5.0, 7.0]
    loss = sae.loss(x, LossContext()).terms["l1_loss"]
    assert loss.item() == pytest.approx(2 * 5 + 3 * 7)
    (gradient,) = torch.autograd.grad(loss, sae.W_dec)
    torch.testing.assert_close(gradient, torch.tensor([[1.2, 1.6, 0.0, 0.0], [3.0, 0.0, 0.0, 3.0]]))


def test_topk_selects_by_that_weight_and_exports_what_it_selects() -> None:
    sae = TopK(TopKConfig(d_sae=2, k=1), 4, generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor([[3.0, 4.0, 0.0, 0.0], [3.0, 0.0, 0.0, 4.0]]))
        sae.W_enc.copy_(torch.eye(4)[:, :2])
    x = torch.tensor([[6.0, 5.0, 0.0, 0.0]])  # scores 30 and 25; as a crosscoder 30 and 35
    assert sae.encode(x).tolist() == [[6.0, 0.0]]
    sae.parts = {"a": 2, "b": 2}
    assert sae.encode(x).tolist() == [[0.0, 5.0]]
    torch.testing.assert_close(sae.to_inference()(x), sae(x))


def test_packed_is_alone(x: Tensor) -> None:
    runs = [run_of(TopKConfig(d_sae=16, k=3)), run_of(StandardConfig(d_sae=8))]
    packed = train_group(runs, stream_of(x))
    for run, result in zip(runs, packed, strict=True):
        alone = train_run(run, stream_of(x)).sae
        assert result.sae is not None and alone is not None
        assert all(torch.equal(value, alone.state_dict()[name]) for name, value in result.sae.state_dict().items())


class Prepared(ActivationSource):
    """Rows of a tensor, as a source of several hook points makes them."""

    Config = ActivationsConfig

    def __init__(self, x: Tensor) -> None:
        super().__init__(ActivationsConfig(source="test", train_tokens=len(x), eval_tokens=1))
        self.x = x

    @property
    def d_in(self) -> int:
        return self.x.shape[1]

    @property
    def parts(self) -> dict[str, int]:
        return PARTS

    @property
    def shard_tokens(self) -> int:
        return 250

    def shard(self, directory: Path, index: int) -> Tensor:
        return self.x[slice(*self.train_span(index))]

    def eval_chunk(self, directory: Path, index: int, mean: Tensor) -> EvalChunk:
        return EvalChunk(self.x, parts=PARTS)


def test_a_cache_knows_the_scale_at_each_hook_point(x: Tensor, tmp_path: Path) -> None:
    source, directory = Prepared(x), cache_directory(tmp_path, "a" * 64)
    harvest(source, directory)
    manifest = finish(source, directory)
    assert manifest.parts == PARTS and list(manifest.parts) == list(PARTS)
    assert manifest.part_scales == pytest.approx([scale_of(part) for part in x.split(WIDTHS, dim=1)])
    stored = Stream(directory, batch_size=60)
    torch.testing.assert_close(stored.normalization(x), stream_of(x).normalization(x))


def test_fvu_at_each_hook_point_is_that_of_its_columns_alone(x: Tensor) -> None:
    sae = train_run(run_of(TopKConfig(d_sae=16, k=3)), stream_of(x)).exported()
    chunks = [EvalChunk(rows, parts=PARTS) for rows in x.split(250)]
    values = combine(evaluate_chunk(chunk, {"sae": sae}, index) for index, chunk in enumerate(chunks))[0]["sae"]
    x_hat = sae(x).detach()
    for name, y, y_hat in zip(PARTS, x.split(WIDTHS, dim=1), x_hat.split(WIDTHS, dim=1), strict=True):
        expected = float((y - y_hat).double().square().sum() / (y - y.mean(dim=0)).double().square().sum())
        assert values[f"fvu_at_{name}"] == pytest.approx(expected, rel=1e-5)
    assert values["fvu"] == pytest.approx(float((x - x_hat).square().sum() / (x - x.mean(dim=0)).square().sum()), rel=1e-4)
    specs = specs_of(values)
    assert [spec.name for spec in specs] == list(values)
    name = "fvu_at_blocks.10.hook_resid_post"
    assert MetricSpec(name, "Fraction of variance unexplained at blocks.10.hook_resid_post", "", "min") in specs


def test_a_hook_point_that_does_not_vary_has_no_fvu() -> None:
    x = torch.cat([torch.randn(300, 4, generator=torch.Generator().manual_seed(0)), torch.ones(300, 4)], dim=1)
    sae = Standard(StandardConfig(d_sae=4), 8, generator=torch.Generator().manual_seed(0)).eval()
    values = combine([evaluate_chunk(EvalChunk(x, parts={"a": 4, "b": 4}), {"sae": sae})])[0]["sae"]
    assert values["fvu_at_a"] is not None and values["fvu_at_b"] is None


def test_layer_norm_is_refused_before_training_and_in_a_stream(x: Tensor) -> None:
    run = run_of(StandardConfig(d_sae=8), normalize_activations="layer_norm")
    check_kind(run, None)
    with pytest.raises(ConfigError, match="every token in crosscoders, but got 'layer_norm'"):
        check_kind(run, None, PARTS)
    with pytest.raises(ConfigError, match="crosscoders are trained, but got 'layer_norm'"):
        stream_of(x, "layer_norm")


def test_tied_encoders_are_refused_before_training() -> None:
    with pytest.raises(ConfigError, match="must have an encoder of its own, but got 'matching_pursuit'"):
        check_kind(run_of(ARCHITECTURES["matching_pursuit"].Config(d_sae=8, k=2)), None, PARTS)


@pytest.mark.parametrize("parts", [{"a": 5, "b": 6}, {"a": 0, "b": 12}])
def test_widths_that_do_not_add_up_are_refused(x: Tensor, parts: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"`parts` must be widths .* for 12 columns"):
        TensorStream(x, parts=parts, batch_size=8)
    with pytest.raises(ConfigError, match="for 12 columns and targets"):
        TensorStream(x, target=x, parts=PARTS, batch_size=8)


@pytest.mark.parametrize("wrong", [{"a": 3}, {"a": 12.0}, {"a": -1, "b": 13}, ["a"], "a"])
def test_files_whose_widths_do_not_add_up_are_refused(tmp_path: Path, wrong: object) -> None:
    sae = Standard(StandardConfig(d_sae=4), 12, generator=torch.Generator().manual_seed(0)).eval()
    sae.save_pretrained(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    cfg.pop(next(key for key in cfg if "checksum" in key))
    cfg["metadata"]["crosscoder_parts"] = wrong
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(ConfigError, match=r"`crosscoder_parts` of an SAE's cfg\.json must be widths that add up to d_in=12"):
        SparseAutoencoder.from_pretrained(tmp_path)


def test_hook_z_is_not_flattened_beside_another(tmp_path: Path) -> None:
    sae = Standard(StandardConfig(d_sae=4), 12, generator=torch.Generator().manual_seed(0)).eval()
    for parts, expected in (({}, "hook_z"), ({"a": 6, "blocks.1.attn.hook_z": 6}, "none")):
        sae.parts = parts
        sae.save_pretrained(tmp_path / expected, {"hook_name": " + ".join(parts) or "blocks.1.attn.hook_z"})
        assert json.loads((tmp_path / expected / "cfg.json").read_text())["reshape_activations"] == expected


def test_the_plot_has_a_panel_per_hook_point(tmp_path: Path) -> None:
    records = [record_of("topk", k, {**metrics_at(k, 0.1, 0.2), "fvu_at_h.10": 0.3, "fvu_at_h.2": k / 100}) for k in (8, 16)]
    table = load_table(write_sweep(tmp_path / "sweep", [*records, record_of("gated", 3, metrics_at(8, 0.2, 0.3))]))
    info = HookPoints.info(table, {})
    assert info is not None and list(info.panels) == ["h.2", "h.10"]
    assert [point.y for point in info.panels["h.2"].series["topk"]] == [0.08, 0.16]
    assert list(info.panels["h.2"].series) == ["topk"]
