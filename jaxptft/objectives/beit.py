"""Masked image modelling: the visual words of hidden patches, told from the others.

Bao et al. 2022, "BEiT: BERT Pre-Training of Image Transformers", arXiv:2106.08254, section 2. A discrete autoencoder
has learnt before which words there are; what it says of the whole image, a model that sees a part of it has to say. The
autoencoder is a constant of the objective: it travels to the step as an argument, and nothing differentiates it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxptft import losses
from jaxptft.objectives.block_masking import block_masks, plan_blocks
from jaxptft.objectives.contract import Batch, Mean, Model, Objective, Params, lift, slice_rng
from jaxptft.objectives.guessed import guessed
from jaxptft.objectives.views import View, unchanged, view_images

WORDS = "words"  # the key of the autoencoder's params in the constants


def beit(
    model: Model,
    *,
    words: tuple[Model, Params],
    mask_ratio: float = 0.4,
    smallest: int | None = None,
    view: View = unchanged,
    plain: View = unchanged,
    words_view: View | None = None,
) -> Objective:
    """Softmax cross-entropy over the visual words, averaged over the hidden patches of the batch's valid images.

    `model.apply` gives logits [batch, patches, vocab] of all patches from `image` and `masked`, bool [batch, patches],
    as a BEiT of `models.build` for "masked_image" does. `words` is what tells the words, with its params: `apply` gives
    logits [batch, rows, columns, vocab] for a batch with `image`, as `models.dvae` does. The batch holds `image`, `ids`
    and `valid`; `view` makes of it what is learnt from, and `plain` what is evaluated on. Both read the same view;
    where the words are of images normalised otherwise, `words_view` makes theirs of it.

    Each image hides `mask_ratio` of its patches, in blocks of at least `smallest` (`block_masking`), drawn by its id.
    Evaluation hides patches as well: with one key, always the same.

    Metrics: `beit/accuracy`, of the hidden patches. Predictions: `error` [batch], each image's own.
    Raises ValueError for a `mask_ratio` outside (0, 1), and in tracing where the grids differ, the model knows fewer
    words than there are, or no patch would be hidden.
    """
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio is {mask_ratio!r}; expected a share of the patches, between 0 and 1")
    tokenizer, tokenizer_params = words

    def init(rng: PRNGKeyArray, batch: Batch) -> Params:
        return model.init(rng, {**batch, "image": view_images(view, rng, batch)})

    def passed(params, batch, context):
        """Cross-entropy and count of each image, and how many of its hidden patches were told right."""
        viewing, masking, dropout = jax.random.split(context.rng, 3)
        images = view_images(view if context.train else plain, viewing, batch)
        told = images if words_view is None else view_images(words_view, viewing, {**batch, "image": images})
        said = jax.lax.stop_gradient(tokenizer.apply(context.constants[WORDS], {"image": told}, train=False))
        blocks = plan_blocks(said.shape[1:3], mask_ratio, smallest=smallest)
        masked = block_masks(masking, batch["ids"], said.shape[1:3], blocks)
        rng = slice_rng(dropout, batch) if context.train else None
        logits = model.apply(params, {**batch, "image": images, "masked": masked}, rng=rng, train=context.train)
        if logits.shape[:2] != masked.shape or logits.shape[2] < said.shape[3]:
            raise ValueError(
                f"the model gave logits of shape {logits.shape}; expected {(*masked.shape, said.shape[3])}, as the "
                "words have it: give both the same patches and vocabulary"
            )
        labels = said.argmax(-1).reshape(masked.shape)
        hidden = masked & batch["valid"][:, None]
        total, count = losses.masked_token_cross_entropy(logits, labels, hidden)
        right = guessed(jax.lax.stop_gradient(logits), labels) & hidden
        return total, count, right.sum(axis=1)

    def loss(params, batch, context):
        total, count, right = passed(params, batch, context)
        return {"beit": Mean(total.sum(), count.sum())}, {"beit/accuracy": Mean(right.sum(), count.sum())}

    def predict(params, batch, context):
        total, count, _ = passed(params, batch, context)
        return {"error": total / jnp.maximum(count, 1)}

    return lift(loss, init=init, predict=predict, constants={WORDS: tokenizer_params})
