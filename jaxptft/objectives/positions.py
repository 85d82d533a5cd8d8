"""The chosen tokens of every row, gathered into a fixed number of places.

Only these reach the vocabulary projection, which for a small model is most of the work. Rows differ in how many tokens
they had chosen, so the number of places leaves room for the many; what still does not fit is counted, not predicted.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxptft.objectives.masking import Masking

DEVIATIONS = 4.0  # above the mean: some 1e-4 of the rows overflow, and lose a token or two of theirs
MORE_DEVIATIONS = 5.0  # for several rows together, which cost little and lose more
TOKENS_A_WORD = 2.0  # mean square over mean, of words that are chosen whole; 1.8 is usual for English WordPiece
MULTIPLE = 8
TOKENS_TOGETHER = 4096  # of rows that share their places, at most


def gather_capacity(length: int, masking: Masking, *, rows: int = 1) -> int:
    """Places that `rows` rows of `length` tokens need together, for overflow to be negligible: the mean plus four
    standard deviations, or five for several rows.

    A multiple of 8 where the tokens allow. The variance of spans is that of a renewal process with reward,
    ((1 - rate)^2 Var(span) + rate^2 Var(gap)) / E(span + gap) a word.
    """
    rate = masking.rate
    variance = rate * (1.0 - rate)
    if masking.unit == "span" and 0.0 < rate < 1.0:
        lengths = masking.span_lengths()
        words = np.arange(1, len(lengths) + 1)
        mean = float(lengths @ words)
        start = masking.span_start()
        gap, gap_variance = (1.0 - start) / start, (1.0 - start) / start**2
        span_variance = float(lengths @ words**2) - mean**2
        variance = ((1.0 - rate) ** 2 * span_variance + rate**2 * gap_variance) / (mean + gap)
    if masking.unit != "token":
        variance *= TOKENS_A_WORD
    tokens, deviations = rows * length, DEVIATIONS if rows == 1 else MORE_DEVIATIONS
    wanted = math.ceil(rate * tokens + deviations * math.sqrt(variance * tokens))
    return min(tokens, max(1, -(-wanted // MULTIPLE)) * MULTIPLE)


def shared_rows(most: int, rows: int, length: int) -> int:
    """How many of `rows` rows of `length` tokens share their places: a divisor of `rows` and of `most`.

    Finding the places compares each of them with each token, so that a few thousand tokens together are enough.

    >>> shared_rows(16, 64, 128), shared_rows(64, 64, 512), shared_rows(6, 9, 128)
    (16, 8, 3)
    """
    common = math.gcd(most, rows)
    return max(n for n in range(1, common + 1) if common % n == 0 and (n == 1 or n * length <= TOKENS_TOGETHER))


def gather_positions(
    chosen: Bool[Array, "batch length"], capacity: int
) -> tuple[Int[Array, "batch capacity"], Bool[Array, "batch capacity"]]:
    """The positions of the first `capacity` chosen tokens of every row, in order, and which places hold one.

    Unused places point at position 0.

    >>> positions, used = gather_positions(jnp.array([[False, True, False, True]]), 3)
    >>> positions.tolist(), used.tolist()
    ([[1, 3, 0]], [[True, True, False]])
    """
    so_far = jnp.cumsum(chosen, axis=1, dtype=jnp.int32)
    place = jnp.arange(capacity, dtype=jnp.int32)
    # Comparing and summing fuses into one pass on every device, where a sort or a scatter does not.
    positions = jnp.sum(so_far[:, None, :] <= place[:, None], axis=-1, dtype=jnp.int32)
    used = place < so_far[:, -1:]
    return jnp.where(used, positions, 0), used
