"""sae_core/sparse/logits.py"""

import math

import pytest
import torch

from sae_core.sparse.kernels import cpu_logits
from sae_core.sparse.kernels.choice import using_kernels
from sae_core.sparse.logits import logsumexp


@pytest.mark.usefixtures("kernels")
def test_by_hand() -> None:
    # log(1 + 1 + 2), and 1000 + log(1 + 1 + 0)
    found = logsumexp(torch.tensor([[0.0, 0.0, math.log(2)], [1000.0, 1000.0, -1000.0]]))
    assert found.tolist() == pytest.approx([math.log(4), 1000 + math.log(2)])


def test_the_kernel_is_for_float32_and_the_reference_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[torch.Tensor] = []
    monkeypatch.setattr(cpu_logits, "logsumexp", lambda logits: used.append(logits) or torch.logsumexp(logits, -1))
    logits = torch.zeros(2, 3)
    logsumexp(logits)
    assert len(used) == 1
    logsumexp(logits.double())
    with using_kernels("reference"):
        logsumexp(logits)
    assert len(used) == 1
