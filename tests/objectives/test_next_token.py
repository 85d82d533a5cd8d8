import jax
import numpy as np
import torch

from jaxptft.objectives import next_token, total_loss


def test_packed_or_not_loss_gradient_and_accuracy_are_torchs_over_each_text(text, toy, repeat, context_of, quick):
    """The mean of torch's cross_entropy over all next tokens, the examples taken one by one."""
    objective = next_token(toy("clm"))
    params = objective.init(jax.random.key(1), text.batch)
    leaves = repeat.leaves(params)
    losses, right = [], 0
    for example in text.examples[:15]:
        logits = (repeat.hidden(leaves, example[None]) @ leaves["clm"]["kernel"])[0, :-1]
        labels = torch.tensor(example[1:], dtype=torch.long)
        losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
        right += int((logits.argmax(-1) == labels).sum())
    expected = torch.cat(losses).mean()
    expected.backward()

    packed = {**text.packed, "valid": text.packed["valid"] & (text.packed["ids"] != 15)}
    plain = {**text.batch, "valid": text.batch["ids"] != 15}  # the last example only fills the batch
    for batch in (plain, packed):

        def loss_of(params, batch=batch):
            terms, (metrics, _) = objective.loss(params, batch, context_of(objective))
            return total_loss(terms), (terms, metrics)

        (loss, (terms, metrics)), gradient = quick(jax.value_and_grad(loss_of, has_aux=True))(params)
        np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
        repeat.assert_same_gradients(gradient, leaves)
        count = sum(len(example) - 1 for example in text.examples[:15])
        assert terms["next_token"].count == count
        accuracy = metrics["next_token/accuracy"]
        assert (int(accuracy.total), int(accuracy.count)) == (right, count)
