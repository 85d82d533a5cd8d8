"""ALBERT's conversion table: factorised embeddings, and layers that share their parameters in groups."""

from typing import Any

from jaxptft.convert.bert import BUFFERS, FIELDS, POOLER, SPELLINGS, WORDS, embedding_rules, linear, vocabulary
from jaxptft.convert.hf_config import ConfigTable
from jaxptft.convert.rules import Family, Head, Rule, dense, norm
from jaxptft.models import BertConfig


def backbone_rules(config: BertConfig) -> list[Rule]:
    """The encoder and its pooler."""
    width, mlp_width, embedded = config.width, config.mlp_width, config.embedding_width or config.width
    rules = embedding_rules(config)
    rules += dense("encoder.embedding_hidden_mapping_in", "backbone/embeddings/projection", embedded, width)
    for index in range(config.layer_groups or config.layers):
        theirs, ours = f"encoder.albert_layer_groups.{index}.albert_layers.0", f"backbone/layer_{index}"
        for name in ("query", "key", "value"):
            rules += dense(f"{theirs}.attention.{name}", f"{ours}/attention/{name}", width, width)
        rules += dense(f"{theirs}.attention.dense", f"{ours}/attention/output", width, width)
        rules += norm(f"{theirs}.attention.LayerNorm", f"{ours}/attention_norm", width)
        rules += dense(f"{theirs}.ffn", f"{ours}/mlp/up", width, mlp_width)
        rules += dense(f"{theirs}.ffn_output", f"{ours}/mlp/down", mlp_width, width)
        rules += norm(f"{theirs}.full_layer_layer_norm", f"{ours}/mlp_norm", width)
    return rules + dense("pooler", "backbone/pooler", width, width)


def _to_ours(values: dict[str, Any]) -> dict[str, Any]:
    for theirs, ours in (("embedding_size", "embedding_width"), ("num_hidden_groups", "layer_groups")):
        if values[ours] is None:
            raise ValueError(f"{theirs} must be an integer of at least 1, got None")
    head_dropout = values["dropout"] if values["head_dropout"] is None else values["head_dropout"]
    return {**values, "sentence_dropout": head_dropout}


CONFIG = ConfigTable(
    model_type="albert",
    config=BertConfig,
    fields={
        **{theirs: ours for theirs, ours in FIELDS.items() if theirs != "classifier_dropout"},
        "classifier_dropout_prob": "head_dropout",
        "embedding_size": "embedding_width",
        "num_hidden_groups": "layer_groups",
    },
    defaults={
        "vocab_size": 30000,
        "embedding_size": 128,
        "hidden_size": 4096,
        "num_attention_heads": 64,
        "intermediate_size": 16384,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout_prob": 0.1,
        "num_hidden_groups": 1,
    },
    fixed={"sentence_head": "sop"},
    required={
        "inner_group_num": (1,),
        # What the first release's files say, and nothing reads.
        "down_scale_factor": (1,),
        "gap_size": (0,),
        "net_structure_type": (0,),
        "num_memory_blocks": (0,),
        "layers_to_keep": ([],),
    },
    to_ours=_to_ours,
)

ALBERT = Family(
    name="albert",
    config=BertConfig,
    prefix="albert.",
    backbone_rules=backbone_rules,
    heads={
        "classifier": Head(linear("classifier", "classifier"), sized=True, needs=POOLER),
        "token_classifier": Head(linear("classifier", "token_classifier"), sized=True),
        "question_answering": Head(linear("qa_outputs", "question_answering", 2)),
        "multiple_choice": Head(linear("classifier", "multiple_choice", 1), needs=POOLER),
        "mlm": Head(vocabulary("predictions.dense", "predictions.LayerNorm", "predictions.bias"), tied=True),
        "sop": Head(linear("sop_classifier.classifier", "sop", 2), needs=POOLER),
    },
    architectures={
        "AlbertModel": (),
        "AlbertForPreTraining": ("mlm", "sop"),
        "AlbertForMaskedLM": ("mlm",),
        "AlbertForSequenceClassification": ("classifier",),
        "AlbertForTokenClassification": ("token_classifier",),
        "AlbertForQuestionAnswering": ("question_answering",),
        "AlbertForMultipleChoice": ("multiple_choice",),
    },
    read_config=CONFIG.read,
    write_config=CONFIG.write,
    optional=POOLER,
    buffers=BUFFERS,
    other_heads=("predictions.*", "sop_classifier.*", "qa_outputs.*", "classifier.*"),
    spellings=SPELLINGS,
    tied={"predictions.decoder.weight": WORDS, "predictions.decoder.bias": "predictions.bias"},
)
