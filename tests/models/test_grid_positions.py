import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from jaxptft.models.grid_positions import resize_positions, sincos_table


@pytest.mark.parametrize("wanted", [(7, 5), (2, 9), (8, 12)])
def test_a_resized_table_is_torchs(wanted):
    """torch's bicubic interpolation, as transformers calls it; larger, smaller, and not square."""
    table = np.random.default_rng(0).normal(size=(1 + 4 * 6, 8)).astype(np.float32)
    patches = torch.tensor(table[1:].reshape(1, 4, 6, 8)).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(patches, size=wanted, mode="bicubic", align_corners=False)
    found = np.asarray(resize_positions(jnp.asarray(table), (4, 6), wanted))
    np.testing.assert_array_equal(found[0], table[0])
    expected = resized.permute(0, 2, 3, 1).reshape(-1, 8)
    np.testing.assert_allclose(found[1:], expected, rtol=1e-5, atol=5e-6)


def test_the_same_grid_keeps_its_table():
    table = jnp.ones((7, 4))
    assert resize_positions(table, (2, 3), (2, 3)) is table


def test_the_fixed_table_is_transformers():
    """Their table has the rows' half first, and is turned round before it is used."""
    theirs = build_2d_sinusoidal_position_embedding(3, 5, embed_dim=16, cls_token=True).numpy()
    expected = np.concatenate([theirs[:, 8:], theirs[:, :8]], axis=1)
    np.testing.assert_allclose(sincos_table((3, 5), 16), expected, rtol=1e-6, atol=1e-7)
