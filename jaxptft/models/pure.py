"""A Linen module as pure functions, and the checks that every architecture's `build` makes first."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Key

from jaxptft.models.batch_norm import STATISTICS, running_statistics
from jaxptft.models.heads import flatten_choices
from jaxptft.models.model import Model, Params
from jaxptft.models.outputs import gather

Batch = Mapping[str, Any]


def as_model(module: nn.Module, *, dropouts: tuple[float, ...], outputs: Sequence[str] = ()) -> Model:
    """The pair of functions around a module called with (batch, train=); `dropouts` are the rates that need a key.

    With `outputs`, `apply` returns {"logits": what the module returns, and what it left behind of each kind}.
    """

    def init(rng: Key[Array, ""], batch: Batch) -> Params:
        return module.init({"params": rng}, batch)["params"]  # type: ignore[return-value]

    def apply(params: Params, batch: Batch, *, rng: Key[Array, ""] | None = None, train: bool = False) -> Any:
        if train and rng is None and any(rate > 0 for rate in dropouts):
            raise ValueError("train=True with dropout needs rng: pass a key, or a config whose dropouts are 0")
        rngs = None if rng is None else {"dropout": rng}
        if not outputs:
            return module.apply({"params": params}, batch, train=train, rngs=rngs)
        result, left = module.apply({"params": params}, batch, train=train, rngs=rngs, mutable=list(outputs))
        return {"logits": result, **gather(left, outputs)}

    return Model(init, apply)


def as_model_with_statistics(module: nn.Module, *, dropouts: tuple[float, ...] = ()) -> Model:
    """The functions around a module with batch norms, called with (batch, train=, axis_name=); see `Model`.

    Given `statistics` may hold those of other models too, which come back as they are.
    """

    def init(rng: Key[Array, ""], batch: Batch) -> Params:
        return module.init({"params": rng}, batch)["params"]  # type: ignore[return-value]

    def apply(
        params: Params,
        batch: Batch,
        *,
        rng: Key[Array, ""] | None = None,
        train: bool = False,
        statistics: Params | None = None,
        axis_name: str | None = None,
    ) -> Any:
        if train and rng is None and any(rate > 0 for rate in dropouts):
            raise ValueError("train=True with dropout needs rng: pass a key, or a config whose dropouts are 0")
        options: dict[str, Any] = {"rngs": None if rng is None else {"dropout": rng}, "train": train}
        options["axis_name"] = axis_name
        if statistics is None:
            return module.apply({"params": params}, batch, **options)
        variables = {"params": params, STATISTICS: statistics}
        if not train:
            return module.apply(variables, batch, **options), statistics
        result, renewed = module.apply(variables, batch, **options, mutable=[STATISTICS])
        return result, renewed[STATISTICS]

    return Model(init, apply, running_statistics)


def as_features(backbone: nn.Module, *, stop: int) -> Callable[[Params, Batch], Array]:
    """(params, batch) -> what the backbone gives at depth `stop`, dropout off; an axis of choices is kept."""

    def apply(params: Params, batch: Batch) -> Array:
        leading = batch["input_ids"].shape[:-1]
        flat = flatten_choices(batch) if len(leading) == 2 else batch
        hidden: Any = backbone.apply({"params": params["backbone"]}, flat, train=False, stop=stop)
        return hidden.reshape(*leading, *hidden.shape[1:])

    return apply


def check_classes(task: str, classes: int | None, *, sized: tuple[str, ...]) -> None:
    """ValueError where a task among `sized` has no proper number of classes, or another one has any."""
    if task not in sized:
        if classes is not None:
            raise ValueError(f"task {task!r} has no classes to choose, got classes={classes!r}: leave it out")
    elif not isinstance(classes, int) or isinstance(classes, bool) or classes < 1:
        raise ValueError(f"classes must be an integer of at least 1, got {classes!r}")


def check_depth(name: str, depth: int | None, *, layers: int, most: int) -> None:
    """ValueError where a depth is given and is not from 0 to `most`."""
    if depth is not None and (not isinstance(depth, int) or isinstance(depth, bool) or not 0 <= depth <= most):
        raise ValueError(f"{name} must be an integer from 0 to {most} for {layers} layers, got {depth!r}")
