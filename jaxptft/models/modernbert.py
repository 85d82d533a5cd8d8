"""ModernBERT: a pre-norm encoder with rotary positions, gated MLPs, and attention that is local in most layers.

Warner et al. 2024, "Smarter, Better, Faster, Longer" (arXiv:2412.13663), section 2.1, as Hugging Face's checkpoints
compute it. Every third layer attends to the whole text, the others to a window; each kind turns queries and keys by
its own rotary base. What the paper calls unpadded computing is a packed row here: `segment_ids` keep the texts of a
row apart and `position_ids` restart with each, in the windows as in the rotations.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxptft.models.embeddings import Embedding
from jaxptft.models.heads import (
    first_tokens,
    flatten_choices,
    refuse_packed,
    segment_means,
    take_positions,
    tied_logits,
)
from jaxptft.models.layer_run import Place, run_layers
from jaxptft.models.layers import ACTIVATIONS, Dropout, attention_mask, check_length, position_ids
from jaxptft.models.model import Model, Params
from jaxptft.models.modernbert_config import ModernBertConfig
from jaxptft.models.modernbert_layers import Layer, Norm, Projection, output_deviation, truncated, turns_at
from jaxptft.models.outputs import check_outputs, put
from jaxptft.models.pure import as_features, as_model, check_classes, check_depth

Batch = Mapping[str, Any]

TASKS = {
    "encoder": None,
    "classification": "classifier",
    "token_classification": "token_classifier",
    "question_answering": "question_answering",
    "multiple_choice": "multiple_choice",
    "masked_lm": "mlm",
}
"""The head's key in params for each task."""

_OUTPUTS = {"encoder": 1, "question_answering": 2, "multiple_choice": 1, "masked_lm": 1}


class Words(Embedding):
    """The word table, its draws cut off like every other weight's."""

    cutoff: float = 2.0

    def _init(self, rng: Array, shape: tuple[int, int], dtype: Any) -> Array:
        table = truncated(self.initializer_range, self.cutoff)(rng, shape, dtype)
        return table if self.pad_id is None else table.at[self.pad_id].set(0)


class Embeddings(nn.Module):
    """Word rows, normalized, with dropout; positions enter by rotation, in the layers."""

    config: ModernBertConfig

    def setup(self) -> None:
        config = self.config
        self.word = Words(
            config.vocab_size, config.width, config.initializer_range, config.pad_id, config.initializer_cutoff
        )
        self.norm = Norm(config)
        self.drop = Dropout(config.embedding_dropout)

    def __call__(self, batch: Batch, *, active: bool) -> Float[Array, "batch length width"]:
        ids = batch["input_ids"]
        check_length(batch, self.config.max_length)
        return self.drop(self.norm(self.word(ids)), active=active)


class ModernBert(nn.Module):
    """The encoder. `frozen_layers` None freezes nothing, k has the embeddings and k layers run without dropout."""

    config: ModernBertConfig
    frozen_layers: int | None = None

    def setup(self) -> None:
        self.embeddings = Embeddings(self.config)
        self.layer = [Layer(self.config, index == 0) for index in range(self.config.layers)]
        self.final_norm = Norm(self.config)

    def words(self) -> Float[Array, "vocab width"]:
        return self.embeddings.word.embedding

    def __call__(
        self, batch: Batch, *, train: bool, start: int | None = None, stop: int | None = None
    ) -> Float[Array, "batch length width"]:
        """Runs from `start` to `stop`: None is the ids, k the hidden states after k layers, layers + 1 the normed ones.

        Entered at `start`, it reads `batch["hidden"]`, what `stop=start` returned; `stop` defaults to normed.
        """
        config, first = self.config, start or 0
        stop = config.layers + 1 if stop is None else stop
        if start is None:
            # The sum that the layers add to is kept in float32, whatever they compute in.
            hidden = self.embeddings(batch, active=train and self.frozen_layers is None).astype(jnp.float32)
        else:
            hidden = batch["hidden"]
        if first > config.layers:
            return hidden
        put(self, "hidden", hidden)
        masks, turns = _masks(config, batch, hidden), _turns(config, batch, hidden)
        places = [
            Place(self.layer[index], train and index >= (self.frozen_layers or 0), config.is_global(index))
            for index in range(first, min(stop, config.layers))
        ]

        def call(layer: Layer, x: Array, active: bool, whole: Any) -> Array:
            return layer(x, _of_kind(masks, whole), _of_kind(turns, whole), active=active)

        hidden = run_layers(self, places, hidden, call, scan_layers=config.scan_layers, remat=config.remat)
        if stop > config.layers:
            hidden = self.final_norm(hidden)
            put(self, "hidden", hidden)
        return hidden


def _of_kind(found: dict[bool, Any], whole: Any) -> Any:
    """What a layer reads of a kind, which an array chooses where layers of both are scanned."""
    if isinstance(whole, bool):
        return found[whole]
    return jax.tree.map(lambda one, other: jnp.where(whole, one, other), found[True], found[False])


def _masks(config: ModernBertConfig, batch: Batch, hidden: Array) -> dict[bool, Bool[Array, "batch queries keys"]]:
    """What each token sees, by whether the layer is global."""
    seen = attention_mask(batch, (hidden.shape[0], hidden.shape[1]))
    # A text's tokens are contiguous: their places in the row are as far apart as their positions in the text.
    place = jnp.arange(hidden.shape[1])
    near = jnp.abs(place[:, None] - place) <= config.local_attention // 2
    return {True: seen, False: seen & near}


def _turns(config: ModernBertConfig, batch: Batch, hidden: Array) -> dict[bool, tuple[Array, Array]]:
    """The rotations of each position, by whether the layer is global."""
    positions, head_width = position_ids(batch, hidden.shape[1]), config.width // config.heads
    return {
        True: turns_at(positions, config.global_theta, head_width),
        False: turns_at(positions, config.local_theta, head_width),
    }


class Prediction(nn.Module):
    """A dense layer, an activation and a norm: what every head here starts with."""

    config: ModernBertConfig

    def setup(self) -> None:
        config = self.config
        self.dense = Projection(
            config.width, output_deviation(config), config.initializer_cutoff, config.classifier_bias, config.dtype
        )
        self.norm = Norm(config)

    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        return self.norm(ACTIVATIONS[self.config.classifier_activation](self.dense(x)))


class LinearHead(Prediction):
    """A linear layer, behind dropout, over what the prediction layers give."""

    outputs: int

    def setup(self) -> None:
        super().setup()
        config = self.config
        self.drop = Dropout(config.head_dropout)
        self.out = Projection(self.outputs, config.width**-0.5, config.initializer_cutoff, True, config.dtype)

    def __call__(self, x: Float[Array, "... width"], *, active: bool) -> Float[Array, "... outputs"]:
        return self.out(self.drop(super().__call__(x), active=active)).astype(jnp.float32)


class WordHead(Prediction):
    """Products with the word table, and a bias a word."""

    def setup(self) -> None:
        super().setup()
        if self.config.decoder_bias:
            self.bias = self.param("bias", nn.initializers.zeros, (self.config.vocab_size,), jnp.float32)

    def __call__(self, x: Float[Array, "... width"], words: Float[Array, "vocab width"]) -> Float[Array, "... vocab"]:
        logits = tied_logits(super().__call__(x), words, self.config.dtype)
        return logits + self.bias if self.config.decoder_bias else logits


class ModernBertTask(nn.Module):
    """The encoder and one task's head."""

    config: ModernBertConfig
    task: str
    outputs: int
    frozen_layers: int | None = None
    start: int | None = None

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool = False) -> Array:
        if self.task in ("classification", "multiple_choice"):
            refuse_packed(batch, self.task)
        shape = None
        if self.task == "multiple_choice":
            shape = batch["input_ids" if "input_ids" in batch else "hidden"].shape[:2]
            batch = flatten_choices(batch)
        backbone = ModernBert(self.config, self.frozen_layers, name="backbone")
        hidden = backbone(batch, train=train, start=self.start)
        if self.task == "encoder":
            return hidden
        if self.task == "masked_lm":
            hidden = take_positions(hidden, batch.get("positions"))
            return WordHead(self.config, name="mlm")(hidden, backbone.words())
        if self.task in ("classification", "multiple_choice"):
            hidden = _pool(self.config, batch, hidden, seek=self.task == "multiple_choice")
        logits = LinearHead(self.config, self.outputs, name=TASKS[self.task])(hidden, active=train)
        return logits if shape is None else logits.reshape(shape)


def _pool(config: ModernBertConfig, batch: Batch, hidden: Array, *, seek: bool) -> Float[Array, "batch width"]:
    """The mean over the text, or its first token: the row's first place, or where the mask starts if `seek`.

    Of packed rows, those of each segment [batch, segments, width].
    """
    if "starts" in batch:
        mean = config.pooling == "mean"
        return segment_means(hidden, batch).astype(hidden.dtype) if mean else first_tokens(hidden, batch)
    mask = batch.get("attention_mask")
    mask = jnp.ones(hidden.shape[:2], jnp.int32) if mask is None else jnp.asarray(mask)
    if config.pooling == "mean":
        weights = mask[..., None].astype(jnp.float32)
        total = (hidden * weights).sum(axis=1)
        return (total / jnp.maximum(weights.sum(axis=1), 1)).astype(hidden.dtype)
    if not seek:
        return hidden[:, 0]
    return jnp.take_along_axis(hidden, mask.argmax(axis=1)[:, None, None], axis=1)[:, 0]


def features(config: ModernBertConfig, *, stop: int, dtype: str | None = None) -> Callable[[Params, Batch], Array]:
    """What a frozen prefix computes, to be run once: (params, batch) -> hidden states, dropout off.

    `stop` k gives the hidden states after k layers [batch, length, width] (0: the embeddings), layers + 1 those behind
    the final norm. Put the result under "hidden" in a batch for `build(..., start=stop)`.
    """
    check_depth("stop", stop, layers=config.layers, most=config.layers + 1)
    return as_features(ModernBert(config if dtype is None else replace(config, dtype=dtype)), stop=stop)


def build(
    config: ModernBertConfig,
    task: str,
    *,
    classes: int | None = None,
    frozen_layers: int | None = None,
    start: int | None = None,
    dtype: str | None = None,
    outputs: Sequence[str] = (),
) -> Model:
    """ModernBERT with the head of `task`; `apply` returns float32 logits, or the encoder's hidden states in `dtype`.

    `classes` is the size of a classification or token classification head. `frozen_layers` None freezes nothing; k
    runs the embeddings and the first k layers with dropout off. `start` k enters above k layers (layers + 1: above
    the final norm): the batch then holds "hidden", what `features(config, stop=k)` gave, beside its masks. With
    `outputs`, some of `models.OUTPUTS`, `apply` returns {"logits": ..., and one array for each of them}.

    Raises ValueError for a task ModernBERT has no head for, an unknown output, where `classes` or a depth is out of
    range, and in `apply` where dropout needs an absent `rng`.
    """
    if task not in TASKS:
        raise ValueError(f"ModernBERT has no task {task!r}: expected one of {', '.join(TASKS)}")
    check_classes(task, classes, sized=tuple(name for name in TASKS if name not in _OUTPUTS))
    head_width = _OUTPUTS.get(task, classes or 0)
    check_depth("frozen_layers", frozen_layers, layers=config.layers, most=config.layers + 1)
    check_depth("start", start, layers=config.layers, most=config.layers + 1)
    config = config if dtype is None else replace(config, dtype=dtype)
    module = ModernBertTask(config, task, head_width, frozen_layers, start)
    rates = (config.embedding_dropout, config.attention_dropout, config.mlp_dropout, config.head_dropout)

    return as_model(module, dropouts=rates, outputs=check_outputs(outputs, start))
