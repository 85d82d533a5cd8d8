"""The values that fix a BERT or one of its kin: RoBERTa, DistilBERT, ALBERT, ELECTRA.

They are one encoder. What tells them apart is here, each difference a field whose default is BERT's:

             embedding_width  layer_groups  position_offset  token_types  pooler  classifier_activation  sentence_head
BERT         -                -             0                2            yes     -                      nsp
RoBERTa      -                -             pad_id + 1       1            yes     tanh                   -
DistilBERT   -                -             0                0            no      relu                   -
ALBERT       128              1             0                2            yes     -                      sop
ELECTRA      128 (small)      -             0                2            no      gelu                   -
"""

from dataclasses import dataclass, field

from jaxptft.models.fields import (
    DTYPES,
    check_activations,
    check_choice,
    check_flags,
    check_integers,
    check_pad_id,
    check_positive,
    check_rates,
)
from jaxptft.models.layer_run import check_layer_run

_HEAD_DROPOUTS = ("head_dropout", "token_dropout", "choice_dropout")


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """The values that fix an encoder; the defaults are bert-base-uncased's.

    Embeddings: `embedding_width` not None factorises them (ALBERT, section 3.1): tables of that width and a projection.
    `position_offset` not 0 numbers the tokens that are not padding from there on (RoBERTa: `pad_id` + 1); the table
    then has that many rows more than the longest text. `token_types` 0 leaves their table out. `pad_id` names the
    row of the word table that is zero at the start and never gets a gradient (None: no such row).

    Layers: `layer_groups` k stores k layers, each applied in layers / k places in succession (None: none is shared).
    `kept_heads` is how many heads each stored layer has left, of `heads` that it was made with, which say how wide each
    is (None: all).

    Heads: `pooler` says whether there is a tanh pooler. `classifier_activation` not None has classification read the
    first token's hidden state through a hidden layer of its own instead, with dropout on what comes in unless
    `classifier_input_dropout` is False. `mlm_activation` None means `activation`. `sentence_head` is the second task of
    pre-training: "nsp" (next sentence) or "sop" (sentence order).

    Dropouts are probabilities. `head_dropout` (classification) None means `dropout`; `token_dropout` and
    `choice_dropout` (multiple choice) None mean `head_dropout`; `answer_dropout` is question answering's,
    `sentence_dropout` that of the two sentence tasks. `dtype` is what is computed in; parameters are float32.

    `scan_layers` and `remat` are how the layers run, and change no result but for its last bits (`layer_run`).
    """

    vocab_size: int = 30522
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: str = "gelu"
    positions: int = 512
    token_types: int = 2
    norm_epsilon: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float | None = None
    initializer_range: float = 0.02
    pad_id: int | None = 0
    dtype: str = "float32"
    scan_layers: bool = field(default=False, repr=False)
    remat: str = field(default="none", repr=False)
    embedding_width: int | None = None
    layer_groups: int | None = None
    position_offset: int = 0
    pooler: bool = True
    classifier_activation: str | None = None
    classifier_input_dropout: bool = True
    mlm_activation: str | None = None
    sentence_head: str = "nsp"
    token_dropout: float | None = None
    choice_dropout: float | None = None
    answer_dropout: float = 0.0
    sentence_dropout: float = 0.0
    kept_heads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_integers(self, "vocab_size", "width", "layers", "heads", "mlp_width", "positions")
        check_integers(self, "token_types", "position_offset", least=0)
        check_integers(self, "embedding_width", "layer_groups", optional=True)
        if self.width % self.heads:
            raise ValueError(
                f"BertConfig.width must be a multiple of heads, got width {self.width} and {self.heads} heads"
            )
        if self.layer_groups is not None and self.layer_groups > self.layers:
            raise ValueError(
                f"BertConfig.layer_groups must be at most layers, got {self.layer_groups} and {self.layers} layers"
            )
        self._check_kept_heads()
        check_activations(self, "activation")
        check_activations(self, "classifier_activation", "mlm_activation", optional=True)
        check_choice(self, "sentence_head", ("nsp", "sop"))
        check_choice(self, "dtype", DTYPES)
        check_layer_run(self)
        check_flags(self, "pooler", "classifier_input_dropout")
        check_rates(self, "dropout", "attention_dropout", "answer_dropout", "sentence_dropout")
        check_rates(self, *_HEAD_DROPOUTS, optional=True)
        check_positive(self, "norm_epsilon", "initializer_range")
        check_pad_id(self)
        if self.position_offset and self.position_offset != (-1 if self.pad_id is None else self.pad_id) + 1:
            raise ValueError(
                f"BertConfig.position_offset must be 0 or pad_id + 1, "
                f"got {self.position_offset} and pad_id {self.pad_id!r}"
            )
        if self.position_offset >= self.positions:
            raise ValueError(
                f"BertConfig.positions must exceed position_offset {self.position_offset}, got {self.positions}"
            )

    def _check_kept_heads(self) -> None:
        kept = self.kept_heads
        if kept is None:
            return
        whole = all(isinstance(heads, int) and not isinstance(heads, bool) for heads in kept)
        if len(kept) != self.stored_layers or not whole or not all(1 <= heads <= self.heads for heads in kept):
            raise ValueError(
                f"BertConfig.kept_heads must be a number from 1 to {self.heads} for each of "
                f"{self.stored_layers} stored layers, got {kept}"
            )
        if self.scan_layers and len(set(kept)) > 1:
            raise ValueError(
                "BertConfig.scan_layers runs layers of one shape, and pruning has left them different numbers of heads"
            )

    @property
    def stored_layers(self) -> int:
        """How many layers have parameters of their own."""
        return self.layer_groups or self.layers

    @property
    def max_length(self) -> int:
        """The longest text, in tokens."""
        return self.positions - self.position_offset

    def stored_layer(self, index: int) -> int:
        """Which stored layer works in place `index`, counted from 0."""
        if self.layer_groups is None:
            return index
        # In floating point, as transformers' ALBERT has it, so that the two agree where layers / groups is no integer.
        return int(index / (self.layers / self.layer_groups))
