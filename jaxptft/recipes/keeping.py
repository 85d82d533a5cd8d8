"""What keeps a fine-tuning near the imported model: adapters in place of its kernels, importances, mixing, R-Drop."""

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxptft import convert, models, objectives, optim, train
from jaxptft.data.cache import fingerprint
from jaxptft.objectives.token_classification import labelled
from jaxptft.recipes.additions import Build, pretraining
from jaxptft.recipes.finetune import Auxiliary, Config, Lora
from jaxptft.recipes.measured import Measured
from jaxptft.recipes.model_source import locate
from jaxptft.recipes.tasks import module_of
from jaxptft.recipes.tasks.settings import Augment
from jaxptft.recipes.training import Batches
from jaxptft.recipes.training_settings import PlanSettings

TARGETS = ("backbone/layer_*/attention/{query,value,qkv}/kernel",)  # Hu et al. 2021, section 7.1; a joint qkv is whole
_CHUNK = 8  # rows whose gradients are held at once
_DRAWN = ("classification", "multiple_choice")  # tasks whose labels are one draw from a row's logits


def lora_scale(config: Config) -> float:
    """What the adapters' products are multiplied by."""
    chosen = config.lora
    alpha = 2.0 * chosen.rank if chosen.alpha is None else chosen.alpha
    return objectives.lora_scale(rank=chosen.rank, alpha=alpha, rank_stabilized=chosen.rank_stabilized)


def with_adapters(
    config: Config, params: objectives.Params, trainable: Any, imported: Mapping[str, Any]
) -> tuple[objectives.Params, Any]:
    """Parameters with adapters, and what trains then: they, and what was not imported; both unchanged without a rank.

    Raises as `lora_targets` does.
    """
    if not config.lora.rank:
        return params, trainable
    targets, trainable = lora_targets(config.lora, config, params, trainable, imported)
    rng = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(b"lora"))
    adapters = objectives.init_lora(rng, params, targets, rank=config.lora.rank)
    return params | {objectives.LORA: adapters}, trainable | {objectives.LORA: jax.tree.map(lambda _: True, adapters)}


def lora_targets(
    chosen: Lora, config: PlanSettings, params: objectives.Params, trainable: Any, imported: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Masks of the kernels that are to have adapters, and of what else trains; params may be shapes.

    Raises ValueError where no imported kernel that may train is to have an adapter.
    """
    if not imported:
        raise ValueError("lora adapts imported kernels, and nothing is imported; leave it out")
    if config.bitfit:
        raise ValueError("bitfit trains the backbone's biases, and lora keeps them as they are; choose one")
    asked = optim.mask(params, chosen.targets or TARGETS)
    known = set(optim.paths(imported))
    is_imported = jax.tree.unflatten(jax.tree.structure(params), [path in known for path in optim.paths(params)])
    targets = jax.tree.map(lambda ask, own, learns: ask and own and learns, asked, is_imported, trainable)
    if not any(jax.tree.leaves(targets)):
        raise ValueError(
            f"lora.targets name {', '.join(chosen.targets or TARGETS)}, and freeze={config.freeze!r} leaves none of it "
            "to train; freeze less, or choose others"
        )
    return targets, jax.tree.map(lambda learns, own: learns and not own, trainable, is_imported)


def without_adapters(params: objectives.Params) -> objectives.Params:
    """A tree of parameters but for the adapters."""
    return {name: value for name, value in params.items() if name != objectives.LORA}


def moving(trainable: objectives.Params) -> objectives.Params:
    """Of a mask of what trains, what of the model changes by it: a kernel with an adapter does, too."""
    return _moving(without_adapters(trainable), trainable.get(objectives.LORA, {}))


def _moving(own: Any, adapters: Mapping[str, Any]) -> Any:
    if isinstance(own, Mapping):
        return {name: _moving(value, adapters.get(name, {})) for name, value in own.items()}
    return bool(own) or any(jax.tree.leaves(adapters))


def save_adapter(
    folder: Path, config: Config, params: objectives.Params, trainable: Any, *, checkpoint: convert.Checkpoint
) -> None:
    """The adapters, and what else was trained, as `peft` has them, for the model that the run began with."""
    known = zip(optim.paths(trainable), jax.tree.leaves(trainable), strict=True)
    place = Path(config.model)
    convert.save_adapter(
        folder,
        checkpoint,
        jax.tree.map(np.asarray, params),
        alpha=2.0 * config.lora.rank if config.lora.alpha is None else config.lora.alpha,
        rank_stabilized=config.lora.rank_stabilized,
        trained=[path for path, learns in known if learns and path.startswith("backbone/")],
        base=str(locate(place).resolve()) if place.exists() else config.model,
        overwrite=True,
    )


def mixed_with(config: Config, trainable: Any, imported: Mapping[str, Any]) -> objectives.Params:
    """The imported kernels that train, as they were, and None elsewhere: what mixout mixes in."""
    known = dict(zip(optim.paths(trainable), jax.tree.leaves(trainable), strict=True))
    chosen = [path.endswith("/kernel") and known[path] for path in optim.paths(imported)]
    if not any(chosen):
        raise ValueError("mixout needs imported kernels that train; there are none")
    mask = jax.tree.unflatten(jax.tree.structure(imported), chosen)
    return jax.tree.map(np.asarray, optim.partition(imported, mask)[0])


def r_drop(config: Config, objective: objectives.Objective, model: models.Model, architecture: Any) -> Any:
    """The task's objective with R-Drop's second pass; itself where that has no weight.

    Raises ValueError for a task whose outputs are no distribution, and a model without dropout.
    """
    if not config.r_drop:
        return objective
    rates = [getattr(architecture, field.name) for field in fields(architecture) if field.name.endswith("dropout")]
    if not any(type(rate) in (int, float) and rate > 0 for rate in rates):
        raise ValueError("r_drop compares two passes that differ in their dropout, and every rate is 0; give --dropout")
    readers = {
        "classification": None,
        "multiple_choice": None,
        "token_classification": _read_tokens(model),
        "question_answering": _read_places(model),
    }
    if config.task not in readers:
        raise ValueError(f"r_drop is for {', '.join(readers)}, and task is {config.task}; leave it out")
    return objectives.r_drop(objective, weight=config.r_drop, read=readers[config.task])


def _logits(model: models.Model, params: Any, batch: Any, context: objectives.Context) -> Any:
    rng = objectives.slice_rng(context.rng, batch) if context.train else None
    return model.apply(params, batch, rng=rng, train=context.train)


def _read_tokens(model: models.Model) -> Callable[..., tuple[Any, Any]]:
    """A distribution over classes for each labelled token."""

    def read(params, batch, context):
        return _logits(model, params, batch, context), labelled(batch)

    return read


def _read_places(model: models.Model) -> Callable[..., tuple[Any, Any]]:
    """Two distributions over a row's tokens, of where the answer starts and ends."""
    return lambda params, batch, context: objectives.answer_places(_logits(model, params, batch, context), batch)


def l2_to_pretrained(config: Config, params: Any, moves: Any, imported: Any) -> list[objectives.Penalty]:
    """L2-SP towards the imported parameters, over those that move; [] where it has no weight."""
    weight, l2 = config.l2_to_pretrained, config.l2
    if not isinstance(weight, jax.Array) and not weight:
        if l2.factors or l2.new:
            raise ValueError("l2.factors and l2.new shape l2_to_pretrained, which is 0; give it a weight")
        return []
    reference, _ = optim.partition(imported, _restrict(moves, imported))
    if not jax.tree.leaves(reference):
        raise ValueError("l2_to_pretrained needs trainable parameters that were imported; there are none")
    learnt, _ = optim.partition(without_adapters(params), moves)
    weights = jax.tree.map(lambda factor: weight * factor, optim.by_pattern(learnt, l2.factors, default=1.0))
    whole = objectives.l2_to_pretrained(jax.tree.map(np.asarray, reference), weights=weights, new_weight=l2.new)

    def of_what_learns(params, constants, rng):  # the rest does not move
        return whole.loss(optim.partition(params, moves)[0], constants, rng)

    return [whole._replace(loss=of_what_learns)]


def elastic_weight(
    config: Config,
    *,
    checkpoint: convert.Checkpoint,
    architecture: Any,
    tokenizer: Any,
    kept: Mapping[str, Any],
    moves: Any,
    mesh: Any,
    say: Callable[[str], None],
    stop: train.StopFlag,
    measured: Measured,
) -> list[objectives.Penalty]:
    """EWC towards the imported parameters; [] where it has no weight.

    kept is what was imported and is learnt on, moves the mask of what of it will change. The importance is taken of the
    checkpoint with its own heads, dropout off; or, where a run is resumed, it is what the run `measured`.
    """
    chosen = config.ewc
    if not chosen.weight:
        return []
    if chosen.labels == "drawn" and config.task not in _DRAWN:
        raise ValueError(f"ewc.labels are drawn for {', '.join(_DRAWN)}, and task is {config.task}; leave it out")
    if not kept:
        raise ValueError("ewc keeps imported parameters, and nothing is imported; leave it out")
    asked = _ask(checkpoint.params, {name: moves[name] for name in kept})
    if not any(jax.tree.leaves(asked)):
        raise ValueError("ewc needs imported parameters that train; there are none")
    find = _of_text if chosen.corpus else _of_rows
    objective, batches = find(
        config, checkpoint=checkpoint, architecture=architecture, tokenizer=tokenizer, devices=mesh.size, say=say
    )
    reference = {name: jax.tree.map(np.asarray, optim.partition(kept[name], asked[name])[0]) for name in kept}

    def measure() -> Any:
        found = train.diagonal_fisher(
            objective,
            train.replicate(checkpoint.params, mesh),
            _first(batches, chosen.rows, stop),
            rng=jax.random.key(config.seed),
            trainable=asked,
            relabel=train.drawn_labels(objective) if chosen.labels == "drawn" else None,
            chunk=mesh.size * -(-_CHUNK // mesh.size),
            place=lambda batch: train.shard(batch, mesh),
        )
        return {name: found[name] for name in kept}

    made_of = fingerprint([batches.fingerprint, train.fingerprint(checkpoint.params), *optim.paths(reference)])
    importance = measured.take("elastic_weights", made_of, measure, like=reference)
    return [objectives.elastic_weight_consolidation(reference, importance, weight=chosen.weight)]


def _ask(params: Any, moves: Any) -> Any:
    """A mask like params: what of it is in `moves`, and True there."""
    if isinstance(params, Mapping):
        return {name: _ask(value, moves.get(name, {})) for name, value in params.items()}
    return moves is True


def _of_text(
    config: Config,
    *,
    checkpoint: convert.Checkpoint,
    architecture: Any,
    tokenizer: Any,
    devices: int,
    say: Callable[[str], None],
) -> tuple[objectives.Objective, Batches]:
    chosen = config.ewc
    text = Auxiliary(weight=1.0, corpus=chosen.corpus, documents=chosen.documents, text_column=chosen.text_column)
    options: dict[str, Any] = {"tokenizer": tokenizer, "architecture": architecture, "devices": devices, "say": say}
    found = pretraining(text, config, name="ewc", **options)
    if found.head is not None and found.head not in checkpoint.params:
        raise ValueError(
            f"ewc.corpus asks what masked words taught {config.model}, which lacks the head {found.head}; give a model "
            "that has it, or rows it was fine-tuned on as ewc.data"
        )
    assert found.batches is not None
    return found.objective(Build(architecture, None)), found.batches


def _of_rows(
    config: Config,
    *,
    checkpoint: convert.Checkpoint,
    architecture: Any,
    tokenizer: Any,
    devices: int,
    say: Callable[[str], None],
) -> tuple[objectives.Objective, Batches]:
    chosen = config.ewc
    plain: dict[str, Any] = {"sampling": "plain", "augment": Augment(), "packing": "off"}
    plain |= {"class_weights": "none", "weights_by_class": {}, "label_smoothing": 0.0}
    reading = config.model_copy(update={"train": chosen.data, "eval": chosen.data, "test": None, **plain})
    task = module_of(config.task).read(
        reading,
        tokenizer=tokenizer,
        architecture=architecture,
        devices=devices,
        checkpoint_names=checkpoint.labels,
        say=lambda line: say(f"ewc, {line}") if line.startswith("train") else None,
    )
    if task.head is not None and task.head not in checkpoint.params:
        raise ValueError(
            f"ewc.data are rows that {config.model} was fine-tuned on, and it has no head for {config.task}; give text "
            "as ewc.corpus"
        )
    if task.names is not None and list(task.names) != checkpoint.labels:
        raise ValueError(
            f"ewc.data tells {', '.join(task.names)} apart, and {config.model} {', '.join(checkpoint.labels or [])}; "
            "give rows that it was fine-tuned on"
        )
    return task.objective(Build(architecture, None)(task.model_task, classes=task.classes)), task.batches["train"]


def _first(batches: Batches, rows: int, stop: train.StopFlag) -> Iterator[dict[str, Any]]:
    """The first so many valid rows of an epoch."""
    for step in range(batches.steps_per_epoch):
        if rows <= 0:
            return
        stop.raise_if_set()
        batch = batches.batch_at(step)
        valid = np.asarray(batch["valid"])
        real = valid.reshape(len(valid), -1).any(1)
        kept = real & (np.cumsum(real) <= rows)
        rows -= int(kept.sum())
        yield {**batch, "valid": valid & kept.reshape(-1, *(1,) * (valid.ndim - 1))}


def _restrict(tree: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """The part of a tree that `like` has too."""
    return {key: _restrict(tree[key], value) if isinstance(value, dict) else tree[key] for key, value in like.items()}
