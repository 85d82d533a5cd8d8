"""Which layers, heads, neurons and weights a model keeps, and the model that is left.

Importance of a head or neuron is the mean over rows of |dL/d gate|, with a gate of one on what it hands on: for heads
Michel et al. 2019 (arXiv:1905.10650, section 4.1, equation 2); for neurons the first-order criterion of Molchanov et
al. 2017 (arXiv:1611.06440, equation 8). Without gradients it is the product of the norms of the weights that lead in
and out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxptft import convert, models, objectives, optim
from jaxptft.recipes.conversion import numbers_of
from jaxptft.recipes.finetune import Config as Finetuning
from jaxptft.recipes.inference import Opened
from jaxptft.recipes.model_source import locate
from jaxptft.recipes.tasks import module_of

CHUNK = 8  # rows whose gradients are taken at once
_HEADS, _NEURONS = "attention/output/kernel", "mlp/down/kernel"
_MATRICES = "backbone/layer_*/**/kernel"

Say = Callable[[str], None]
Importance = list[np.ndarray]  # of each stored layer


def read_layers(asked: str, count: int) -> list[int]:
    """The layers that a text names, of so many: numbers, or top:K, bottom:K, spread:K (first and last included).

    >>> read_layers("spread:3", 12), read_layers("top:2", 6), read_layers("0-2,5", 6)
    ([0, 6, 11], [4, 5], [0, 1, 2, 5])
    """
    way, colon, number = asked.partition(":")
    if not colon:
        return numbers_of("layers", asked)
    if way not in ("top", "bottom", "spread") or not number.isdecimal() or not 1 <= int(number) <= count:
        raise ValueError(f"layers is {asked!r}; expected 0,2,4, or top:K, bottom:K or spread:K of {count} layers")
    k = int(number)
    if way == "spread":
        return [int(place) for place in np.floor(np.linspace(0, count - 1, k) + 0.5)] if k > 1 else [count - 1]
    return list(range(count - k, count)) if way == "top" else list(range(k))


def prune(config: Any, opened: Opened, request: Any, *, say: Say) -> tuple[convert.Checkpoint, dict[str, Any]]:
    """The model that is left, and what was kept of it, JSON-able; ValueError where the model has no such parts."""
    made, record = opened.checkpoint, {}
    if config.layers is not None:
        layers = read_layers(config.layers, made.config.layers)
        made, record["layers"] = convert.keep_layers(made, layers), layers
    per_head = per_neuron = None
    wants_heads = config.heads is not None or config.heads_share is not None
    if wants_heads:
        counts = convert.head_count(made.config)
        if config.heads is not None and config.heads > min(counts):
            raise ValueError(f"heads is {config.heads}, and a layer has {min(counts)}; give fewer")
    if config.neurons is not None and config.neurons > convert.neuron_count(made):
        raise ValueError(f"neurons is {config.neurons}, and a layer has {convert.neuron_count(made)}; give fewer")
    if config.importance == "weights":
        per_head = _by_weights(made, _HEADS, made.config) if wants_heads else None
        per_neuron = _by_weights(made, _NEURONS, made.config) if config.neurons is not None else None
    elif wants_heads or config.neurons is not None:
        found = by_gradient(
            made, opened, request, heads=wants_heads, neurons=config.neurons is not None, rows=config.rows
        )
        per_head, per_neuron = found
    if per_head is not None:
        chosen = _best(per_head, config.heads) if config.heads_share is None else _share(per_head, config.heads_share)
        made, record["heads"] = convert.keep_heads(made, chosen), chosen
        record["head_importance"] = [values.tolist() for values in per_head]
        say(f"heads left in each layer: {', '.join(str(len(own)) for own in chosen)}")
    if per_neuron is not None:
        chosen = _best(per_neuron, config.neurons)
        made, record["neurons"] = convert.keep_neurons(made, chosen), config.neurons
    if config.sparsity is not None:
        masks = optim.magnitude_masks(made.params, _MATRICES, config.sparsity, scope=config.scope)
        own, others = optim.partition(made.params, optim.mask(made.params, _MATRICES))
        zeroed = jax.tree.map(lambda leaf, kept: np.where(kept, leaf, 0).astype(leaf.dtype), own, masks)
        made = replace(made, params=optim.merge(zeroed, others))
        zeros = optim.zeros_by_path(made.params, _MATRICES)
        record["sparsity"] = sum(zero for zero, _ in zeros.values()) / sum(size for _, size in zeros.values())
    return made, record


def by_gradient(
    checkpoint: convert.Checkpoint, opened: Opened, request: Any, *, heads: bool, neurons: bool, rows: int
) -> tuple[Importance | None, Importance | None]:
    """The importance of each head and of each neuron, where asked for, over the rows of `request`."""
    task = _task(checkpoint, opened, request)
    network = models.build(checkpoint.config, task.model_task, classes=task.classes)
    gates = {}
    stored = sum(name.startswith("layer_") for name in checkpoint.params["backbone"])
    for layer in range(stored):
        if heads:
            count = convert.head_count(checkpoint.config)[layer]
            gates[f"backbone/layer_{layer}/{_HEADS}"] = jnp.ones(count)
        if neurons:
            gates[f"backbone/layer_{layer}/{_NEURONS}"] = jnp.ones(convert.neuron_count(checkpoint))
    found = importance(network, task.objective, checkpoint.params, gates, _rows(task.batches["eval"], rows))
    by_layer = lambda ending: [found[f"backbone/layer_{layer}/{ending}"] for layer in range(stored)]  # noqa: E731
    return by_layer(_HEADS) if heads else None, by_layer(_NEURONS) if neurons else None


def importance(
    network: models.Model,
    objective_of: Callable[[models.Model], objectives.Objective],
    params: models.Params,
    gates: Mapping[str, Any],
    batches: Sequence[Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """The mean over rows of |dL/d gate| of each gate, all of them one, without dropout."""
    rng = jax.random.key(0)

    def loss(gates: Any, row: Any) -> Any:
        gated = network._replace(apply=models.with_gates(network.apply, gates))
        objective = objective_of(gated)
        batch = jax.tree.map(lambda leaf: leaf[None], row)
        state = objective.start(params, batch)
        context = objectives.Context(state, objective.constants, rng, train=False, axis_name=None)
        terms, _ = objective.loss(params, batch, context)
        return sum((term.value() for term in terms.values()), jnp.zeros(()))

    @jax.jit
    def of_rows(rows: Any) -> Any:
        gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))(dict(gates), rows)
        valid = rows["valid"]
        sums = {name: jnp.where(valid[:, None], jnp.abs(one), 0).sum(0) for name, one in gradients.items()}
        return sums, valid.sum()

    total, rows = {name: np.zeros(gate.shape) for name, gate in gates.items()}, 0
    for batch in batches:
        for start in range(0, len(batch["valid"]), CHUNK):
            sums, count = of_rows({name: array[start : start + CHUNK] for name, array in batch.items()})
            rows += int(count)
            for name, values in sums.items():
                total[name] += np.asarray(values)
    return {name: values / max(1, rows) for name, values in total.items()}


def _task(checkpoint: convert.Checkpoint, opened: Opened, request: Any) -> Any:
    """The task that the model is for, and its labelled rows."""
    values: dict[str, Any] = {
        "model": opened.source,
        "train": request.data,
        "eval": request.data,
        "out": "unused",
        "task": opened.task,
        "columns": request.columns,
        "packing": "off",
    }
    source: dict[str, Any] = {"folder": locate(opened.source)}
    if opened.tokenizer is not None:
        values["max_length"], source = opened.max_length, {"tokenizer": opened.tokenizer}
    task = module_of(opened.task).read(
        Finetuning(**values),
        **source,
        architecture=checkpoint.config,
        devices=1,
        checkpoint_names=checkpoint.labels,
        say=lambda line: None,
    )
    if task.names is not None and list(task.names) != list(opened.names):
        raise ValueError(
            f"{request.data} has the labels {', '.join(task.names)}, and {opened.source} answers "
            f"{', '.join(opened.names)}; give rows of the same, or --importance weights"
        )
    return task


def _rows(batches: Any, count: int) -> list[dict[str, np.ndarray]]:
    """Batches of so many rows at most."""
    found, rows = [], 0
    for step in range(batches.steps_per_epoch):
        batch = dict(batches.batch_at(step))
        left = count - rows
        batch["valid"] = batch["valid"] & (np.cumsum(batch["valid"]) <= left)
        rows += int(batch["valid"].sum())
        found.append(batch)
        if rows >= count:
            break
    return found


def _by_weights(checkpoint: convert.Checkpoint, ending: str, config: Any) -> Importance:
    """The product of the norms of what leads into a head or neuron and of what leads out."""
    found = []
    stored = sum(name.startswith("layer_") for name in checkpoint.params["backbone"])
    for layer in range(stored):
        part = checkpoint.params["backbone"][f"layer_{layer}"]
        if ending == _HEADS:
            blocks = convert.head_count(config)[layer]
            into, out = part["attention"]["value"]["kernel"], part["attention"]["output"]["kernel"]
        else:
            blocks = convert.neuron_count(checkpoint)
            into, out = part["mlp"]["up"]["kernel"], part["mlp"]["down"]["kernel"]
        norm = lambda rows: np.sqrt(np.square(np.asarray(rows, np.float64)).reshape(blocks, -1).sum(1))  # noqa: B023, E731
        found.append(norm(np.asarray(into).T) * norm(out))
    return found


def _best(values: Importance, count: Any) -> list[list[int]]:
    """The most important of each layer, in their order; of equal ones the first."""
    return [sorted(np.argsort(-layer, kind="stable")[:count].tolist()) for layer in values]


def _share(values: Importance, share: float) -> list[list[int]]:
    """The most important of all layers together, and of each the most important; by layer in units of its L2 norm.

    The norm is Michel et al.'s (section 4.1, after Molchanov et al.).
    """
    scaled = [layer / max(float(np.linalg.norm(layer)), 1e-30) for layer in values]
    ranked = sorted(((-value, layer, place) for layer, own in enumerate(scaled) for place, value in enumerate(own)))
    wanted = max(len(scaled), round(share * len(ranked)))
    kept = {(layer, int(np.argmax(own))) for layer, own in enumerate(scaled)}
    for _, layer, place in ranked:
        if len(kept) >= wanted:
            break
        kept.add((layer, place))
    return [sorted(place for own, place in kept if own == layer) for layer in range(len(scaled))]
