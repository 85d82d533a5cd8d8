"""What a fine-tuning minimises beside its task: further objectives, on batches of their own or on the task's."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxptft import data, models, objectives
from jaxptft.recipes.finetune import Config
from jaxptft.recipes.tasks.splits import batch_options
from jaxptft.recipes.training import Batches

Build = Callable[..., models.Model]  # (task, classes=...) -> the network, with the plan's frozen layers


class Addition(NamedTuple):
    """One further objective.

    batches: its own source of rows, None where it `reads` those of others. head: its key in params, which is imported
    where the checkpoint has it, and is left out of the model that is saved.
    """

    name: str
    weight: float
    objective: Callable[[Build], objectives.Objective]
    batches: Batches | None = None
    reads: str | tuple[str, ...] | None = None
    head: str | None = None


def auxiliary(
    config: Config, *, tokenizer: Any, architecture: Any, devices: int, say: Callable[[str], None]
) -> list[Addition]:
    """The pre-training objective on unlabelled text; [] where it has no weight."""
    chosen = config.auxiliary
    if not chosen.weight:
        return []
    store = data.tokenize_corpus(chosen.corpus, tokenizer, documents=chosen.documents, text_column=chosen.text_column)
    causal = isinstance(architecture, models.Gpt2Config)
    cut = data.causal_segments if causal else data.full_segments
    try:
        examples = cut(store, tokenizer, config.max_length)
    except ValueError as error:
        raise ValueError(f"auxiliary text, {', '.join(chosen.corpus)}: {error}") from None
    data.check_tokens(examples, architecture.vocab_size)
    options = batch_options(config, "train", devices=devices)
    options["batch_size"] = chosen.batch_size or config.batch_size
    buckets = data.fitted_buckets(examples.lengths, config.length_buckets, most=config.max_length)
    batches = data.Batches(examples, buckets=buckets, **options)
    say(f"auxiliary: {len(examples):,} examples of {store.token_count:,} tokens from {', '.join(chosen.corpus)}")
    if causal:
        return [Addition("clm", chosen.weight, lambda build: objectives.next_token(build("causal_lm")), batches)]
    table = objectives.TokenTable(*data.token_table(tokenizer, architecture.vocab_size))
    masking = objectives.Masking(**{key: value for key, value in chosen.masking if value is not None})

    def masked(build: Build) -> objectives.Objective:
        return objectives.masked_lm(build("masked_lm"), tokens=table, masking=masking)

    return [Addition("mlm", chosen.weight, masked, batches, head="mlm")]
