"""A model with fewer heads and narrower feed-forward blocks: what structured pruning leaves, its weights really gone.

Hugging Face's BERT cannot hold fewer heads of the same width, so in its folders the removed ones are zeros behind those
that are left (heads have no order), which gives the same numbers; `KEPT` in config.json says how many are left, and
`narrowed` takes the zeros away again. Narrower feed-forward blocks are an `intermediate_size` like any other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxptft.convert.checkpoint import Checkpoint
from jaxptft.convert.surgery import with_changes
from jaxptft.models import BertConfig, Params

KEPT = "jaxptft_kept_heads"
"""The field of config.json with the number of heads that each stored layer has left."""

_READ = ("query", "key", "value")


def head_count(config: Any) -> list[int]:
    """How many heads each stored layer has; ValueError for models whose heads cannot be removed."""
    if not isinstance(config, BertConfig):
        raise ValueError(f"heads are removed from BERT and its kin, and the model is a {type(config).__name__}")
    return list(config.kept_heads or [config.heads] * config.stored_layers)


def neuron_count(checkpoint: Checkpoint) -> int:
    """How wide the feed-forward blocks are; ValueError for models whose neurons cannot be removed."""
    width = getattr(checkpoint.config, "mlp_width", None)
    layers = [part for name, part in checkpoint.params["backbone"].items() if name.startswith("layer_")]
    plain = all(set(layer.get("mlp", ())) == {"up", "down"} for layer in layers)
    if width is None or not layers or not plain or layers[0]["mlp"]["up"]["kernel"].shape[1] != width:
        raise ValueError(f"neurons are removed between two plain projections, which {checkpoint.family} does not have")
    return width


def keep_heads(checkpoint: Checkpoint, kept: Sequence[Sequence[int]]) -> Checkpoint:
    """The model with these heads of each stored layer alone, counted from 0.

    Raises ValueError for other models than BERT and its kin, and lists that are empty, not rising or not of the model.
    """
    counts = head_count(checkpoint.config)
    _check("keep_heads", kept, counts)
    width = checkpoint.config.width // checkpoint.config.heads
    backbone = dict(checkpoint.params["backbone"])
    for layer, heads in enumerate(kept):
        columns = (np.asarray(heads)[:, None] * width + np.arange(width)).ravel()
        backbone[f"layer_{layer}"] = _attention(backbone[f"layer_{layer}"], columns)
    numbers = tuple(len(heads) for heads in kept)
    whole = all(number == checkpoint.config.heads for number in numbers)
    config = replace(checkpoint.config, kept_heads=None if whole else numbers)
    return with_changes(checkpoint, config, {**checkpoint.params, "backbone": backbone})


def keep_neurons(checkpoint: Checkpoint, kept: Sequence[Sequence[int]]) -> Checkpoint:
    """The model with these neurons of each stored layer's feed-forward block alone, equally many in each.

    Raises ValueError for models without such a block, different numbers, and as `keep_heads` does.
    """
    width, stored = neuron_count(checkpoint), _stored(checkpoint)
    _check("keep_neurons", kept, [width] * stored)
    if len({len(neurons) for neurons in kept}) > 1:
        raise ValueError(f"keep_neurons must be equally many in each layer, got {sorted({len(own) for own in kept})}")
    backbone = dict(checkpoint.params["backbone"])
    for layer, neurons in enumerate(kept):
        part, columns = backbone[f"layer_{layer}"], np.asarray(neurons)
        up, down = part["mlp"]["up"], part["mlp"]["down"]
        up = {name: np.asarray(leaf)[..., columns] for name, leaf in up.items()}
        down = {**down, "kernel": np.asarray(down["kernel"])[columns]}
        backbone[f"layer_{layer}"] = {**part, "mlp": {**part["mlp"], "up": up, "down": down}}
    config = replace(checkpoint.config, mlp_width=len(kept[0]))
    return with_changes(checkpoint, config, {**checkpoint.params, "backbone": backbone})


def whole_config(config: Any) -> Any:
    """The config with all heads that the model was made with."""
    return config if getattr(config, "kept_heads", None) is None else replace(config, kept_heads=None)


def widened(checkpoint: Checkpoint, params: Params) -> tuple[Any, Params]:
    """The config and parameters with zeros in the place of heads that were removed; as they are where none was."""
    config = checkpoint.config
    if getattr(config, "kept_heads", None) is None:
        return config, params
    backbone = dict(params["backbone"])
    for layer, heads in enumerate(config.kept_heads):
        missing = config.width - heads * (config.width // config.heads)
        part = dict(backbone[f"layer_{layer}"])
        own = dict(part["attention"])
        for name in _READ:
            own[name] = {key: _padded(leaf, -1, missing) for key, leaf in own[name].items()}
        own["output"] = {**own["output"], "kernel": _padded(own["output"]["kernel"], 0, missing)}
        backbone[f"layer_{layer}"] = {**part, "attention": own}
    return whole_config(config), {**params, "backbone": backbone}


def narrowed(checkpoint: Checkpoint, fields: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint without the heads that `KEPT` says are zeros; as it is where they are not, or nothing says so.

    Raises ValueError where the field does not hold a number for each layer.
    """
    if KEPT not in fields:
        return checkpoint
    numbers, config = fields[KEPT], checkpoint.config
    counts = head_count(config)
    if not isinstance(numbers, list) or len(numbers) != len(counts):
        raise ValueError(f"config.json: {KEPT} must be a list of {len(counts)} numbers, got {numbers!r}")
    for number, count in zip(numbers, counts, strict=True):
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= count:
            raise ValueError(f"config.json: {KEPT} must be numbers from 1 to {count}, got {number!r}")
    small = keep_heads(checkpoint, [range(number) for number in numbers])
    for layer, number in enumerate(numbers):  # others may have trained what was zero
        gone = number * (config.width // config.heads)
        output = checkpoint.params["backbone"][f"layer_{layer}"]["attention"]["output"]["kernel"]
        if np.any(np.asarray(output)[gone:]):
            return checkpoint
    return replace(checkpoint, config=small.config, params=small.params)


def widened_adapters(config: Any, params: Params) -> Params:
    """The parameters, whose LoRA adapters have zeros in the place of heads that were removed, as `widened` has them."""

    def padded(name: str, adapter: Mapping[str, Any], gone: int) -> dict[str, Any]:
        part, axis = ("b", -1) if name in _READ else ("a", 0)
        return {**adapter, part: _padded(adapter[part], axis, gone)}

    return _with_adapters(config, params, padded)


def narrowed_adapters(config: Any, params: Params) -> Params:
    """The parameters, whose LoRA adapters are of the heads that are left, as `narrowed` has them.

    Raises ValueError for adapters that give a removed head a say: its values and what reads them are adapted.
    """

    def cut(name: str, adapter: Mapping[str, Any], gone: int) -> dict[str, Any]:
        part = "b" if name in _READ else "a"
        rows = np.asarray(adapter[part])
        return {**adapter, part: rows[:, : rows.shape[1] - gone] if part == "b" else rows[: rows.shape[0] - gone]}

    small = _with_adapters(config, params, cut)
    # Zeros times whatever: one of the two suffices, for what a removed head gives is its values times what reads them.
    for layer, own in _adapted(config, params).items():
        gone = config.width - config.kept_heads[layer] * (config.width // config.heads)
        values, reads = (own.get(name, {}).get("kernel", {}) for name in ("value", "output"))
        says = (
            values and reads and np.any(np.asarray(values["b"])[:, -gone:]) and np.any(np.asarray(reads["a"])[-gone:])
        )
        if gone and says:
            raise ValueError(f"the adapters of layer {layer} give the heads that {KEPT} says were removed a say")
    return small


def _adapted(config: Any, params: Params) -> dict[int, Mapping[str, Any]]:
    """The adapters of each layer's attention, where heads were removed."""
    if getattr(config, "kept_heads", None) is None:
        return {}
    layers = params.get("lora", {}).get("backbone", {})
    known = {layer: layers.get(f"layer_{layer}", {}).get("attention") for layer in range(len(config.kept_heads))}
    return {layer: own for layer, own in known.items() if own}


def _with_adapters(config: Any, params: Params, change: Callable[[str, Any, int], Any]) -> Params:
    changed: dict[str, Any] = {}
    for layer, own in _adapted(config, params).items():
        gone = config.width - config.kept_heads[layer] * (config.width // config.heads)
        attention = {name: {"kernel": change(name, one["kernel"], gone)} for name, one in own.items()}
        changed[f"layer_{layer}"] = {**params["lora"]["backbone"][f"layer_{layer}"], "attention": attention}
    if not changed:
        return params
    lora = {**params["lora"], "backbone": {**params["lora"]["backbone"], **changed}}
    return {**params, "lora": lora}


def _stored(checkpoint: Checkpoint) -> int:
    return sum(name.startswith("layer_") for name in checkpoint.params["backbone"])


def _check(name: str, kept: Sequence[Sequence[int]], counts: Sequence[int]) -> None:
    if len(kept) != len(counts):
        raise ValueError(f"{name} must have a list for each of {len(counts)} stored layers, got {len(kept)}")
    for layer, (own, count) in enumerate(zip(kept, counts, strict=True)):
        numbers = list(own)
        if not numbers or numbers != sorted(set(numbers)) or not 0 <= numbers[0] <= numbers[-1] < count:
            raise ValueError(f"{name}: layer {layer} must keep rising numbers from 0 to {count - 1}, got {numbers}")


def _attention(layer: Mapping[str, Any], columns: np.ndarray) -> dict[str, Any]:
    own = dict(layer["attention"])
    for name in _READ:
        own[name] = {key: np.asarray(leaf)[..., columns] for key, leaf in own[name].items()}
    own["output"] = {**own["output"], "kernel": np.asarray(own["output"]["kernel"])[columns]}
    return {**layer, "attention": own}


def _padded(leaf: Any, axis: int, missing: int) -> np.ndarray:
    array = np.asarray(leaf)
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, missing)
    return np.pad(array, widths)
