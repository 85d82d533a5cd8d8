"""Rows of text or images as vectors: what `embed` writes and `probe` reads."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxptft import convert, data, models, optim, train
from jaxptft.recipes.image_objectives import seen_through
from jaxptft.recipes.importance import features_of_rows
from jaxptft.recipes.model_source import open_model
from jaxptft.recipes.preprocessing import Preprocessing, read_preprocessing
from jaxptft.recipes.tasks.labelled_rows import columns_of
from jaxptft.recipes.tasks.settings import Columns

ROWS = 64  # in a batch


class Rows(NamedTuple):
    """Rows of a source, ready for a backbone; `labels` are classes, or None."""

    batches: Any
    labels: np.ndarray | None
    names: tuple[str, ...]
    places: np.ndarray  # where each row stands in its source
    source: str


class Backbone:
    """A model's backbone that makes one vector of every row.

    `fresh` is a seed: the same architecture with parameters that have learnt nothing, for comparison. Raises ValueError
    where the checkpoint lacks a parameter of its backbone, or the family has no such `pooling`.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        pooling: str | None = None,
        family: str | None = None,
        allow_bin: bool = False,
        allow_unused: tuple[str, ...] = (),
        dtype: str = "float32",
    ):
        self.source = str(model)
        options: dict[str, Any] = {"family": family, "allow_bin": allow_bin, "allow_unused": allow_unused}
        # A pooler that an encoder was saved without is missed only where it is read.
        self.folder, checkpoint = open_model(model, heads=(), allow_missing=("pooler.*",), **options)
        self.checkpoint: convert.Checkpoint = checkpoint
        self.architecture = checkpoint.config
        self.reads_images = models.reads_images(self.architecture)
        self.network = models.pooled(self.architecture, pooling or models.usual_pooling(self.architecture), dtype=dtype)
        self._mesh = train.make_mesh()
        self.preprocessing: Preprocessing | None = None
        self.tokenizer: Any = None
        if self.reads_images:
            self.preprocessing = read_preprocessing(self.folder, self.architecture)
        else:
            self.tokenizer = data.load_tokenizer(self.folder)
            data.check_vocabulary(self.tokenizer, self.architecture.vocab_size)
        wanted = jax.eval_shape(self.network.init, jax.random.key(0), self._example())
        known = set(optim.paths(checkpoint.params))
        if lacking := [path for path in optim.paths(wanted) if path not in known]:
            raise ValueError(f"{self.source} lacks {lacking[0]}; choose another --pooling")
        self._params = train.replicate(checkpoint.params, self._mesh)

    def fresh(self, seed: int) -> "Backbone":
        """The same architecture with parameters that have learnt nothing."""
        other = object.__new__(Backbone)
        other.__dict__.update(self.__dict__)
        other.source = f"{self.source}, fresh parameters, seed {seed}"
        params = jax.jit(self.network.init)(jax.random.key(seed), self._example())
        other._params = train.replicate(params, self._mesh)
        return other

    def _example(self) -> dict[str, np.ndarray]:
        if self.preprocessing is not None:
            return {"image": np.zeros((1, *self.preprocessing.size, self.preprocessing.channels), np.float32)}
        return {name: np.zeros((1, 3), np.int32) for name in ("input_ids", "attention_mask", "token_type_ids")}

    def read(
        self,
        source: str,
        *,
        split: str | None = None,
        labelled: bool | None = None,
        names: tuple[str, ...] | None = None,
        columns: Columns = Columns(),  # noqa: B008
        on_bad_row: Any = "error",
        max_length: int | None = None,
        batch_size: int = ROWS,
        most: int | None = None,
        say: Callable[[str], None] = print,
    ) -> Rows:
        """Rows of a file, folder or name, `most` of them at most, evenly from all.

        `labelled` None takes labels where there are any. Raises ValueError for rows that do not fit, and as
        `data.read_table` and `data.read_images` do.
        """
        options: dict[str, Any] = {"batch_size": batch_size, "shuffle": False, "multiple_of": self._mesh.size}
        asked: dict[str, Any] = {"names": names, "on_bad_row": on_bad_row}
        if self.preprocessing is not None:
            if max_length is not None:
                raise ValueError(f"max_length is {max_length}, and {self.source} reads images; leave it out")
            found: Any = read_asked_images(
                source, self.preprocessing, split=split, labelled=labelled, columns=columns, **asked
            )
            found = _evenly(found, most)
            batches: Any = data.ImageBatches(found, **options)
        else:
            found = _evenly(self._read_texts(source, split, labelled, columns, asked), most)
            longest = min(self.architecture.max_length, self.tokenizer.model_max_length, max_length or 1 << 30)
            tokenized = data.tokenize(found, self.tokenizer, longest)
            if tokenized.truncated:
                say(f"{tokenized.truncated} of {len(found)} texts are longer than {longest} tokens and were cut")
            data.check_tokens(tokenized, self.architecture.vocab_size)
            batches = data.Batches(tokenized, **options)
        skipped = f", {found.report.skipped} bad ones skipped" if found.report.skipped else ""
        say(f"{len(found)} rows from {found.source}{skipped}")
        return Rows(batches, found.labels, found.names, found.rows, found.source)

    def splits(self, source: str) -> tuple[str, ...]:
        """The splits of a source that has several."""
        return data.image_split_names(source) if self.reads_images else data.split_names(source)

    def _read_texts(
        self, source: str, split: str | None, labelled: bool | None, columns: Columns, asked: dict[str, Any]
    ) -> data.Table:
        roles, chosen = columns_of(columns), data.pick_split(source, split)
        if labelled is None:
            try:
                return data.read_table(source, columns=roles, split=chosen, **asked)
            except ValueError:  # no label column, or one that is no class
                labelled = False
        return data.read_table(source, columns=roles, split=chosen, labelled=labelled, **asked)

    def vectors(self, rows: Rows) -> Float[np.ndarray, "rows width"]:
        """One vector a row, float32, in the order of the rows; FloatingPointError, naming the row, where not finite."""
        batches, view = rows.batches, None if self.preprocessing is None else self.preprocessing.view
        network = self.network if view is None else seen_through(self.network, view)
        with train.Progress("rows", batches.steps_per_epoch) as progress:

            def stream():
                for step in range(batches.steps_per_epoch):
                    batch = batches.batch_at(step)
                    yield batch
                    progress.update(step + 1, None, int(batch["valid"].sum()))

            place = partial(train.shard, mesh=self._mesh)
            found = features_of_rows(network, self._params, stream(), place=place)
        found = np.asarray(found, np.float32)
        if len(broken := np.flatnonzero(~np.isfinite(found).all(-1))):
            raise FloatingPointError(
                f"{rows.source}, row {rows.places[broken[0]]}: the model gives NaN or infinity; its weights are broken"
            )
        return found


def _evenly(found: Any, most: int | None) -> Any:
    """At most so many rows of a table, from all of it."""
    if most is None or len(found) <= most:
        return found
    return found.select(np.linspace(0, len(found) - 1, most).round().astype(np.int64))


def read_asked_images(
    source: str,
    preprocessing: Preprocessing,
    *,
    split: str | None,
    labelled: bool | None,
    names: tuple[str, ...] | None,
    columns: Columns,
    on_bad_row: Any,
    key: str | None = None,
) -> data.Images:
    """The images of a source as a model reads them; of several splits the one that is asked for, or for validation."""
    return data.read_images(
        source,
        size=preprocessing.stored_size,
        channels=preprocessing.channels,
        columns=data.ImageColumns(columns.image, columns.label, key),
        names=names,
        labelled=labelled,
        split=_pick(data.image_split_names(source), split),
        on_bad_row=on_bad_row,
        fit=preprocessing.fit,
        resample=preprocessing.resample,
    )


def _pick(splits: tuple[str, ...], wanted: str | None) -> str | None:
    """The split of a source that has several: the one wanted, else its validation or test split."""
    if not splits:
        if wanted is not None:
            raise ValueError(f"there is no split {wanted!r}; the images are one split: leave it out")
        return None
    return wanted or data.choose_evaluation_split(splits) or ("test" if "test" in splits else None)
