"""Hugging Face's config.json <-> our configs, with an audit of every field.

A field is translated, known to change nothing that is computed here, or refused by name: a checkpoint whose
config asks for something else must not load as something it is not.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, dataclass, field, replace
from dataclasses import fields as fields_of
from fnmatch import fnmatchcase
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from jaxptft.convert.wording import listed, reason, spelt

REQUIRED: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "auto_map": (None, {}),
}
"""Fields of any family that would change what is computed, with the only values that do not."""

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
    begin_suppress_tokens xla_device model_max_length jaxptft_kept_heads
"""
HARMLESS = frozenset(_DESCRIBING.split())
"""What every family may carry along unread."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; FileNotFoundError or a one-line ValueError that names the file otherwise."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: a model folder needs {path.name}")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {reason(error)}") from None
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
        raise ValueError(f"config.json: id2label must have the ids as keys, got {shown(list(named))}") from None
    if sorted(by_id) != list(range(len(named))):
        raise ValueError(
            f"config.json: id2label must name ids 0 to {len(named) - 1} once each, got {sorted(by_id)[:8]}"
        )
    return [by_id[index] for index in range(len(by_id))]


def refuse_changed(fields: Mapping[str, Any], required: Mapping[str, tuple[Any, ...]]) -> None:
    """ValueError for a field with another value than those `required` names for it."""
    for name, accepted in required.items():
        if name in fields and fields[name] not in accepted:
            raise ValueError(
                f"config.json: {name} is {shown(fields[name])}, which changes what the model computes and is not "
                f"supported (supported: {accepted[0]!r})"
            )


def refuse_unknown(fields: Mapping[str, Any], known: AbstractSet[str], allow_unused: Sequence[str] = ()) -> None:
    """ValueError for a field that is neither known nor matched as "config.<field>" by a pattern of `allow_unused`."""
    unknown = sorted(
        name
        for name in fields
        if name not in known
        and not name.startswith("_")
        and not any(fnmatchcase(f"config.{name}", pattern) for pattern in allow_unused)
    )
    if unknown:
        raise ValueError(
            f"config.json: unknown field {listed(unknown)} may change what the model computes; "
            f"if it does not, pass allow_unused=[{'config.' + spelt(unknown[0])!r}]"
        )


def _same(values: dict[str, Any]) -> dict[str, Any]:
    return values


@dataclass(frozen=True, kw_only=True)
class ConfigTable:
    """How the config.json of one `model_type` and our config say the same.

    fields: their name -> ours. defaults: what Hugging Face takes for an absent field, by its name, where ours differs.
    fixed: what all models of the family have and no field says, by our names. required, harmless: as `REQUIRED` and
    `HARMLESS`, beyond those. to_ours, to_theirs: functions on the values by our names, for what one field alone does
    not say; they run after reading and before writing.
    """

    model_type: str
    config: type
    fields: Mapping[str, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    required: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    harmless: AbstractSet[str] = frozenset()
    to_ours: Callable[[dict[str, Any]], dict[str, Any]] = _same
    to_theirs: Callable[[dict[str, Any]], dict[str, Any]] = _same

    def read(self, fields: Mapping[str, Any], *, allow_unused: Sequence[str] = ()) -> Any:
        """Our config from the fields of a config.json; absent fields take Hugging Face's defaults.

        Raises ValueError for a value out of range, a field that asks for another computation, and an unknown field
        unless a pattern of `allow_unused` matches "config.<field>".
        """
        required = {**REQUIRED, **self.required}
        refuse_changed(fields, required)
        refuse_unknown(fields, self.fields.keys() | required.keys() | HARMLESS | self.harmless, allow_unused)
        values = {ours: self._absent(theirs, ours) for theirs, ours in self.fields.items()}
        values |= {ours: fields[theirs] for theirs, ours in self.fields.items() if theirs in fields}
        try:
            return self.config(**self.to_ours({**values, **self.fixed}))
        except (ValueError, TypeError) as error:
            message = str(error)
            for theirs, ours in self.fields.items():
                message = message.replace(f"{self.config.__name__}.{ours} ", f"{theirs} ")
            raise ValueError(f"config.json: {message}") from None

    def write(self, config: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a config.json for `config`: the translated ones renewed, the others as `fields` has them.

        Raises ValueError for a config that no config.json of the family can express.
        """
        if not isinstance(config, self.config):
            raise ValueError(
                f"family {self.model_type} has configs of type {self.config.__name__}, got {type(config).__name__}"
            )
        values = self.to_theirs({item.name: getattr(config, item.name) for item in fields_of(config)})
        translated = {theirs: values[ours] for theirs, ours in self.fields.items()}
        expressed = self.read(translated)
        if "dtype" in values:  # what is computed in, which is no property of a checkpoint
            expressed = replace(expressed, dtype=config.dtype)
        for item in fields_of(config):
            said, meant = getattr(expressed, item.name), getattr(config, item.name)
            if said != meant:
                raise ValueError(
                    f"family {self.model_type} cannot express {self.config.__name__}.{item.name} {meant!r} "
                    f"in a config.json: its models have {said!r}"
                )
        written = {"model_type": self.model_type, **fields}
        for theirs, value in translated.items():
            if theirs in fields or value is not None or self._absent(theirs, self.fields[theirs]) is not None:
                written[theirs] = value
        return {**written, "model_type": self.model_type}

    def _absent(self, theirs: str, ours: str) -> Any:
        """What an absent field means."""
        if theirs in self.defaults:
            return self.defaults[theirs]
        default = next(item.default for item in fields_of(self.config) if item.name == ours)
        return None if default is MISSING else default
