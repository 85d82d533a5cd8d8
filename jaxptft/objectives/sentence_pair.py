"""Two questions about a pair of sentences: does the second follow the first, and are the two in order?

Next-sentence prediction (Devlin et al. 2019, arXiv:1810.04805, section 3.1) draws the wrong pairs from other documents;
sentence-order prediction (Lan et al. 2020, arXiv:1909.11942, section 3.1) swaps the two. The data differ, the loss does
not: both are one implementation under two names.
"""

import jax
from jaxtyping import Array, Float

from jaxptft import losses
from jaxptft.objectives.contract import Batch, Mean, Metrics, Model, Objective, lift, slice_rng


def judged(name: str, logits: Float[Array, "batch 2"], batch: Batch) -> tuple[Mean, Metrics]:
    """The loss over the valid pairs, and the metric `name/accuracy`."""
    label, valid = batch["label"], batch["valid"]
    per_pair = losses.cross_entropy(logits, label, valid=valid)
    right = (jax.lax.stop_gradient(logits).argmax(-1) == label) & valid
    return Mean(per_pair.sum(), valid.sum()), {f"{name}/accuracy": Mean(right.sum(), valid.sum())}


def check_pairs(name: str, batch: Batch) -> None:
    """Raises ValueError on a batch that is packed or holds no labels."""
    if "segment_ids" in batch:
        raise ValueError(f"{name} got a packed batch; it judges one pair a row, so batch the pairs without packing")
    if "label" not in batch:
        raise ValueError(f"{name} needs batch['label'] (0 as in the text, 1 not); the batch has {sorted(batch)}")


def _pair(name: str, model: Model) -> Objective:
    def logits_of(params, batch, context):
        check_pairs(name, batch)
        rng = slice_rng(context.rng, batch) if context.train else None
        return model.apply(params, batch, rng=rng, train=context.train)

    def loss(params, batch, context):
        term, metrics = judged(name, logits_of(params, batch, context), batch)
        return {name: term}, metrics

    def predict(params, batch, context):
        return {"logits": logits_of(params, batch, context)}

    return lift(loss, init=model.init, predict=predict)


def next_sentence(model: Model) -> Objective:
    """Cross-entropy of "is next" (label 0) against "is from elsewhere" (label 1), averaged over valid pairs.

    `model.apply` returns logits [batch, 2]. Metrics: `next_sentence/accuracy`. Predictions: `logits` [batch, 2].
    Raises ValueError on a packed batch, or one without labels.
    """
    return _pair("next_sentence", model)


def sentence_order(model: Model) -> Objective:
    """Cross-entropy of "in order" (label 0) against "swapped" (label 1), averaged over valid pairs.

    `model.apply` returns logits [batch, 2]. Metrics: `sentence_order/accuracy`. Predictions: `logits` [batch, 2].
    Raises ValueError on a packed batch, or one without labels.
    """
    return _pair("sentence_order", model)
