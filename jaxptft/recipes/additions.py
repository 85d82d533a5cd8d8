"""What a fine-tuning minimises beside its task: further objectives, on batches of their own or on the task's."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxptft import data, models, objectives
from jaxptft.recipes.finetune import Auxiliary, Config
from jaxptft.recipes.tasks.splits import batch_options
from jaxptft.recipes.training import Batches


class Build(NamedTuple):
    """Networks over the run's backbone, with the layers that are frozen now."""

    architecture: Any
    frozen_layers: int | None
    start: int | None = None  # the layers below, frozen, whose states batches hold

    def __call__(self, task: str, **options: Any) -> models.Model:
        """`models.build` for a task."""
        return models.build(self.architecture, task, frozen_layers=self.frozen_layers, start=self.start, **options)

    def pooled(self, pooling: str | None = None) -> models.Model:
        """One vector a text; by default the one that a classifier of this family reads."""
        pooling = pooling or models.usual_pooling(self.architecture)
        return models.pooled(self.architecture, pooling, frozen_layers=self.frozen_layers)


class Addition(NamedTuple):
    """One further objective.

    batches: rows of its own, under the name `source` (its own name by default); None where it reads others' alone.
    reads: the names of what it reads, where that is not its own. head: its key in params, which is imported where the
    checkpoint has it, and is left out of the model that is saved.
    """

    name: str
    weight: float
    objective: Callable[[Build], objectives.Objective]
    batches: Batches | None = None
    reads: str | tuple[str, ...] | None = None
    head: str | None = None
    source: str | None = None


def auxiliary(
    config: Config, *, tokenizer: Any, architecture: Any, devices: int, say: Callable[[str], None]
) -> list[Addition]:
    """The pre-training objective on unlabelled text; [] where it has no weight."""
    if not config.auxiliary.weight:
        return []
    options: dict[str, Any] = {"tokenizer": tokenizer, "architecture": architecture, "devices": devices, "say": say}
    return [pretraining(config.auxiliary, config, name="auxiliary", **options)]


def pretraining(
    chosen: Auxiliary,
    config: Config,
    *,
    name: str,
    tokenizer: Any,
    architecture: Any,
    devices: int,
    say: Callable[[str], None],
) -> Addition:
    """Masked tokens of text, or the next ones under a causal model; `name` is what messages call it."""
    store = data.tokenize_corpus(chosen.corpus, tokenizer, documents=chosen.documents, text_column=chosen.text_column)
    causal = isinstance(architecture, models.Gpt2Config)
    cut = data.causal_segments if causal else data.full_segments
    try:
        examples = cut(store, tokenizer, config.max_length)
    except ValueError as error:
        raise ValueError(f"{name} text, {', '.join(chosen.corpus)}: {error}") from None
    data.check_tokens(examples, architecture.vocab_size)
    options = batch_options(config, "train", devices=devices)
    options["batch_size"] = chosen.batch_size or config.batch_size
    buckets = data.fitted_buckets(examples.lengths, config.length_buckets, most=config.max_length)
    batches = data.Batches(examples, buckets=buckets, **options)
    say(f"{name}: {len(examples):,} examples of {store.token_count:,} tokens from {', '.join(chosen.corpus)}")
    if causal:
        return Addition("clm", chosen.weight, lambda build: objectives.next_token(build("causal_lm")), batches)
    table = objectives.TokenTable(*data.token_table(tokenizer, architecture.vocab_size))
    masking = objectives.Masking(**{key: value for key, value in chosen.masking if value is not None})
    rows = batches.rows_per_batch // (devices * config.accumulate)  # of one

    def masked(build: Build) -> objectives.Objective:
        return objectives.masked_lm(build("masked_lm"), tokens=table, masking=masking, group=rows)

    return Addition("mlm", chosen.weight, masked, batches, head="mlm")
