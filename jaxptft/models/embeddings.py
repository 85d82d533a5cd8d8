"""Tables of rows looked up by id, and what BERT and its kin add up from them.

Factorised embeddings (a narrow table and a projection) are ALBERT's: Lan et al. 2020, arXiv:1909.11942, section 3.1.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxptft.models.bert_config import BertConfig
from jaxptft.models.layers import Dense, Dropout, LayerNorm, check_length, position_ids


class Embedding(nn.Module):
    """A table of rows; `pad_id` names a row that starts at zero and never gets a gradient by being looked up."""

    rows: int
    width: int
    initializer_range: float
    pad_id: int | None = None

    def setup(self) -> None:
        self.embedding = self.param("embedding", self._init, (self.rows, self.width), jnp.float32)

    def _init(self, rng: Array, shape: tuple[int, int], dtype: Any) -> Array:
        table = nn.initializers.normal(self.initializer_range)(rng, shape, dtype)
        return table if self.pad_id is None else table.at[self.pad_id].set(0)

    def __call__(self, ids: Array) -> Array:
        rows = jnp.take(self.embedding, ids, axis=0)
        if self.pad_id is None:
            return rows
        return jnp.where((ids == self.pad_id)[..., None], jax.lax.stop_gradient(rows), rows)


def positions_after_padding(ids: Int[Array, "batch length"], pad_id: int) -> Int[Array, "batch length"]:
    """Tokens numbered from pad_id + 1 on; padding, wherever it stands, is passed over and has the number pad_id.

    Source: fairseq's make_positions, which RoBERTa was trained with.
    """
    real = (ids != pad_id).astype(jnp.int32)
    return jnp.cumsum(real, axis=-1) * real + pad_id


class Embeddings(nn.Module):
    """Word + position + token-type rows, normalized, with dropout, and projected where they are factorised."""

    config: BertConfig

    def setup(self) -> None:
        config = self.config
        width = config.width if config.embedding_width is None else config.embedding_width
        # RoBERTa's positions have a padding row as well: the last below the offset, where padding stands.
        padding_position = config.position_offset - 1 if config.position_offset else None
        self.word = Embedding(config.vocab_size, width, config.initializer_range, config.pad_id)
        self.position = Embedding(config.positions, width, config.initializer_range, padding_position)
        self.token_type = Embedding(config.token_types, width, config.initializer_range)
        self.norm = LayerNorm(config.norm_epsilon, config.dtype)
        self.drop = Dropout(config.dropout)
        self.projection = Dense(config.width, config.initializer_range, config.dtype)

    def __call__(self, batch: Mapping[str, Any], *, active: bool) -> Float[Array, "batch length width"]:
        config, ids = self.config, batch["input_ids"]
        check_length(batch, config.max_length)
        hidden = self.word(ids)
        if config.token_types:
            types = batch.get("token_type_ids")
            hidden = hidden + (self.token_type.embedding[0] if types is None else self.token_type(types))
        hidden = self.drop(self.norm(hidden + self._positions(batch)), active=active)
        return hidden if config.embedding_width is None else self.projection(hidden)

    def _positions(self, batch: Mapping[str, Any]) -> Float[Array, "#batch length width"]:
        config, ids = self.config, batch["input_ids"]
        if "position_ids" in batch:
            return self.position(position_ids(batch, ids.shape[-1]) + config.position_offset)
        if config.position_offset:
            return self.position(positions_after_padding(ids, config.position_offset - 1))
        return self.position.embedding[: ids.shape[-1]]

    def table(self) -> Float[Array, "vocab embedding_width"]:
        """The word table, for a head tied to it."""
        return self.word.embedding
