"""The import hook of conftest.py is at work: without it, no shape annotation would be tested by anything."""

import pytest
import torch
from jaxtyping import TypeCheckError
from small_runs import random_sae

from sae_core.sae.functional import mse
from sae_core.sae.loss import LossContext, LossTerms


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeCheckError, match=r"parameters of sae_core\.sae\.elementwise\.ElementwiseSAE\.encode"):
        random_sae("standard").encode(torch.zeros(12))


def test_results_are_checked() -> None:
    with pytest.raises(TypeCheckError, match=r"parameters of sae_core\.sae\.loss\.LossTerms\.__init__"):
        LossTerms(torch.zeros(3), {}, torch.zeros(()), torch.zeros(4, dtype=torch.bool))


def test_shapes_have_to_agree_with_each_other() -> None:
    with pytest.raises(TypeCheckError, match="d_out=3"):
        mse(torch.zeros(2, 3), torch.zeros(2, 5))


def test_an_int_is_a_float() -> None:
    assert LossContext(1).sparsity_scale == 1
