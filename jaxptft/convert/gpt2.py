"""GPT-2's conversion table: the decoder, its heads and its config.json as Hugging Face has them.

Its projections are `Conv1D` modules, which hold kernels as we do: [inputs, outputs]. Old files carry the causal mask of
each layer as buffers. The output projection `lm_head` is the word table again, and current files leave it out.
"""

from typing import Any

from jaxptft.convert.hf_config import ConfigTable
from jaxptft.convert.rules import IDENTITY, Family, Head, Rule, dense, norm, table
from jaxptft.models.gpt2 import Gpt2Config


def _to_ours(values: dict[str, Any]) -> dict[str, Any]:
    # An empty classifier_dropout is transformers' default, like an absent one.
    return {**values, "head_dropout": 0.1} if values["head_dropout"] is None else values


_CONFIG = ConfigTable(
    model_type="gpt2",
    config=Gpt2Config,
    fields={
        "vocab_size": "vocab_size",
        "n_embd": "width",
        "n_layer": "layers",
        "n_head": "heads",
        "n_inner": "mlp_width",
        "activation_function": "activation",
        "n_positions": "positions",
        "layer_norm_epsilon": "norm_epsilon",
        "embd_pdrop": "dropout",
        "attn_pdrop": "attention_dropout",
        "resid_pdrop": "residual_dropout",
        "classifier_dropout": "head_dropout",
        "summary_first_dropout": "choice_dropout",
        "scale_attn_weights": "scale_attention",
        "scale_attn_by_inverse_layer_idx": "scale_by_layer",
        "initializer_range": "initializer_range",
        "pad_token_id": "pad_id",
    },
    required={
        "tie_word_embeddings": (True, None),
        "summary_type": ("cls_index",),
        "summary_use_proj": (True,),
        "summary_activation": (None,),
        "summary_proj_to_labels": (True,),
    },
    # Attention scores are float32 here whatever reorder_and_upcast_attn says.
    harmless={"n_ctx", "reorder_and_upcast_attn", "predict_special_tokens"},
    to_ours=_to_ours,
)


def backbone_rules(config: Gpt2Config) -> list[Rule]:
    """The decoder up to its last norm."""
    width, mlp_width = config.width, config.mlp_width or 4 * config.width
    rules = [
        *table("wte", "backbone/embeddings/word", config.vocab_size, width),
        *table("wpe", "backbone/embeddings/position", config.positions, width),
    ]
    for index in range(config.layers):
        theirs, ours = f"h.{index}", f"backbone/layer_{index}"
        rules += norm(f"{theirs}.ln_1", f"{ours}/attention_norm", width)
        rules += _conv1d(f"{theirs}.attn.c_attn", f"{ours}/attention/qkv", width, 3 * width)
        rules += _conv1d(f"{theirs}.attn.c_proj", f"{ours}/attention/output", width, width)
        rules += norm(f"{theirs}.ln_2", f"{ours}/mlp_norm", width)
        rules += _conv1d(f"{theirs}.mlp.c_fc", f"{ours}/mlp/up", width, mlp_width)
        rules += _conv1d(f"{theirs}.mlp.c_proj", f"{ours}/mlp/down", mlp_width, width)
    return rules + norm("ln_f", "backbone/final_norm", width)


def _conv1d(theirs: str, ours: str, inputs: int, outputs: int) -> list[Rule]:
    return [
        Rule(f"{theirs}.weight", f"{ours}/kernel", IDENTITY, (inputs, outputs)),
        Rule(f"{theirs}.bias", f"{ours}/bias", IDENTITY, (outputs,)),
    ]


GPT2 = Family(
    name="gpt2",
    config=Gpt2Config,
    prefix="transformer.",
    backbone_rules=backbone_rules,
    heads={
        "classifier": Head(
            lambda config, classes: dense("score", "classifier", config.width, classes, bias=False), sized=True
        ),
        "token_classifier": Head(
            lambda config, classes: dense("classifier", "token_classifier", config.width, classes), sized=True
        ),
        "question_answering": Head(lambda config, _: dense("qa_outputs", "question_answering", config.width, 2)),
        "multiple_choice": Head(
            lambda config, _: dense("multiple_choice_head.summary", "multiple_choice", config.width, 1)
        ),
    },
    # A language model has no parameters beyond the backbone's, so a backbone is written as one.
    architectures={
        "GPT2LMHeadModel": (),
        "GPT2Model": (),
        "GPT2ForSequenceClassification": ("classifier",),
        "GPT2ForTokenClassification": ("token_classifier",),
        "GPT2ForQuestionAnswering": ("question_answering",),
        "GPT2DoubleHeadsModel": ("multiple_choice",),
    },
    read_config=_CONFIG.read,
    write_config=_CONFIG.write,
    buffers=("h.*.attn.bias", "h.*.attn.masked_bias"),
    other_heads=("score.*", "classifier.*", "qa_outputs.*", "multiple_choice_head.*"),
    tied={"lm_head.weight": "wte.weight"},
)
