"""What stands on an encoder: heads over one vector a text or over each token, and how they read the batch.

A head that is one linear layer is a `Dense` of its own; here are those with something in between.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxptft.models.layers import ACTIVATIONS, Dense, Dropout, LayerNorm


class HiddenHead(nn.Module):
    """out(drop(activation(dense(drop(x))))): a hidden layer, with dropout on what enters it and on what leaves it."""

    hidden: int
    features: int
    activation: str
    input_dropout: float
    dropout: float
    initializer_range: float
    dtype: str

    def setup(self) -> None:
        self.dense = Dense(self.hidden, self.initializer_range, self.dtype)
        self.out = Dense(self.features, self.initializer_range, self.dtype)
        self.drop_input = Dropout(self.input_dropout)
        self.drop = Dropout(self.dropout)

    def __call__(self, x: Float[Array, "... width"], *, active: bool) -> Float[Array, "... features"]:
        x = ACTIVATIONS[self.activation](self.dense(self.drop_input(x, active=active)))
        return self.out(self.drop(x, active=active))


class VocabularyHead(nn.Module):
    """norm(activation(dense(x))) against the rows of the word table, plus a bias: logits of the words, in float32.

    Source: Devlin et al. 2019, section 3.1 (task 1); the table is the embeddings', as in Press & Wolf 2017.
    """

    activation: str
    norm_epsilon: float
    initializer_range: float
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "... width"], table: Float[Array, "vocab table_width"]
    ) -> Float[Array, "... vocab"]:
        vocab, width = table.shape
        x = ACTIVATIONS[self.activation](Dense(width, self.initializer_range, self.dtype, name="dense")(x))
        x = LayerNorm(self.norm_epsilon, self.dtype, name="norm")(x)
        bias = self.param("bias", nn.initializers.zeros, (vocab,), jnp.float32)
        return _plus(tied_logits(x, table, self.dtype), bias)


@jax.custom_jvp
def _plus(logits: Float[Array, "... vocab"], bias: Float[Array, " vocab"]) -> Float[Array, "... vocab"]:
    """logits + bias, the bias's gradient summed by a matrix product: 7x faster on CPU than summing a long axis."""
    return logits + bias


@_plus.defjvp
def _plus_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (logits, bias), (more, bias_more) = primals, tangents
    ones = jnp.ones((*logits.shape[:-1], 1), logits.dtype)
    return _plus(logits, bias), more + ones @ bias_more[None]


def tied_logits(
    x: Float[Array, "... width"], table: Float[Array, "vocab width"], dtype: str
) -> Float[Array, "... vocab"]:
    """x against each row of the word table: multiplied in `dtype`, summed and returned in float32."""
    rows = x.reshape(-1, x.shape[-1]).astype(dtype)
    logits = jnp.matmul(rows, table.astype(dtype).T, preferred_element_type=jnp.float32)
    return logits.reshape(*x.shape[:-1], table.shape[0])


def take_positions(
    hidden: Float[Array, "batch length width"], positions: Int[Array, "groups capacity"] | None
) -> Float[Array, "groups places width"]:
    """The hidden states at `positions` of each row, or of each group of rows; all of them where it is None."""
    if positions is None:
        return hidden
    return jnp.take_along_axis(hidden.reshape(len(positions), -1, hidden.shape[-1]), positions[..., None], axis=1)


def first_tokens(
    hidden: Float[Array, "batch length width"], batch: Mapping[str, Any]
) -> Float[Array, "batch width"] | Float[Array, "batch segments width"]:
    """The hidden state of each row's first token; where the batch has `starts`, of the token there of each segment."""
    return take_positions(hidden, batch["starts"]) if "starts" in batch else hidden[:, 0]


def segment_means(
    hidden: Float[Array, "batch length width"], batch: Mapping[str, Any]
) -> Float[Array, "batch segments width"]:
    """The mean over the tokens of each segment of packed rows, in float32; 0 where a row has fewer segments."""
    number = jnp.arange(1, batch["starts"].shape[1] + 1)
    own = (batch["segment_ids"][:, None, :] == number[:, None]).astype(jnp.float32)
    total = jnp.einsum("bsl,blw->bsw", own, hidden.astype(jnp.float32), precision="highest")
    return total / jnp.maximum(own.sum(axis=2), 1)[..., None]


def flatten_choices(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of [batch, choices, length] as one of [batch * choices, length].

    Raises:
        ValueError: the ids have no axis of choices.
    """
    entry = batch["input_ids"] if "input_ids" in batch else batch["hidden"]
    if "input_ids" in batch and entry.ndim != 3:
        raise ValueError(
            f"multiple_choice reads input_ids [batch, choices, length], got {entry.ndim} axes: "
            "stack the choices of each example"
        )
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "segment_ids", "hidden")
    return {name: batch[name].reshape(-1, *batch[name].shape[2:]) for name in names if name in batch}


def refuse_packed(batch: Mapping[str, Any], task: str) -> None:
    """ValueError for packed rows under a task that reads one vector a row, and no batch that says where texts start."""
    if "segment_ids" in batch and not (task == "classification" and "starts" in batch):
        raise ValueError(f"{task} reads the first token of each row, but the rows are packed: give one text a row")
