"""BERT: a bidirectional encoder with a pooler, and a classifier on top of it.

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers" (arXiv:1810.04805), as Hugging Face's
checkpoints compute it: post-norm layers, exact GELU, learned absolute positions, token types, and
tanh(W h_[CLS] + b) as the pooled output. The encoder can be entered at any layer, so that a frozen prefix is
computed once (`features`) and only what lies above it runs in training (`classifier(..., start=k)`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxptft.models.layers import ACTIVATIONS, Attention, Dense, Dropout, LayerNorm, Mlp
from jaxptft.models.model import Model, Params

Batch = Mapping[str, Any]

_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """The values that fix a BERT; the defaults are bert-base-uncased's.

    Dropouts are probabilities; `head_dropout` None means `dropout`. `pad_id` names the row of the word table that is
    zero at the start and never gets a gradient (None: no such row). `dtype` is what is computed in; parameters
    are float32.
    """

    vocab_size: int = 30522
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: str = "gelu"
    positions: int = 512
    token_types: int = 2
    norm_epsilon: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float | None = None
    initializer_range: float = 0.02
    pad_id: int | None = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "layers", "heads", "mlp_width", "positions", "token_types"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"BertConfig.{name} must be an integer of at least 1, got {value!r}")
        if self.width % self.heads:
            raise ValueError(
                f"BertConfig.width must be a multiple of heads, got width {self.width} and {self.heads} heads"
            )
        if not isinstance(self.activation, str) or self.activation not in ACTIVATIONS:
            raise ValueError(
                f"BertConfig.activation must be one of {', '.join(sorted(ACTIVATIONS))}, got {self.activation!r}"
            )
        for name in ("dropout", "attention_dropout", "head_dropout"):
            value = getattr(self, name)
            if name == "head_dropout" and value is None:
                continue
            if not _is_number(value) or not 0 <= value < 1:
                raise ValueError(f"BertConfig.{name} must be a probability in [0, 1), got {value!r}")
        for name in ("norm_epsilon", "initializer_range"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 < value < float("inf"):
                raise ValueError(f"BertConfig.{name} must be a positive number, got {value!r}")
        if self.pad_id is not None and (
            not isinstance(self.pad_id, int) or isinstance(self.pad_id, bool) or not 0 <= self.pad_id < self.vocab_size
        ):
            raise ValueError(
                f"BertConfig.pad_id must be None or an id below vocab_size {self.vocab_size}, got {self.pad_id!r}"
            )
        if self.dtype not in _DTYPES:
            raise ValueError(f"BertConfig.dtype must be one of {', '.join(_DTYPES)}, got {self.dtype!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Embedding(nn.Module):
    """A table of rows; `pad_id` names a row that starts at zero and never gets a gradient."""

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


class Embeddings(nn.Module):
    """Word + position + token-type rows, normalized, with dropout."""

    config: BertConfig

    def setup(self) -> None:
        config = self.config
        self.word = Embedding(config.vocab_size, config.width, config.initializer_range, config.pad_id)
        self.position = Embedding(config.positions, config.width, config.initializer_range)
        self.token_type = Embedding(config.token_types, config.width, config.initializer_range)
        self.norm = LayerNorm(config.norm_epsilon, config.dtype)
        self.drop = Dropout(config.dropout)

    def __call__(self, batch: Batch, *, active: bool) -> Float[Array, "batch length width"]:
        ids = batch["input_ids"]
        length = ids.shape[-1]
        if length > self.config.positions:
            raise ValueError(
                f"input_ids are {length} tokens long, "
                f"but the model has {self.config.positions} positions: truncate the text"
            )
        types = batch.get("token_type_ids")
        typed = self.token_type.embedding[0] if types is None else self.token_type(types)
        hidden = self.word(ids) + typed + self.position.embedding[:length]
        return self.drop(self.norm(hidden), active=active)


class Layer(nn.Module):
    """Attention and MLP, each followed by dropout, the residual sum and a norm."""

    config: BertConfig

    def setup(self) -> None:
        config = self.config
        values = {"initializer_range": config.initializer_range, "dtype": config.dtype}
        self.attention = Attention(config.width, config.heads, config.attention_dropout, **values)
        self.attention_norm = LayerNorm(config.norm_epsilon, config.dtype)
        self.mlp = Mlp(config.width, config.mlp_width, config.activation, **values)
        self.mlp_norm = LayerNorm(config.norm_epsilon, config.dtype)
        self.drop = Dropout(config.dropout)

    def __call__(
        self, x: Float[Array, "batch length width"], mask: Bool[Array, "batch length"], *, active: bool
    ) -> Float[Array, "batch length width"]:
        x = self.attention_norm(x + self.drop(self.attention(x, mask, active=active), active=active))
        return self.mlp_norm(x + self.drop(self.mlp(x), active=active))


class Bert(nn.Module):
    """The encoder in three steps that can be run apart: `embed`, `run_layers(start, stop)`, `pool`.

    `frozen_layers` None freezes nothing; k runs the embeddings and the first k layers with dropout off.
    """

    config: BertConfig
    frozen_layers: int | None = None

    def setup(self) -> None:
        config = self.config
        self.embeddings = Embeddings(config)
        self.layer = [Layer(config) for _ in range(config.layers)]
        self.pooler = Dense(config.width, config.initializer_range, config.dtype)

    def embed(self, batch: Batch, *, train: bool) -> Float[Array, "batch length width"]:
        return self.embeddings(batch, active=train and self.frozen_layers is None)

    def run_layers(
        self,
        hidden: Float[Array, "batch length width"],
        mask: Bool[Array, "batch length"],
        *,
        start: int,
        stop: int,
        train: bool,
    ) -> Float[Array, "batch length width"]:
        for index in range(start, stop):
            hidden = self.layer[index](hidden, mask, active=train and index >= (self.frozen_layers or 0))
        return hidden

    def pool(self, hidden: Float[Array, "batch length width"]) -> Float[Array, "batch width"]:
        return jnp.tanh(self.pooler(hidden[:, 0]))

    def __call__(self, batch: Batch, *, train: bool, start: int | None = None, stop: int | None = None) -> Array:
        """Runs from `start` to `stop`: None is the ids, k the hidden states after k layers, layers + 1 pooled.

        Entered at `start`, it reads `batch["hidden"]`, what `stop=start` returned; `stop` defaults to pooled.
        """
        layers = self.config.layers
        stop = layers + 1 if stop is None else stop
        dtype = jnp.dtype(self.config.dtype)
        hidden = self.embed(batch, train=train) if start is None else batch["hidden"].astype(dtype)
        if start is not None and start > layers:
            return hidden
        mask = _mask(batch, hidden)
        hidden = self.run_layers(hidden, mask, start=start or 0, stop=min(stop, layers), train=train)
        return self.pool(hidden) if stop > layers else hidden


def _mask(batch: Batch, hidden: Array) -> Bool[Array, "batch length"]:
    mask = batch.get("attention_mask")
    return jnp.ones(hidden.shape[:2], bool) if mask is None else jnp.asarray(mask, bool)


class BertClassifier(nn.Module):
    """A linear layer over the pooled output, as BertForSequenceClassification has it."""

    config: BertConfig
    classes: int
    frozen_layers: int | None = None
    start: int | None = None

    def setup(self) -> None:
        config = self.config
        self.backbone = Bert(config, self.frozen_layers)
        self.drop = Dropout(config.dropout if config.head_dropout is None else config.head_dropout)
        self.classifier = Dense(self.classes, config.initializer_range, config.dtype)

    def __call__(self, batch: Batch, *, train: bool = False) -> Float[Array, "batch classes"]:
        pooled = self.backbone(batch, train=train, start=self.start)
        return self.classifier(self.drop(pooled, active=train)).astype(jnp.float32)


def features(config: BertConfig, *, stop: int, dtype: str | None = None) -> Callable[[Params, Batch], Array]:
    """What a frozen prefix computes, to be run once: (params, batch) -> hidden states, dropout off.

    `stop` k gives the hidden states after k layers [batch, length, width] (0: the embeddings); layers + 1 gives the
    pooled output [batch, width]. Put the result under "hidden" in a batch for `classifier(..., start=stop)`.
    """
    _check_depth("stop", stop, config)
    module = Bert(_computed_in(config, dtype))

    def apply(params: Params, batch: Batch) -> Array:
        return module.apply({"params": params["backbone"]}, batch, train=False, stop=stop)  # type: ignore[return-value]

    return apply


def encoder(config: BertConfig, *, frozen_layers: int | None = None, dtype: str | None = None) -> Model:
    """The backbone alone; `apply` returns the hidden states after the last layer [batch, length, width], in `dtype`."""
    if frozen_layers is not None:
        _check_depth("frozen_layers", frozen_layers, config)
    config = _computed_in(config, dtype)
    module = Bert(config, frozen_layers)

    def init(rng: Key[Array, ""], batch: Batch) -> Params:
        # The pooler belongs to the backbone's parameters though the hidden states do not pass it.
        return {"backbone": module.init({"params": rng}, batch, train=False)["params"]}

    def apply(
        params: Params, batch: Batch, *, rng: Key[Array, ""] | None = None, train: bool = False
    ) -> Float[Array, "batch length width"]:
        _check_rng(rng, train, config.dropout, config.attention_dropout)
        rngs = None if rng is None else {"dropout": rng}
        variables = {"params": params["backbone"]}
        return module.apply(variables, batch, train=train, stop=config.layers, rngs=rngs)  # type: ignore[return-value]

    return Model(init, apply)


def classifier(
    config: BertConfig,
    classes: int,
    *,
    frozen_layers: int | None = None,
    start: int | None = None,
    dtype: str | None = None,
) -> Model:
    """BERT with a classification head; `apply` returns float32 logits [batch, classes].

    `frozen_layers` None freezes nothing; k runs the embeddings and the first k layers with dropout off, and
    layers + 1 the pooler too. `start` k enters above k layers (layers + 1: above the pooler): the batch then holds
    "hidden", what `features(config, stop=k)` gave, in place of ids. `dtype` replaces `config.dtype`.

    Raises ValueError where `classes` or a depth is out of range, and in `apply` where dropout needs an absent `rng`.
    """
    if not isinstance(classes, int) or classes < 1:
        raise ValueError(f"classes must be an integer of at least 1, got {classes!r}")
    if frozen_layers is not None:
        _check_depth("frozen_layers", frozen_layers, config)
    if start is not None:
        _check_depth("start", start, config)
    config = _computed_in(config, dtype)
    module = BertClassifier(config, classes, frozen_layers, start)

    def init(rng: Key[Array, ""], batch: Batch) -> Params:
        return module.init({"params": rng}, batch)["params"]  # type: ignore[return-value]

    def apply(
        params: Params, batch: Batch, *, rng: Key[Array, ""] | None = None, train: bool = False
    ) -> Float[Array, "batch classes"]:
        _check_rng(rng, train, config.dropout, config.attention_dropout, config.head_dropout or 0.0)
        rngs = None if rng is None else {"dropout": rng}
        return module.apply({"params": params}, batch, train=train, rngs=rngs)  # type: ignore[return-value]

    return Model(init, apply)


def _check_depth(name: str, depth: int, config: BertConfig) -> None:
    if not isinstance(depth, int) or isinstance(depth, bool) or not 0 <= depth <= config.layers + 1:
        raise ValueError(
            f"{name} must be an integer from 0 to {config.layers + 1} for {config.layers} layers, got {depth!r}"
        )


def _check_rng(rng: Any, train: bool, *rates: float) -> None:
    if train and rng is None and any(rate > 0 for rate in rates):
        raise ValueError("train=True with dropout needs rng: pass a key, or a config whose dropouts are 0")


def _computed_in(config: BertConfig, dtype: str | None) -> BertConfig:
    return config if dtype is None else replace(config, dtype=dtype)
