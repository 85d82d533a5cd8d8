"""One optimizer step, as a pure function that is exact under any split of its batch.

With terms k, splits s (devices and micro-steps), totals t and counts c, the loss is

    sum_k ( sum_s t_ks ) / ( sum_s c_ks ),

so the counts are summed first, then every split differentiates t_ks / (sum_s c_ks) and the gradients add up. Counts
never depend on the parameters: with micro-steps they are counted in a pass of their own, from which XLA removes the
model.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxptft.objectives import Batch, Context, Mean, Objective
from jaxptft.optim import merge, partition
from jaxptft.train.state import State

Step = Callable[[State, PyTree, Batch], tuple[State, dict[str, Mean]]]


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    trainable: PyTree,
    accumulate: int = 1,
    axis_name: str | None = None,
    accumulate_coupled: bool = False,
) -> Step:
    """`(state, constants, batch) -> (state, metrics)`, to be given to `jit_step`, `mapped_step` or `pmap_step`.

    Only the leaves that `trainable` marks are differentiated: for a frozen leaf no gradient, no moment and no update
    exists. A step whose loss or gradient norm is not finite changes nothing but the step number, and is counted in the
    metric `skipped`.

    Args:
        trainable: True at each leaf of params that learns.
        accumulate: micro-steps a step; the batch is cut into strided slices, so it must divide by this.
        axis_name: the mapped axis under `mapped_step`, `pmap` or `shard_map`; None under global-view `jit`.
        accumulate_coupled: allow micro-steps where examples interact (each micro-step then sees only its own).

    The metrics are the objective's, plus `loss` (all terms), `NAME/loss` for each term, `grad_norm` (before clipping),
    and `skipped`.

    Raises ValueError on `accumulate` < 1, or > 1 with a coupled objective that was not asked for.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate is {accumulate}; expected at least 1")
    if objective.coupled and accumulate > 1 and not accumulate_coupled:
        raise ValueError(
            f"accumulate is {accumulate}, but in this objective examples interact across the batch; "
            "use accumulate=1, or accumulate_coupled=True to let each micro-step see only its own examples"
        )

    def summed(tree):
        return tree if axis_name is None else jax.lax.psum(tree, axis_name)

    def step(state: State, constants: PyTree, batch: Batch) -> tuple[State, dict[str, Mean]]:
        rng = jax.random.fold_in(state.rng, state.step)
        learnt, frozen = partition(state.params, trainable)
        objective_state = objective.prepare(state.params, state.objective_state, state.step)

        def losses(learnt, batch, objective_state):
            context = Context(objective_state, constants, rng, train=True, axis_name=axis_name)
            return objective.loss(merge(learnt, frozen), batch, context)

        def counts_of(terms):
            return {name: jax.lax.stop_gradient(jnp.asarray(term.count, jnp.float32)) for name, term in terms.items()}

        def share_of_loss(learnt, batch, objective_state, counts=None):
            terms, (metrics, objective_state) = losses(learnt, batch, objective_state)
            if counts is None:  # this split of the batch is all that this device has
                counts = summed(counts_of(terms))
            shares = [Mean(term.total, counts[name]).value() for name, term in terms.items()]
            by_term = {f"{name}/loss": term for name, term in terms.items()}
            return sum(shares, start=jnp.zeros(())), (_arrays(metrics | by_term), objective_state)

        gradient_of = jax.value_and_grad(share_of_loss, has_aux=True)

        if accumulate == 1:
            (loss, (metrics, objective_state)), gradient = gradient_of(learnt, batch, objective_state)
        else:
            micro_batches = _strided(batch, accumulate)
            counted = jax.lax.map(lambda batch: counts_of(losses(learnt, batch, objective_state)[0]), micro_batches)
            counts = summed(jax.tree.map(lambda c: c.sum(0), counted))

            def micro_step(carry, micro_batch):
                loss, gradient, metrics, objective_state = carry
                (own_loss, (own_metrics, objective_state)), own = gradient_of(
                    learnt, micro_batch, objective_state, counts
                )
                add = lambda a, b: jax.tree.map(jnp.add, a, b)  # noqa: E731
                return (loss + own_loss, add(gradient, own), add(metrics, own_metrics), objective_state), None

            first = jax.tree.map(lambda x: x[0], micro_batches)
            shapes = jax.eval_shape(gradient_of, learnt, first, objective_state, counts)
            (loss, (metrics, _)), gradient = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            (loss, gradient, metrics, objective_state), _ = jax.lax.scan(
                micro_step, (loss, gradient, metrics, objective_state), micro_batches
            )

        loss, gradient, metrics = summed((loss, gradient, metrics))
        norm = optax.global_norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)

        def proposed() -> tuple[PyTree, PyTree, PyTree]:
            updates, opt_state = optimizer.update(gradient, state.opt_state, learnt)
            return optax.apply_updates(learnt, updates), opt_state, objective_state

        # Not leaf by leaf with `where`, which makes XLA copy the moments before it writes the new ones in their place.
        current = (learnt, state.opt_state, state.objective_state)
        renewed, opt_state, objective_state = jax.lax.cond(finite, proposed, lambda: current)

        one = jnp.ones(())
        metrics |= {
            "loss": Mean(loss, one),
            "grad_norm": Mean(norm, one),
            "skipped": Mean(1.0 - finite.astype(jnp.float32), one),
        }
        return State(state.step + 1, merge(renewed, frozen), opt_state, objective_state, state.rng), metrics

    return step


def _arrays(means: dict[str, Mean]) -> dict[str, Mean]:
    return {name: Mean(*(jnp.asarray(part, jnp.float32) for part in mean)) for name, mean in means.items()}


def _strided(batch: Batch, parts: int) -> Batch:
    """Leaf [rows, ...] -> [parts, rows / parts, ...], every `parts`-th row together: a block slice would move rows
    between devices when the batch is sharded."""
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
    if any(size % parts for size in rows):
        raise ValueError(f"accumulate is {parts}, which does not divide the batch's rows {sorted(rows)}")
    return jax.tree.map(lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), batch)
