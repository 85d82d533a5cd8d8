"""Masked language modelling: restore the tokens that `masking` chose (Devlin et al. 2019, arXiv:1810.04805)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxptft import losses
from jaxptft.objectives.contract import Batch, Mean, Metrics, Model, Objective, lift, slice_rng
from jaxptft.objectives.guessed import guessed
from jaxptft.objectives.masking import Masking, TokenTable, check_table, corrupt
from jaxptft.objectives.positions import gather_capacity, gather_positions, shared_rows


class Hidden(NamedTuple):
    """A batch with some of its tokens hidden, and what they were."""

    batch: Batch  # corrupted, with the `positions` to predict
    labels: Int[Array, "groups capacity"]
    used: Bool[Array, "groups capacity"]  # False in the places that hold no chosen token
    chosen: Int[Array, ""]  # how many tokens were chosen, those without a place among them


def hide(
    rng: PRNGKeyArray, batch: Batch, tokens: TokenTable, masking: Masking, capacity: int | None, group: int = 1
) -> Hidden:
    """Corrupt a batch and gather what is to be predicted into places, `capacity` a row (None: `gather_capacity`).

    Up to `group` rows share their places (see `shared_rows`), and positions count through the tokens of all of them.
    """
    input_ids, chosen = corrupt(rng, batch, tokens, masking)
    rows, length = input_ids.shape
    group = shared_rows(group, rows, length)
    chosen = chosen.reshape(rows // group, group * length)
    capacity = gather_capacity(length, masking, rows=group) if capacity is None else min(capacity, length) * group
    positions, used = gather_positions(chosen, capacity)
    labels = jnp.take_along_axis(jnp.asarray(batch["input_ids"]).reshape(chosen.shape), positions, axis=1)
    return Hidden({**batch, "input_ids": input_ids, "positions": positions}, labels, used, chosen.sum())


def restored(name: str, logits: Float[Array, "groups capacity vocab"], hidden: Hidden) -> tuple[Mean, Metrics]:
    """The loss over the hidden tokens, and the metrics `name/accuracy` and `name/overflow`."""
    if logits.shape[:2] != hidden.labels.shape:
        raise ValueError(
            f"the model gave logits of shape {logits.shape}; expected {(*hidden.labels.shape, 'vocab')}, "
            "those at batch['positions'] only"
        )
    total, count = losses.masked_token_cross_entropy(logits, hidden.labels, hidden.used)
    right = guessed(jax.lax.stop_gradient(logits), hidden.labels) & hidden.used
    placed = hidden.used.sum()
    return Mean(total.sum(), count.sum()), {
        f"{name}/accuracy": Mean(right.sum(), placed),
        f"{name}/overflow": Mean(hidden.chosen - placed, hidden.chosen),
    }


def check_capacity(capacity: int | None) -> int | None:
    """`capacity` itself. Raises ValueError when it is below 1."""
    if capacity is not None and capacity < 1:
        raise ValueError(
            f"capacity is {capacity}; expected at least 1 place a row, or None to size it from the masking"
        )
    return capacity


def check_group(group: int) -> int:
    """`group` itself. Raises ValueError when it is below 1."""
    if group < 1:
        raise ValueError(f"group is {group}; expected at least 1 row")
    return group


def masked_lm(
    model: Model,
    *,
    tokens: TokenTable,
    masking: Masking | None = None,
    capacity: int | None = None,
    group: int = 1,
) -> Objective:
    """Softmax cross-entropy over the vocabulary, averaged over the hidden tokens of the whole batch.

    `model.apply` returns logits [groups, capacity, vocab] at `batch["positions"]`. The batch, packed or not, is what
    `corrupt` reads and what else the model needs. `capacity` is the most tokens a row may have predicted (by default
    sized from its length); chosen tokens beyond it stay corrupted and are not predicted. Up to `group` rows share their
    places, since many together vary less: sixteen rows of 128 tokens do with 25 places each where one needs 40. It
    should be the rows that a device has of a (micro-)batch, or hidden states go from one to another. `masking` is
    `Masking()` by default. Evaluation corrupts as well: with one key, always alike.

    Metrics: `masked_lm/accuracy`, and `masked_lm/overflow`, the share of the chosen tokens that found no place.
    Raises ValueError on a table without a mask token, or one that does not fit (see `check_table`).
    """
    masking, capacity = masking or Masking(), check_capacity(capacity)
    check_group(group)

    def loss(params, batch, context):
        corruption, dropout = jax.random.split(context.rng)
        hidden = hide(corruption, batch, context.constants, masking, capacity, group)
        rng = slice_rng(dropout, batch) if context.train else None
        logits = model.apply(params, hidden.batch, rng=rng, train=context.train)
        term, metrics = restored("masked_lm", logits, hidden)
        return {"masked_lm": term}, metrics

    return lift(loss, init=model.init, constants=check_table(tokens))
