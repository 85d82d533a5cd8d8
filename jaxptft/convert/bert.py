"""BERT's conversion table, and the pieces of it that its kin have too."""

from collections.abc import Callable

from jaxptft.convert.hf_config import ConfigTable
from jaxptft.convert.rules import IDENTITY, Family, Head, Rule, dense, norm, table
from jaxptft.models import BertConfig

FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
    "hidden_act": "activation",
    "max_position_embeddings": "positions",
    "type_vocab_size": "token_types",
    "layer_norm_eps": "norm_epsilon",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "classifier_dropout": "head_dropout",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_id",
}
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
SPELLINGS = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
WORDS = "embeddings.word_embeddings.weight"
POOLER = ("pooler.*",)
_WORDS_HEAD = "cls.predictions.transform"


def embedding_rules(config: BertConfig) -> list[Rule]:
    """The tables that are there, and their norm."""
    width = config.embedding_width or config.width
    tables = {"word": config.vocab_size, "position": config.positions, "token_type": config.token_types}
    rules = [
        rule
        for name, rows in tables.items()
        if rows
        for rule in table(f"embeddings.{name}_embeddings", f"backbone/embeddings/{name}", rows, width)
    ]
    return rules + norm("embeddings.LayerNorm", "backbone/embeddings/norm", width)


def layer_rules(config: BertConfig) -> list[Rule]:
    """The layers of the encoder."""
    width, mlp_width = config.width, config.mlp_width
    rules = []
    for index in range(config.layers):
        theirs, ours = f"encoder.layer.{index}", f"backbone/layer_{index}"
        for name in ("query", "key", "value"):
            rules += dense(f"{theirs}.attention.self.{name}", f"{ours}/attention/{name}", width, width)
        rules += dense(f"{theirs}.attention.output.dense", f"{ours}/attention/output", width, width)
        rules += norm(f"{theirs}.attention.output.LayerNorm", f"{ours}/attention_norm", width)
        rules += dense(f"{theirs}.intermediate.dense", f"{ours}/mlp/up", width, mlp_width)
        rules += dense(f"{theirs}.output.dense", f"{ours}/mlp/down", mlp_width, width)
        rules += norm(f"{theirs}.output.LayerNorm", f"{ours}/mlp_norm", width)
    return rules


def backbone_rules(config: BertConfig) -> list[Rule]:
    """The encoder and its pooler."""
    pooler = dense("pooler.dense", "backbone/pooler", config.width, config.width)
    return embedding_rules(config) + layer_rules(config) + pooler


def linear(theirs: str, ours: str, features: int | None = None) -> Callable[[BertConfig, int], list[Rule]]:
    """The rules of a head of one linear layer, of `features` outputs or one a class."""
    return lambda config, classes: dense(theirs, ours, config.width, classes if features is None else features)


def hidden(inner: str, outer: str, ours: str, features: int | None = None) -> Callable[[BertConfig, int], list[Rule]]:
    """The rules of a head with a hidden layer as wide as the encoder."""
    last = linear(outer, f"{ours}/out", features)
    return lambda config, classes: dense(inner, f"{ours}/dense", config.width, config.width) + last(config, classes)


def vocabulary(inner: str, normed: str, bias: str) -> Callable[[BertConfig, int], list[Rule]]:
    """The rules of the head that predicts words, but for its output, which is the word table."""

    def rules(config: BertConfig, classes: int) -> list[Rule]:
        width = config.embedding_width or config.width
        return [
            *dense(inner, "mlm/dense", config.width, width),
            *norm(normed, "mlm/norm", width),
            Rule(bias, "mlm/bias", IDENTITY, (config.vocab_size,)),
        ]

    return rules


CONFIG = ConfigTable(model_type="bert", config=BertConfig, fields=FIELDS)

BERT = Family(
    name="bert",
    config=BertConfig,
    prefix="bert.",
    backbone_rules=backbone_rules,
    heads={
        "classifier": Head(linear("classifier", "classifier"), sized=True, needs=POOLER),
        "token_classifier": Head(linear("classifier", "token_classifier"), sized=True),
        "question_answering": Head(linear("qa_outputs", "question_answering", 2)),
        "multiple_choice": Head(linear("classifier", "multiple_choice", 1), needs=POOLER),
        "mlm": Head(
            vocabulary(
                "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"
            ),
            tied=True,
        ),
        "nsp": Head(linear("cls.seq_relationship", "nsp", 2), needs=POOLER),
    },
    architectures={
        "BertModel": (),
        "BertForPreTraining": ("mlm", "nsp"),
        "BertForMaskedLM": ("mlm",),
        "BertForNextSentencePrediction": ("nsp",),
        "BertForSequenceClassification": ("classifier",),
        "BertForTokenClassification": ("token_classifier",),
        "BertForQuestionAnswering": ("question_answering",),
        "BertForMultipleChoice": ("multiple_choice",),
    },
    read_config=CONFIG.read,
    write_config=CONFIG.write,
    optional=POOLER,
    buffers=BUFFERS,
    other_heads=("cls.predictions.*", "cls.seq_relationship.*", "qa_outputs.*", "classifier.*"),
    spellings=SPELLINGS,
    tied={
        "cls.predictions.decoder.weight": WORDS,
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
)
