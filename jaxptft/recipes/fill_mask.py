"""Guess the words that a text leaves out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from pydantic import Field

from jaxptft.recipes.settings import Settings


class Config(Settings):
    """Guess masked words: jaxptft fill-mask MODEL "The capital of France is [MASK]." """

    model: tyro.conf.Positional[str]
    """a run folder, a Hugging Face folder, a converted folder, or a name on the hub"""
    text: tyro.conf.Positional[str]
    """with a mask token, as the model's tokenizer spells it ([MASK], <mask>), for each word to guess"""
    top_k: int = Field(default=5, ge=1)
    """guesses to show for each mask"""
    allow_bin: bool = False
    family: str | None = None


class Guess(NamedTuple):
    """A token in place of a mask, and its probability."""

    token: str
    probability: float


def run(config: Config, *, say: Callable[[str], None] = print) -> list[list[Guess]]:
    """Say the likeliest tokens in place of each mask, and return them, likeliest first.

    Raises ValueError for a model or a tokenizer without masks, a text without one, and a text that is too long.
    """
    import jax
    import numpy as np
    from scipy.special import softmax

    from jaxptft import data, models
    from jaxptft.recipes.model_source import open_model
    from jaxptft.recipes.runtime import keep_compiled_programs

    keep_compiled_programs()
    folder, checkpoint = open_model(config.model, family=config.family, allow_bin=config.allow_bin)
    if "mlm" not in checkpoint.params:
        generator = Path(config.model) / "generator"
        advice = f"ask {generator}" if generator.is_dir() else "pre-train it first (jaxptft pretrain --objective mlm)"
        raise ValueError(f"{config.model} has no head that predicts masked words; {advice}")
    tokenizer = data.load_tokenizer(folder)
    data.check_vocabulary(tokenizer, checkpoint.config.vocab_size)
    encoded = _encode(config, tokenizer, checkpoint.config.max_length)
    places = np.flatnonzero(encoded["input_ids"][0] == tokenizer.mask_token_id)
    batch = {**encoded, "positions": places[None].astype(np.int32)}
    logits = jax.jit(models.build(checkpoint.config, "masked_lm").apply)(checkpoint.params, batch)
    probabilities = softmax(np.asarray(logits[0], np.float64), axis=-1)
    if not np.isfinite(probabilities).all():
        raise FloatingPointError(f"{config.model} gives NaN or infinity; its weights are broken")
    guesses = []
    for number, values in enumerate(probabilities, start=1):
        likeliest = np.argsort(-values[: len(tokenizer)], kind="stable")[: config.top_k].tolist()
        guesses.append([Guess(_spell(tokenizer, token), float(values[token])) for token in likeliest])
        if len(probabilities) > 1:
            say(f"{tokenizer.mask_token} {number}")
        for guess in guesses[-1]:
            say(f"{guess.probability:.4f}  {guess.token}")
    return guesses


def _encode(config: Config, tokenizer: Any, longest: int) -> dict[str, Any]:
    """The text as a batch of one row."""
    import numpy as np

    if tokenizer.mask_token_id is None:
        raise ValueError(f"the tokenizer of {config.model} has no mask token; choose a model trained with one")
    ids = tokenizer(config.text)["input_ids"]
    if tokenizer.mask_token_id not in ids:
        raise ValueError(
            f"there is no {tokenizer.mask_token} in the text; write {tokenizer.mask_token} in place of a word to guess"
        )
    if len(ids) > longest:
        raise ValueError(f"the text is {len(ids)} tokens long and the model takes {longest}; shorten it")
    row = np.array([ids], np.int32)
    return {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}


def _spell(tokenizer: Any, token: int) -> str:
    """As it would stand in a text; the token itself where that shows nothing."""
    return tokenizer.decode([token]).strip() or str(tokenizer.convert_ids_to_tokens(token))
