"""ModernBERT's conversion table and its config.json, in today's fields and in those it was published with.

All its heads go by the same names (`head`, then `classifier`, or `decoder` for masked words): only the architecture
tells them apart.
"""

from collections.abc import Callable, Mapping, Sequence
from reprlib import repr as shown
from typing import Any

from jaxptft.convert.hf_config import ConfigTable
from jaxptft.convert.rules import IDENTITY, Family, Head, Rule, dense, norm, table
from jaxptft.models.modernbert_config import ModernBertConfig

_KINDS = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}
_ROTARY = ("rope_parameters", *_KINDS.values())
_LAYERS = ("layer_types", "global_attn_every_n_layers")


def _to_ours(values: dict[str, Any]) -> dict[str, Any]:
    kinds, layers = values["global_layers"], values["layers"]
    if kinds is None:
        return values
    if not isinstance(kinds, list) or len(kinds) != layers or set(kinds) - _KINDS.keys():
        raise ValueError(
            f"layer_types must name each of {layers} layers one of {', '.join(_KINDS)}, got {shown(kinds)}"
        )
    return {**values, "global_layers": tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")}


def _to_theirs(values: dict[str, Any]) -> dict[str, Any]:
    found = values["global_layers"]
    found = range(0, values["layers"], 3) if found is None else found
    kinds = ["full_attention" if layer in found else "sliding_attention" for layer in range(values["layers"])]
    return {**values, "global_layers": kinds}


# The rotary bases have the names they were published with: nested ones are brought to these first.
_CONFIG = ConfigTable(
    model_type="modernbert",
    config=ModernBertConfig,
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "intermediate_size": "mlp_width",
        "hidden_activation": "activation",
        "max_position_embeddings": "positions",
        "layer_types": "global_layers",
        "global_rope_theta": "global_theta",
        "local_rope_theta": "local_theta",
        "local_attention": "local_attention",
        "norm_eps": "norm_epsilon",
        "norm_bias": "norm_bias",
        "attention_bias": "attention_bias",
        "mlp_bias": "mlp_bias",
        "decoder_bias": "decoder_bias",
        "classifier_bias": "classifier_bias",
        "classifier_activation": "classifier_activation",
        "classifier_pooling": "pooling",
        "embedding_dropout": "embedding_dropout",
        "attention_dropout": "attention_dropout",
        "mlp_dropout": "mlp_dropout",
        "classifier_dropout": "head_dropout",
        "initializer_range": "initializer_range",
        "initializer_cutoff_factor": "initializer_cutoff",
        "pad_token_id": "pad_id",
    },
    required={"rope_scaling": (None, {"rope_type": "default"}, {"type": "default"})},
    harmless=frozenset(
        # `norm_eps` is what is read; the rest steers how others compute the same, or what they do with labels.
        (
            "layer_norm_eps",
            "deterministic_flash_attn",
            "reference_compile",
            "repad_logits_with_grad",
            "sparse_prediction",
            "sparse_pred_ignore_index",
        )
    ),
    to_ours=_to_ours,
    to_theirs=_to_theirs,
)


def read_modernbert(fields: Mapping[str, Any], *, allow_unused: Sequence[str] = ()) -> ModernBertConfig:
    """ModernBertConfig from the fields of a config.json; absent fields take Hugging Face's defaults, which are ours.

    Where newer and older fields speak of the same, the newer ones count, as in `transformers`. Raises ValueError as
    `ConfigTable.read` does, and for rotations other than the default ones.
    """
    return _CONFIG.read(_flat(fields), allow_unused=allow_unused)


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in fields.items() if name not in ("rope_parameters", *_LAYERS)}
    nested = fields.get("rope_parameters")
    nested = {} if nested is None else nested
    if not isinstance(nested, Mapping) or nested.keys() - _KINDS.keys():
        raise ValueError(f"config.json: rope_parameters must map {' and '.join(_KINDS)} to values, got {shown(nested)}")
    for kind, name in _KINDS.items():
        values = nested.get(kind) or {}
        if not isinstance(values, Mapping) or any(
            key != "rope_theta" and (key not in ("rope_type", "type") or value != "default")
            for key, value in values.items()
        ):
            raise ValueError(
                f"config.json: rope_parameters.{kind} is {shown(values)}, but only default rotations are supported: "
                "rope_type 'default' and a rope_theta"
            )
        if "rope_theta" in values:
            flat[name] = values["rope_theta"]
    every = fields.get("global_attn_every_n_layers", 3)
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ValueError(
            f"config.json: global_attn_every_n_layers must be an integer of at least 1, got {shown(every)}"
        )
    layers = fields.get("num_hidden_layers", ModernBertConfig.layers)
    if fields.get("layer_types") is not None:
        flat["layer_types"] = fields["layer_types"]
    elif every != 3 and isinstance(layers, int):
        flat["layer_types"] = ["sliding_attention" if layer % every else "full_attention" for layer in range(layers)]
    return flat


def write_modernbert(config: ModernBertConfig, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json for `config`: the translated ones renewed, the others as `fields` has them.

    Rotary bases and kinds of layers stay in the fields that `fields` states them in, and else are written in today's.
    """
    translated = _CONFIG.write(config, _flat(fields))
    written = {name: value for name, value in translated.items() if name not in (*_ROTARY, *_LAYERS)}
    stated = {name: fields[name] for name in (*_ROTARY, *_LAYERS) if name in fields}
    if stated and fields.get("num_hidden_layers", ModernBertConfig.layers) == config.layers:
        one = read_modernbert({"num_hidden_layers": config.layers, **stated})
        if all(
            getattr(one, name) == getattr(config, name) for name in ("global_layers", "global_theta", "local_theta")
        ):
            return {**written, **stated}
    written["layer_types"] = translated["layer_types"]
    written["rope_parameters"] = {
        kind: {"rope_type": "default", "rope_theta": translated[name]} for kind, name in _KINDS.items()
    }
    return written


def backbone_rules(config: ModernBertConfig) -> list[Rule]:
    """The encoder; the first layer's attention has no norm."""
    width, mlp_width = config.width, config.mlp_width
    rules = [
        *table("embeddings.tok_embeddings", "backbone/embeddings/word", config.vocab_size, width),
        *norm("embeddings.norm", "backbone/embeddings/norm", width, bias=config.norm_bias),
    ]
    for index in range(config.layers):
        theirs, ours = f"layers.{index}", f"backbone/layer_{index}"
        attention, mlp = {"bias": config.attention_bias}, {"bias": config.mlp_bias}
        if index:
            rules += norm(f"{theirs}.attn_norm", f"{ours}/attention_norm", width, bias=config.norm_bias)
        rules += dense(f"{theirs}.attn.Wqkv", f"{ours}/attention/qkv", width, 3 * width, **attention)
        rules += dense(f"{theirs}.attn.Wo", f"{ours}/attention/output", width, width, **attention)
        rules += norm(f"{theirs}.mlp_norm", f"{ours}/mlp_norm", width, bias=config.norm_bias)
        rules += dense(f"{theirs}.mlp.Wi", f"{ours}/mlp/up", width, 2 * mlp_width, **mlp)
        rules += dense(f"{theirs}.mlp.Wo", f"{ours}/mlp/down", mlp_width, width, **mlp)
    return rules + norm("final_norm", "backbone/final_norm", width, bias=config.norm_bias)


def _prediction(config: ModernBertConfig, key: str) -> list[Rule]:
    return [
        *dense("head.dense", f"{key}/dense", config.width, config.width, bias=config.classifier_bias),
        *norm("head.norm", f"{key}/norm", config.width, bias=config.norm_bias),
    ]


def _linear(key: str, outputs: int | None = None) -> Callable[[ModernBertConfig, int], list[Rule]]:
    """A head of `outputs`; of as many as there are classes where it is None."""

    def rules(config: ModernBertConfig, classes: int) -> list[Rule]:
        last = dense("classifier", f"{key}/out", config.width, classes if outputs is None else outputs)
        return _prediction(config, key) + last

    return rules


def _words(config: ModernBertConfig, classes: int) -> list[Rule]:
    bias = [Rule("decoder.bias", "mlm/bias", IDENTITY, (config.vocab_size,))]
    return _prediction(config, "mlm") + (bias if config.decoder_bias else [])


MODERNBERT = Family(
    name="modernbert",
    config=ModernBertConfig,
    prefix="model.",
    backbone_rules=backbone_rules,
    heads={
        "classifier": Head(_linear("classifier"), sized=True),
        "token_classifier": Head(_linear("token_classifier"), sized=True),
        "question_answering": Head(_linear("question_answering", 2)),
        "multiple_choice": Head(_linear("multiple_choice", 1)),
        "mlm": Head(_words, tied=True),
    },
    architectures={
        "ModernBertModel": (),
        "ModernBertForSequenceClassification": ("classifier",),
        "ModernBertForTokenClassification": ("token_classifier",),
        "ModernBertForQuestionAnswering": ("question_answering",),
        "ModernBertForMultipleChoice": ("multiple_choice",),
        "ModernBertForMaskedLM": ("mlm",),
    },
    other_heads=("head.*", "classifier.*", "decoder.*"),
    tied={"decoder.weight": "embeddings.tok_embeddings.weight"},
    read_config=read_modernbert,
    write_config=write_modernbert,
)
