"""Same weights, same batch: our losses and gradients are those of SAELens' formulas to 1e-5.

Each `*_terms` function is SAELens 6.54 as formulas in plain, dense torch: no code of ours, no fast path. Where SAELens carries the
decoder norm in its latents and divides by it in the decoder, so do they. On-purpose differences: docs/formulas.md.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_runs import random_sae
from torch import Tensor

from sae_core.sae.loss import LossContext

pytestmark = pytest.mark.usefixtures("kernels")

D_IN, D_SAE, K = 12, 40, 5
Parameters = dict[str, Tensor]
Terms = dict[str, Tensor]


def squared_error(x_hat: Tensor, x: Tensor) -> Tensor:
    return (x_hat - x).square().sum(dim=1).mean(dim=0)


def row_norms(p: Parameters) -> Tensor:
    return p["W_dec"].square().sum(dim=1).sqrt()


def hidden(p: Parameters, x: Tensor) -> Tensor:
    return torch.addmm(p["b_enc"], x - p["b_dec"], p["W_enc"])


def standard_terms(p: Parameters, x: Tensor, l1: float, lp_norm: float) -> Terms:
    a = hidden(p, x).clamp(min=0)
    penalty = l1 * (a * row_norms(p)).norm(p=lp_norm, dim=1).mean()
    return {"mse_loss": squared_error(a @ p["W_dec"] + p["b_dec"], x), "l1_loss": penalty}


def gated_terms(p: Parameters, x: Tensor, l1: float) -> Terms:
    centred = x - p["b_dec"]
    gate = centred @ p["W_enc"] + p["b_gate"]
    magnitude = (centred @ (p["W_enc"] * torch.exp(p["r_mag"])) + p["b_mag"]).clamp(min=0)
    a = torch.where(gate > 0, magnitude, torch.zeros_like(magnitude))
    via_gate = gate.clamp(min=0)
    return {
        "mse_loss": squared_error(a @ p["W_dec"] + p["b_dec"], x),
        "l1_loss": l1 * (via_gate * row_norms(p)).sum(dim=1).mean(),
        "auxiliary_reconstruction_loss": squared_error(via_gate @ p["W_dec"] + p["b_dec"], x),
    }


def keep(z: Tensor, index: Tensor) -> Tensor:
    """`z` at the flat positions `index`, 0 elsewhere."""
    mask = torch.zeros(z.numel(), dtype=z.dtype).index_fill(0, index.flatten(), 1.0)
    return z * mask.view_as(z)


def topk_activations(z: Tensor) -> Tensor:
    rows = torch.arange(len(z)).unsqueeze(1) * z.shape[1]
    return keep(z.clamp(min=0), rows + z.topk(K, dim=1).indices)


def abstopk_activations(z: Tensor) -> Tensor:
    rows = torch.arange(len(z)).unsqueeze(1) * z.shape[1]
    return keep(z, rows + z.abs().topk(K, dim=1).indices)


def batchtopk_activations(z: Tensor) -> Tensor:
    a = z.clamp(min=0)
    return keep(a, a.flatten().topk(K * len(z)).indices)


def topk_family_terms(
    p: Parameters,
    x: Tensor,
    activations: Callable[[Tensor], Tensor],
    rescale: bool,
    dead: Tensor,
    coefficient: float,
    widths: list[int],
    signed: bool,
) -> Terms:
    n = row_norms(p) if rescale else torch.ones(D_SAE)
    z = hidden(p, x) * n
    a = activations(z)

    def decode(some: Tensor, width: int = D_SAE) -> Tensor:
        return (some[:, :width] / n[:width]) @ p["W_dec"][:width]

    x_hat = decode(a) + p["b_dec"]
    terms = {"mse_loss": squared_error(x_hat, x)}
    terms |= {f"inner_mse_loss_{width}": squared_error(decode(a, width) + p["b_dec"], x) for width in widths}
    n_dead, k_aux = int(dead.sum()), D_IN // 2
    if n_dead:
        size = z.abs() if signed else z
        chosen = size.where(dead, torch.full_like(z, -torch.inf)).topk(min(k_aux, n_dead), dim=1).indices
        rows = torch.arange(len(z)).unsqueeze(1) * D_SAE
        error = squared_error(decode(keep(z, rows + chosen)), (x - x_hat).detach())  # neither ReLU nor b_dec
        terms["auxiliary_reconstruction_loss"] = coefficient * min(n_dead / k_aux, 1) * error
    return terms


class Straight(torch.autograd.Function):
    """z * 1[z > t], or 1[z > t] with `is_step`; the jump's gradient through a rectangle of width `bandwidth`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, t: Tensor, bandwidth: float, is_step: bool, to_input: bool) -> Tensor:
        ctx.save_for_backward(z, t)
        ctx.options = bandwidth, is_step, to_input
        return (z > t).to(z) if is_step else z.masked_fill(z <= t, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        z, t = ctx.saved_tensors
        bandwidth, is_step, to_input = ctx.options
        inside = (((z - t) / bandwidth).abs() < 0.5).to(z)
        jump = (torch.ones_like(t) if is_step else t) / bandwidth * inside * grads[0]
        smooth = torch.zeros_like(z) if is_step else grads[0].masked_fill(z <= t, 0)
        return smooth + jump if to_input else smooth, -jump.sum(dim=0), None, None, None


def jumprelu_terms(
    p: Parameters, x: Tensor, l0: float, mode: str, to_input: bool, pre_act: float, dead: Tensor, frequency_scale: float = torch.inf
) -> Terms:
    z, t, n, bandwidth = hidden(p, x), p["threshold"], row_norms(p), 0.3
    a = Straight.apply(z, t, bandwidth, False, to_input)
    active, saturated = Straight.apply(z, t, bandwidth, True, to_input), torch.tanh(4.0 * a * n)
    count, frequency = active.sum(dim=1), (saturated if mode == "tanh" else active).mean(dim=0)
    sparsity = {
        "step": lambda: count.mean(),
        "quadratic": lambda: (2 / 6.0 * (count - 6.0).square()).mean(),
        "tanh": lambda: saturated.sum(dim=1).mean(),
    }[mode]() + (frequency.square() / frequency_scale).sum()
    towards_life = ((t - z).clamp(min=0) * n)[:, dead].sum(dim=1).mean()
    return {"mse_loss": squared_error(a @ p["W_dec"] + p["b_dec"], x), "l0_loss": l0 * sparsity, "pre_act_loss": pre_act * towards_life}


def matching_pursuit_terms(p: Parameters, x: Tensor, threshold: float, stops: bool) -> Terms:
    residual, acts, done = x - p["b_dec"], torch.zeros(len(x), D_SAE), torch.zeros(len(x), 1, dtype=torch.bool)
    for _ in range(K):
        best = (residual @ p["W_dec"].T).argmax(dim=1)
        rows = p["W_dec"][best]
        value = (residual * rows).sum(dim=1, keepdim=True).clamp(min=0) * ~done
        before = acts != 0
        acts = acts + torch.nn.functional.one_hot(best, D_SAE) * value
        residual = residual - value * rows
        done = done | (residual.norm(dim=1, keepdim=True) < threshold) | (stops & (before == (acts != 0)).all(dim=1, keepdim=True))
    return {"mse_loss": squared_error(acts @ p["W_dec"] + p["b_dec"], x)}


def dead_latents(n_dead: int) -> Tensor:
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[torch.arange(1, 1 + 3 * n_dead, 3)] = True
    return dead


def assert_conforms(name: str, reference: Callable[[Parameters, Tensor], Terms], dead: Tensor, **fields: Any) -> None:
    """Our `name` with `fields`, at 0.7 of the way through the sparsity warm-up, against the reference."""
    x = 1.5 * torch.randn(64, D_IN, generator=torch.Generator().manual_seed(2))
    sae = random_sae(name, D_IN, D_SAE, **fields)
    parameters = {key: value.detach().clone().requires_grad_() for key, value in sae.named_parameters()}
    ours = sae.loss(x, LossContext(0.7, dead if bool(dead.any()) else None))
    theirs = reference(parameters, x)
    assert ours.terms.keys() == theirs.keys()
    for term, expected in theirs.items():
        torch.testing.assert_close(ours.terms[term], expected, rtol=1e-5, atol=1e-5, msg=lambda text, term=term: f"{term}: {text}")
    total = torch.stack(list(theirs.values())).sum()
    torch.testing.assert_close(ours.total, total, rtol=1e-5, atol=1e-5)
    ours.total.backward()
    total.backward()
    for key, value in sae.named_parameters():
        torch.testing.assert_close(value.grad, parameters[key].grad, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("lp_norm", [1.0, 0.5, 2.0])
def test_standard(lp_norm: float) -> None:
    fields = {"l1_coefficient": 0.9, "lp_norm": lp_norm}
    assert_conforms("standard", lambda p, x: standard_terms(p, x, 0.7 * 0.9, lp_norm), dead_latents(4), **fields)


def test_gated() -> None:
    assert_conforms("gated", lambda p, x: gated_terms(p, x, 0.7 * 0.9), dead_latents(4), l1_coefficient=0.9)


# No dead latent; fewer than k_aux = d_in / 2 = 6, which scales the auxiliary loss down; more, of which each token uses 6.
@pytest.mark.parametrize("n_dead", [0, 4, 11])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("name", ["topk", "abstopk", "batchtopk", "matryoshka_batchtopk"])
def test_topk_family(name: str, rescale: bool, n_dead: int) -> None:
    dead = dead_latents(n_dead)
    widths = [10, 25] if name == "matryoshka_batchtopk" else []
    activations = {"topk": topk_activations, "abstopk": abstopk_activations}.get(name, batchtopk_activations)
    fields: dict[str, Any] = {"k": K, "rescale_acts_by_decoder_norm": rescale, "auxk_coefficient": 0.8}
    if widths:
        fields["matryoshka_widths"] = widths
    signed = name == "abstopk"
    assert_conforms(name, lambda p, x: topk_family_terms(p, x, activations, rescale, dead, 0.8, widths, signed), dead, **fields)


@pytest.mark.parametrize("n_dead", [0, 4])
@pytest.mark.parametrize("to_input", [False, True])
@pytest.mark.parametrize("mode", ["step", "quadratic", "tanh"])
def test_jumprelu(mode: str, to_input: bool, n_dead: int) -> None:
    dead = dead_latents(n_dead)
    fields = {"l0_coefficient": 0.5, "sparsity_loss": mode, "target_l0": 6.0 if mode == "quadratic" else None, "bandwidth": 0.3}
    fields |= {"ste_to_input": to_input, "pre_act_loss_coefficient": 0.02, "tanh_scale": 4.0}
    assert_conforms("jumprelu", lambda p, x: jumprelu_terms(p, x, 0.7 * 0.5, mode, to_input, 0.02, dead), dead, **fields)


@pytest.mark.parametrize("mode", ["step", "quadratic", "tanh"])
def test_frequency_penalty(mode: str) -> None:
    """Of Language-Model-SAEs (tanh), and the same with the other losses; SAELens has none."""
    fields = {"l0_coefficient": 0.5, "sparsity_loss": mode, "target_l0": 6.0 if mode == "quadratic" else None, "bandwidth": 0.3}
    fields |= {"frequency_scale": 0.02, "pre_act_loss_coefficient": 0.02}
    dead = dead_latents(4)
    assert_conforms("jumprelu", lambda p, x: jumprelu_terms(p, x, 0.7 * 0.5, mode, False, 0.02, dead, 0.02), dead, **fields)


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 2.5])
def test_matching_pursuit(threshold: float, stops: bool) -> None:
    fields = {"k": K, "residual_threshold": threshold, "stop_on_duplicate_support": stops}
    assert_conforms("matching_pursuit", lambda p, x: matching_pursuit_terms(p, x, threshold, stops), dead_latents(4), **fields)
