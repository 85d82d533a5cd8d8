import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxptft.optim import adamw, freeze, frozen_prefix, head_only, mask, paths, schedule, top_layers, trainable_mask

LAYERS = 3


def _params(seed=0):
    rng = np.random.default_rng(seed)

    def dense(*shape):
        return {
            "kernel": jnp.asarray(rng.normal(size=shape), jnp.float32),
            "bias": jnp.asarray(rng.normal(size=shape[-1]), jnp.float32),
        }

    layers = {f"layer_{i}": {"mlp": dense(4, 4), "mlp_norm": {"scale": jnp.ones(4)}} for i in range(LAYERS)}
    embeddings = {"word": {"embedding": jnp.asarray(rng.normal(size=(7, 4)), jnp.float32).at[0].set(-0.0)}}
    return {
        "backbone": {"embeddings": embeddings, **layers, "pooler": dense(4, 4)},
        "classifier": dense(4, 2),
    }


def _gradients(params, step):
    """Large, so that clipping acts on every step; nothing about them is zero."""
    keys = jax.random.split(jax.random.key(step), len(jax.tree.leaves(params)))
    leaves = [
        10.0 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, jax.tree.leaves(params), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _bits(leaf):
    return np.asarray(leaf).view(np.uint32)


FROZEN = ("backbone/embeddings/**", "backbone/layer_[01]/**")


@pytest.mark.parametrize(
    "frozen",
    [FROZEN, mask(_params(), FROZEN), lambda params: mask(params, FROZEN)],
    ids=["patterns", "tree", "callable"],
)
def test_frozen_leaves_keep_every_bit_through_50_steps(frozen):
    params = _params()
    optimizer = freeze(adamw(schedule("linear", peak=0.1, steps=60, warmup=5), weight_decay=0.1, clip_norm=1.0), frozen)
    state = optimizer.init(params)

    update = jax.jit(optimizer.update)
    # Half of the updates are applied inside jit, where XLA drops the addition of a constant 0, and half outside.
    applications = (jax.jit(optax.apply_updates), optax.apply_updates)
    now, updates = params, None
    for number in range(50):
        updates, state = update(_gradients(params, number), state, now)
        now = applications[number % 2](now, updates)
    held = mask(params, FROZEN)
    for is_held, before, after, update in zip(*map(jax.tree.leaves, (held, params, now, updates)), strict=True):
        assert (_bits(before) == _bits(after)).all() == is_held
        assert (update == 0.0).all() == is_held
    assert np.signbit(now["backbone"]["embeddings"]["word"]["embedding"][0]).all()  # -0.0 stays -0.0


def test_no_moment_exists_for_frozen_leaves():
    params = _params()
    state = freeze(adamw(0.1), FROZEN).init(params)
    trainable = [
        leaf for leaf, held in zip(*map(jax.tree.leaves, (params, mask(params, FROZEN))), strict=True) if not held
    ]
    arrays = [leaf for leaf in jax.tree.leaves(state) if jnp.ndim(leaf)]
    assert sorted(leaf.shape for leaf in arrays) == sorted(leaf.shape for leaf in trainable * 2)  # mu and nu
    assert len(jax.tree.leaves(state)) == len(arrays) + 1  # Adam's count


def test_clipping_sees_trainable_leaves_only():
    """Hand computation: the trainable gradient (3, 4) has norm 5, so clipped to 1 it is (0.6, 0.8)."""
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    gradients = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([1e6, jnp.nan])}
    optimizer = freeze(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)), "b")
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"], [-0.6, -0.8], rtol=1e-6)
    np.testing.assert_array_equal(updates["b"], [0.0, 0.0])


def test_freeze_by_nothing_and_by_error():
    params = {"a": jnp.ones(1)}
    for nothing in ((), [], {"a": False}):
        optimizer = freeze(optax.sgd(1.0), nothing)
        assert optimizer.update(params, optimizer.init(params))[0]["a"] == -1.0
    with pytest.raises(ValueError, match="pattern 'b' matches nothing; nearest paths: 'a'"):
        freeze(optax.sgd(1.0), "b").init(params)


def _trained(freeze_by):
    chosen = trainable_mask(_params(), freeze_by)
    return {path for path, value in zip(paths(chosen), jax.tree.leaves(chosen), strict=True) if value}


def _under(*prefixes):
    return {path for path in paths(_params()) if path.startswith(prefixes)}


@pytest.mark.parametrize(
    "freeze_by, trained, prefix",
    [
        ("none", _under(""), None),
        ("backbone", _under("classifier"), LAYERS + 1),
        ("all-but-top-0", _under("backbone/pooler", "classifier"), 3),
        ("all-but-top-1", _under("backbone/layer_2", "backbone/pooler", "classifier"), 2),
        ("all-but-top-3", _under("") - _under("backbone/embeddings"), 0),
        ("backbone/layer_1/**", _under("") - _under("backbone/layer_1"), None),
        ("backbone/embeddings/**, backbone/layer_{0,2}/**", _under("backbone/layer_1", "backbone/pooler", "class"), 1),
        (["**/kernel", "backbone/embeddings/**"], {path for path in _under("") if path.endswith(("bias", "scale"))}, 0),
        ("backbone/embeddings/**,backbone/layer_*/**", _under("backbone/pooler", "classifier"), 3),
        ("backbone/pooler/**", _under("") - _under("backbone/pooler"), None),
        ("classifier/**", _under("backbone"), None),
    ],
)
def test_what_is_trained_and_the_frozen_prefix(freeze_by, trained, prefix):
    assert _trained(freeze_by) == trained
    assert frozen_prefix(trainable_mask(_params(), freeze_by)) == prefix


def test_patterns_of_the_helpers():
    params = _params()
    assert head_only(params) == ("backbone/**",)
    assert top_layers(params, 2) == ("backbone/embeddings/**", "backbone/layer_0/**")
    assert top_layers({"backbone": {"layer_0": {"bias": 0}}, "head": 0}, 0) == ("backbone/layer_0/**",)


def test_frozen_prefix_of_unusual_trees():
    assert frozen_prefix({"head": True}) is None
    assert frozen_prefix({"backbone": {"layer_0": False}, "head": True}) is None  # no embeddings
    assert frozen_prefix({"backbone": {"embeddings": False, "layer_0": False}, "head": True}) == 2  # no pooler
    assert frozen_prefix({"backbone": {"embeddings": None, "layer_0": {"bias": True}}}) == 0  # absent is frozen


def test_stages_of_a_convolutional_backbone_freeze_as_layers_do():
    stages = {f"stage_{k}": {"layer_0": {"kernel": 0}, "layer_1": {"kernel": 0}} for k in range(3)}
    params = {"backbone": {"stem": {"kernel": 0}, **stages}, "classifier": {"kernel": 0}}
    assert top_layers(params, 1) == ("backbone/stem/**", "backbone/stage_0/**", "backbone/stage_1/**")
    for freeze_by, prefix in (("none", None), ("backbone/stem/**", 0), ("all-but-top-2", 1), ("backbone", 4)):
        assert frozen_prefix(trainable_mask(params, freeze_by)) == prefix
    with pytest.raises(ValueError, match=r"numbered stage_0, stage_1, ... without gaps, got stage_1"):
        frozen_prefix({"backbone": {"stem": False, "stage_1": True}})


def test_errors_of_what_to_freeze():
    params = _params()
    with pytest.raises(ValueError, match="cannot train the top 4 layers of a backbone with 3: choose 0 to 3"):
        trainable_mask(params, "all-but-top-4")
    with pytest.raises(ValueError, match="cannot train the top -1 layers"):
        top_layers(params, -1)
    for word in ("bakbone", "all-but-top-two", "", "none,**/bias"):
        with pytest.raises(
            ValueError, match=f"freeze '{word.split(',')[0]}' is neither 'none', 'backbone', 'all-but-top-K'"
        ):
            trainable_mask(params, word)
    with pytest.raises(ValueError, match=r"pattern 'backbone/layer_9/\*\*' matches nothing; nearest paths"):
        trainable_mask(params, "backbone/layer_9/**")
    with pytest.raises(ValueError, match=r"freeze '\*\*' leaves nothing to train: freeze less, or add a head"):
        trainable_mask(params, "**")
    with pytest.raises(ValueError, match="freeze 'backbone' leaves nothing to train"):
        trainable_mask({"backbone": params["backbone"]}, "backbone")
    with pytest.raises(ValueError, match=r"params must be a dict with a 'backbone' tree, got \['classifier'\]"):
        head_only({"classifier": params["classifier"]})
    with pytest.raises(ValueError, match="params must be a dict with a 'backbone' tree, got list"):
        top_layers([1], 1)
    with pytest.raises(
        ValueError, match=r"layers must be numbered layer_0, layer_1, ... without gaps, got layer_0, layer_2"
    ):
        top_layers({"backbone": {"layer_0": 1, "layer_2": 1}}, 1)
    with pytest.raises(ValueError, match="layers must be numbered"):
        frozen_prefix({"backbone": {"embeddings": False, "layer_1": True}})
