"""RoBERTa's conversion table: BERT's backbone, positions that start above the padding id, and heads of its own.

Classification reads the first token through a hidden layer of its own; only multiple choice reads the pooler.
"""

from typing import Any

from jaxptft.convert.bert import (
    BUFFERS,
    FIELDS,
    POOLER,
    SPELLINGS,
    WORDS,
    backbone_rules,
    hidden,
    linear,
    vocabulary,
)
from jaxptft.convert.hf_config import ConfigTable
from jaxptft.convert.rules import Family, Head
from jaxptft.models import BertConfig


def _to_ours(values: dict[str, Any]) -> dict[str, Any]:
    pad_id = values["pad_id"]
    if pad_id is None:
        raise ValueError("pad_token_id is None, but RoBERTa counts its positions from the padding id")
    # An id of another type is refused by the config.
    offset = pad_id + 1 if isinstance(pad_id, int) else 0
    return {**values, "position_offset": offset, "choice_dropout": values["dropout"]}


CONFIG = ConfigTable(
    model_type="roberta",
    config=BertConfig,
    fields=FIELDS,
    defaults={"vocab_size": 50265, "pad_token_id": 1},
    fixed={"classifier_activation": "tanh", "mlm_activation": "gelu"},
    to_ours=_to_ours,
)

ROBERTA = Family(
    name="roberta",
    config=BertConfig,
    prefix="roberta.",
    backbone_rules=backbone_rules,
    heads={
        "classifier": Head(hidden("classifier.dense", "classifier.out_proj", "classifier"), sized=True),
        "token_classifier": Head(linear("classifier", "token_classifier"), sized=True),
        "question_answering": Head(linear("qa_outputs", "question_answering", 2)),
        "multiple_choice": Head(linear("classifier", "multiple_choice", 1), needs=POOLER),
        "mlm": Head(vocabulary("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"), tied=True),
    },
    architectures={
        "RobertaModel": (),
        "RobertaForMaskedLM": ("mlm",),
        "RobertaForSequenceClassification": ("classifier",),
        "RobertaForTokenClassification": ("token_classifier",),
        "RobertaForQuestionAnswering": ("question_answering",),
        "RobertaForMultipleChoice": ("multiple_choice",),
    },
    read_config=CONFIG.read,
    write_config=CONFIG.write,
    optional=POOLER,
    buffers=BUFFERS,
    other_heads=("lm_head.*", "qa_outputs.*", "classifier.*"),
    spellings=SPELLINGS,
    tied={"lm_head.decoder.weight": WORDS, "lm_head.decoder.bias": "lm_head.bias"},
)
