"""ELECTRA's conversion table: BERT's layers without a pooler, embeddings factorised where their width differs.

`ElectraForPreTraining` is the discriminator, `ElectraForMaskedLM` the generator.
"""

from typing import Any

from jaxptft.convert.bert import (
    BUFFERS,
    FIELDS,
    SPELLINGS,
    WORDS,
    embedding_rules,
    hidden,
    layer_rules,
    linear,
    vocabulary,
)
from jaxptft.convert.hf_config import ConfigTable
from jaxptft.convert.rules import Family, Head, Rule, dense
from jaxptft.models import BertConfig


def backbone_rules(config: BertConfig) -> list[Rule]:
    """The encoder."""
    rules = embedding_rules(config)
    if config.embedding_width is not None:
        rules += dense("embeddings_project", "backbone/embeddings/projection", config.embedding_width, config.width)
    return rules + layer_rules(config)


def _to_ours(values: dict[str, Any]) -> dict[str, Any]:
    if values["embedding_width"] is None:
        raise ValueError("embedding_size must be an integer of at least 1, got None")
    factorised = values["embedding_width"] != values["width"]
    return {**values, "embedding_width": values["embedding_width"] if factorised else None}


def _to_theirs(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "embedding_width": values["embedding_width"] or values["width"]}


CONFIG = ConfigTable(
    model_type="electra",
    config=BertConfig,
    fields={**FIELDS, "embedding_size": "embedding_width", "summary_last_dropout": "choice_dropout"},
    defaults={
        "embedding_size": 128,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "summary_last_dropout": 0.1,
    },
    fixed={"pooler": False, "classifier_activation": "gelu", "mlm_activation": "gelu"},
    required={
        "summary_type": ("first",),
        "summary_use_proj": (True,),
        "summary_activation": ("gelu",),
        "summary_proj_to_labels": (False, None),
        "summary_first_dropout": (0, None),
    },
    to_ours=_to_ours,
    to_theirs=_to_theirs,
)

ELECTRA = Family(
    name="electra",
    config=BertConfig,
    prefix="electra.",
    backbone_rules=backbone_rules,
    heads={
        "classifier": Head(hidden("classifier.dense", "classifier.out_proj", "classifier"), sized=True),
        "token_classifier": Head(linear("classifier", "token_classifier"), sized=True),
        "question_answering": Head(linear("qa_outputs", "question_answering", 2)),
        "multiple_choice": Head(hidden("sequence_summary.summary", "classifier", "multiple_choice", 1)),
        "mlm": Head(
            vocabulary("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"),
            tied=True,
        ),
        "discriminator": Head(
            hidden("discriminator_predictions.dense", "discriminator_predictions.dense_prediction", "discriminator", 1)
        ),
    },
    architectures={
        "ElectraModel": (),
        "ElectraForPreTraining": ("discriminator",),
        "ElectraForMaskedLM": ("mlm",),
        "ElectraForSequenceClassification": ("classifier",),
        "ElectraForTokenClassification": ("token_classifier",),
        "ElectraForQuestionAnswering": ("question_answering",),
        "ElectraForMultipleChoice": ("multiple_choice",),
    },
    read_config=CONFIG.read,
    write_config=CONFIG.write,
    buffers=BUFFERS,
    other_heads=(
        "discriminator_predictions.*",
        "generator_predictions.*",
        "generator_lm_head.*",
        "qa_outputs.*",
        "sequence_summary.*",
        "classifier.*",
    ),
    spellings=SPELLINGS,
    tied={"generator_lm_head.weight": WORDS},
)
