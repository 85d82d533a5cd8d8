import zlib

import chex
import jax
import numpy as np
import pytest

from jaxptft.objectives import (
    Masking,
    combine,
    corrupt,
    masked_lm,
    next_sentence,
    sentence_order,
    sentence_pretraining,
    total_loss,
)

MASKING = Masking(rate=0.4, unit="word")


def test_one_forward_equals_the_combination_of_the_two(text, tokens, toy, context_of, quick):
    """`combine` folds a source's name into the key, and its pair objective reads what it is given: here the same text,
    corrupted under the same key."""
    together = sentence_pretraining(toy("mlm", "nsp"), "nsp", tokens=tokens, masking=MASKING, weights=(0.5, 2.0))
    apart = combine(
        {"m": (0.5, masked_lm(toy("mlm"), tokens=tokens, masking=MASKING)), "p": (2.0, next_sentence(toy("nsp")))}
    )
    params = together.init(jax.random.key(1), text.batch)
    context = context_of(together)
    own = context._replace(rng=jax.random.fold_in(context.rng, zlib.crc32(b"m")))
    corruption, _ = jax.random.split(own.rng)

    def both(params):
        ids, _ = corrupt(corruption, text.batch, tokens, MASKING)
        batches = {"m": text.batch, "p": {**text.batch, "input_ids": ids}}
        apart_context = context._replace(constants=apart.constants, state=apart.start(params, batches))
        results = []
        for objective, batch, at in ((together, text.batch, own), (apart, batches, apart_context)):

            def loss_of(params, objective=objective, batch=batch, at=at):
                terms, (metrics, _) = objective.loss(params, batch, at)
                return total_loss(terms), (terms, metrics)

            results.append(jax.value_and_grad(loss_of, has_aux=True)(params))
        return results

    ((loss, (terms, metrics)), gradient), ((expected, (_, expected_metrics)), expected_gradient) = quick(both)(params)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    chex.assert_trees_all_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)
    assert set(terms) == {"masked_lm", "next_sentence"}
    assert {f"m/{key}" if "masked" in key else f"p/{key}" for key in metrics} == set(expected_metrics)
    for key, mean in metrics.items():
        chex.assert_trees_all_equal(mean, expected_metrics[f"m/{key}" if "masked" in key else f"p/{key}"])


def test_albert_asks_for_the_order(text, tokens, toy, context_of, quick):
    objective = sentence_pretraining(toy("mlm", "sop"), "sop", tokens=tokens)
    params = objective.init(jax.random.key(1), text.batch)
    alone = sentence_order(toy("sop"))
    context = context_of(objective)
    terms, (metrics, _) = jax.eval_shape(lambda: objective.loss(params, text.batch, context))
    assert set(terms) == {"masked_lm", "sentence_order"}
    assert set(metrics) == {"masked_lm/accuracy", "masked_lm/overflow", "sentence_order/accuracy"}

    @quick
    def both():
        """The prediction is that of the text as it was corrupted for the loss."""
        ids, _ = corrupt(jax.random.split(context.rng)[0], text.batch, tokens, Masking())
        expected = alone.predict(params, {**text.batch, "input_ids": ids}, context)
        return objective.predict(params, text.batch, context), expected

    predicted, expected = both()
    np.testing.assert_allclose(predicted["logits"], expected["logits"], rtol=1e-5)


def test_mistakes_are_refused(text, tokens, toy, context_of):
    with pytest.raises(ValueError, match="pair is 'order'; expected 'nsp' or 'sop'"):
        sentence_pretraining(toy("mlm", "nsp"), "order", tokens=tokens)
    objective = sentence_pretraining(toy("mlm", "nsp"), "nsp", tokens=tokens)
    with pytest.raises(ValueError, match="next_sentence got a packed batch"):
        objective.loss(objective.init(jax.random.key(0), text.batch), text.packed, context_of(objective))
