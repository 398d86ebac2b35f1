import pytest
from tiny_model import DEMO_MODEL

from sae_core.activations.language_model.bridge import ModelConfig
from sae_core.activations.language_model.model_work import model_work
from sae_core.errors import ConfigError


def work(hook_point):
    return model_work(ModelConfig(name=DEMO_MODEL, hook_point=hook_point))


def test_the_demo_model():
    # GPT-2 with d_model 128: 12 x 128^2 weights and 13 x 128 biases and norms a block; 128 positions and a last norm are shared by 4.
    made = work("blocks.2.hook_resid_post")
    assert made.block == 12 * 128**2 + 13 * 128 + (128 * 128 + 2 * 128) / 4
    assert (made.n_below, made.n_above) == (3, 1)
    assert (made.d_vocab, made.unembedding) == (4096, 4096 * 128)


@pytest.mark.parametrize(
    ("hook_point", "below", "above"),
    [("blocks.0.hook_resid_pre", 1, 4), ("blocks.1.mlp.hook_out", 2, 3), ("blocks.3.hook_resid_post", 4, 0), ("hook_embed", 0, 4)],
)
def test_blocks_below_and_above(hook_point, below, above):
    made = work(hook_point)
    assert (made.n_below, made.n_above) == (below, above)


def test_no_such_model(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        model_work(ModelConfig(name=str(tmp_path / "nowhere"), hook_point="blocks.0.hook_resid_post"))
