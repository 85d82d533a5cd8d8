"""Contrastive losses, and BYOL's, which has no negatives: an embedding is to be found again among others.

With the cosine similarity s and a temperature t, the loss of row i whose partner is row j:

    NT-Xent     - log ( exp(s_ij / t) / sum over candidates k other than i of exp(s_ik / t) )
    InfoNCE     - log ( exp(q k+ / t) / (exp(q k+ / t) + sum over negatives of exp(q k- / t)) )
    symmetric   2 t (InfoNCE(q_1, k_2) + InfoNCE(q_2, k_1)),    the other rows' keys being the negatives
    BYOL        || q / |q| - z / |z| ||^2  =  2 - 2 s

Chen et al. 2020, arXiv:2002.05709, equation 1; He et al. 2020, arXiv:1911.05722, equation 1; Chen, Xie and He 2021,
arXiv:2104.02057, algorithm 1; Grill et al. 2020, arXiv:2006.07733, equation 2. Rows are brought to length 1 here, a
row of zeros stays one, and all is computed in float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxptft.losses.cross_entropy import cross_entropy

Logits = tuple[Float[Array, "rows candidates"], Int[Array, " rows"]]


def nt_xent_logits(
    rows: Float[Array, "rows width"],
    *,
    temperature: float,
    valid: Bool[Array, " rows"] | None = None,
    candidates: Float[Array, "candidates width"] | None = None,
    candidates_valid: Bool[Array, " candidates"] | None = None,
    first: int | Int[Array, ""] = 0,
) -> Logits:
    """The logits whose cross-entropy is NT-Xent, -inf where a candidate is no candidate, and each row's partner.

    Arguments are those of `nt_xent`.
    """
    if candidates is None:
        candidates, candidates_valid = rows, valid
    rows, _ = _unit("rows", rows, valid)
    if len(rows) % 2:
        raise ValueError(f"rows must be the two views of each example below each other, got {len(rows)} rows")
    candidates, possible = _unit("candidates", candidates, candidates_valid)
    places = first + jnp.arange(len(rows))
    itself = places[:, None] == jnp.arange(len(candidates))
    logits = _similarity(rows, candidates) / _checked(temperature)
    return jnp.where(possible & ~itself, logits, -jnp.inf), first + (jnp.arange(len(rows)) ^ 1)


def nt_xent(
    rows: Float[Array, "rows width"],
    *,
    temperature: float,
    valid: Bool[Array, " rows"] | None = None,
    candidates: Float[Array, "candidates width"] | None = None,
    candidates_valid: Bool[Array, " candidates"] | None = None,
    first: int | Int[Array, ""] = 0,
) -> Float[Array, " rows"]:
    """NT-Xent of each row, in nats; rows 2k and 2k + 1 are the two views of example k, valid together.

    Rows that are not valid give exactly 0, send back no gradient, and are nobody's candidates. With `candidates`, of
    which `rows` are those from number `first` on, a part of a batch is scored against the whole: gathered from all
    devices, the loss of each device's own rows is the one they have in the whole batch.

    Raises:
        ValueError: shapes or dtypes that do not fit, an odd number of rows, or a temperature that is not positive.

    >>> rows = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    >>> round(float(nt_xent(rows, temperature=1.0)[0]), 4)  # log(e + 2) - 1
    0.5514
    """
    logits, partners = nt_xent_logits(
        rows,
        temperature=temperature,
        valid=valid,
        candidates=candidates,
        candidates_valid=candidates_valid,
        first=first,
    )
    return cross_entropy(logits, partners, valid=valid)


def info_nce_logits(
    queries: Float[Array, "rows width"],
    keys: Float[Array, "keys width"],
    *,
    temperature: float,
    negatives: Float[Array, "negatives width"] | None = None,
    valid: Bool[Array, " rows"] | None = None,
    keys_valid: Bool[Array, " keys"] | None = None,
    first: int | Int[Array, ""] = 0,
) -> Logits:
    """The logits whose cross-entropy is InfoNCE, -inf where a key is no candidate, and where each query's own key is.

    Arguments are those of `info_nce`.
    """
    if negatives is None and keys_valid is None and len(keys) == len(queries):
        keys_valid = valid
    queries, _ = _unit("queries", queries, valid)
    keys, possible = _unit("keys", keys, valid if negatives is not None else keys_valid)
    if negatives is None:
        logits = _similarity(queries, keys) / _checked(temperature)
        return jnp.where(possible, logits, -jnp.inf), first + jnp.arange(len(queries))
    if keys.shape != queries.shape:
        raise ValueError(f"beside negatives each query needs one key, got shapes {queries.shape} and {keys.shape}")
    negatives, _ = _unit("negatives", negatives, None)
    own = (queries * keys).sum(1, keepdims=True)
    logits = jnp.concatenate([own, _similarity(queries, negatives)], 1) / _checked(temperature)
    return logits, jnp.zeros(len(queries), jnp.int32)


def info_nce(
    queries: Float[Array, "rows width"],
    keys: Float[Array, "keys width"],
    *,
    temperature: float,
    negatives: Float[Array, "negatives width"] | None = None,
    valid: Bool[Array, " rows"] | None = None,
    keys_valid: Bool[Array, " keys"] | None = None,
    first: int | Int[Array, ""] = 0,
) -> Float[Array, " rows"]:
    """InfoNCE of each query, in nats.

    With `negatives` (a queue) query i is to find key i among them. Without, it is to find key `first + i` among all
    keys: those of the whole batch, of which the queries' own begin at number `first`. Queries that are not valid give
    exactly 0 and send back no gradient; keys that are not valid are nobody's candidates.

    Raises:
        ValueError: shapes or dtypes that do not fit, or a temperature that is not positive.

    >>> query, key, queue = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0], [0.0, -1.0]])
    >>> round(float(info_nce(query, key, negatives=queue, temperature=1.0)[0]), 4)  # log(e + 2) - 1
    0.5514
    """
    logits, own = info_nce_logits(
        queries,
        keys,
        temperature=temperature,
        negatives=negatives,
        valid=valid,
        keys_valid=keys_valid,
        first=first,
    )
    return cross_entropy(logits, own, valid=valid)


def symmetric_info_nce(
    queries: tuple[Float[Array, "rows width"], Float[Array, "rows width"]],
    keys: tuple[Float[Array, "keys width"], Float[Array, "keys width"]],
    *,
    temperature: float,
    valid: Bool[Array, " rows"] | None = None,
    keys_valid: Bool[Array, " keys"] | None = None,
    first: int | Int[Array, ""] = 0,
) -> Float[Array, " rows"]:
    """MoCo v3's loss of each example from queries and keys of its two views, crosswise, times 2 t.

    The factor makes the size of the gradient the same at any temperature. All else as in `info_nce`.
    """
    options = {"temperature": temperature, "valid": valid, "keys_valid": keys_valid, "first": first}
    both = info_nce(queries[0], keys[1], **options) + info_nce(queries[1], keys[0], **options)
    return 2.0 * temperature * both


def normalized_squared_error(
    predictions: Float[Array, "rows width"],
    targets: Float[Array, "rows width"],
    *,
    valid: Bool[Array, " rows"] | None = None,
) -> Float[Array, " rows"]:
    """The squared distance of two rows brought to length 1, from 0 to 4: BYOL's loss.

    Between two views it is also their alignment (Wang and Isola 2020, arXiv:2005.10242, section 4.1.1). Rows that are
    not valid give exactly 0 and send back no gradient.

    Raises:
        ValueError: shapes differ, or are not floating [rows, width].

    >>> normalized_squared_error(jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 2.0]])).tolist()
    [2.0]
    """
    if jnp.shape(predictions) != jnp.shape(targets):
        raise ValueError(
            f"predictions and targets must have one shape, got {jnp.shape(predictions)} and {jnp.shape(targets)}"
        )
    predictions, _ = _unit("predictions", predictions, valid)
    targets, _ = _unit("targets", targets, valid)
    return jnp.square(predictions - targets).sum(-1)


def uniformity(rows: Float[Array, "rows width"], valid: Bool[Array, " rows"] | None = None) -> Float[Array, ""]:
    """log of the mean of exp(-2 ||x - y||^2) over pairs of rows of length 1: 0 where all rows point one way.

    The lower, the more evenly they spread: about -4 at best in many dimensions. 0 where there is no pair. Wang and
    Isola 2020, arXiv:2005.10242, section 4.1.2.

    >>> round(float(uniformity(jnp.array([[1.0, 0.0], [0.0, 1.0]]))), 4)  # one pair, at a squared distance of 2
    -4.0
    """
    rows, counted = _unit("rows", rows, valid)
    pairs = counted[:, None] & counted & ~jnp.eye(len(rows), dtype=bool)
    potential = jnp.where(pairs, jnp.exp(4.0 * _similarity(rows, rows) - 4.0), 0.0).sum()
    count = pairs.sum()
    return jnp.log(jnp.where(count > 0, potential / jnp.maximum(count, 1), 1.0))


def unit_rows(
    rows: Float[Array, "rows width"], valid: Bool[Array, " rows"] | None = None
) -> Float[Array, "rows width"]:
    """Rows brought to length 1, in float32; zeros, and no gradient, where they are not valid.

    >>> unit_rows(jnp.array([[3.0, 4.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    return _unit("rows", rows, valid)[0]


def _unit(name: str, rows: Array, valid: Array | None) -> tuple[Float[Array, "rows width"], Bool[Array, " rows"]]:
    """Rows of length 1 in float32, zeros where they do not count, and which do."""
    rows = jnp.asarray(rows)
    if rows.ndim != 2 or not jnp.issubdtype(rows.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating of shape (rows, width), got {rows.dtype} of shape {rows.shape}")
    counted = jnp.ones(len(rows), bool) if valid is None else jnp.asarray(valid)
    if counted.dtype != jnp.bool_ or counted.shape != (len(rows),):
        raise ValueError(
            f"the mask of {name} must be bool of shape {(len(rows),)}, got {counted.dtype} of shape {counted.shape}"
        )
    # Selecting before the square root, not after, is what keeps NaN and inf out of the gradient.
    rows = jnp.where(counted[:, None], rows.astype(jnp.promote_types(rows.dtype, jnp.float32)), 0.0)
    return rows * jax.lax.rsqrt(jnp.maximum(jnp.square(rows).sum(1, keepdims=True), 1e-24)), counted


def _similarity(rows: Array, others: Array) -> Float[Array, "rows others"]:
    if rows.shape[1] != others.shape[1]:
        raise ValueError(f"rows of shape {rows.shape} cannot be compared with others of shape {others.shape}")
    return jnp.matmul(rows, others.T, precision="highest")


def _checked(temperature: float) -> float:
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    return temperature
