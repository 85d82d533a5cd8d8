"""Held text, what a model made of it before it was trained further, and the comparison with what it makes of it now."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxptft import convert, data, losses, models, objectives, optim, train
from jaxptft.recipes.computing import computed_with
from jaxptft.recipes.drift import drift
from jaxptft.recipes.finetune import Config
from jaxptft.recipes.forgetting import HeldText
from jaxptft.recipes.forgetting_report import Comparison, Layer
from jaxptft.recipes.training import EVALUATION_ROWS
from jaxptft.recipes.training_plan import piece_of

_BUCKETS = 4
_FEWEST = 4  # rows, below which the debiased CKA is not defined


def probe_of(config: Config, checkpoint: convert.Checkpoint, **options: Any) -> "Probe | None":
    """The probe of a fine-tuning that remembers the model as it was imported; None where nobody asks what is forgotten.

    `options` are `Probe`'s others. Raises ValueError too where nothing is imported.
    """
    if not config.forgetting.corpus:
        return None
    if config.from_scratch:
        raise ValueError("forgetting compares with what was imported, and nothing is; leave out from_scratch")
    original = {name: checkpoint.params[name] for name in ("backbone", "mlm") if name in checkpoint.params}
    options |= {"name": config.model, "architecture": checkpoint.config, "max_length": config.max_length}
    return Probe(config.forgetting, original, **options)


class Probe:
    """Compares a model with `original`, {"backbone": ...} and, where there is one, the head "mlm".

    On each text the hidden states of every layer are averaged over its tokens, special ones included. The pre-training
    loss is that of the original head on the present backbone, on masks that are always the same; its output is the word
    table, which is the backbone's. GPT-2 needs no head. All of it is computed in float32, without dropout.

    Raises ValueError for text that cannot be read or is too little, `max_length` beyond the model's, and an original
    that lacks a part; FloatingPointError where it gives numbers that are not finite.
    """

    def __init__(
        self,
        text: HeldText,
        original: objectives.Params,
        *,
        name: str,
        architecture: Any,
        tokenizer: Any,
        max_length: int,
        mesh: Any,
        say: Callable[[str], None],
        stop: train.StopFlag | None = None,
    ):
        self.name, self._threshold, self._mesh, self._stop = name, text.threshold, mesh, stop
        self._architecture = computed_with(architecture, dtype="float32")
        self._batches = _held_batches(text, tokenizer, architecture, max_length=max_length, devices=mesh.size)
        self._head = {"mlm": original["mlm"]} if "mlm" in original else {}
        self._backbone = jax.tree.map(np.asarray, original["backbone"])
        self.objective, reading = _reading(self._architecture, tokenizer, has_head=bool(self._head))
        self._refuse_gaps(reading)
        self._evaluator = train.make_evaluator(reading, labelled=self.objective is not None)
        self._constants = train.replicate(reading.constants, mesh)
        self._before, self.loss = self._read(self._backbone)
        if not np.isfinite(self._before).all():
            raise FloatingPointError(f"{name} gives NaN or infinity on the held text; its weights are broken")
        if self.loss is not None and not np.isfinite(self.loss):
            raise ValueError("no token of the held text is to be predicted; give more text")
        told = "no head of masked tokens, so CKA and drift alone"
        if self.objective is not None:
            told = f"pre-training loss ({self.objective}) {self.loss:.4f}"
        say(f"forgetting: {len(self._before)} held texts from {', '.join(text.corpus)}; {name} has {told}")

    @property
    def fingerprint(self) -> str:
        """Of the held text, in tokens."""
        return self._batches.tokenized.fingerprint

    def compare(self, params: objectives.Params) -> Comparison:
        """The model as it is now, beside the original; `params` may hold more than the original has."""
        after = train.to_host(_like(params["backbone"], self._backbone))
        moved = drift({"backbone": after}, {"backbone": self._backbone}, by=piece_of)
        (whole,) = drift({"backbone": after}, {"backbone": self._backbone}, by=lambda path: "backbone").values()
        features, loss = self._read(after)
        places = [self._place(place) for place in range(features.shape[1])]
        found = []
        for place, (name, piece) in enumerate(places):
            now, then = features[:, place], self._before[:, place]
            cka, debiased = (float(value) for value in _likeness(now, then))
            found.append(Layer(name, cka, debiased, _mean_cosine(now, then), moved[piece]))
        others = [piece for piece in moved if piece not in {piece for _, piece in places}]
        found += [Layer(piece.removeprefix("backbone/"), None, None, None, moved[piece]) for piece in others]
        return Comparison(
            name=self.name,
            texts=len(features),
            tokens=int(self._batches.tokenized.lengths.sum()),
            layers=tuple(found),
            stored_layers=getattr(self._architecture, "layer_groups", None) or self._architecture.layers,
            drift=whole,
            threshold=self._threshold,
            objective=self.objective,
            loss_before=self.loss,
            loss_after=loss,
        )

    def watch(self, params: objectives.Params) -> dict[str, float]:
        """A comparison in two or three numbers, for the log."""
        found = self.compare(params)
        numbers = {"forgetting/lowest_cka": found.lowest_cka, "forgetting/drift": found.drift.relative_l2}
        if found.loss_after is not None:
            numbers["forgetting/pretraining_loss"] = found.loss_after
        return {name: value for name, value in numbers.items() if value is not None}

    def _place(self, place: int) -> tuple[str, str]:
        """What hidden states are called, and the parameters that they are the last to pass."""
        if place == 0:
            return "embeddings", "backbone/embeddings"
        stored = getattr(self._architecture, "stored_layer", lambda index: index)(place - 1)
        return f"layer_{place - 1}", f"backbone/layer_{stored}"

    def _read(self, backbone: Any) -> tuple[Float[np.ndarray, "rows places width"], float | None]:
        batches = self._batches
        evaluation = train.evaluate(
            self._evaluator,
            train.replicate({"backbone": backbone, **self._head}, self._mesh),
            {},
            self._constants,
            (batches.batch_at(step) for step in range(batches.steps_per_epoch)),
            place=lambda batch: train.shard(batch, self._mesh),
            stop=self._stop,
        )
        return evaluation.predictions["features"], evaluation.metrics.get(f"{self.objective}/loss")

    def _refuse_gaps(self, reading: objectives.Objective) -> None:
        wanted = jax.eval_shape(reading.init, jax.random.key(0), self._batches.batch_at(0))
        known = set(optim.paths({"backbone": self._backbone, **self._head}))
        lacking = [path for path in optim.paths(wanted) if path not in known and not path.startswith("backbone/pooler")]
        if lacking:
            raise ValueError(
                f"{self.name} lacks {lacking[0]}, so there is nothing to compare with; leave out forgetting"
            )


def _held_batches(text: HeldText, tokenizer: Any, architecture: Any, *, max_length: int, devices: int) -> data.Batches:
    """Rows of one document each, evenly from all of the corpus."""
    positions, source = architecture.max_length, ", ".join(text.corpus)
    if max_length > positions:
        raise ValueError(f"max_length is {max_length}, but the model has {positions} positions; lower it")
    data.check_vocabulary(tokenizer, architecture.vocab_size)
    store = data.tokenize_corpus(text.corpus, tokenizer, documents=text.documents, text_column=text.text_column)
    try:
        if isinstance(architecture, models.Gpt2Config):
            rows = data.causal_segments(store, tokenizer, max_length, cross_documents=False)
        else:
            rows = data.full_segments(store, tokenizer, max_length)
    except ValueError as error:
        raise ValueError(f"held text, {source}: {error}") from None
    if len(rows) < _FEWEST:
        raise ValueError(
            f"held text, {source}: {len(rows)} texts of at most {max_length} tokens; expected at least {_FEWEST}, and "
            "better hundreds: give more text"
        )
    if len(rows) > text.rows:
        rows = rows.rows(np.linspace(0, len(rows) - 1, text.rows).round().astype(np.int64))
    data.check_tokens(rows, architecture.vocab_size)
    if data.token_table(tokenizer, architecture.vocab_size, mask=False).special[rows.tokens].all():
        raise ValueError(f"held text, {source}: the tokenizer knows nothing of it; give text that the model can read")
    buckets = data.fitted_buckets(rows.lengths, _BUCKETS, most=max_length)
    return data.Batches(rows, batch_size=EVALUATION_ROWS, shuffle=False, buckets=buckets, multiple_of=devices)


def _reading(architecture: Any, tokenizer: Any, *, has_head: bool) -> tuple[str | None, objectives.Objective]:
    """The pre-training objective, if there is one, that predicts the features of each text as well; and its name."""
    encoder = models.build(architecture, "encoder", outputs=("hidden",))

    def predict(params: Any, batch: Any, context: Any) -> dict[str, Array]:
        hidden = encoder.apply({"backbone": params["backbone"]}, batch, train=False)["hidden"].astype(jnp.float32)
        seen = jnp.asarray(batch["attention_mask"], bool)[None, :, :, None]
        means = jnp.where(seen, hidden, 0.0).sum(2) / jnp.maximum(seen.sum(2), 1)
        return {"features": means.swapaxes(0, 1)}

    if isinstance(architecture, models.Gpt2Config):
        return "next_token", objectives.next_token(models.build(architecture, "causal_lm"))._replace(predict=predict)
    if not has_head:
        return None, objectives.lift(lambda params, batch, context: {}, init=encoder.init, predict=predict)
    table = objectives.TokenTable(*data.token_table(tokenizer, architecture.vocab_size))
    masked = objectives.masked_lm(models.build(architecture, "masked_lm"), tokens=table)
    return "masked_lm", masked._replace(predict=predict)


@jax.jit
def _likeness(x: Float[Array, "rows width"], y: Float[Array, "rows width"]) -> tuple[Array, Array]:
    return losses.linear_cka(x, y), losses.linear_cka(x, y, debiased=True)


def _mean_cosine(x: Float[np.ndarray, "rows width"], y: Float[np.ndarray, "rows width"]) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return float(np.mean((x * y).sum(1) / np.where(lengths > 0, lengths, 1.0)))


def _like(tree: Any, reference: Any) -> Any:
    """The part of a tree that `reference` has too."""
    if not isinstance(reference, dict):
        return tree
    return {key: _like(tree[key], value) for key, value in reference.items() if key in tree}
