"""Files and hubs -> numpy batches. Every row is checked, and a batch is a pure function of (data, seed, step)."""

from jaxptft.data.answer_windows import WindowBatches, Windows, answer_windows
from jaxptft.data.assets import Asset, AssetUnavailable, bbc_news, fetch, hutto_sentences, minilm_folder
from jaxptft.data.augmentation import AugmentedBatches, WordEdits, edit_words
from jaxptft.data.balance import balanced_weights
from jaxptft.data.batches import Batches, fitted_buckets, length_buckets
from jaxptft.data.cache import cache_folder
from jaxptft.data.choice_batches import ChoiceBatches, ChoiceTokens, tokenize_choices
from jaxptft.data.choices import ChoiceColumns, Choices, make_choices, read_choices
from jaxptft.data.columns import Columns, infer_columns
from jaxptft.data.corpus import DocumentTally, read_corpus
from jaxptft.data.corpus_tokens import tokenize_corpus
from jaxptft.data.dialogue import dialogue_tokens, encode_prompts, read_dialogue
from jaxptft.data.draw import check_enough, draw_by_class
from jaxptft.data.held_out import hold_out, read_with_held_out
from jaxptft.data.image_batches import ImageBatches
from jaxptft.data.image_sources import ImageColumns, image_split_names
from jaxptft.data.images import (
    Images,
    ImageSplits,
    fashion_mnist,
    make_images,
    read_image_splits,
    read_images,
    split_images,
)
from jaxptft.data.kept import KeptBatches, KeptStates, keep_states
from jaxptft.data.labels import Labels
from jaxptft.data.packed_rows import PackedRows
from jaxptft.data.packing import PackedBatches, Packing, pack, padding_share
from jaxptft.data.pairs import sentence_pairs
from jaxptft.data.raw_texts import (
    brown,
    brown_corpus,
    conll2003,
    sotu_corpus,
    state_of_the_union,
    three_kingdoms,
    three_kingdoms_corpus,
)
from jaxptft.data.readers import Source, given_rows
from jaxptft.data.segments import causal_segments, full_segments, line_segments
from jaxptft.data.sentences import sentence_spans, split_sentences
from jaxptft.data.sources import open_source, split_names
from jaxptft.data.split import (
    TrainingData,
    choose_evaluation_split,
    pick_split,
    read_training_data,
    refuse_absent_split,
    split,
)
from jaxptft.data.squad import Answer, QuestionColumns, Questions, make_questions, question_rows, read_questions
from jaxptft.data.tables import Table, make_table, read_table
from jaxptft.data.tag_schemes import Scheme, Span, convert_tags, lenient_spans, scheme_of_names, span_tags, spans
from jaxptft.data.tagged_files import pick_tagged_split
from jaxptft.data.tagged_tokens import TaggedBatches, TaggedTokens, tag_tokens
from jaxptft.data.taggings import TagColumns, Taggings, open_sentences, read_sentences, read_taggings
from jaxptft.data.targets import LabelSet, Number, OneClass
from jaxptft.data.token_store import TokenStore, split_documents
from jaxptft.data.token_table import TokenTable, token_table
from jaxptft.data.tokenized import (
    FixedTokenizer,
    Tokenized,
    check_tokens,
    check_vocabulary,
    load_tokenizer,
    tokenize,
    tokenizer_fingerprint,
)
from jaxptft.data.tokenizer_training import save_tokenizer, train_tokenizer
from jaxptft.data.validate import EveryRowRefused, Report
from jaxptft.data.word_split import split_words

__all__ = [
    "draw_by_class",
    "Answer",
    "Asset",
    "AssetUnavailable",
    "AugmentedBatches",
    "Batches",
    "ChoiceBatches",
    "ChoiceColumns",
    "ChoiceTokens",
    "Choices",
    "Columns",
    "DocumentTally",
    "EveryRowRefused",
    "FixedTokenizer",
    "ImageBatches",
    "ImageColumns",
    "ImageSplits",
    "Images",
    "LabelSet",
    "Labels",
    "Number",
    "OneClass",
    "PackedBatches",
    "PackedRows",
    "Packing",
    "QuestionColumns",
    "Questions",
    "Report",
    "Scheme",
    "Source",
    "Span",
    "Table",
    "TagColumns",
    "TaggedBatches",
    "TaggedTokens",
    "Taggings",
    "TokenStore",
    "TokenTable",
    "Tokenized",
    "TrainingData",
    "WindowBatches",
    "Windows",
    "WordEdits",
    "answer_windows",
    "balanced_weights",
    "bbc_news",
    "brown",
    "brown_corpus",
    "cache_folder",
    "keep_states",
    "KeptBatches",
    "KeptStates",
    "conll2003",
    "convert_tags",
    "causal_segments",
    "check_tokens",
    "check_vocabulary",
    "check_enough",
    "choose_evaluation_split",
    "dialogue_tokens",
    "edit_words",
    "encode_prompts",
    "fashion_mnist",
    "fetch",
    "fitted_buckets",
    "full_segments",
    "given_rows",
    "hold_out",
    "hutto_sentences",
    "image_split_names",
    "infer_columns",
    "length_buckets",
    "lenient_spans",
    "line_segments",
    "load_tokenizer",
    "make_choices",
    "make_images",
    "make_questions",
    "make_table",
    "minilm_folder",
    "open_sentences",
    "open_source",
    "pack",
    "padding_share",
    "pick_split",
    "pick_tagged_split",
    "question_rows",
    "read_choices",
    "read_corpus",
    "read_dialogue",
    "read_image_splits",
    "read_images",
    "read_questions",
    "read_sentences",
    "read_table",
    "read_taggings",
    "read_training_data",
    "refuse_absent_split",
    "read_with_held_out",
    "save_tokenizer",
    "scheme_of_names",
    "sentence_pairs",
    "sentence_spans",
    "sotu_corpus",
    "span_tags",
    "spans",
    "split",
    "split_documents",
    "split_images",
    "split_names",
    "split_sentences",
    "split_words",
    "state_of_the_union",
    "three_kingdoms",
    "three_kingdoms_corpus",
    "tag_tokens",
    "token_table",
    "tokenize",
    "tokenize_choices",
    "tokenize_corpus",
    "tokenizer_fingerprint",
    "train_tokenizer",
]
