"""A teacher's answers to rows that never change: computed once, kept in the cache folder, and put into each batch."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxptft import data, models, objectives, train
from jaxptft.data.cache import cache_folder, fingerprint, publish, read_manifest
from jaxptft.recipes.training import EVALUATION_ROWS, TextBatches

FORMAT = "teacher logits 1"
_FILE = "logits.npy"


class TaughtBatches:
    """Batches of rows, each with the teacher's answer to it as `teacher_logits` [batch, outputs].

    Or [batch, length, outputs], one for each token, where its answers to a row are [max_length, outputs].
    """

    def __init__(self, batches: TextBatches, logits: Float[np.ndarray, "rows ..."], *, key: str):
        self._batches, self._logits, self._key = batches, logits, key
        self.tokenized, self.steps_per_epoch = batches.tokenized, batches.steps_per_epoch

    @property
    def content(self) -> str:
        """SHA-256 of the rows alone."""
        return self._batches.content

    @property
    def fingerprint(self) -> str:
        return fingerprint(["taught 1", self._batches.fingerprint, self._key])

    def batch_at(self, step: int) -> dict[str, Any]:
        batch = self._batches.batch_at(step)
        ids, tokens = batch["ids"], self._logits.ndim == 3
        places = (slice(batch["input_ids"].shape[1]),) if tokens else ()
        known = self._logits[(np.maximum(ids, 0), *places)]
        return {**batch, "teacher_logits": np.where(np.expand_dims(ids >= 0, (1, 2) if tokens else 1), known, 0)}


def taught(
    batches: TextBatches,
    teacher: models.Model,
    params: models.Params,
    *,
    of_teacher: str,
    mesh: Any,
    buckets: int,
    stop: train.StopFlag,
    say: Callable[[str], None],
) -> TaughtBatches:
    """The batches with the teacher's logits, from the cache where it has answered these tokens before.

    `of_teacher` says all that decides its answers beside the tokens. Raises FloatingPointError where one is not finite.
    """
    tokenized = batches.tokenized
    key = fingerprint([FORMAT, tokenized.fingerprint, of_teacher])
    folder = cache_folder() / "teacher_logits" / key
    expected = {"key": key, "rows": len(tokenized)}
    if read_manifest(folder, expected) is not None:
        return TaughtBatches(batches, _load(folder), key=key)
    logits = _answers(tokenized, teacher, params, mesh=mesh, buckets=buckets, stop=stop)
    say(f"teacher: {len(logits):,} rows answered")

    def fill(fresh: Path) -> dict[str, Any]:
        np.save(fresh / _FILE, logits)
        return expected

    try:
        publish(folder, fill)
        logits = _load(folder)
    except OSError as error:
        warnings.warn(f"the teacher's answers are not cached: {folder.parent}: {error.strerror or error}", stacklevel=2)
    return TaughtBatches(batches, logits, key=key)


def _load(folder: Path) -> Float[np.ndarray, "rows ..."]:
    # Viewed as a plain array: np.memmap's own indexing is several times slower.
    return np.load(folder / _FILE, mmap_mode="r", allow_pickle=False).view(np.ndarray)


def _answers(
    tokenized: data.Tokenized,
    teacher: models.Model,
    params: models.Params,
    *,
    mesh: Any,
    buckets: int,
    stop: train.StopFlag,
) -> Float[np.ndarray, "rows ..."]:
    widths = data.fitted_buckets(tokenized.lengths, buckets, most=tokenized.max_length)
    options: dict[str, Any] = {"batch_size": EVALUATION_ROWS, "buckets": widths, "multiple_of": mesh.size}
    rows = data.Batches(tokenized, shuffle=False, **options)

    def answer(params, batch, context):
        logits = teacher.apply(params, batch, rng=None, train=False)
        if logits.ndim == 3:  # one a token: of one length, whatever the batch's
            logits = jnp.pad(logits, ((0, 0), (0, tokenized.max_length - logits.shape[1]), (0, 0)))
        return {"logits": logits}

    evaluator = train.make_evaluator(objectives.lift(lambda *_: {}, init=teacher.init, predict=answer), labelled=False)
    with train.Progress("teacher", rows.steps_per_epoch) as progress:

        def stream():
            for step in range(rows.steps_per_epoch):
                batch = rows.batch_at(step)
                yield batch
                progress.update(step + 1, None, int(batch["valid"].sum()))

        placed = train.replicate(params, mesh)
        found = train.evaluate(
            evaluator, placed, {}, None, stream(), place=lambda batch: train.shard(batch, mesh), stop=stop
        )
    logits = np.asarray(found.predictions["logits"], np.float32)
    broken = np.flatnonzero(~np.isfinite(logits).reshape(len(logits), -1).all(-1))
    if len(broken):
        raise FloatingPointError(f"example {broken[0]}: the teacher gives NaN or infinity; its weights are broken")
    return logits
