from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats

from jaxptft.objectives import Masking, generator_params, replaced_token, total_loss
from jaxptft.objectives.masked_lm import hide
from jaxptft.objectives.replaced_token import sample

MASK = 4


@pytest.fixture(scope="module")
def watched(toy):
    """A generator of another width than the discriminator's, and what each of the two models was given to read."""
    seen = {"generator": [], "discriminator": []}
    generator = toy("mlm", width=3, see=lambda batch: seen["generator"].append(batch))
    return generator, toy("discriminator", see=lambda batch: seen["discriminator"].append(batch)), seen


def test_loss_gradients_and_metrics_are_those_written_out_in_torch(text, tokens, watched, repeat, context_of, quick):
    """From the two texts that the models saw: torch's cross_entropy at the masks plus 50 times its
    binary_cross_entropy over the ordinary tokens; the generator's tables are the discriminator's."""
    generator, discriminator, seen = watched
    masking = Masking(rate=0.6, mask_share=1.0, random_share=0.0)
    objective = replaced_token(generator, discriminator, tokens=tokens, masking=masking, capacity=5)
    params = objective.init(jax.random.key(1), text.batch)
    assert set(params) == {"backbone", "discriminator", "generator"}
    assert set(params["generator"]) == {"backbone", "mlm"}
    assert set(params["generator"]["backbone"]) == {"layer_0"}

    def loss_of(params):
        terms, (metrics, _) = objective.loss(params, text.batch, context_of(objective))
        given = {name: {key: batches[-1][key] for key in batches[-1]} for name, batches in seen.items()}
        return total_loss(terms), (terms, metrics, given)

    (loss, (terms, metrics, given)), gradient = quick(jax.value_and_grad(loss_of, has_aux=True))(params)
    original = text.batch["input_ids"]
    masked, filled = (np.asarray(given[name]["input_ids"]) for name in ("generator", "discriminator"))
    chosen = masked == MASK
    predicted = chosen & (chosen.cumsum(1) <= 5)
    assert predicted.sum() < chosen.sum()
    ordinary = (text.batch["attention_mask"] > 0) & ~tokens.special[original]
    assert not (chosen & ~ordinary).any()
    assert np.array_equal(filled[~predicted], original[~predicted])
    replaced = filled != original
    assert replaced.any()
    assert (predicted & ~replaced).any()  # drawn, and the original all the same

    leaves = repeat.leaves(params)
    small = {"backbone": {**leaves["generator"]["backbone"], "embeddings": leaves["backbone"]["embeddings"]}}
    logits = repeat.hidden(small, masked) @ leaves["generator"]["mlm"]["kernel"]
    labels = torch.tensor(original, dtype=torch.long)
    restored = torch.nn.functional.cross_entropy(logits[torch.tensor(predicted)], labels[torch.tensor(predicted)])
    judgement = (repeat.hidden(leaves, filled) @ leaves["discriminator"]["kernel"])[..., 0]
    detected = torch.nn.functional.binary_cross_entropy_with_logits(
        judgement[torch.tensor(ordinary)], torch.tensor(replaced[ordinary]).float()
    )
    (restored + 50 * detected).backward()
    np.testing.assert_allclose(terms["generator"].value(), restored.item(), rtol=1e-5)
    np.testing.assert_allclose(terms["discriminator"].value(), 50 * detected.item(), rtol=1e-5)
    np.testing.assert_allclose(loss, (restored + 50 * detected).item(), rtol=1e-5)
    repeat.assert_same_gradients(gradient, leaves)

    found = judgement.detach().numpy() > 0
    right = (logits.argmax(-1) == labels).numpy()
    counts = {
        "generator/accuracy": (right & predicted, predicted),
        "generator/overflow": (chosen & ~predicted, chosen),
        "discriminator/accuracy": ((found == replaced) & ordinary, ordinary),
        "discriminator/replaced": (replaced, ordinary),
        "discriminator/detected": (replaced & found, ordinary),
    }
    assert {name: (int(mean.total), int(mean.count)) for name, mean in metrics.items()} == {
        name: (total.sum(), count.sum()) for name, (total, count) in counts.items()
    }


def test_tokens_are_drawn_from_the_generators_distribution(text, tokens, quick):
    rng = np.random.default_rng(0)
    shape = (400, 64)
    batch = {
        "input_ids": text.ordinary(rng, shape),
        "attention_mask": np.ones(shape, np.int32),
        "ids": np.arange(400),
        "valid": np.ones(400, bool),
    }
    wanted = np.log(rng.dirichlet(np.ones(19)))
    masking = Masking(rate=1.0)

    @quick
    def drawn(batch):
        hidden = hide(jax.random.key(0), batch, tokens, masking, 64)
        return sample(jax.random.key(1), jnp.broadcast_to(wanted.astype(np.float32), (*shape, 19)), batch, hidden)

    filled, replaced = jax.device_get(drawn(batch))
    counts = np.bincount(filled.ravel(), minlength=19)
    assert stats.chisquare(counts, np.exp(wanted) * counts.sum()).pvalue > 1e-3
    np.testing.assert_array_equal(replaced, filled != batch["input_ids"])
    alike = (filled[1:] == filled[:-1]).mean()  # rows are drawn independently
    assert abs(alike - np.square(np.exp(wanted)).sum()) < 0.02


def test_the_papers_masking_is_the_default(text, tokens, watched, context_of, quick):
    """Clark et al. 2020, section 3.1: every chosen token stands behind the mask."""
    generator, discriminator, seen = watched
    objective = replaced_token(generator, discriminator, tokens=tokens)
    params = objective.init(jax.random.key(1), text.batch)
    context = context_of(objective)

    def texts(params):
        _, (metrics, _) = objective.loss(params, text.batch, context)
        return seen["generator"][-1]["input_ids"], metrics["generator/overflow"].count

    ids, chosen = quick(texts)(params)
    changed = ids != text.batch["input_ids"]
    assert changed.sum() == chosen > 0
    assert (np.asarray(ids)[changed] == MASK).all()


def test_the_generators_own_embedding_parameters_stay_its_own():
    own = {"backbone": {"embeddings": {"projection": 1}, "layer_0": 2}, "mlm": 3}
    shared = {"word": 4, "norm": 5, "projection": 6}
    params = {"backbone": {"embeddings": shared, "layer_0": 7}, "discriminator": 8, "generator": own}
    embeddings = {"word": 4, "norm": 5, "projection": 1}
    assert generator_params(params) == {"backbone": {"embeddings": embeddings, "layer_0": 2}, "mlm": 3}


def test_embeddings_that_cannot_be_shared_are_refused(text, tokens, toy):
    objective = replaced_token(toy("mlm", embedding=4), toy("discriminator"), tokens=tokens)
    with pytest.raises(ValueError, match=r"share their embeddings, but have .*\(19, 4\).* and .*\(19, 6\)"):
        jax.eval_shape(partial(objective.init, batch=text.batch), jax.random.key(0))
