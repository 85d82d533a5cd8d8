"""Continue a prompt with a causal language model."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import tyro
from pydantic import Field

from jaxptft.recipes.settings import Settings


class Config(Settings):
    """Continue a prompt: jaxptft generate MODEL "prompt" """

    model: tyro.conf.Positional[str]
    """a run folder, a Hugging Face folder, a converted folder, or a name on the hub"""
    prompt: tyro.conf.Positional[str] = ""
    """what the text starts with; empty for a text from nothing"""
    max_new_tokens: int = Field(default=50, ge=1)
    """the text may end before, with the model's end-of-text token"""
    temperature: float = Field(default=1.0, ge=0)
    """below 1 the likely gets likelier; 0 takes the likeliest token each time"""
    top_k: int | None = Field(default=None, ge=1)
    """draw from this many likeliest tokens"""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """draw from the likeliest tokens that together have this probability"""
    seed: int = 0
    count: int = Field(default=1, ge=1)
    """how many texts to draw"""
    allow_bin: bool = False
    family: str | None = None


class Text(NamedTuple):
    """A prompt and its continuation. tokens are the new ids; ended says whether the model itself put an end to it."""

    text: str
    tokens: list[int]
    ended: bool


def run(config: Config, *, say: Callable[[str], None] = print) -> list[Text]:
    """Say `count` texts that begin with the prompt, and return them.

    Raises ValueError for a model that is no causal language model, a prompt that fills its positions, an empty one
    where the tokenizer has no token to begin with, and several texts at temperature 0.
    """
    if config.count > 1 and config.temperature == 0:
        raise ValueError(
            f"--count {config.count} with --temperature 0 is {config.count} times the same text; raise --temperature"
        )
    import jax
    import numpy as np

    from jaxptft import data, models
    from jaxptft.recipes.model_source import open_model
    from jaxptft.recipes.runtime import keep_compiled_programs

    keep_compiled_programs()
    folder, checkpoint = open_model(config.model, family=config.family, allow_bin=config.allow_bin)
    _check_language_model(config.model, checkpoint)
    tokenizer = data.load_tokenizer(folder)
    data.check_vocabulary(tokenizer, checkpoint.config.vocab_size)
    prompt = _encode(config.prompt, tokenizer)
    positions = checkpoint.config.positions
    if len(prompt) >= positions:
        raise ValueError(
            f"the prompt is {len(prompt)} tokens long and the model has {positions} positions; shorten the prompt"
        )
    new = min(config.max_new_tokens, positions - len(prompt))
    # On the left, in steps, so that prompts of many lengths share a program.
    padding = min(-len(prompt) % 16, positions - len(prompt) - new)
    ids = np.tile(np.array([0] * padding + prompt, np.int32), (config.count, 1))
    mask = np.tile(np.arange(padding + len(prompt)) >= padding, (config.count, 1))
    ends = _ends(tokenizer, checkpoint)
    sampling = models.Sampling(config.temperature, config.top_k, config.top_p)
    write = partial(models.generate, models.decoder(checkpoint.config), new=new, sampling=sampling, stop=ends)
    params = {"backbone": checkpoint.params["backbone"]}
    found = jax.device_get(jax.jit(write)(params, ids, mask, rng=jax.random.key(config.seed)))
    texts = []
    for number, (row, length) in enumerate(zip(found.tokens.tolist(), found.lengths.tolist(), strict=True), start=1):
        tokens = row[:length]
        text = tokenizer.decode([*prompt, *tokens], skip_special_tokens=True)
        texts.append(Text(text, tokens, tokens[-1] in ends))
        say(text if config.count == 1 else f"[{number}] {text}")
    if new < config.max_new_tokens and not all(text.ended for text in texts):
        say(f"(cut at {new} new tokens: the model has {positions} positions)")
    return texts


def _check_language_model(model: str, checkpoint: Any) -> None:
    import jax
    import numpy as np

    from jaxptft import models

    if not isinstance(checkpoint.config, models.Gpt2Config):
        raise ValueError(
            f"{model} is a {checkpoint.family}, which is no causal language model; choose a GPT-2, or see "
            "jaxptft fill-mask"
        )
    heads = sorted(checkpoint.params.keys() - {"backbone", "multiple_choice"})
    if heads:
        raise ValueError(
            f"{model} was trained for another task, its head is {heads[0]}; choose a causal language model"
        )
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(checkpoint.params)):
        raise FloatingPointError(f"{model} holds NaN or infinity; its weights are broken")


def _encode(prompt: str, tokenizer: Any) -> list[int]:
    # Without special tokens: one that ends a text would be taken for the prompt's end.
    ids = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    if ids:
        return ids
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise ValueError("the prompt is empty, and the tokenizer has no bos_token or eos_token to begin with; give one")
    return [first]


def _ends(tokenizer: Any, checkpoint: Any) -> tuple[int, ...]:
    """The ids that end a text: the tokenizer's and the config's."""
    named = checkpoint.extras.fields.get("eos_token_id")
    ids = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    return tuple(sorted(number for number in ids if type(number) is int and 0 <= number < checkpoint.config.vocab_size))
