"""BERT's and ALBERT's pre-training: hidden tokens and a question about a pair of sentences, from one forward pass.

Devlin et al. 2019, arXiv:1810.04805, section 3.1 (next sentence); Lan et al. 2020, arXiv:1909.11942, section 3.1
(sentence order). The loss is that of `combine` over the two objectives, at half its cost.
"""

from typing import Literal

import jax

from jaxptft.objectives.contract import Mean, Model, Objective, lift, slice_rng
from jaxptft.objectives.masked_lm import check_capacity, check_group, hide, restored
from jaxptft.objectives.masking import Masking, TokenTable, check_table
from jaxptft.objectives.sentence_pair import check_pairs, judged

_NAMES = {"nsp": "next_sentence", "sop": "sentence_order"}


def sentence_pretraining(
    model: Model,
    pair: Literal["nsp", "sop"] = "nsp",
    *,
    tokens: TokenTable,
    masking: Masking | None = None,
    weights: tuple[float, float] = (1.0, 1.0),
    capacity: int | None = None,
    group: int = 1,
) -> Objective:
    """`masked_lm` plus `next_sentence` or `sentence_order`, both judged on the corrupted text.

    `model.apply` returns {"mlm": [groups, capacity, vocab], pair: [batch, 2]}. `weights` are those of the two terms, in
    that order; all else is as in the two objectives, terms and metrics by the same names. Predictions: `logits`
    [batch, 2], of the pair.

    Raises ValueError on another `pair`, a packed batch, one without labels, or a table that does not fit.
    """
    if pair not in _NAMES:
        raise ValueError(f"pair is {pair!r}; expected 'nsp' or 'sop'")
    name = _NAMES[pair]
    masking, capacity = masking or Masking(), check_capacity(capacity)
    check_group(group)

    def forward(params, batch, context):
        check_pairs(name, batch)
        corruption, dropout = jax.random.split(context.rng)
        hidden = hide(corruption, batch, context.constants, masking, capacity, group)
        rng = slice_rng(dropout, batch) if context.train else None
        return model.apply(params, hidden.batch, rng=rng, train=context.train), hidden

    def loss(params, batch, context):
        logits, hidden = forward(params, batch, context)
        tokens_term, metrics = restored("masked_lm", logits["mlm"], hidden)
        pair_term, pair_metrics = judged(name, logits[pair], batch)
        scaled = [
            Mean(weight * term.total, term.count)
            for weight, term in zip(weights, (tokens_term, pair_term), strict=True)
        ]
        return {"masked_lm": scaled[0], name: scaled[1]}, metrics | pair_metrics

    def predict(params, batch, context):
        return {"logits": forward(params, batch, context)[0][pair]}

    return lift(loss, init=model.init, predict=predict, constants=check_table(tokens))
