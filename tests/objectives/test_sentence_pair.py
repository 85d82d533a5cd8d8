import jax
import numpy as np
import pytest
import torch

from jaxptft.objectives import next_sentence, sentence_order, total_loss

OBJECTIVES = [(next_sentence, "nsp", "next_sentence"), (sentence_order, "sop", "sentence_order")]


@pytest.mark.parametrize("build, head, name", OBJECTIVES)
def test_loss_and_accuracy_are_torchs_over_the_valid_pairs(build, head, name, text, toy, repeat, context_of, quick):
    objective = build(toy(head))
    batch = {**text.batch, "valid": np.arange(16) < 11}
    params = objective.init(jax.random.key(1), batch)
    context = context_of(objective)

    def loss_of(params):
        terms, (metrics, _) = objective.loss(params, batch, context)
        return total_loss(terms), (terms, metrics)

    (loss, (terms, metrics)), gradient = quick(jax.value_and_grad(loss_of, has_aux=True))(params)
    leaves = repeat.leaves(params)
    attended = torch.tensor(batch["attention_mask"])[..., None]
    logits = (repeat.hidden(leaves, batch["input_ids"]) * attended).sum(1) @ leaves[head]["kernel"]
    label = torch.tensor(batch["label"], dtype=torch.long)
    expected = torch.nn.functional.cross_entropy(logits[:11], label[:11])
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    repeat.assert_same_gradients(gradient, leaves)
    assert list(terms) == [name]
    right = int((logits.argmax(-1) == label)[:11].sum())
    assert [int(part) for part in metrics[f"{name}/accuracy"]] == [right, 11]
    predicted = objective.predict(params, batch, context._replace(train=False))
    np.testing.assert_allclose(predicted["logits"], logits.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build, head, name", OBJECTIVES)
def test_packed_rows_and_missing_labels_are_refused(build, head, name, text, toy, context_of):
    objective = build(toy(head))
    params = objective.init(jax.random.key(1), text.batch)
    with pytest.raises(ValueError, match=f"{name} got a packed batch; it judges one pair a row"):
        objective.loss(params, text.packed, context_of(objective))
    unlabelled = {key: leaf for key, leaf in text.batch.items() if key != "label"}
    with pytest.raises(ValueError, match=rf"{name} needs batch\['label'\] .* the batch has \['attention_mask'"):
        objective.loss(params, unlabelled, context_of(objective))
