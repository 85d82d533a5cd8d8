"""Several objectives and penalties as one.

`combine({"task": (1.0, classification), "mlm": (0.1, masked_lm)}, penalties=[...])` is again an `Objective`:
weights scale each `total`, every source reads `batch[name]` or what `reads` names instead, states and constants are
namespaced, shared parameters merge by path, and the name of what is read is folded into the key: sources on different
rows never share their noise, sources on the same rows do, and so run their model forward once.
"""

import zlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from jaxptft.objectives.contract import Context, Mean, Objective, Params
from jaxptft.objectives.penalty import Penalty

ALONE = "task"  # the name of an objective that is combined with penalties only, and so reads the whole batch


def combine(
    objectives: Objective | Mapping[str, tuple[float, Objective]],
    *,
    penalties: Sequence[Penalty] = (),
    reads: Mapping[str, str | tuple[str, ...]] | None = None,
) -> Objective:
    """One objective out of several.

    Given a single `Objective`, it reads the batch itself; given a mapping, each reads `batch[name]`. With `reads`
    {"distill": "task", "mmd": ("task", "target")} the first reads `batch["task"]`, the second the dict of both parts,
    under a key folded with its own name. A batch that lacks what a source reads skips that source (evaluation on the
    task alone); one that has nothing for any is a KeyError. Terms and metrics of a mapping are prefixed `name/`.

    Raises ValueError on no objectives, a repeated penalty name, a name that holds a slash, or `reads` that names no
    source or gives one nothing to read.
    """
    alone = isinstance(objectives, Objective)
    sources = {ALONE: (1.0, objectives)} if isinstance(objectives, Objective) else dict(objectives)
    if not sources:
        raise ValueError("combine got no objectives; give at least one")
    names = [penalty.name for penalty in penalties]
    for name in [*sources, *names]:
        if "/" in name:
            raise ValueError(f"the name {name!r} holds a slash; slashes separate the parts of a metric's name")
    asked = _check_reads(reads or {}, sources, alone)
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"penalties share the names {sorted(repeated)}; give each its own")

    def read_by(name: str) -> str | tuple[str, ...]:
        return asked.get(name, name)

    def lacking(batch, name):
        read = read_by(name)
        return [] if alone else [key for key in ((read,) if isinstance(read, str) else read) if key not in batch]

    def part(batch, name):
        read = read_by(name)
        if alone:
            return batch
        return batch[read] if isinstance(read, str) else {key: batch[key] for key in read}

    def present(batch):
        found = [name for name in sources if not lacking(batch, name)]
        if not found:
            raise KeyError(f"the batch has {sorted(batch)}; expected at least one of the sources {sorted(sources)}")
        return found

    def scope(context: Context, name: str) -> Context:
        read = read_by(name)
        folded = read if isinstance(read, str) else name
        rng = context.rng if alone else jax.random.fold_in(context.rng, zlib.crc32(folded.encode()))
        return context._replace(
            state=context.state[name],
            constants=(context.constants or {}).get("objectives", {}).get(name),
            rng=rng,
        )

    def prefixed(name, entries):
        return entries if alone else {f"{name}/{key}": value for key, value in entries.items()}

    def init(rng, batch):
        params: Params = {}
        for name in present(batch):
            params = merge_params(params, sources[name][1].init(rng, part(batch, name)))
        return params

    def add(entries, more):
        if repeated := sorted(entries.keys() & more.keys()):
            raise ValueError(f"two parts of a combination give {repeated[0]!r}; give each its own name")
        entries |= more

    def start(params, batch):
        if absent := sorted({key for name in sources for key in lacking(batch, name)}):
            raise KeyError(f"the first batch lacks the sources {absent}; it must hold every one")
        return {name: sources[name][1].start(params, part(batch, name)) for name in sources}

    def prepare(params, state, step):
        return {name: sources[name][1].prepare(params, state[name], step) for name in state}

    def finish(params, state):
        for name, (_, objective) in sources.items():
            params = objective.finish(params, state[name])
        return params

    def loss(params, batch, context):
        terms, metrics, state = {}, {}, dict(context.state)
        for name in present(batch):
            weight, objective = sources[name]
            own, (own_metrics, state[name]) = objective.loss(params, part(batch, name), scope(context, name))
            scaled = {key: Mean(weight * mean.total, mean.count) for key, mean in own.items()}
            add(terms, prefixed(name, scaled))
            add(metrics, prefixed(name, own_metrics))
        for penalty in penalties:
            if context.train:
                constants = (context.constants or {}).get("penalties", {}).get(penalty.name)
                value = penalty.loss(params, constants, context.rng)
                add(terms, {penalty.name: Mean(value, jnp.ones(()))})
        return terms, (metrics, state)

    def predict(params, batch, context):
        predictions = {}
        for name in present(batch):
            predictions |= prefixed(name, sources[name][1].predict(params, part(batch, name), scope(context, name)))
        return predictions

    return Objective(
        init=init,
        start=start,
        prepare=prepare,
        loss=loss,
        predict=predict,
        constants={
            "objectives": {name: objective.constants for name, (_, objective) in sources.items()},
            "penalties": {penalty.name: penalty.constants for penalty in penalties},
        },
        coupled=any(objective.coupled for _, objective in sources.values()),
        finish=finish,
    )


def _check_reads(
    reads: Mapping[str, str | tuple[str, ...]], sources: Mapping[str, object], alone: bool
) -> dict[str, str | tuple[str, ...]]:
    if reads and alone:
        raise ValueError("reads was given beside a single objective, which reads the whole batch; leave it out")
    if unknown := sorted(set(reads) - set(sources)):
        raise ValueError(f"reads names {unknown}, which are no sources; the sources are {sorted(sources)}")
    for name, read in reads.items():
        if not read or (isinstance(read, tuple) and len(set(read)) < len(read)):
            raise ValueError(f"reads gives {name!r} {read!r}; expected a part of the batch, or a tuple of several")
    return dict(reads)


def merge_params(first: Params, second: Params, at: str = "") -> Params:
    """The union of two trees of params; where both have a leaf, the first one's is kept.

    Raises ValueError, naming the path, when the two disagree on a shape or on what is a leaf.
    """
    merged = dict(first)
    for key, value in second.items():
        path = f"{at}/{key}" if at else key
        if key not in merged:
            merged[key] = value
        elif isinstance(value, Mapping) and isinstance(merged[key], Mapping):
            merged[key] = merge_params(merged[key], dict(value), path)
        elif isinstance(value, Mapping) or isinstance(merged[key], Mapping):
            raise ValueError(f"two objectives share the path {path}, a leaf in one and a subtree in the other")
        elif value.shape != merged[key].shape:
            raise ValueError(f"two objectives share {path} with shapes {merged[key].shape} and {value.shape}")
    return merged
