import jax
import numpy as np
import pytest
import torch

from jaxptft.objectives import Masking, corrupt, masked_lm, total_loss

MASKING = Masking(rate=0.4)


def test_loss_gradient_and_metrics_are_torchs_over_the_chosen_tokens(text, tokens, toy, repeat, context_of, quick):
    """torch's cross_entropy over all positions, with the label -100 wherever no token was chosen, or a row had two
    before it: those beyond the capacity stay corrupted, are counted, and are not predicted."""
    objective = masked_lm(toy("mlm"), tokens=tokens, masking=MASKING, capacity=2)
    params = objective.init(jax.random.key(1), text.batch)
    context = context_of(objective)
    key, _ = jax.random.split(context.rng)

    def loss_of(params):
        terms, (metrics, _) = objective.loss(params, text.batch, context)
        return total_loss(terms), (terms, metrics, corrupt(key, text.batch, tokens, MASKING))

    (loss, (terms, metrics, (ids, chosen))), gradient = quick(jax.value_and_grad(loss_of, has_aux=True))(params)
    chosen = np.asarray(chosen)
    predicted = chosen & (chosen.cumsum(1) <= 2)
    assert predicted.sum() > 20
    leaves = repeat.leaves(params)
    logits = repeat.hidden(leaves, ids) @ leaves["mlm"]["kernel"]
    labels = torch.tensor(np.where(predicted, text.batch["input_ids"], -100), dtype=torch.long)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    repeat.assert_same_gradients(gradient, leaves)
    assert list(terms) == ["masked_lm"]
    assert terms["masked_lm"].count == predicted.sum()
    right = (logits.argmax(-1) == labels).sum().item()
    counts = {
        "masked_lm/accuracy": (right, predicted.sum()),
        "masked_lm/overflow": (chosen.sum() - predicted.sum(), chosen.sum()),
    }
    assert counts["masked_lm/overflow"][0] > 10
    assert {name: (int(mean.total), int(mean.count)) for name, mean in metrics.items()} == counts


def test_with_room_for_all_every_chosen_token_is_predicted(text, tokens, toy, context_of, quick):
    """The default capacity of so short a row is its length."""
    objective = masked_lm(toy("mlm"), tokens=tokens, masking=MASKING)
    params = objective.init(jax.random.key(1), text.batch)
    terms, (metrics, _) = quick(lambda: objective.loss(params, text.batch, context_of(objective)))()
    assert metrics["masked_lm/overflow"].total == 0
    assert terms["masked_lm"].count == metrics["masked_lm/overflow"].count > 30


def test_mistakes_are_refused(text, tokens, toy, context_of):
    with pytest.raises(ValueError, match="capacity is 0; expected at least 1 place a row"):
        masked_lm(toy("mlm"), tokens=tokens, capacity=0)
    with pytest.raises(ValueError, match="group is 0; expected at least 1 row"):
        masked_lm(toy("mlm"), tokens=tokens, group=0)
    with pytest.raises(ValueError, match="has no mask_id; masking needs a tokenizer with a mask token"):
        masked_lm(toy("mlm"), tokens=tokens._replace(mask_id=None))
    everywhere = masked_lm(toy("clm"), tokens=tokens, capacity=2)  # a model that does not look at `positions`
    params = everywhere.init(jax.random.key(1), text.batch)
    with pytest.raises(ValueError, match=r"logits of shape \(16, 12, 19\); expected \(16, 2, 'vocab'\), those at"):
        jax.eval_shape(lambda: everywhere.loss(params, text.batch, context_of(everywhere)))
