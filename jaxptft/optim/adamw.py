"""AdamW as BERT is fine-tuned with it: clipping, no decay on biases and norms, a learning rate of its own by path.

    g <- g * min(1, clip_norm / ||g||)
    theta <- theta - rate(step) * multiplier * (m_hat / (sqrt(v_hat) + eps) + decay * theta)

Loshchilov and Hutter 2019, arXiv:1711.05101, as in `torch.optim.AdamW` (where the learning rate scales the decay too).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxptft.optim.patterns import by_pattern, mask
from jaxptft.optim.plan import NO_DECAY


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, equal but for the last bit: each leaf is multiplied by one factor.

    Divided by the norm, as there, the gradients are written to memory once more before they are used (XLA on CPU).
    """

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        del params
        norm = optax.global_norm(updates)
        factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _scale_by_pattern(multipliers: Mapping[str, float]) -> optax.GradientTransformation:
    """Updates times the multiplier of the first pattern that matches their path, or 1."""

    def init(params: PyTree) -> optax.EmptyState:
        by_pattern(params, multipliers, default=1.0)  # raises for a pattern without effect
        return optax.EmptyState()

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        del params
        factors = by_pattern(updates, multipliers, default=1.0, strict=False)
        return jax.tree.map(lambda factor, leaf: factor * leaf, factors, updates), state

    return optax.GradientTransformation(init, update)


def check_numbers(*, weight_decay: Any, clip_norm: float | None, b1: float, b2: float, eps: float) -> None:
    """ValueError for a number that AdamW cannot have; an array, which a program takes as an argument, has any."""
    if clip_norm is not None and not clip_norm > 0.0:
        raise ValueError(f"clip_norm must be positive, or None for no clipping, got {clip_norm}")
    if not isinstance(weight_decay, jax.Array) and not weight_decay >= 0.0:
        raise ValueError(f"weight_decay must be at least 0, got {weight_decay}")
    for name, beta in (("b1", b1), ("b2", b2)):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"{name} must lie in [0, 1), got {beta}")
    if not eps >= 0.0:
        raise ValueError(f"eps must be at least 0, got {eps}")


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 0.01,
    no_decay: str | Sequence[str] = NO_DECAY,
    clip_norm: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    multipliers: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """Clipping by the global norm, Adam, decoupled decay, multipliers and the learning rate, as one optax chain.

    The norm is taken over the leaves it is given: give it the trainable ones (`partition`), or wrap it in `freeze`;
    None stands for an absent leaf. `no_decay` patterns may match nothing. `multipliers` maps patterns to factors of
    the learning rate, the decay included; the first match wins. `learning_rate` is a rate or a schedule.

    Equal to `torch.optim.AdamW` after `clip_grad_norm_`, but for the 1e-6 that torch adds to the norm: gradients that
    are clipped differ by 1e-6 / norm, relative.

    Raises:
        ValueError: a number out of range; at `init`, a pattern of `multipliers` that has no effect.

    >>> optimizer = adamw(0.1, multipliers={"backbone/**": 0.5})
    >>> params = {"backbone": {"bias": jax.numpy.zeros(1)}, "classifier": {"bias": jax.numpy.zeros(1)}}
    >>> gradients = jax.tree.map(jax.numpy.ones_like, params)
    >>> updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    >>> round(float(updates["backbone"]["bias"][0]), 4), round(float(updates["classifier"]["bias"][0]), 4)
    (-0.05, -0.1)
    """
    check_numbers(weight_decay=weight_decay, clip_norm=clip_norm, b1=b1, b2=b2, eps=eps)
    for pattern, factor in (multipliers or {}).items():
        if not (math.isfinite(factor) and factor >= 0.0):
            raise ValueError(f"the multiplier of '{pattern}' must be finite and at least 0, got {factor}")

    def decayed(tree: PyTree) -> PyTree[bool]:
        return jax.tree.map(lambda exempt: not exempt, mask(tree, no_decay, strict=False))

    return optax.chain(
        optax.identity() if clip_norm is None else clip_by_global_norm(clip_norm),
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=decayed),
        _scale_by_pattern(multipliers) if multipliers else optax.identity(),
        optax.scale_by_learning_rate(learning_rate),
    )
