"""What would train: a model's parameters by layer and by stage, with what it costs and saves. Nothing is trained.

Only config.json is read: shapes are all that is needed. FLOPs are XLA's own count (`cost_analysis`) for the loss and
gradient of one batch, lowered and not yet optimised. Memory is that of gradients (4 bytes a parameter that trains now)
and of Adam's two moments (8 bytes a parameter that ever trains); activations are not in it. The whole backbone counts
as imported, and full fine-tuning is that of the model without adapters.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from pydantic import Field

from jaxptft.recipes.finetune import Lora
from jaxptft.recipes.training_settings import Optimizer, PlanSettings

GRADIENT, MOMENTS = 4, 8  # bytes a parameter


class Config(PlanSettings):
    """Show what would train: jaxptft plan MODEL --layer-decay 0.9 --unfreeze.every 100"""

    model: tyro.conf.Positional[str]
    """a Hugging Face folder, a run folder, a converted folder, or a name on the hub"""
    task: str = "classification"
    """what stands on top: classification, token_classification, question_answering, masked_lm, causal_lm ..."""
    classes: int = Field(default=2, ge=1)
    """of a head that has them"""
    batch_size: int = Field(default=32, ge=1)
    max_length: int = Field(default=128, ge=3)
    """tokens in a row, in the count of FLOPs"""
    steps: int | None = Field(default=None, ge=1)
    """of the run, where the plan speaks of fractions; weighs the stages by their length"""
    optimizer: Optimizer = Optimizer()
    lora: Lora = Lora()
    family: str | None = None
    """the architecture, where config.json names none"""
    out: Path | None = None
    """a file for the same as JSON"""


class Piece(NamedTuple):
    """A layer, a head or another part of the model."""

    name: str
    parameters: int
    trainable: int  # at any time
    rates: tuple[float, ...]  # factors of the learning rate, ascending
    decays: tuple[float, ...]  # of what decays, ascending
    unfrozen: tuple[int, ...]  # the steps from which its parts train


class StageCost(NamedTuple):
    """What one step of a stage takes."""

    begin: int
    unfrozen: list[str]
    trainable: int
    flops: float | None  # None where the backend gives no count
    memory: int  # bytes of gradients and moments


class Outlook(NamedTuple):
    """What a plan comes to; `full` is full fine-tuning."""

    pieces: list[Piece]
    stages: list[StageCost]
    full: StageCost
    trainable: int  # in the end: of the run where its steps are given
    optimizer_bytes: int  # for all that the plan unfreezes at any time
    unreached: list[str]  # what the plan unfreezes after the end of the run
    flops_share: float | None  # of full fine-tuning, over the run where its steps are given, else of the first stage


def run(config: Config, *, say: Callable[[str], None] = print) -> Outlook:
    """Say what would train, and return it; write it to `out` where that is given.

    Raises ValueError or FileNotFoundError in one line for a model that cannot be read, or a plan that makes no sense.
    """
    import jax
    import numpy as np

    from jaxptft import models, optim
    from jaxptft.recipes import keeping, training_plan
    from jaxptft.recipes.training import frozen_depth

    architecture = _architecture(config)
    if config.max_length > architecture.max_length:
        raise ValueError(f"max_length is {config.max_length}, but the model has {architecture.max_length} positions")
    sized = config.task in ("classification", "token_classification")
    build = partial(models.build, architecture, config.task, classes=config.classes if sized else None)
    rows = (config.batch_size, 2, config.max_length) if config.task == "multiple_choice" else None
    ids = jax.ShapeDtypeStruct(rows or (config.batch_size, config.max_length), np.int32)
    batch = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ids)
    own = jax.eval_shape(build().init, jax.random.key(0), batch)
    params, allowed = _with_adapters(config, own, optim.trainable_mask(own, config.freeze))
    table = training_plan.settle(config, params, allowed, multipliers=config.optimizer.multipliers, steps=config.steps)
    ever = training_plan.count_trainable(params, table.ever)

    def cost(begin: int, params: Any, mask: Any, moments: int) -> StageCost:
        trainable = training_plan.count_trainable(params, mask)
        model = build(frozen_layers=frozen_depth(keeping.moving(mask), architecture))
        memory = GRADIENT * trainable + MOMENTS * moments
        unfrozen = training_plan.unfrozen_at(table, begin)
        return StageCost(begin, unfrozen, trainable, _flops(model, params, mask, batch), memory)

    everything = jax.tree.map(lambda _: True, own)
    whole = cost(0, own, everything, training_plan.count_trainable(own, everything))
    masks = {begin: mask for begin, mask in table.stages.items() if config.steps is None or begin < config.steps}
    stages = [cost(begin, params, mask, ever) for begin, mask in masks.items()]
    found = Outlook(
        pieces=_pieces(params, table, config.optimizer.weight_decay),
        stages=stages,
        full=whole._replace(unfrozen=[]),
        trainable=stages[-1].trainable,
        optimizer_bytes=MOMENTS * ever,
        unreached=[
            piece for begin in table.stages if begin not in masks for piece in training_plan.unfrozen_at(table, begin)
        ],
        flops_share=_share(stages, whole, config.steps),
    )
    say(_shown(found, config.steps))
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        content = found._asdict() | {
            "pieces": [piece._asdict() for piece in found.pieces],
            "stages": [stage._asdict() for stage in found.stages],
            "full": found.full._asdict(),
        }
        config.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return found


def _architecture(config: Config) -> Any:
    """The model's config; its weights are not read, but for a converted folder's."""
    from jaxptft import convert
    from jaxptft.convert.families import find_family
    from jaxptft.convert.hf_config import read_json
    from jaxptft.convert.native import DESCRIPTION
    from jaxptft.recipes.model_source import locate

    folder = locate(config.model)
    if (folder / DESCRIPTION).is_file():
        return convert.read_native(folder).config
    fields = read_json(folder / "config.json")
    named = fields.get("model_type") or config.family
    if named is None:
        raise ValueError(f"{folder / 'config.json'} names no model_type: give --family")
    return find_family(named).read_config(fields)


def _with_adapters(config: Config, params: Any, trainable: Any) -> tuple[Any, Any]:
    """Shapes with those of the adapters, and what may train then; both unchanged without a rank."""
    import jax

    from jaxptft import objectives
    from jaxptft.recipes import keeping

    if not config.lora.rank:
        return params, trainable
    imported = {"backbone": params["backbone"]}
    targets, trainable = keeping.lora_targets(config.lora, config, params, trainable, imported)

    def adapters(params: Any) -> Any:
        return objectives.init_lora(jax.random.key(0), params, targets, rank=config.lora.rank)

    shapes = jax.eval_shape(adapters, params)
    return params | {objectives.LORA: shapes}, trainable | {objectives.LORA: jax.tree.map(lambda _: True, shapes)}


def _flops(model: Any, params: Any, mask: Any, batch: Any) -> float | None:
    """Of the model's outputs, summed, and their gradient by what the mask marks."""
    import jax

    from jaxptft import objectives, optim

    learnt, frozen = optim.partition(params, mask)

    def summed(learnt: Any, frozen: Any, batch: Any) -> Any:
        whole = optim.merge(learnt, frozen)
        if objectives.LORA in whole:
            whole = objectives.merge_lora(whole, scale=1.0)
        outputs = model.apply(whole, batch, rng=jax.random.key(0), train=True)
        return sum(leaf.sum() for leaf in jax.tree.leaves(outputs))

    counted = jax.jit(jax.value_and_grad(summed)).lower(learnt, frozen, batch).cost_analysis()
    return None if not counted else counted.get("flops")


def _pieces(params: Any, table: Any, weight_decay: float) -> list[Piece]:
    import jax

    from jaxptft import optim
    from jaxptft.recipes.training_plan import piece_of

    by_piece: dict[str, list[tuple[int, Any]]] = {}
    for path, leaf in zip(optim.paths(params), jax.tree.leaves(params), strict=True):
        by_piece.setdefault(piece_of(path), []).append((leaf.size, table.rules[path]))
    found = []
    for name, parts in by_piece.items():
        rules = [rule for _, rule in parts if rule is not None]
        decays = [weight_decay if rule.decay is None else rule.decay for rule in rules]
        found.append(
            Piece(
                name,
                parameters=sum(size for size, _ in parts),
                trainable=sum(size for size, rule in parts if rule is not None),
                rates=tuple(sorted({rule.rate for rule in rules})),
                decays=tuple(sorted({decay for decay in decays if decay})),
                unfrozen=tuple(sorted({rule.unfreeze for rule in rules})),
            )
        )
    return sorted(found, key=lambda piece: _from_the_input_up(piece.name))


def _from_the_input_up(name: str) -> tuple[int, int, str]:
    group, _, own = name.partition("/")
    if group == "lora":
        rank, layer, rest = _from_the_input_up(own)
        return rank + 4, layer, rest
    if group != "backbone":
        return 3, 0, name
    if own.startswith("layer_"):
        return 1, int(own.removeprefix("layer_")), ""
    return (0 if own == "embeddings" else 2), 0, own


def _share(stages: list[StageCost], whole: StageCost, steps: int | None) -> float | None:
    flops = [stage.flops for stage in stages]
    if not whole.flops or None in flops:
        return None
    if steps is None:
        return (flops[0] or 0.0) / whole.flops
    ends = [*(stage.begin for stage in stages[1:]), steps]
    spent = sum((own or 0.0) * (end - stage.begin) for own, stage, end in zip(flops, stages, ends, strict=True))
    return spent / (whole.flops * steps)


def _shown(outlook: Outlook, steps: int | None) -> str:
    rows: list[tuple[str, ...]] = [("", "parameters", "trainable", "rate", "decay", "from step")]
    for piece in outlook.pieces:
        told = (_span(piece.rates), _span(piece.decays) or "-", _span(piece.unfrozen)) if piece.trainable else ("",) * 3
        trainable = f"{piece.trainable:,}" if piece.trainable else "frozen"
        rows.append((piece.name, f"{piece.parameters:,}", trainable, *told))
    total = sum(piece.parameters for piece in outlook.pieces)
    rows.append(("total", f"{total:,}", f"{sum(piece.trainable for piece in outlook.pieces):,}", "", "", ""))
    lines = [_columns(rows), ""]

    rows = [("stage", "trainable", "GFLOPs a step", "of full", "gradients + moments", "saved")]
    for stage in [*outlook.stages, outlook.full]:
        share = stage.flops / outlook.full.flops if stage.flops and outlook.full.flops else None
        rows.append(
            (
                "full fine-tuning" if stage is outlook.full else f"from step {stage.begin}",
                f"{stage.trainable:,}",
                "-" if stage.flops is None else f"{stage.flops / 1e9:,.3f}",
                "-" if share is None else f"{share:.1%}",
                _bytes(stage.memory),
                _bytes(outlook.full.memory - stage.memory),
            )
        )
    lines += [_columns(rows), ""]
    lines.append(f"trainable: {outlook.trainable:,} of {total:,} parameters ({outlook.trainable / total:.2%})")
    if outlook.unreached:
        lines.append(f"unfrozen after the last of {steps} steps: {', '.join(outlook.unreached)}")
    saved = MOMENTS * outlook.full.trainable - outlook.optimizer_bytes
    lines.append(f"optimizer: {_bytes(outlook.optimizer_bytes)}, {_bytes(saved)} less than for all")
    if outlook.flops_share is not None:
        over = "in the first stage" if steps is None and len(outlook.stages) > 1 else "over the run"
        lines.append(f"gradient FLOPs saved {over}: {1 - outlook.flops_share:.1%} (XLA's count, before optimisation)")
    return "\n".join(lines)


def _span(values: tuple[float, ...]) -> str:
    """One value, or the least and the largest of several."""
    return " to ".join(f"{value:.4g}" for value in dict.fromkeys((values[0], values[-1]))) if values else ""


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _columns(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
