"""What each parameter matters to what a model does on given rows: the diagonal of its Fisher information.

    F_i  =  mean over examples of ( d loss(example) / d theta_i )^2

The loss of an example is its negative log-likelihood: the sum of its terms' totals, over all its tokens where it has
many. With the labels in the data this is the empirical Fisher information; the Fisher information proper has labels
that are drawn from the model (Kunstner, Balles and Hennig 2019, arXiv:1905.12558, section 2). Kirkpatrick et al. 2017
(arXiv:1612.00796) hold parameters by it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from jaxptft.objectives import Batch, Context, Objective, Params
from jaxptft.optim import merge, partition
from jaxptft.train.parallel import pad_rows

Relabel = Callable[[Params, Batch, Context], Batch]


def diagonal_fisher(
    objective: Objective,
    params: Params,
    batches: Iterable[Batch],
    *,
    rng: PRNGKeyArray,
    trainable: PyTree | None = None,
    relabel: Relabel | None = None,
    chunk: int = 8,
    place: Callable[[Batch], Batch] = lambda batch: batch,
) -> PyTree[Float[Array, "..."]]:
    """A tree like params of mean squared gradients, one gradient for each example; None where nothing trains.

    Every row with something valid in it is one example; how rows are batched does not matter. Dropout is off; what else
    is random (the masking of tokens) follows from `rng` and the examples' ids.

    Args:
        trainable: True at each leaf of params that is asked about; default: all.
        relabel: puts other labels into a batch of one row before its loss is taken (`drawn_labels`).
        chunk: rows whose gradients are held at once, each as large as what is asked about.
        place: what to do with a batch before it is computed on, as `train.shard`; rows are a multiple of `chunk` by
            then, which should be a multiple of the devices.

    Raises:
        ValueError: the objective is coupled, so that no example has a gradient of its own; chunk is below 1; or there
            is no valid row.
    """
    if objective.coupled:
        raise ValueError("the objective's examples interact, so none has a gradient of its own: choose another")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 row, got {chunk}")
    learnt, frozen = partition(params, jax.tree.map(lambda _: True, params) if trainable is None else trainable)
    compiled = jax.jit(_summed_squares(objective, relabel=relabel, chunk=chunk))
    total, count, state = jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.float32), learnt), 0.0, None
    for batch in batches:
        batch = place(pad_rows(batch, chunk))
        state = objective.start(params, batch) if state is None else state
        squares, examples = compiled(learnt, frozen, batch, state, objective.constants, rng)
        total, count = jax.tree.map(jnp.add, total, squares), count + float(examples)
    if not count:
        raise ValueError("there is no valid row to take gradients of")
    return jax.tree.map(lambda leaf: leaf / count, total)


def drawn_labels(objective: Objective, *, key: str = "label") -> Relabel:
    """For `diagonal_fisher`: labels drawn from the softmax of the `logits` [batch, classes] that `objective` predicts.

    A row's draw follows from the key and its id alone.
    """

    def relabel(params: Params, batch: Batch, context: Context) -> Batch:
        logits = objective.predict(params, batch, context)["logits"]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(context.rng, jnp.asarray(batch["ids"]).astype(jnp.uint32))
        drawn: Int[Array, " batch"] = jax.vmap(jax.random.categorical)(keys, logits)
        return {**batch, key: drawn}

    return relabel


def _summed_squares(objective: Objective, *, relabel: Relabel | None, chunk: int) -> Callable[..., Any]:
    """(learnt, frozen, batch, state, constants, rng) -> the sum of squared gradients, and of how many examples."""

    def run(learnt, frozen, batch, state, constants, rng):
        context = Context(state, constants, rng, train=False, axis_name=None)

        def own_loss(learnt, row):
            terms, _ = objective.loss(merge(learnt, frozen), row, context)
            return sum((jnp.asarray(term.total, jnp.float32) for term in terms.values()), start=jnp.zeros(()))

        def own_square(row):
            row = jax.tree.map(lambda leaf: leaf[None], row)
            counts = jnp.any(row["valid"]) if "valid" in row else jnp.array(True)
            if relabel is not None:
                row = relabel(merge(learnt, frozen), row, context)
            gradient = jax.grad(own_loss)(learnt, row)
            return jax.tree.map(lambda leaf: jnp.where(counts, jnp.square(leaf), 0.0), gradient), counts

        def several(carry, rows):
            squares, counts = jax.vmap(own_square)(rows)
            total, count = carry
            return (jax.tree.map(lambda sum_, own: sum_ + own.sum(0), total, squares), count + counts.sum()), None

        # Strided, as micro-steps are: each chunk is then spread over all devices that the rows are spread over.
        chunks = jax.tree.map(lambda leaf: leaf.reshape(chunk, -1, *leaf.shape[1:]).swapaxes(0, 1), batch)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), learnt)
        total, _ = jax.lax.scan(several, (zeros, jnp.zeros(())), chunks)
        return total

    return run
