"""A fine-tuning that looks at unlabelled rows of another domain, on which the model shall work as well."""

from collections.abc import Callable
from typing import Any

import jax

from jaxptft import data, models, objectives, train
from jaxptft.data.cache import fingerprint
from jaxptft.recipes.additions import Addition, Build
from jaxptft.recipes.adoption import fresh_pieces
from jaxptft.recipes.finetune import Adaptation, Config
from jaxptft.recipes.importance import Importance, Weighted, features_of_rows, importance_weights
from jaxptft.recipes.measured import Measured
from jaxptft.recipes.tasks.splits import batch_options
from jaxptft.recipes.training import EVALUATION_ROWS, TextBatches
from jaxptft.recipes.training_settings import total_steps

TARGET = "target"  # the name of its rows in a batch
_DISCRIMINATOR = "domain"  # the key of its parameters


def read_target(
    config: Config, *, tokenizer: Any, architecture: Any, devices: int, say: Callable[[str], None]
) -> data.Batches:
    """Training batches of the target's rows; their labels, if there are any, are not read.

    Raises ValueError for a task that is not done with one vector a text, and as `data.read_table`.
    """
    chosen = config.adaptation
    assert chosen.target is not None
    if config.task not in ("classification", "multi_label", "regression"):
        raise ValueError(f"adaptation is for tasks of whole texts, and task is {config.task}; leave it out")
    table = data.read_table(
        chosen.target,
        columns=data.Columns(config.columns.text, config.columns.pair),
        labelled=False,
        split=data.pick_split(chosen.target, "train"),
        on_bad_row=config.on_bad_row,
    )
    tokens = data.tokenize(table, tokenizer, config.max_length)
    data.check_tokens(tokens, architecture.vocab_size)
    options = batch_options(config, "train", devices=devices)
    options["batch_size"] = chosen.batch_size or config.batch_size
    buckets = data.fitted_buckets(tokens.lengths, config.length_buckets, most=config.max_length)
    say(f"target: {len(table)} rows from {table.source}, without labels")
    return data.Batches(tokens, buckets=buckets, **options)


def additions_of(config: Config, target: TextBatches, *, steps_per_epoch: int) -> list[Addition]:
    """What draws the domains' features together, each weighted as the config says; the first brings the target's rows.

    [] where training rows are weighted by importance, and no more.
    """
    chosen = config.adaptation
    steps = total_steps(config, steps_per_epoch)

    def matching(kind: Any) -> Callable[[Build], objectives.Objective]:
        return lambda build: kind(build.pooled(chosen.pooling))

    def adversarial(build: Build) -> objectives.Objective:
        return objectives.dann(build.pooled(chosen.pooling), models.mlp(_DISCRIMINATOR), steps=steps)

    kinds = {"mmd": (chosen.mmd, matching(objectives.mmd)), "coral": (chosen.coral, matching(objectives.coral))}
    kinds["dann"] = (chosen.dann, adversarial)
    found = [
        Addition(name, weight, make, reads=("task", TARGET), head=_DISCRIMINATOR if name == "dann" else None)
        for name, (weight, make) in kinds.items()
        if weight
    ]
    return [found[0]._replace(batches=target, source=TARGET), *found[1:]] if found else []


def weigh(
    chosen: Adaptation,
    batches: TextBatches,
    target: TextBatches,
    *,
    features: models.Model,
    params: objectives.Params,
    mesh: Any,
    seed: int,
    say: Callable[[str], None],
    measured: Measured,
) -> Weighted:
    """Training batches whose rows count as much as they look like the target's, to the model as it was imported.

    Where a run is resumed, their weights are those that it `measured`.

    Raises ValueError where the features need parameters that were not imported.
    """
    if new := fresh_pieces(jax.eval_shape(features.init, jax.random.key(0), target.batch_at(0)), params):
        raise ValueError(f"importance reads {', '.join(new)}, which the model lacks; choose adaptation.pooling mean")
    place = lambda batch: train.shard(batch, mesh)  # noqa: E731
    placed = train.replicate(params, mesh)

    def read(tokens: data.Tokenized) -> Any:
        rows = data.Batches(tokens, batch_size=EVALUATION_ROWS, shuffle=False, multiple_of=mesh.size)
        every = (rows.batch_at(step) for step in range(rows.steps_per_epoch))
        return jax.device_get(features_of_rows(features, placed, every, place=place))

    def measure() -> Any:
        rows, others = read(batches.tokenized), read(target.tokenized)
        found: Importance = importance_weights(rows, others, clip=chosen.clip, seed=seed)
        say(
            f"importance: the domains are told apart with AUC {found.separation:.3f}; {len(found.weights)} rows weigh "
            f"as {found.effective_rows:.0f}"
        )
        return found.weights

    made_of = fingerprint([batches.content, target.content, train.fingerprint(params)])
    return Weighted(batches, measured.take("row_weights", made_of, measure, like=0.0))
