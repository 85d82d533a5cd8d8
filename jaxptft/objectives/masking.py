"""Which tokens a model has to restore, and what stands in their place: BERT's corruption, on device.

A share `rate` of the ordinary tokens is chosen (single tokens, whole words, or spans of words); of the chosen ones
`mask_share` become the mask token, `random_share` a random ordinary token, and the rest stay as they are (Devlin et
al. 2019, arXiv:1810.04805, section 3.1). Every draw is keyed by the example's id and the position within the example,
never by the place in a batch: packing, width, padding rows, devices and micro-steps change no mask.

Spans (Joshi et al. 2020, arXiv:1907.10529, section 3.1) cover whole words, have geometric lengths, and are masked,
replaced or kept as one. The paper fills an exact budget of 15 % a sequence; that would tie each token to the whole
row, so here spans are a stationary renewal process over words: after every word outside a span, or that ends one, a
span starts with probability

    q = rate / (rate + mean_length * (1 - rate)),

and the first word of a run of text lies in a span with probability `rate`, whose rest has the equilibrium
distribution P(rest = r) = P(length >= r) / mean_length. Each word is then chosen with probability `rate` exactly, and
the rate of one sequence varies around it.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped, UInt32

from jaxptft.objectives.contract import Batch


@dataclass(frozen=True, kw_only=True)
class Masking:
    """What is chosen, how often, and what becomes of it.

    Raises ValueError, naming the field, on a share outside [0, 1], shares that add up to more than 1, or an unknown
    unit.
    """

    rate: float = 0.15  # of the ordinary tokens, in expectation
    mask_share: float = 0.8  # of the chosen ones
    random_share: float = 0.1  # of the chosen ones; the rest are kept
    unit: Literal["token", "word", "span"] = "token"
    span_p: float = 0.2  # of the geometric distribution of a span's length
    span_longest: int = 10  # words; the distribution is cut there and rescaled

    def __post_init__(self):
        for name in ("rate", "mask_share", "random_share", "span_p"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a share between 0 and 1")
        if self.mask_share + self.random_share > 1.0:
            raise ValueError(
                f"mask_share {self.mask_share} and random_share {self.random_share} add up to more than 1; lower one"
            )
        if self.unit not in ("token", "word", "span"):
            raise ValueError(f"unit is {self.unit!r}; expected 'token', 'word' or 'span'")
        if self.span_p == 0.0 or self.span_longest < 1:
            raise ValueError(
                f"span_p is {self.span_p} and span_longest {self.span_longest}; expected above 0, and at least 1"
            )

    def span_lengths(self) -> Float[np.ndarray, " lengths"]:
        """The probability of a span of 1, 2, ... words; with the defaults their mean is 3.8, as in the paper."""
        weights = (1.0 - self.span_p) ** np.arange(self.span_longest)
        return weights / weights.sum()

    def span_start(self) -> float:
        """The probability q that a word outside a span begins one."""
        mean = float(self.span_lengths() @ np.arange(1, self.span_longest + 1))
        return self.rate / (self.rate + mean * (1.0 - self.rate))


Flags = Bool[Array, " vocab"] | Bool[np.ndarray, " vocab"]


class TokenTable(NamedTuple):
    """What masking has to know of a vocabulary."""

    mask_id: Array | np.ndarray | int | None
    special: Flags  # never chosen, never drawn as a replacement; the mask token is one
    starts_word: Flags  # the others continue the word before them


def check_table(tokens: TokenTable) -> TokenTable:
    """The table as host arrays. Raises ValueError, in one line, on a table that masking could not work with."""
    if tokens.mask_id is None:
        raise ValueError("the token table has no mask_id; masking needs a tokenizer with a mask token")
    mask_id, special, starts_word = (np.asarray(part) for part in tokens)
    if (
        special.ndim != 1
        or special.shape != starts_word.shape
        or {special.dtype, starts_word.dtype} != {np.dtype(bool)}
    ):
        raise ValueError(
            "special and starts_word must be bool of one shape (vocab,), "
            f"got {special.dtype} of {special.shape} and {starts_word.dtype} of {starts_word.shape}"
        )
    if not 0 <= mask_id < len(special) or not special[mask_id]:
        raise ValueError(f"mask_id is {mask_id}; expected a token below {len(special)} that is marked special")
    if special.all():
        raise ValueError("every token is marked special; expected at least one that can be masked")
    return TokenTable(mask_id.astype(np.int32), special, starts_word)


class Places(NamedTuple):
    """Whose token each one is: the example's id, the position within it, and whether it is text at all."""

    example: Int[Array, "batch length"]
    position: Int[Array, "batch length"]
    real: Bool[Array, "batch length"]  # neither padding nor of a row that only fills the batch


def places(batch: Batch) -> Places:
    """Where every token of a batch, packed or not, belongs."""
    ids, valid = jnp.asarray(batch["ids"]), jnp.asarray(batch["valid"])
    shape = batch["input_ids"].shape
    if "segment_ids" not in batch:
        real = valid[:, None] & (batch["attention_mask"] > 0)
        return Places(
            jnp.broadcast_to(ids[:, None], shape), jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape), real
        )
    segment = jnp.asarray(batch["segment_ids"])
    row = jnp.maximum(segment - 1, 0)
    example, kept = jnp.take_along_axis(ids, row, axis=1), jnp.take_along_axis(valid, row, axis=1)
    return Places(example, jnp.asarray(batch["position_ids"]), kept & (segment > 0))


def token_keys(rng: PRNGKeyArray, place: Places) -> Shaped[PRNGKeyArray, " tokens"]:
    """A key for every token: `rng` folded with the example's id, then with the position within it.

    In one flat axis, of which XLA compiles in half the time what it does of two.
    """
    typed = jnp.issubdtype(rng.dtype, jax.dtypes.prng_key)
    if typed and rng.dtype != jax.random.key(0, impl="threefry2x32").dtype:
        # Under vmap other kinds of keys draw by the place in the batch.
        rng = jax.random.wrap_key_data(jax.random.bits(rng, (2,)), impl="threefry2x32")
    fold = jax.vmap(lambda example, position: jax.random.fold_in(jax.random.fold_in(rng, example), position))
    return fold(place.example.astype(jnp.uint32).reshape(-1), place.position.astype(jnp.uint32).reshape(-1))


def maskable(batch: Batch, tokens: TokenTable) -> Bool[Array, "batch length"]:
    """The ordinary tokens: neither special nor padding."""
    return places(batch).real & ~jnp.asarray(tokens.special)[batch["input_ids"]]


def corrupt(
    rng: PRNGKeyArray, batch: Batch, tokens: TokenTable, masking: Masking
) -> tuple[Int[Array, "batch length"], Bool[Array, "batch length"]]:
    """The corrupted `input_ids`, and which tokens were chosen to be predicted, the kept ones among them.

    The batch holds `input_ids`, `ids`, `valid` and `attention_mask`, or `segment_ids` and `position_ids` where it is
    packed. Special tokens and padding are never chosen, and special tokens never drawn as a replacement. Words are
    chosen as a whole, and their tokens masked, replaced or kept one by one; of a span, all alike.
    """
    input_ids = jnp.asarray(batch["input_ids"])
    special, starts_word = jnp.asarray(tokens.special), jnp.asarray(tokens.starts_word)
    place = places(batch)
    ordinary = maskable(batch, tokens)
    draw = jax.vmap(lambda key: jax.random.bits(key, (4,), jnp.uint32))
    bits = draw(token_keys(rng, place)).reshape(*input_ids.shape, 4)
    pick, action, length = (_uniform(bits[..., index]) for index in range(3))

    before = jnp.pad(ordinary[:, :-1], ((0, 0), (1, 0)))
    first = ordinary & (~before | (place.position == 0))  # of a run of text between special tokens
    begins = first | (ordinary & starts_word[input_ids])
    if masking.unit == "token":
        chosen = ordinary & (pick < masking.rate)
    elif masking.unit == "word":
        start = jax.lax.cummax(jnp.where(begins, jnp.arange(input_ids.shape[1]), 0), axis=1)
        chosen = ordinary & (jnp.take_along_axis(pick, start, axis=1) < masking.rate)
    else:
        inside, action = _spans(begins, first, pick, length, action, masking)
        chosen = ordinary & inside

    masked = chosen & (action < masking.mask_share)
    corrupted = jnp.where(masked, jnp.asarray(tokens.mask_id, input_ids.dtype), input_ids)
    if masking.random_share > 0.0:
        replaced = chosen & ~masked & (action < masking.mask_share + masking.random_share)
        corrupted = jnp.where(replaced, _ordinary_token(bits[..., 3], special).astype(input_ids.dtype), corrupted)
    return corrupted, chosen


def _uniform(bits: UInt32[Array, "*shape"]) -> Float[Array, "*shape"]:
    return (bits >> 8).astype(jnp.float32) * 2.0**-24


def _ordinary_token(bits: UInt32[Array, "*shape"], special: Bool[Array, " vocab"]) -> Int[Array, "*shape"]:
    """A token that is not special, each with equal probability (but for less than vocab / 2^32)."""
    up_to = jnp.cumsum(~special, dtype=jnp.int32)
    rank = (bits % up_to[-1].astype(jnp.uint32)).astype(jnp.int32)
    return jnp.searchsorted(up_to, rank, side="right")


def _spans(
    begins: Bool[Array, "batch length"],
    first: Bool[Array, "batch length"],
    pick: Float[Array, "batch length"],
    length: Float[Array, "batch length"],
    action: Float[Array, "batch length"],
    masking: Masking,
) -> tuple[Bool[Array, "batch length"], Float[Array, "batch length"]]:
    """Which tokens lie in a span, and the action drawn for it at its start. Draws count at the words' first tokens."""
    lengths = masking.span_lengths()
    at_least = np.cumsum(lengths[::-1])[::-1]  # P(length >= r)

    def drawn_from(probabilities):
        below = jnp.asarray(np.cumsum(probabilities)[:-1], jnp.float32)
        return 1 + jnp.sum(length[..., None] >= below, axis=-1, dtype=jnp.int32)

    opens = pick < jnp.where(first, masking.rate, masking.span_start())
    words = jnp.where(opens, jnp.where(first, drawn_from(at_least / at_least.sum()), drawn_from(lengths)), 0)

    def step(carry, token):
        left, current = carry  # words of the span that are left, this one included; 0 outside
        begins, first, words, action = token
        over = begins & (first | (left <= 1))
        left = jnp.where(over, words, left - (begins & ~over))
        current = jnp.where(over, action, current)
        return (left, current), (left > 0, current)

    # Zeros made from the rows themselves are divided over the devices as they are, which shard_map insists on.
    outside = (0 * words[:, 0], 0 * action[:, 0])
    _, (inside, action) = jax.lax.scan(
        step, outside, jax.tree.map(jnp.transpose, (begins, first, words, action)), unroll=4
    )
    return inside.T, action.T
