"""A model changed before it learns on: layers left out or added, a larger vocabulary, new parameters, another head.

Pure functions from one `Checkpoint` to another. What the source held beside its parameters (the heads of other tasks,
buffers, its own spelling of names) stays behind; dtypes and the config's further fields come along. Starting a smaller
model from some of a larger one's layers: Sanh et al. 2019, arXiv:1910.01108, section 3; drawing the last layers anew:
Zhang et al. 2021, arXiv:2006.05987, section 5.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Key

from jaxptft.convert.checkpoint import Checkpoint
from jaxptft.convert.engine import complete, heads_of
from jaxptft.convert.families import find_family
from jaxptft.convert.match import matches
from jaxptft.convert.rules import Config
from jaxptft.convert.wording import listed
from jaxptft.models import BertConfig, ConvConfig, Gpt2Config, ModernBertConfig, Params, ResNetConfig, build

HEAD_OF = {
    "classification": "classifier",
    "token_classification": "token_classifier",
    "question_answering": "question_answering",
    "multiple_choice": "multiple_choice",
    "masked_lm": "mlm",
    "next_sentence": "nsp",
    "sentence_order": "sop",
    "replaced_token": "discriminator",
    "masked_image": "mim",
}
"""The key in the parameters of the head that a task of `models.build` has."""

_TASK_OF = {head: task for task, head in HEAD_OF.items()} | {"decoder": "pretraining"}
_SIZED = ("classifier", "token_classifier")
_INTO_RESIDUAL = ("attention/output", "mlp/down")


def keep_layers(checkpoint: Checkpoint, layers: Sequence[int]) -> Checkpoint:
    """The model with these of its layers alone, counted from 0 and numbered anew in their order.

    Where all layers share their parameters (ALBERT), only how often they are passed changes.

    Raises ValueError for numbers that are not increasing or not of the model; a model whose layers share parameters in
    several groups; ModernBERT without its layer 0, which alone has no norm before its attention; and GPT-2 whose
    attention is scaled by the layer's number, where a number changes.
    """
    wanted, count = list(layers), checkpoint.config.layers
    _check_numbers("keep_layers", wanted, count)
    if not wanted or sorted(set(wanted)) != wanted:
        raise ValueError(f"keep_layers must be increasing numbers of layers, at least one, got {wanted}")
    return _arranged(checkpoint, wanted)


def drop_layers(checkpoint: Checkpoint, layers: Sequence[int]) -> Checkpoint:
    """The model without these of its layers; all else as in `keep_layers`."""
    _check_numbers("drop_layers", layers, checkpoint.config.layers)
    kept = [layer for layer in range(checkpoint.config.layers) if layer not in set(layers)]
    if not kept:
        raise ValueError(f"drop_layers would leave none of the {checkpoint.config.layers} layers; keep at least one")
    return _arranged(checkpoint, kept)


def add_layers(
    checkpoint: Checkpoint, after: Sequence[int], *, start: Literal["copy", "identity"] = "copy"
) -> Checkpoint:
    """The model with a new layer behind each of these, numbered as they are now; a number given twice adds two.

    A new layer is a copy of the one it stands behind. With `start` "identity" what it adds to the residual stream is
    then zero, so that the model computes what it did before: for models with the norm before each block (GPT-2,
    ModernBERT); in the others each layer ends in a norm.

    Raises ValueError for other numbers, "identity" where a layer ends in a norm, and as `keep_layers` does.
    """
    config = checkpoint.config
    if start not in ("copy", "identity"):
        raise ValueError(f"start must be 'copy' or 'identity', got {start!r}")
    if start == "identity" and not isinstance(config, Gpt2Config | ModernBertConfig):
        raise ValueError(
            f"a layer of family {checkpoint.family} ends in a norm, so that none is the identity: use start='copy'"
        )
    _check_numbers("add_layers", after, config.layers)
    order = sorted([*range(config.layers), *after])
    changed = _arranged(checkpoint, order)
    if start == "copy":
        return changed
    backbone = dict(changed.params["backbone"])
    for place, layer in enumerate(order):
        if place and order[place - 1] == layer:
            backbone[f"layer_{place}"] = _without_output(backbone[f"layer_{place}"])
    return replace(changed, params={**changed.params, "backbone": backbone})


def resize_vocabulary(
    checkpoint: Checkpoint, size: int, *, rng: Key[Array, ""], new_rows: Literal["mean", "init"] = "mean"
) -> Checkpoint:
    """The model with a vocabulary of `size`; no id moves, new ones come last.

    New rows of the word table are drawn around the mean of the old ones, with 1e-5 of their covariance, and a bias that
    predicts words starts at the mean of the old: no new word is then likelier than an average one (Hewitt 2021,
    "Initializing New Word Embeddings for Pretrained Language Models"). With `new_rows` "init" both start as in a new
    model. A smaller `size` cuts the last rows off.

    Raises ValueError for a size below 1, and one that cuts off a special token that the config names.
    """
    old = getattr(checkpoint.config, "vocab_size", None)
    if old is None:
        raise ValueError(f"models of family {checkpoint.family} have no vocabulary to resize")
    if new_rows not in ("mean", "init"):
        raise ValueError(f"new_rows must be 'mean' or 'init', got {new_rows!r}")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"the size of a vocabulary must be an integer of at least 1, got {size!r}")
    for name, token in {**checkpoint.extras.fields, "pad_token_id": checkpoint.config.pad_id}.items():
        if name.endswith("_token_id") and isinstance(token, int) and size <= token < old:
            raise ValueError(f"a vocabulary of {size} has no {name} {token}; keep at least {token + 1}")
    params = jax.tree.map(np.asarray, checkpoint.params)
    table = params["backbone"]["embeddings"]["word"]["embedding"]
    draws, added = np.random.default_rng(np.asarray(jax.random.key_data(rng))), max(size - old, 0)
    if new_rows == "init":
        rows = draws.normal(0, checkpoint.config.initializer_range, (added, table.shape[1]))
    else:
        # Sums of the old rows with normal weights have their covariance, whatever its rank.
        weights = draws.normal(0, (1e-5 / max(old - 1, 1)) ** 0.5, (added, old))
        rows = table.mean(0, dtype=np.float64) + weights @ (table - table.mean(0))
    backbone = dict(params["backbone"])
    word = {**backbone["embeddings"]["word"], "embedding": _extended(table, rows, size)}
    backbone["embeddings"] = {**backbone["embeddings"], "word": word}
    params = {**params, "backbone": backbone}
    if "bias" in params.get("mlm", {}):
        bias = params["mlm"]["bias"]
        value = bias.mean(dtype=np.float64) if new_rows == "mean" else 0.0
        params["mlm"] = {**params["mlm"], "bias": _extended(bias, np.full(added, value), size)}
    return with_changes(checkpoint, replace(checkpoint.config, vocab_size=size), params)


def reinitialize(checkpoint: Checkpoint, chosen: Callable[[str], bool], *, rng: Key[Array, ""]) -> Checkpoint:
    """The model with fresh values at the parameters whose slash path is `chosen`: those of a new model of its config.

    Raises ValueError where nothing is chosen.
    """
    found = {path for path in _leaves(checkpoint.params) if chosen(path)}
    if not found:
        raise ValueError("no parameter was chosen to start anew; a path looks like 'backbone/layer_0/mlp/up/kernel'")
    fresh = _leaves(_fresh(checkpoint, rng))
    if strangers := sorted(found - fresh.keys()):
        raise ValueError(
            f"a new model of family {checkpoint.family} has no parameter {listed(strangers)}; leave it out"
        )

    def anew(path: Any, leaf: Any) -> Any:
        name = _name(path)
        return np.asarray(fresh[name]) if name in found else leaf

    return replace(checkpoint, params=jax.tree_util.tree_map_with_path(anew, checkpoint.params))


def drop_heads(checkpoint: Checkpoint) -> Checkpoint:
    """The backbone alone, without labels."""
    return _with_heads(checkpoint, {"backbone": checkpoint.params["backbone"]}, None)


def swap_head(
    checkpoint: Checkpoint,
    task: str,
    *,
    rng: Key[Array, ""],
    classes: int | None = None,
    labels: Sequence[str] | None = None,
) -> Checkpoint:
    """The backbone under a new head for `task` of `models.build`; a pooler that it lacks and needs is new too.

    `labels` name the `classes`, and stand in for their number.

    Raises ValueError where labels and classes disagree, and for what `build` refuses.
    """
    if labels is not None and classes not in (None, len(labels)):
        raise ValueError(f"{len(labels)} labels were given for {classes} classes; give as many, or leave one out")
    if labels is not None and len(set(labels)) < len(labels):
        raise ValueError(f"labels must differ from each other, got {list(labels)}")
    classes = len(labels) if labels is not None else classes
    fresh = _init(checkpoint.config, task, classes, rng)
    params = complete({"backbone": dict(checkpoint.params["backbone"])}, fresh)
    return _with_heads(checkpoint, params, None if labels is None else list(labels))


def _check_numbers(name: str, layers: Sequence[int], count: int) -> None:
    for layer in layers:
        if not isinstance(layer, int) or isinstance(layer, bool) or not 0 <= layer < count:
            raise ValueError(f"{name} must be numbers of layers from 0 to {count - 1}, got {layer!r}")


def _arranged(checkpoint: Checkpoint, order: Sequence[int]) -> Checkpoint:
    """The model whose layer k is a copy of the old layer `order[k]`."""
    old = checkpoint.config
    config = _arranged_config(old, order)
    if isinstance(old, BertConfig) and old.layer_groups is not None:
        return with_changes(checkpoint, config, checkpoint.params)
    backbone = {name: part for name, part in checkpoint.params["backbone"].items() if not name.startswith("layer_")}
    for place, layer in enumerate(order):
        backbone[f"layer_{place}"] = jax.tree.map(np.array, checkpoint.params["backbone"][f"layer_{layer}"])

    def moved(path: str) -> str:
        start, *rest = path.split("/")[1:]
        if not start.startswith("layer_"):
            return path
        return "/".join(["backbone", f"layer_{order[int(start.removeprefix('layer_'))]}", *rest])

    return with_changes(checkpoint, config, {**checkpoint.params, "backbone": backbone}, moved)


def _arranged_config(config: Config, order: Sequence[int]) -> Config:
    if isinstance(config, ConvConfig):
        raise ValueError("the layers of a small image model differ in shape; choose another config instead")
    if isinstance(config, ResNetConfig):
        raise ValueError("the layers of a ResNet differ in shape from stage to stage; choose another config instead")
    if isinstance(config, BertConfig) and config.layer_groups not in (None, 1):
        raise ValueError(
            f"the model's {config.layers} layers share their parameters in {config.layer_groups} groups, which other "
            "numbers of layers would part differently; change a model with one group, or none"
        )
    if isinstance(config, Gpt2Config) and config.scale_by_layer and list(order) != list(range(len(order))):
        raise ValueError(
            "the model scales its attention by the layer's number, so a layer cannot get another: keep the first ones"
        )
    if isinstance(config, ModernBertConfig):
        if order[0] != 0 or 0 in order[1:]:
            raise ValueError(
                "layer 0 of ModernBERT has no norm before its attention, since it follows that of the embeddings: "
                "keep it where it is, and once"
            )
        kinds = tuple(place for place, layer in enumerate(order) if config.is_global(layer))
        return replace(config, layers=len(order), global_layers=kinds)
    if isinstance(config, BertConfig) and config.kept_heads is not None and config.layer_groups is None:
        return replace(config, layers=len(order), kept_heads=tuple(config.kept_heads[layer] for layer in order))
    return replace(config, layers=len(order))


def _without_output(layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer whose blocks add zeros to the residual stream."""
    cleared = dict(layer)
    for path in _INTO_RESIDUAL:
        block, projection = path.split("/")
        zeros = jax.tree.map(np.zeros_like, cleared[block][projection])
        cleared[block] = {**cleared[block], projection: zeros}
    return cleared


def _extended(array: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([array, rows.astype(array.dtype)])[:size]


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _leaves(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _init(config: Config, task: str, classes: int | None, rng: Any) -> Params:
    if isinstance(config, ResNetConfig):
        example = {"image": np.zeros((1, 8, 8, config.channels), np.float32)}
    elif hasattr(config, "image_shape"):
        example = {"image": np.zeros((1, *config.image_shape), np.float32)}
        if isinstance(config, ConvConfig):
            example |= dict.fromkeys(("features", "noise"), np.zeros((1, config.code), np.float32))
    else:
        example = {"input_ids": np.zeros((1, 1, 2) if task == "multiple_choice" else (1, 2), np.int32)}
    return build(config, task, classes=classes).init(rng, example)


def _fresh(checkpoint: Checkpoint, rng: Any) -> Params:
    """A new model with the checkpoint's config and heads."""
    fresh = _init(checkpoint.config, "encoder", None, rng)
    for head in heads_of(find_family(checkpoint.family), checkpoint.params):
        held = checkpoint.params[head]
        classes = held.get("out", held)["kernel"].shape[-1] if head in _SIZED else None
        task = _task_of(checkpoint.config, head)
        fresh = fresh if task is None else complete(fresh, _init(checkpoint.config, task, classes, rng))
    return fresh


def _task_of(config: Config, head: str) -> str | None:
    if isinstance(config, ConvConfig) and head != "classifier":
        return None if head == "likelihood" else head
    return _TASK_OF[head]


def _with_heads(checkpoint: Checkpoint, params: Params, labels: list[str] | None) -> Checkpoint:
    table = find_family(checkpoint.family)
    about_the_head = {"id2label", "label2id", "num_labels", "problem_type"}
    if any(table.heads[head].tied for head in heads_of(table, params)):
        about_the_head.add("tie_word_embeddings")
    fields = {name: value for name, value in checkpoint.extras.fields.items() if name not in about_the_head}
    changed = with_changes(checkpoint, checkpoint.config, params)
    return replace(changed, labels=labels, extras=replace(changed.extras, fields=fields))


def with_changes(
    checkpoint: Checkpoint, config: Config, params: Params, moved: Callable[[str], str] = lambda path: path
) -> Checkpoint:
    """The checkpoint of a changed model; `moved` gives the path that a parameter of the backbone had before."""
    table, extras = find_family(checkpoint.family), checkpoint.extras
    before = {rule.flax_path: rule.hf_name for rule in table.backbone_rules(checkpoint.config)}
    of_backbone = set(before.values())
    dtypes = {name: dtype for name, dtype in extras.dtypes.items() if name not in of_backbone}
    absent, held = [], _leaves(params)
    for rule in table.backbone_rules(config):
        old = before.get(moved(rule.flax_path), "")
        if old in extras.dtypes:
            dtypes[rule.hf_name] = extras.dtypes[old]
        if rule.flax_path not in held and (old in extras.absent or matches(table.optional, rule.hf_name)):
            absent.append(rule.hf_name)
    extras = replace(extras, names={}, tensors={}, tied={}, dtypes=dtypes, absent=tuple(absent))
    return replace(checkpoint, config=config, params=params, extras=extras, manifest=None)
