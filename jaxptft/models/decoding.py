"""Writing text token by token with a key-value cache, whatever the causal model: the contract and the loop.

Each step reads one token and the cache instead of the whole text again; its logits equal those of the uncached
forward. The loop is one program (`lax.while_loop`) that ends as soon as every row has stopped.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxptft.models.model import Params
from jaxptft.models.sampling import Sampling, sample


class Cache(NamedTuple):
    """The keys and values of all tokens read so far, in slots, of a fixed size: one program serves every step.

    filled is the number of slots written, equal in all rows; visible tells which of them hold tokens and not padding;
    seen is how many tokens each row has, and so the position of its next.
    """

    keys: tuple[Float[Array, "batch slots heads head_width"], ...]
    values: tuple[Float[Array, "batch slots heads head_width"], ...]
    visible: Bool[Array, "batch slots"]
    seen: Int[Array, " batch"]
    filled: Int[Array, ""]


class Decoder(NamedTuple):
    """A causal model that reads with a cache, as two pure functions.

    empty: (batch, slots) -> cache, of a size that must hold the prompt, padding included, and all that follows.
    read: (params, ids [batch, length], cache, mask=None) -> (logits of each row's next token [batch, vocab], cache).
    A prompt is read at once and what follows it a token at a time. `mask` [batch, length] is False at padding, which
    may stand on either side; each row needs at least one real token.
    """

    empty: Callable[..., Cache]
    read: Callable[..., tuple[Array, Cache]]


class Generated(NamedTuple):
    """New tokens, without the prompt. lengths counts those of each row, the one that ended it included."""

    tokens: Int[Array, "batch new"]
    lengths: Int[Array, " batch"]


def generate(
    decoder: Decoder,
    params: Params,
    ids: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"] | None = None,
    *,
    new: int,
    rng: Key[Array, ""],
    sampling: Sampling = Sampling(),  # noqa: B008 (immutable)
    stop: tuple[int, ...] = (),
    pad_id: int = 0,
) -> Generated:
    """Up to `new` tokens after each row's prompt; a row ends with the first of the `stop` ids, and `pad_id` follows.

    Prompts of unequal lengths are padded on either side, where `mask` is False. What a row draws depends on `rng`, its
    number and the step, not on the other rows. To be jitted with everything but params, ids, mask and rng static.

    Raises ValueError where `new` is below 1, or prompt and new tokens are more than the model has positions.
    """
    if new < 1:
        raise ValueError(f"new must be at least 1 token, got {new}")
    batch, length = ids.shape
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(batch))
    ends = jnp.array(stop, jnp.int32)

    def draw(step: Array | int, logits: Array, done: Array) -> tuple[Array, Array]:
        drawn = sample(jax.vmap(jax.random.fold_in, (0, None))(keys, step), logits, sampling)
        drawn = jnp.where(done, pad_id, drawn).astype(jnp.int32)
        return drawn, done | jnp.isin(drawn, ends)

    # The last token is not read again, so it needs no slot.
    logits, cache = decoder.read(params, ids, decoder.empty(batch, length + new - 1), mask)
    token, done = draw(0, logits, jnp.zeros(batch, bool))
    tokens = jnp.full((batch, new), pad_id, jnp.int32).at[:, 0].set(token)

    def unfinished(state: tuple) -> Array:
        step, *_, done = state
        return (step < new) & ~done.all()

    def advance(state: tuple) -> tuple:
        step, cache, token, tokens, lengths, done = state
        logits, cache = decoder.read(params, token[:, None], cache)
        lengths = lengths + ~done
        token, done = draw(step, logits, done)
        return step + 1, cache, token, tokens.at[:, step].set(token), lengths, done

    state = (jnp.int32(1), cache, token, tokens, jnp.ones(batch, jnp.int32), done)
    _, _, _, tokens, lengths, _ = jax.lax.while_loop(unfinished, advance, state)
    return Generated(tokens, lengths)
