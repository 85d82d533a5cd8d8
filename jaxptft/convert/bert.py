"""BERT's conversion table: `BertModel` and `BertForSequenceClassification` as Hugging Face names them."""

from jaxptft.convert.hf_config import read_bert, write_bert
from jaxptft.convert.rules import IDENTITY, TRANSPOSE, Family, Rule
from jaxptft.models import BertConfig


def backbone_rules(config: BertConfig) -> list[Rule]:
    """The encoder and its pooler."""
    width, mlp_width = config.width, config.mlp_width
    rules = [
        Rule(
            "embeddings.word_embeddings.weight",
            "backbone/embeddings/word/embedding",
            IDENTITY,
            (config.vocab_size, width),
        ),
        Rule(
            "embeddings.position_embeddings.weight",
            "backbone/embeddings/position/embedding",
            IDENTITY,
            (config.positions, width),
        ),
        Rule(
            "embeddings.token_type_embeddings.weight",
            "backbone/embeddings/token_type/embedding",
            IDENTITY,
            (config.token_types, width),
        ),
        *_norm("embeddings.LayerNorm", "backbone/embeddings/norm", width),
    ]
    for index in range(config.layers):
        theirs, ours = f"encoder.layer.{index}", f"backbone/layer_{index}"
        for name in ("query", "key", "value"):
            rules += _dense(f"{theirs}.attention.self.{name}", f"{ours}/attention/{name}", width, width)
        rules += _dense(f"{theirs}.attention.output.dense", f"{ours}/attention/output", width, width)
        rules += _norm(f"{theirs}.attention.output.LayerNorm", f"{ours}/attention_norm", width)
        rules += _dense(f"{theirs}.intermediate.dense", f"{ours}/mlp/up", width, mlp_width)
        rules += _dense(f"{theirs}.output.dense", f"{ours}/mlp/down", mlp_width, width)
        rules += _norm(f"{theirs}.output.LayerNorm", f"{ours}/mlp_norm", width)
    return rules + _dense("pooler.dense", "backbone/pooler", width, width)


def head_rules(config: BertConfig, classes: int) -> list[Rule]:
    """The classification head."""
    return _dense("classifier", "classifier", config.width, classes)


def _dense(theirs: str, ours: str, inputs: int, outputs: int) -> list[Rule]:
    return [
        Rule(f"{theirs}.weight", f"{ours}/kernel", TRANSPOSE, (outputs, inputs)),
        Rule(f"{theirs}.bias", f"{ours}/bias", IDENTITY, (outputs,)),
    ]


def _norm(theirs: str, ours: str, width: int) -> list[Rule]:
    return [
        Rule(f"{theirs}.weight", f"{ours}/scale", IDENTITY, (width,)),
        Rule(f"{theirs}.bias", f"{ours}/bias", IDENTITY, (width,)),
    ]


BERT = Family(
    name="bert",
    config=BertConfig,
    prefix="bert.",
    backbone_rules=backbone_rules,
    head_rules=head_rules,
    buffers=("embeddings.position_ids", "embeddings.token_type_ids"),
    # Pre-training, question answering, and the heads that share the name `classifier` (tokens, multiple choice).
    other_heads=("cls.predictions.*", "cls.seq_relationship.*", "qa_outputs.*", "classifier.*"),
    spellings=(("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")),
    tied={
        "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    architectures={None: "BertModel", "classification": "BertForSequenceClassification"},
    read_config=read_bert,
    write_config=write_bert,
)
