"""DistilBERT's conversion table: BERT's layers under other names, without token types and without a pooler."""

from typing import Any

from jaxptft.convert.bert import BUFFERS, SPELLINGS, WORDS, embedding_rules, hidden, linear, vocabulary
from jaxptft.convert.hf_config import ConfigTable
from jaxptft.convert.rules import Family, Head, Rule, dense, norm
from jaxptft.models import BertConfig


def backbone_rules(config: BertConfig) -> list[Rule]:
    """The encoder."""
    width, mlp_width = config.width, config.mlp_width
    rules = embedding_rules(config)
    for index in range(config.layers):
        theirs, ours = f"transformer.layer.{index}", f"backbone/layer_{index}"
        for short, name in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "output")):
            rules += dense(f"{theirs}.attention.{short}_lin", f"{ours}/attention/{name}", width, width)
        rules += norm(f"{theirs}.sa_layer_norm", f"{ours}/attention_norm", width)
        rules += dense(f"{theirs}.ffn.lin1", f"{ours}/mlp/up", width, mlp_width)
        rules += dense(f"{theirs}.ffn.lin2", f"{ours}/mlp/down", mlp_width, width)
        rules += norm(f"{theirs}.output_layer_norm", f"{ours}/mlp_norm", width)
    return rules


def _to_ours(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "token_dropout": values["dropout"]}


CONFIG = ConfigTable(
    model_type="distilbert",
    config=BertConfig,
    fields={
        "vocab_size": "vocab_size",
        "dim": "width",
        "n_layers": "layers",
        "n_heads": "heads",
        "hidden_dim": "mlp_width",
        "activation": "activation",
        "max_position_embeddings": "positions",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "seq_classif_dropout": "head_dropout",
        "qa_dropout": "answer_dropout",
        "initializer_range": "initializer_range",
        "pad_token_id": "pad_id",
    },
    defaults={"n_layers": 6, "seq_classif_dropout": 0.2, "qa_dropout": 0.1},
    fixed={
        "token_types": 0,
        "pooler": False,
        "classifier_activation": "relu",
        "classifier_input_dropout": False,
    },
    # The position table is in the checkpoint, however it was begun.
    harmless=frozenset({"sinusoidal_pos_embds", "tie_weights_"}),
    to_ours=_to_ours,
)

DISTILBERT = Family(
    name="distilbert",
    config=BertConfig,
    prefix="distilbert.",
    backbone_rules=backbone_rules,
    heads={
        "classifier": Head(hidden("pre_classifier", "classifier", "classifier"), sized=True),
        "token_classifier": Head(linear("classifier", "token_classifier"), sized=True),
        "question_answering": Head(linear("qa_outputs", "question_answering", 2)),
        "multiple_choice": Head(hidden("pre_classifier", "classifier", "multiple_choice", 1)),
        "mlm": Head(vocabulary("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"), tied=True),
    },
    architectures={
        "DistilBertModel": (),
        "DistilBertForMaskedLM": ("mlm",),
        "DistilBertForSequenceClassification": ("classifier",),
        "DistilBertForTokenClassification": ("token_classifier",),
        "DistilBertForQuestionAnswering": ("question_answering",),
        "DistilBertForMultipleChoice": ("multiple_choice",),
    },
    read_config=CONFIG.read,
    write_config=CONFIG.write,
    buffers=BUFFERS,
    other_heads=("vocab_*", "qa_outputs.*", "pre_classifier.*", "classifier.*"),
    spellings=SPELLINGS,
    tied={"vocab_projector.weight": WORDS},
)
