import pytest
import torch
from pydantic import ValidationError
from small_runs import random_sae
from torch import Tensor

from sae_core.architectures.hierarchical_topk import HierarchicalTopK, HierarchicalTopKConfig
from sae_core.sae.base import SparseAutoencoder
from sae_core.sae.loss import LossContext

X = torch.randn(32, 12, generator=torch.Generator().manual_seed(0))


def hierarchical(inner_ks: tuple[int, ...] | None) -> HierarchicalTopK:
    sae = random_sae("hierarchical_topk", k=6, inner_ks=inner_ks)
    assert isinstance(sae, HierarchicalTopK)
    return sae


def nested_errors(sae: SparseAutoencoder, levels: tuple[int, ...]) -> list[Tensor]:
    """Mean squared errors at each level, by sorting all scores."""
    z = (X - sae.b_dec) @ sae.W_enc + sae.get_parameter("b_enc")
    ranks = (z * sae.W_dec.norm(dim=1)).argsort(dim=1, descending=True).argsort(dim=1)
    return [((z.relu() * (ranks < level)) @ sae.W_dec + sae.b_dec - X).square().sum(dim=1).mean() for level in levels]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("inner_ks", [None, (), (1, 2, 3, 4, 5), (3,)])
def test_loss_and_gradients_are_those_of_the_plain_sum(inner_ks: tuple[int, ...] | None) -> None:
    sae, plain = hierarchical(inner_ks), hierarchical(inner_ks)
    levels = sae.config.levels
    loss, expected = sae.loss(X, LossContext()), torch.stack(nested_errors(plain, levels)) / len(levels)
    torch.testing.assert_close(torch.stack(list(loss.terms.values())), expected)
    assert list(loss.terms) == [*(f"inner_mse_loss_{level}" for level in levels[:-1]), "mse_loss"]
    loss.total.backward()
    expected.sum().backward()
    for (name, ours), theirs in zip(sae.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_a_step_keeps_no_reconstruction_a_level() -> None:
    def kept(inner_ks: tuple[int, ...]) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor):
            hierarchical(inner_ks).loss(X, LossContext())
        return sum(sizes)

    assert kept((1, 2, 3, 4, 5)) - kept(()) < X.numel()


@pytest.mark.parametrize("k", [1, 3, 6])
def test_the_frontier_has_the_reconstruction_at_each_k(k: int) -> None:
    sae = hierarchical(None)
    error = (sae.frontier([k])[k](X) - X).square().sum(dim=1).mean()
    torch.testing.assert_close(error, nested_errors(sae, (k,))[0])


def test_the_frontier_has_the_levels_it_was_trained_for() -> None:
    assert list(hierarchical(None).frontier()) == [1, 2, 4, 6]


def test_a_config_is_read_from_its_json() -> None:
    config = HierarchicalTopKConfig(d_sae=40, k=6, inner_ks=(1, 3))
    assert HierarchicalTopKConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("inner_ks", [(2, 1), (6,), (2, 2)])
def test_inner_ks_increase_and_are_below_k(inner_ks: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="`inner_ks` must increase and be below k"):
        HierarchicalTopKConfig(d_sae=40, k=6, inner_ks=inner_ks)
