"""sae_core/sparse/kernels/choice.py"""

from types import ModuleType

import pytest
import torch

from sae_core.errors import ConfigError
from sae_core.sparse.kernels import choice, cpu, reference
from sae_core.sparse.kernels.choice import Kernels, kernels_for, kernels_used, sparse_is_faster, use_kernels, using_kernels

ON_CPU, ELSEWHERE = torch.zeros(1), torch.zeros(1, device="meta")
CUDA = torch.device("cuda")


def test_a_device_gets_the_kernels_made_for_it() -> None:
    assert kernels_for(ON_CPU) is cpu and kernels_used(ON_CPU.device) == "cpu" and sparse_is_faster(ON_CPU)
    assert kernels_for(ELSEWHERE) is reference and kernels_used(ELSEWHERE.device) == "torch" and not sparse_is_faster(ELSEWHERE)


def test_a_gpu_gets_plain_pytorch_and_triton_on_request() -> None:
    pytest.importorskip("triton")
    assert kernels_used(CUDA) == "torch"
    with using_kernels("triton"):
        assert kernels_used(CUDA) == "triton" and kernels_used(ON_CPU.device) == "cpu"
    with using_kernels("reference"):
        assert kernels_used(CUDA) == kernels_used(ON_CPU.device) == "reference"


def test_triton_must_be_installed_to_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="for `kernels` to be 'triton', but it is not"):
        use_kernels("triton")
    assert kernels_used(CUDA) == "torch"


def test_the_choice_is_restored_after_a_block_of_code_also_where_it_fails() -> None:
    with pytest.raises(KeyError, match="broken"), using_kernels("reference"):
        assert kernels_for(ON_CPU) is reference and not sparse_is_faster(ON_CPU)
        with using_kernels("fast"):
            assert kernels_for(ON_CPU) is cpu
        assert kernels_for(ON_CPU) is reference
        raise KeyError("broken")
    assert kernels_for(ON_CPU) is cpu


def test_the_choice_for_the_process_stays() -> None:
    with using_kernels("fast"):  # to be restored after the test
        use_kernels("reference")
        assert kernels_for(ON_CPU) is reference
    assert kernels_for(ON_CPU) is cpu


@pytest.mark.parametrize("module", [cpu, reference], ids=["cpu", "reference"])
def test_every_choice_has_all_kernels(module: ModuleType) -> None:
    assert isinstance(module, Kernels)


def test_so_does_the_one_for_gpus() -> None:
    pytest.importorskip("triton")
    from sae_core.sparse.kernels import gpu

    assert isinstance(gpu, Kernels)


@pytest.mark.usefixtures("kernels")
def test_kernels_take_what_has_gradients_and_lies_in_memory_in_any_order() -> None:
    products, bias = torch.tensor([[1.0, 4.0], [3.0, 2.0]]).T.requires_grad_(), torch.zeros(2, requires_grad=True)
    source = torch.tensor([[1.0, 2.0], [0.0, 5.0]]).T.requires_grad_()  # rows (1, 0) and (2, 5)
    columns, values = kernels_for(products).topk_rows(products, bias, bias + 1, 1)
    assert columns.tolist() == [[1], [0]] and values.tolist() == [[3], [4]]
    found = kernels_for(products).values_above(products, bias, bias + 2.5, 4)
    assert found is not None and found[0].tolist() == [1, 0] and found[2].tolist() == [0, 1, 2]
    offsets, indices, weights = torch.tensor([0, 1, 3]), torch.tensor([1, 0, 1]), torch.tensor([1.0, 2.0, 3.0])
    assert kernels_for(source).weighted_sums(offsets, indices, weights, source.detach()).tolist() == [[2, 5], [8, 15]]
    rows = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).T  # rows (1, 1) and (0, 1)
    assert kernels_for(source).dots(offsets, indices, rows, source.detach()).tolist() == [7, 0, 5]
