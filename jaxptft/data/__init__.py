"""Files and hubs -> numpy batches. Every row is checked, and a batch is a pure function of (data, seed, step)."""

from jaxptft.data.assets import Asset, AssetUnavailable, bbc_news, fetch, hutto_sentences, minilm_folder
from jaxptft.data.batches import Batches, fitted_buckets, length_buckets
from jaxptft.data.cache import cache_folder
from jaxptft.data.columns import Columns, infer_columns
from jaxptft.data.corpus import DocumentTally, read_corpus
from jaxptft.data.corpus_tokens import tokenize_corpus
from jaxptft.data.labels import Labels
from jaxptft.data.packing import PackedBatches, Packing, pack, padding_share
from jaxptft.data.pairs import sentence_pairs
from jaxptft.data.raw_texts import (
    brown,
    brown_corpus,
    sotu_corpus,
    state_of_the_union,
    three_kingdoms,
    three_kingdoms_corpus,
)
from jaxptft.data.segments import causal_segments, full_segments, line_segments
from jaxptft.data.sentences import sentence_spans, split_sentences
from jaxptft.data.sources import split_names
from jaxptft.data.split import TrainingData, choose_evaluation_split, pick_split, read_training_data, split
from jaxptft.data.tables import Table, make_table, read_table
from jaxptft.data.token_store import TokenStore, split_documents
from jaxptft.data.token_table import TokenTable, token_table
from jaxptft.data.tokenized import (
    Tokenized,
    check_tokens,
    check_vocabulary,
    load_tokenizer,
    tokenize,
    tokenizer_fingerprint,
)
from jaxptft.data.tokenizer_training import save_tokenizer, train_tokenizer
from jaxptft.data.validate import Report

__all__ = [
    "Asset",
    "AssetUnavailable",
    "Batches",
    "Columns",
    "DocumentTally",
    "Labels",
    "PackedBatches",
    "Packing",
    "Report",
    "Table",
    "TokenStore",
    "TokenTable",
    "Tokenized",
    "TrainingData",
    "bbc_news",
    "brown",
    "brown_corpus",
    "cache_folder",
    "causal_segments",
    "check_tokens",
    "check_vocabulary",
    "choose_evaluation_split",
    "fetch",
    "fitted_buckets",
    "full_segments",
    "hutto_sentences",
    "infer_columns",
    "length_buckets",
    "line_segments",
    "load_tokenizer",
    "make_table",
    "minilm_folder",
    "pack",
    "padding_share",
    "pick_split",
    "read_corpus",
    "read_table",
    "read_training_data",
    "sentence_pairs",
    "save_tokenizer",
    "sentence_spans",
    "sotu_corpus",
    "split",
    "split_documents",
    "split_names",
    "split_sentences",
    "state_of_the_union",
    "three_kingdoms",
    "three_kingdoms_corpus",
    "token_table",
    "tokenize",
    "tokenize_corpus",
    "tokenizer_fingerprint",
    "train_tokenizer",
]
