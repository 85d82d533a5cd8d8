"""Views belong to examples: wherever one stands in a batch, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxptft import augment
from jaxptft.objectives import example_keys, two_views, unchanged, view_images

RNG = jax.random.key(3)
VIEW = augment.compose(augment.random_resized_crop(8), augment.flip(), augment.solarise(0.5), augment.cutout(3))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    ids = np.array([7, 2, 300, 2_000_000_000, 0, 5, 9, -1], np.int32)
    return {"image": rng.integers(0, 256, (8, 10, 12, 3)).astype(np.uint8), "ids": ids, "valid": ids >= 0}


@pytest.fixture(scope="module")
def look(quick):
    return quick(lambda batch: view_images(VIEW, RNG, batch))


@pytest.fixture(scope="module")
def seen(batch, look):
    return np.asarray(look(batch))


def test_a_view_depends_on_the_id_and_not_on_the_place(batch, seen, look, quick):
    order = np.array([5, 0, 7, 3, 1, 6, 2, 4])
    np.testing.assert_allclose(look({name: values[order] for name, values in batch.items()}), seen[order], atol=1e-6)
    alone = quick(VIEW)(jax.random.fold_in(RNG, jnp.uint32(300)), batch["image"][2])
    np.testing.assert_allclose(alone, seen[2], atol=1e-6)
    twins = np.asarray(look({**batch, "image": np.stack([batch["image"][0]] * 8)}))
    np.testing.assert_allclose(twins[0], seen[0], atol=1e-6)
    assert all(np.abs(twins[0] - other).max() > 0.01 for other in twins[1:])


def test_eight_devices_see_what_one_sees(batch, seen, look):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    placed = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(look(placed), seen, atol=1e-6)
    split = {name: values[:, None] for name, values in batch.items()}
    np.testing.assert_allclose(jax.pmap(lambda batch: view_images(VIEW, RNG, batch))(split)[:, 0], seen, atol=1e-6)


@pytest.mark.parametrize("rng", [jax.random.key(1, impl="rbg"), jax.random.PRNGKey(1)], ids=["rbg", "raw"])
def test_other_kinds_of_keys_serve_as_well(batch, rng):
    draw = jax.vmap(jax.random.uniform)
    ids = batch["ids"]
    drawn = draw(example_keys(rng, ids))
    assert len(set(drawn.tolist())) == len(ids)
    np.testing.assert_array_equal(draw(example_keys(rng, ids[::-1])), drawn[::-1])


def test_two_views_are_one_view_drawn_twice_or_a_pair(batch):
    first, second = two_views(augment.flip(0.5), RNG, batch)
    assert first.shape == second.shape == (8, 10, 12, 3)
    twice = two_views((augment.flip(0.5), augment.flip(0.5)), RNG, batch)
    np.testing.assert_array_equal(np.stack([first, second]), np.stack(twice))
    agree = [bool((a == b).all()) for a, b in zip(first, second, strict=True)]
    assert 0 < sum(agree) < 8
    plain, inverted = two_views([augment.to_float(), augment.solarise(1.0, threshold=0.0)], RNG, batch)
    np.testing.assert_allclose(plain, batch["image"] / 255.0, rtol=1e-6)
    np.testing.assert_allclose(inverted, 1 - batch["image"] / 255.0, atol=1e-6)


def test_the_default_view_is_that_of_evaluation(batch):
    ours = view_images(unchanged, RNG, batch)
    np.testing.assert_array_equal(ours, view_images(augment.to_float(), RNG, batch))
    np.testing.assert_array_equal(view_images(unchanged, RNG, {**batch, "image": ours * 4 - 2}), ours * 4 - 2)
    with pytest.raises(TypeError, match="int32; expected uint8"):
        view_images(unchanged, RNG, {**batch, "image": batch["image"].astype(np.int32)})


def test_what_gives_no_images_is_refused(batch):
    with pytest.raises(KeyError, match="no 'image'; give it images"):
        view_images(unchanged, RNG, {"ids": batch["ids"]})
    with pytest.raises(ValueError, match=r"shape \(8, 10, 12\); expected \[batch, height, width, channels\]"):
        view_images(unchanged, RNG, {**batch, "image": batch["image"][..., 0]})
    with pytest.raises(ValueError, match=r"the view gave float32 of shape \(10, 12\)"):
        view_images(lambda key, image: image[..., 0] / 255, RNG, batch)
    with pytest.raises(ValueError, match="got 3 views; expected one, to be drawn twice, or two"):
        two_views([unchanged] * 3, RNG, batch)
    with pytest.raises(ValueError, match=r"shapes \(10, 12, 3\) and \(4, 4, 3\); give both the same size"):
        two_views((unchanged, augment.resize(4)), RNG, batch)
