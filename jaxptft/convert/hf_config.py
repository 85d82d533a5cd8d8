"""Hugging Face's config.json <-> our config, with an audit of every field.

A field is translated, known to change nothing that is computed here, or refused by name: a checkpoint whose
config asks for something else must not load as something it is not.
"""

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from jaxptft.models import BertConfig

_BERT_FIELDS = {
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

# Fields that would change what is computed, with the only values that do not.
_BERT_REQUIRED: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "auto_map": (None, {}),
}

# Fields that describe, or that steer what is not done here (caching, generation, tracing, output format).
_DESCRIBING = """
    model_type architectures transformers_version torch_dtype dtype use_cache gradient_checkpointing
    id2label label2id num_labels problem_type finetuning_task task_specific_params tokenizer_class name_or_path
    output_attentions output_hidden_states output_past output_scores return_dict return_dict_in_generate
    tie_word_embeddings tie_encoder_decoder tied_embeddings chunk_size_feed_forward torchscript use_bfloat16
    tf_legacy_loss attn_implementation cross_attention_hidden_size decoder_start_token_id bos_token_id eos_token_id
    sep_token_id cls_token_id mask_token_id unk_token_id prefix language name directionality pooler_fc_size
    pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type max_length min_length do_sample
    early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
    forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens xla_device model_max_length
"""
_HARMLESS = frozenset(_DESCRIBING.split())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; FileNotFoundError or a one-line ValueError that names the file otherwise."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: a model folder needs {path.name}")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def read_labels(fields: Mapping[str, Any]) -> list[str] | None:
    """Label names in order of their ids from `id2label`; None where the config names none."""
    named = fields.get("id2label")
    if named is None:
        return None
    if not isinstance(named, Mapping):
        raise ValueError(f"config.json: id2label must map ids to names, got {type(named).__name__}")
    try:
        by_id = {int(key): str(name) for key, name in named.items()}
    except ValueError:
        raise ValueError(f"config.json: id2label must have the ids as keys, got {list(named)[:5]}") from None
    if sorted(by_id) != list(range(len(named))):
        raise ValueError(
            f"config.json: id2label must name ids 0 to {len(named) - 1} once each, got {sorted(by_id)[:8]}"
        )
    return [by_id[index] for index in range(len(by_id))]


def read_bert(fields: Mapping[str, Any], *, allow_unused: Sequence[str] = ()) -> BertConfig:
    """BertConfig from the fields of a config.json; absent fields take Hugging Face's defaults, which are ours.

    Raises ValueError for a value out of range, a field that asks for another computation, and an unknown field
    unless a pattern of `allow_unused` matches "config.<field>".
    """
    for name, accepted in _BERT_REQUIRED.items():
        if name in fields and fields[name] not in accepted:
            raise ValueError(
                f"config.json: {name} is {fields[name]!r}, which changes what the model computes and is not supported "
                f"(supported: {accepted[0]!r})"
            )
    known = _BERT_FIELDS.keys() | _BERT_REQUIRED.keys() | _HARMLESS
    unknown = sorted(
        name
        for name in fields
        if name not in known
        and not name.startswith("_")
        and not any(fnmatchcase(f"config.{name}", pattern) for pattern in allow_unused)
    )
    if unknown:
        raise ValueError(
            f"config.json: unknown field {', '.join(unknown)} may change what the model computes; "
            f"if it does not, pass allow_unused=['config.{unknown[0]}']"
        )
    try:
        return BertConfig(**{ours: fields[theirs] for theirs, ours in _BERT_FIELDS.items() if theirs in fields})
    except (ValueError, TypeError) as error:
        message = str(error)
        for theirs, ours in _BERT_FIELDS.items():
            message = message.replace(f"BertConfig.{ours} ", f"{theirs} ")
        raise ValueError(f"config.json: {message}") from None


def write_bert(config: BertConfig, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json for `config`: the translated ones renewed, the others as `fields` has them."""
    translated = {theirs: getattr(config, ours) for theirs, ours in _BERT_FIELDS.items()}
    untouched = {"classifier_dropout"} if config.head_dropout is None else set()
    written = {"model_type": "bert", **fields}
    for name, value in translated.items():
        if name in fields or name not in untouched:
            written[name] = value
    return {**written, "model_type": "bert"}
