"""sae_core/sparse/kernels/choice.py"""

from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sae_core.sparse.kernels import choice as kernels
from sae_core.sparse.kernels import cpu, reference
from sae_core.sparse.kernels.choice import Kernels, has_fast_kernels, kernels_for, lists_are_faster, use_kernels, using_kernels

ON_CPU, ELSEWHERE = torch.zeros(1), torch.zeros(1, device="meta")


@pytest.fixture
def on_gpu() -> Tensor:
    """A tensor that says it is on a GPU, whether or not there is one."""
    with FakeTensorMode():
        return torch.zeros(1, device="cuda")


def test_a_device_gets_the_kernels_made_for_it() -> None:
    assert kernels_for(ON_CPU) is cpu and has_fast_kernels(ON_CPU) and lists_are_faster(ON_CPU)
    assert kernels_for(ELSEWHERE) is reference and not has_fast_kernels(ELSEWHERE) and not lists_are_faster(ELSEWHERE)


def test_a_gpu_gets_the_kernels_made_for_it_and_whole_matrices_where_they_do(on_gpu: Tensor) -> None:
    pytest.importorskip("triton")
    from sae_core.sparse.kernels import gpu

    assert kernels_for(on_gpu) is gpu and has_fast_kernels(on_gpu) and not lists_are_faster(on_gpu)
    with using_kernels("reference"):
        assert kernels_for(on_gpu) is reference and not has_fast_kernels(on_gpu)


def test_without_triton_a_gpu_gets_the_reference(on_gpu: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_has_triton", lambda: False)
    assert kernels_for(on_gpu) is reference and not has_fast_kernels(on_gpu)


def test_the_reference_can_be_chosen_for_a_block_of_code() -> None:
    with using_kernels("reference"):
        assert kernels_for(ON_CPU) is reference and not has_fast_kernels(ON_CPU) and not lists_are_faster(ON_CPU)
        with using_kernels("fast"):
            assert kernels_for(ON_CPU) is cpu
        assert kernels_for(ON_CPU) is reference
    assert kernels_for(ON_CPU) is cpu


def test_the_choice_is_restored_when_the_block_fails() -> None:
    with pytest.raises(KeyError, match="broken"), using_kernels("reference"):
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
    found = kernels_for(products).entries_above(products, bias, bias + 2.5, 4)
    assert found is not None and found[0].tolist() == [1, 0] and found[2].tolist() == [0, 1, 2]
    offsets, which, weights = torch.tensor([0, 1, 3]), torch.tensor([1, 0, 1]), torch.tensor([1.0, 2.0, 3.0])
    assert kernels_for(source).weighted_sums(offsets, which, weights, source.detach()).tolist() == [[2, 5], [8, 15]]
    rows: Tensor = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).T  # rows (1, 1) and (0, 1)
    assert kernels_for(source).dots(offsets, which, rows, source.detach()).tolist() == [7, 0, 5]
