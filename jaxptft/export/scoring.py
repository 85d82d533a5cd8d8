"""What is exported: one pure function of parameters and inputs, and what its inputs and outputs look like.

It gives the logits that `predict` decides by and, where they are probabilities of something, these. Images come in as
bytes, so that nothing of how they are prepared is left for the caller to know.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxptft.models import Model, Params

Scores = Callable[[Params, Mapping[str, Array]], dict[str, Array]]

TASKS = (
    "classification",
    "multi_label",
    "regression",
    "token_classification",
    "question_answering",
    "multiple_choice",
    "image_classification",
)
"""Those whose answers come from one pass of the model."""
_SOFTMAX = ("classification", "token_classification", "image_classification")
_ABSENT = -1e30  # finite, and a probability of 0 after any softmax


class Input(NamedTuple):
    """An array that the function reads; axes are sizes, or names of sizes that are free."""

    axes: tuple[str | int, ...]
    dtype: str


def text_inputs(task: str, *, token_types: bool) -> dict[str, Input]:
    """Token ids, which of them are no padding, and where the model tells them apart, the texts of a pair."""
    axes = ("batch", "choices", "length") if task == "multiple_choice" else ("batch", "length")
    names = ("input_ids", "attention_mask", *(("token_type_ids",) if token_types else ()))
    return {name: Input(axes, "int32") for name in names}


def image_inputs(size: tuple[int, int], channels: int) -> dict[str, Input]:
    """Images as bytes [batch, height, width, channels]."""
    return {"image": Input(("batch", *size, channels), "uint8")}


def scores(model: Model, task: str, *, view: Callable[[Array], Array] | None = None) -> Scores:
    """(params, inputs) -> {"logits": ...} and, where a class or a choice is told, their "probabilities".

    The logits are the model's own: [batch, outputs], [batch, choices], or [batch, length, outputs]. Probabilities are a
    softmax over the last axis, or for multi_label a sigmoid; choices of padding alone have none. `view` prepares one
    image.
    """

    def function(params: Params, inputs: Mapping[str, Array]) -> dict[str, Array]:
        batch: dict[str, Any] = dict(inputs)
        if view is not None:
            batch["image"] = jax.vmap(view)(batch["image"])
        logits = model.apply(params, batch)
        if task == "multi_label":
            return {"logits": logits, "probabilities": jax.nn.sigmoid(logits)}
        if task == "multiple_choice":
            there = batch["attention_mask"].max(-1) > 0
            return {"logits": logits, "probabilities": jax.nn.softmax(jnp.where(there, logits, _ABSENT), axis=-1)}
        if task in _SOFTMAX:
            return {"logits": logits, "probabilities": jax.nn.softmax(logits, axis=-1)}
        return {"logits": logits}

    return function
