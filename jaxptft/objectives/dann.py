"""Domain-adversarial training: a discriminator learns to tell the domains apart, the features learn to prevent it.

Ganin et al. 2016, arXiv:1505.07818: one forward pass with a reversed gradient between features and discriminator
(section 4.2), and a strength of the reversal that grows with the progress of training (section 5.2.2).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxptft import losses
from jaxptft.objectives.contract import Mean, Model, Objective, lift
from jaxptft.objectives.two_domains import features_of


def reversal_strength(progress: float | Float[Array, ""], *, steepness: float = 10.0) -> Float[Array, ""]:
    """2 / (1 + exp(-steepness * progress)) - 1, from 0 at progress 0 to nearly 1 at 1 (section 5.2.2)."""
    return 2.0 * jax.nn.sigmoid(steepness * jnp.asarray(progress, jnp.float32)) - 1.0


def dann(
    features: Model,
    discriminator: Model,
    *,
    steps: int,
    strength: float = 1.0,
    steepness: float = 10.0,
    source: str = "task",
    target: str = "target",
) -> Objective:
    """The discriminator's cross-entropy over each domain, its gradient reversed where it enters the features.

    `features.apply` returns [rows, width]; `discriminator` reads {"features": [rows, width]} and returns logits
    [rows], above 0 for the target (`models.mlp("domain")`). Over `steps` optimizer steps the reversal grows to
    `strength` by `reversal_strength`; it is carried in the state. The domains count alike, whatever their rows.

    Terms: `dann_source`, `dann_target`. Metrics: `dann/accuracy`, of the discriminator, and `dann/strength`.
    Raises ValueError on fewer than one step or a negative strength, and KeyError on a batch that lacks a domain.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; expected at least 1, the steps of the training")
    if strength < 0 or steepness <= 0:
        raise ValueError(f"strength {strength} and steepness {steepness} must be at least 0 and above 0")

    def init(rng, batch):
        body, head = jax.random.split(rng)
        params = features.init(body, batch[source])
        shape = jax.eval_shape(lambda p: features.apply(p, batch[source], rng=None, train=False), params)
        return {**params, **discriminator.init(head, {"features": jnp.zeros(shape.shape, shape.dtype)})}

    def prepare(params, state, step):
        return {"strength": strength * reversal_strength(jnp.minimum(step / steps, 1.0), steepness=steepness)}

    def loss(params, batch, context):
        dropout, judging = jax.random.split(context.rng)
        context = context._replace(rng=dropout)
        domains = features_of(features, params, batch, context, (source, target), whole=False)
        terms, right, count = {}, jnp.zeros(()), jnp.zeros(())
        for name, rows, is_target in zip(("dann_source", "dann_target"), domains, (False, True), strict=True):
            reversed_features = losses.reverse_gradient(rows.features, context.state["strength"])
            rng = jax.random.fold_in(judging, is_target) if context.train else None
            logits = discriminator.apply(params, {"features": reversed_features}, rng=rng, train=context.train)
            per_row = losses.domain_cross_entropy(logits, is_target, valid=rows.valid)
            terms[name] = Mean(per_row.sum(), rows.valid.sum())
            right += (((jax.lax.stop_gradient(logits) > 0) == is_target) & rows.valid).sum()
            count += rows.valid.sum()
        metrics = {
            "dann/accuracy": Mean(right, count),
            "dann/strength": Mean(context.state["strength"], jnp.ones(())),
        }
        return terms, (metrics, context.state)

    start = lambda params, batch: {"strength": jnp.zeros((), jnp.float32)}  # noqa: E731
    return lift(loss, init=init, start=start, prepare=prepare)
