"""Replaced-token detection (ELECTRA): a small generator fills in hidden tokens, a discriminator says which it did.

    loss = MLM(generator) + weight * BCE(discriminator)

Clark et al. 2020, arXiv:2003.10555, section 3. The two share their embeddings; no gradient of the discriminator's loss
reaches the generator, whose samples are drawn and not differentiated.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxptft import losses
from jaxptft.objectives.contract import Batch, Mean, Model, Objective, Params, lift, slice_rng
from jaxptft.objectives.masked_lm import Hidden, check_capacity, check_group, hide, restored
from jaxptft.objectives.masking import Masking, Places, TokenTable, check_table, maskable, places, token_keys

SHARED = ("word", "position", "token_type", "norm")  # of the embeddings; a projection to the own width is not


def generator_params(params: Params) -> Params:
    """The generator as a model of its own: its parameters, with the embeddings it shares put in."""
    own = params["generator"]
    shared = {name: leaf for name, leaf in params["backbone"]["embeddings"].items() if name in SHARED}
    embeddings = {**shared, **own["backbone"].get("embeddings", {})}
    return {**own, "backbone": {**own["backbone"], "embeddings": embeddings}}


def _without_shared(generator: Params, discriminator: Params) -> Params:
    """The generator's fresh parameters less the shared ones, which must have the discriminator's shapes."""
    embeddings = dict(generator["backbone"]["embeddings"])
    shared = {name: embeddings.pop(name) for name in SHARED if name in embeddings}
    theirs = {name: leaf for name, leaf in discriminator["backbone"]["embeddings"].items() if name in SHARED}
    shapes, their_shapes = (jax.tree.map(lambda leaf: tuple(leaf.shape), tree) for tree in (shared, theirs))
    if shapes != their_shapes:
        raise ValueError(
            f"generator and discriminator share their embeddings, but have {shapes} and {their_shapes}; "
            "give both one vocabulary, one number of positions and one embedding width"
        )
    backbone = {name: leaf for name, leaf in generator["backbone"].items() if name != "embeddings"}
    return {**generator, "backbone": backbone | ({"embeddings": embeddings} if embeddings else {})}


def sample(
    rng: PRNGKeyArray, logits: Float[Array, "groups capacity vocab"], batch: Batch, hidden: Hidden
) -> tuple[Int[Array, "batch length"], Bool[Array, "batch length"]]:
    """The text with tokens drawn from softmax(logits) in its hidden places, and which of them differ from it.

    The Gumbel noise is keyed as the masks are, by example and position.
    """
    text, positions = jnp.asarray(batch["input_ids"]), hidden.batch["positions"]
    together = text.reshape(len(positions), -1)
    at = Places(*(jnp.take_along_axis(part.reshape(together.shape), positions, axis=1) for part in places(batch)))
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:]))(token_keys(rng, at))
    drawn = jnp.argmax(jax.lax.stop_gradient(logits) + noise.reshape(logits.shape), axis=-1).astype(text.dtype)
    groups = jnp.arange(len(together))[:, None]
    # Unused places all point at position 0; sent out of range, they are dropped.
    filled = together.at[groups, jnp.where(hidden.used, positions, together.shape[1])].set(drawn, mode="drop")
    filled = filled.reshape(text.shape)
    return filled, filled != text


def replaced_token(
    generator: Model,
    discriminator: Model,
    *,
    tokens: TokenTable,
    masking: Masking | None = None,
    weight: float = 50.0,
    capacity: int | None = None,
    group: int = 1,
) -> Objective:
    """The generator's masked-LM loss plus `weight` times the discriminator's loss over all ordinary tokens.

    `generator.apply` returns logits [groups, capacity, vocab] at `batch["positions"]`, `discriminator.apply` logits
    [batch, length], above 0 for "replaced". A token that was sampled but equals the original is not replaced. Padding
    and special tokens are not judged. `masking` by default hides 15 % of the tokens, all behind the mask token, as the
    paper has it; chosen tokens beyond `capacity` are neither predicted nor replaced.

    Parameters: the discriminator's `backbone` and `discriminator`, and under `generator` a `backbone` without the
    embeddings named in `SHARED`, which are those of the discriminator, and an `mlm` head.
    Terms: `generator`, and `discriminator` with `weight` in it. Metrics: `generator/accuracy`, `generator/overflow`,
    `discriminator/accuracy`, and as shares of all judged tokens `discriminator/replaced` and `discriminator/detected`
    (replaced and found out: their ratio is the recall).

    Raises ValueError on a table that does not fit, and in `init` on embeddings that cannot be shared.
    """
    masking = masking or Masking(mask_share=1.0, random_share=0.0)
    capacity = check_capacity(capacity)
    check_group(group)

    def init(rng, batch):
        generator_rng, discriminator_rng = jax.random.split(rng)
        judge = discriminator.init(discriminator_rng, batch)
        return {**judge, "generator": _without_shared(generator.init(generator_rng, batch), judge)}

    def loss(params, batch, context):
        corruption, sampling, *dropout = jax.random.split(context.rng, 4)
        hidden = hide(corruption, batch, context.constants, masking, capacity, group)
        generator_rng, judge_rng = (slice_rng(key, batch) if context.train else None for key in dropout)
        logits = generator.apply(generator_params(params), hidden.batch, rng=generator_rng, train=context.train)
        generator_term, metrics = restored("generator", logits, hidden)

        filled, replaced = sample(sampling, logits, batch, hidden)
        judgement = discriminator.apply(params, {**batch, "input_ids": filled}, rng=judge_rng, train=context.train)
        judged = maskable(batch, context.constants)
        total, count = losses.replaced_token_cross_entropy(judgement, replaced, judged)
        found = jax.lax.stop_gradient(judgement) > 0
        shares = {
            "accuracy": (found == replaced) & judged,
            "replaced": replaced & judged,
            "detected": found & replaced & judged,
        }
        metrics |= {f"discriminator/{name}": Mean(flags.sum(), judged.sum()) for name, flags in shares.items()}
        return {"generator": generator_term, "discriminator": Mean(weight * total.sum(), count.sum())}, metrics

    return lift(loss, init=init, constants=check_table(tokens))
