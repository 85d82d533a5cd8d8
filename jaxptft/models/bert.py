"""BERT and its kin, RoBERTa, DistilBERT, ALBERT and ELECTRA: one bidirectional encoder, and a head for each task.

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers" (arXiv:1810.04805), as Hugging Face's
checkpoints compute it: post-norm layers, exact GELU, learned absolute positions, token types, and tanh(W h_[CLS] + b)
as the pooled output. What the kin do otherwise is in `BertConfig`. Liu et al. 2019 (RoBERTa, arXiv:1907.11692); Sanh et
al. 2019 (DistilBERT, arXiv:1910.01108); Lan et al. 2020 (ALBERT, arXiv:1909.11942); Clark et al. 2020 (ELECTRA,
arXiv:2003.10555).

The encoder can be entered at any layer, so that a frozen prefix is computed once (`features`) and only what lies above
it runs in training (`build(..., start=k)`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxptft.models.bert_config import BertConfig
from jaxptft.models.embeddings import Embeddings
from jaxptft.models.heads import (
    HiddenHead,
    VocabularyHead,
    first_tokens,
    flatten_choices,
    refuse_packed,
    take_positions,
)
from jaxptft.models.layer_run import Place, run_layers
from jaxptft.models.layers import Attention, Dense, Dropout, LayerNorm, Mlp, attention_mask
from jaxptft.models.model import Model, Params
from jaxptft.models.outputs import check_outputs, put
from jaxptft.models.pure import as_features, as_model, check_classes, check_depth

Batch = Mapping[str, Any]

_SENTENCE_HEADS = {"next_sentence": "nsp", "sentence_order": "sop"}
_PER_TOKEN = ("encoder", "token_classification", "question_answering", "masked_lm", "replaced_token")
_TASKS = ("encoder", "classification", "multiple_choice", *_PER_TOKEN[1:])
_SIZED = ("classification", "token_classification")


class Layer(nn.Module):
    """Attention and MLP, each followed by dropout, the residual sum and a norm."""

    config: BertConfig
    kept_heads: int | None = None

    def setup(self) -> None:
        config = self.config
        values = {"initializer_range": config.initializer_range, "dtype": config.dtype}
        drop = config.attention_dropout
        self.attention = Attention(config.width, config.heads, drop, **values, kept_heads=self.kept_heads)
        self.attention_norm = LayerNorm(config.norm_epsilon, config.dtype)
        self.mlp = Mlp(config.width, config.mlp_width, config.activation, **values)
        self.mlp_norm = LayerNorm(config.norm_epsilon, config.dtype)
        self.drop = Dropout(config.dropout)

    def __call__(
        self, x: Float[Array, "batch length width"], mask: Bool[Array, "batch queries keys"], *, active: bool
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
        kept = config.kept_heads or (None,) * config.stored_layers
        self.layer = [Layer(config, heads) for heads in kept]
        self.pooler = Dense(config.width, config.initializer_range, config.dtype)

    def embed(self, batch: Batch, *, train: bool) -> Float[Array, "batch length width"]:
        return self.embeddings(batch, active=train and self.frozen_layers is None)

    def run_layers(
        self,
        hidden: Float[Array, "batch length width"],
        mask: Bool[Array, "batch queries keys"],
        *,
        start: int,
        stop: int,
        train: bool,
    ) -> Float[Array, "batch length width"]:
        config, frozen = self.config, self.frozen_layers or 0
        places = [
            Place(self.layer[config.stored_layer(index)], train and index >= frozen) for index in range(start, stop)
        ]

        def call(layer: Layer, x: Array, active: bool, _: Any) -> Array:
            return layer(x, mask, active=active)

        return run_layers(self, places, hidden, call, scan_layers=config.scan_layers, remat=config.remat, put_last=True)

    def pool(self, first: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        return jnp.tanh(self.pooler(first))

    def word_table(self) -> Float[Array, "vocab embedding_width"]:
        return self.embeddings.table()

    def __call__(self, batch: Batch, *, train: bool, start: int | None = None, stop: int | None = None) -> Array:
        """Runs from `start` to `stop`: None is the ids, k the hidden states after k layers, layers + 1 pooled.

        Entered at `start`, it reads `batch["hidden"]`, what `stop=start` returned; `stop` defaults to the last there
        is, pooled where there is a pooler.
        """
        config = self.config
        stop = config.layers + config.pooler if stop is None else stop
        hidden = self.embed(batch, train=train) if start is None else batch["hidden"].astype(jnp.dtype(config.dtype))
        if start is not None and start > config.layers:
            return hidden
        put(self, "hidden", hidden)
        mask = attention_mask(batch, hidden.shape[:2])
        hidden = self.run_layers(hidden, mask, start=start or 0, stop=min(stop, config.layers), train=train)
        return self.pool(first_tokens(hidden, batch)) if stop > config.layers else hidden


class BertTask(nn.Module):
    """The encoder under the head of one task; only what the task uses has parameters."""

    config: BertConfig
    task: str
    classes: int = 0
    frozen_layers: int | None = None
    start: int | None = None

    def setup(self) -> None:
        config, drops = self.config, _head_dropouts(self.config)
        values = {"initializer_range": config.initializer_range, "dtype": config.dtype}
        self.backbone = Bert(config, self.frozen_layers)
        self.drop = Dropout(drops.get(self.task, 0.0))
        if config.classifier_activation is None:
            self.classifier = Dense(self.classes, **values)
        else:
            entry = drops["classification"] if config.classifier_input_dropout else 0.0
            self.classifier = self._hidden_head(self.classes, entry, drops["classification"])
        if config.pooler or config.classifier_activation is None:
            self.multiple_choice = Dense(1, **values)
        else:
            self.multiple_choice = self._hidden_head(1, 0.0, drops["multiple_choice"])
        self.token_classifier = Dense(self.classes, **values)
        self.question_answering = Dense(2, **values)
        self.nsp, self.sop = Dense(2, **values), Dense(2, **values)
        self.mlm = VocabularyHead(config.mlm_activation or config.activation, config.norm_epsilon, **values)
        self.discriminator = HiddenHead(config.width, 1, config.activation, 0.0, 0.0, **values)

    def _hidden_head(self, features: int, input_dropout: float, dropout: float) -> HiddenHead:
        config = self.config
        activation = config.classifier_activation or config.activation
        return HiddenHead(
            config.width, features, activation, input_dropout, dropout, config.initializer_range, config.dtype
        )

    def __call__(self, batch: Batch, *, train: bool = False) -> Any:
        task, config, drop = self.task, self.config, lambda x: self.drop(x, active=train)
        if task not in _PER_TOKEN:
            refuse_packed(batch, task)
        leading = batch["input_ids" if "input_ids" in batch else "hidden"].shape[:2]
        if task == "multiple_choice":
            batch = flatten_choices(batch)
        pooled = _reads_pooler(config, task)
        hidden = self.backbone(batch, train=train, start=self.start, stop=config.layers + pooled)
        vector = hidden if pooled else first_tokens(hidden, batch)
        match task:
            case "encoder":
                if self.is_initializing() and config.pooler:
                    # The pooler belongs to the bare backbone's parameters though the hidden states do not pass it.
                    self.backbone.pool(hidden[:, 0])
                return hidden
            case "masked_lm":
                return self._words(hidden, batch)
            case "pretraining":
                sentence = drop(self.backbone.pool(vector))
                return {
                    "mlm": self._words(hidden, batch),
                    config.sentence_head: self._sentence(config.sentence_head, sentence),
                }
            case "next_sentence" | "sentence_order":
                logits = self._sentence(_SENTENCE_HEADS[task], drop(vector))
            case "classification":
                logits = self._from_vector(self.classifier, vector, train=train)
            case "multiple_choice":
                logits = self._from_vector(self.multiple_choice, vector, train=train).reshape(leading)
            case "token_classification":
                logits = self.token_classifier(drop(hidden))
            case "question_answering":
                logits = self.question_answering(drop(hidden))
            case "replaced_token":
                logits = self.discriminator(hidden, active=train)[..., 0]
            case _:
                raise AssertionError(task)
        return logits.astype(jnp.float32)

    def _from_vector(self, head: Any, vector: Array, *, train: bool) -> Array:
        if isinstance(head, HiddenHead):
            return head(vector, active=train)
        return head(self.drop(vector, active=train))

    def _sentence(self, name: str, pooled: Array) -> Float[Array, "batch 2"]:
        return (self.nsp if name == "nsp" else self.sop)(pooled).astype(jnp.float32)

    def _words(self, hidden: Array, batch: Batch) -> Float[Array, "batch places vocab"]:
        return self.mlm(take_positions(hidden, batch.get("positions")), self.backbone.word_table())


def _reads_pooler(config: BertConfig, task: str) -> bool:
    """Whether all that the task reads is the pooled output."""
    if task == "classification":
        return config.pooler and config.classifier_activation is None
    return task in _SENTENCE_HEADS or (task == "multiple_choice" and config.pooler)


def _head_dropouts(config: BertConfig) -> dict[str, float]:
    head = config.dropout if config.head_dropout is None else config.head_dropout
    return {
        "classification": head,
        "token_classification": head if config.token_dropout is None else config.token_dropout,
        "multiple_choice": head if config.choice_dropout is None else config.choice_dropout,
        "question_answering": config.answer_dropout,
        **dict.fromkeys((*_SENTENCE_HEADS, "pretraining"), config.sentence_dropout),
    }


def tasks(config: BertConfig) -> tuple[str, ...]:
    """The tasks that `build` takes for this config; those of sentence pairs need a pooler."""
    return (*_TASKS, *_SENTENCE_HEADS, "pretraining") if config.pooler else _TASKS


def build(
    config: BertConfig,
    task: str,
    *,
    classes: int | None = None,
    frozen_layers: int | None = None,
    start: int | None = None,
    dtype: str | None = None,
    outputs: Sequence[str] = (),
) -> Model:
    """The encoder under the head of `task`, one of `tasks(config)`; logits are float32.

    `classes` is for "classification" and "token_classification". `frozen_layers` None freezes nothing; k runs the
    embeddings and the first k layers with dropout off, and layers + 1 the pooler too. `start` k enters above k layers
    (layers + 1: above the pooler): the batch then holds "hidden", what `features(config, stop=k)` gave, in place of
    ids. `dtype` replaces `config.dtype`. With `outputs`, some of `models.OUTPUTS`, `apply` returns {"logits": ..., and
    one array for each of them}; the choices of multiple choice are then rows.

    Raises ValueError where the model lacks the task or an output, `classes` or a depth is out of range, the frozen
    prefix parts layers that share their parameters, and in `apply` where dropout needs an absent `rng`.
    """
    if task not in tasks(config):
        kind = "BERT" if config.pooler else "BERT without a pooler"
        raise ValueError(f"{kind} has no task {task!r}: expected one of {', '.join(tasks(config))}")
    check_classes(task, classes, sized=_SIZED)
    check_depth("frozen_layers", frozen_layers, layers=config.layers, most=config.layers + 1)
    check_depth("start", start, layers=config.layers, most=config.layers + _reads_pooler(config, task))
    if frozen_layers is not None:
        _check_sharing(frozen_layers, config)
    config = config if dtype is None else replace(config, dtype=dtype)
    module = BertTask(config, task, classes or 0, frozen_layers, start)
    drops = (config.dropout, config.attention_dropout, _head_dropouts(config).get(task, 0.0))

    return as_model(module, dropouts=drops, outputs=check_outputs(outputs, start))


def encoder(config: BertConfig, *, frozen_layers: int | None = None, dtype: str | None = None) -> Model:
    """The backbone alone; `apply` returns the hidden states after the last layer [batch, length, width], in `dtype`."""
    return build(config, "encoder", frozen_layers=frozen_layers, dtype=dtype)


def classifier(
    config: BertConfig,
    classes: int,
    *,
    frozen_layers: int | None = None,
    start: int | None = None,
    dtype: str | None = None,
) -> Model:
    """`build` for "classification"; `apply` returns logits [batch, classes].

    Where several texts share a row (`segment_ids`), the batch's `starts` [batch, segments] say where each begins, and
    logits are [batch, segments, classes].
    """
    return build(config, "classification", classes=classes, frozen_layers=frozen_layers, start=start, dtype=dtype)


def features(config: BertConfig, *, stop: int, dtype: str | None = None) -> Callable[[Params, Batch], Array]:
    """What a frozen prefix computes, to be run once: (params, batch) -> hidden states, dropout off.

    `stop` k gives the hidden states after k layers [batch, length, width] (0: the embeddings); layers + 1 gives the
    pooled output [batch, width]. Put the result under "hidden" in a batch for `build(..., start=stop)`. Ids with an
    axis of choices keep it.
    """
    check_depth("stop", stop, layers=config.layers, most=config.layers + config.pooler)
    return as_features(Bert(config if dtype is None else replace(config, dtype=dtype)), stop=stop)


def _check_sharing(frozen_layers: int, config: BertConfig) -> None:
    """A frozen layer's parameters must not work in a layer that is not frozen."""
    whole = [k for k in range(config.layers + 1) if k in (0, config.layers) or _parts(k, config)]
    if frozen_layers <= config.layers and frozen_layers not in whole:
        raise ValueError(
            f"frozen_layers {frozen_layers} would freeze part of a group of layers that share their parameters: "
            f"pass one of {', '.join(map(str, [*whole, config.layers + 1]))}"
        )


def _parts(k: int, config: BertConfig) -> bool:
    return config.stored_layer(k - 1) != config.stored_layer(k)
