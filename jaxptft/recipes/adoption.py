"""What of a model is imported, what starts afresh, and which of it may train."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax

from jaxptft import convert, models, objectives, optim
from jaxptft.objectives import Params
from jaxptft.recipes import training_plan
from jaxptft.recipes.finetune import Config
from jaxptft.recipes.training_plan import STILL


def draw_missing(
    init: Callable[..., Params], kept: Params, rng: Any, batch: Any, *, compiled: Callable[[Callable], Callable]
) -> Params:
    """What `init(rng, batch)` draws, where `kept` lacks it; in the place of what is kept, its shape and dtype alone.

    So that for an imported model nothing is drawn, compiled or held but its new parts. `compiled` stands for jit.
    """
    shapes = jax.eval_shape(init, rng, batch)
    known = set(optim.paths(kept))
    lacking = [path not in known for path in optim.paths(shapes)]

    def missing(rng: Any, batch: Any) -> list[Any]:
        return [leaf for leaf, lacks in zip(jax.tree.leaves(init(rng, batch)), lacking, strict=True) if lacks]

    drawn = iter(compiled(missing)(rng, batch) if any(lacking) else [])
    leaves, tree = jax.tree.flatten(shapes)
    return tree.unflatten([next(drawn) if lacks else shape for shape, lacks in zip(leaves, lacking, strict=True)])


def adopt(kept: Params, fresh: Params, freeze: str) -> tuple[Params, Any]:
    """Imported parameters completed by fresh ones, and which of them train.

    `freeze="backbone"` keeps what was imported of it: a piece that starts afresh, as a pooler may, trains like a head.
    What was imported and this task does not use (a pooler under masked language modelling) stays, as it is; running
    statistics, which no gradient reaches, are renewed by the objective, and fixed tables stay.
    """
    params = convert.complete(kept, fresh)
    used = set(optim.paths(fresh))
    trainable = optim.trainable_mask(params, freeze)
    leaves, tree = jax.tree.flatten(trainable)
    new = set(training_plan.fresh_paths(params, kept)) if freeze == "backbone" else set()
    known = zip(optim.paths(params), leaves, strict=True)
    return params, jax.tree.unflatten(
        tree, [(learns or path in new) and path in used and not path.endswith(STILL) for path, learns in known]
    )


def fresh_pieces(fresh: Params, kept: Params) -> list[str]:
    """The parts of the backbone, as `backbone/pooler`, that `kept` lacks wholly or in part."""
    known = set(optim.paths(kept))
    lacking = (path for path in optim.paths(fresh) if path.startswith("backbone/") and path not in known)
    return sorted({"/".join(path.split("/")[:2]) for path in lacking})


def refuse_frozen_fresh(fresh: Params, trainable: Any, kept: Params, *, model: str, freeze: str) -> None:
    """ValueError where a parameter that starts afresh would be kept as it starts."""
    known, used = set(optim.paths(kept)), set(optim.paths(fresh))
    for path, learns in zip(optim.paths(trainable), jax.tree.leaves(trainable), strict=True):
        if not learns and path in used and path not in known and not path.endswith(STILL):
            raise ValueError(
                f"{path} is not in {model}, so it starts afresh, and freeze={freeze!r} would keep it there; "
                "let it train"
            )


def check_baseline(config: Config, params: Params, heads: Sequence[str | None]) -> None:
    """ValueError for multipliers of what a baseline from scratch lacks: adapters, and the `heads` of another domain.

    So it is refused now, and not when its turn comes.
    """
    if config.baseline == "none":
        return
    lacking = {objectives.LORA, *heads}
    paths = optim.paths(params)
    own = [path for path in paths if path.partition("/")[0] not in lacking]
    for pattern in config.optimizer.multipliers:
        reached = [path for path in paths if optim.matches(pattern, path)]
        if reached and not set(reached) & set(own):
            raise ValueError(
                f"optimizer.multipliers has {pattern!r}, of which a baseline from scratch has nothing; leave out "
                "the pattern or the baseline"
            )


def with_padding(checkpoint: convert.Checkpoint, tokenizer: Any) -> convert.Checkpoint:
    """A GPT-2 that names no padding token makes a classifier that transformers takes one row at a time; so it is named.

    Others are as they were.
    """
    architecture, pad = checkpoint.config, tokenizer.pad_token_id
    pad = tokenizer.eos_token_id if pad is None else pad
    if isinstance(architecture, models.Gpt2Config) and architecture.pad_id is None and pad is not None:
        return replace(checkpoint, config=replace(architecture, pad_id=pad))
    return checkpoint
