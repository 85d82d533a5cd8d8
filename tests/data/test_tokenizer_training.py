"""What a learnt tokenizer must be, told by `transformers.AutoTokenizer`, which loads it, and by hand."""

import json

import pytest
from transformers import AutoTokenizer

from jaxptft import data
from jaxptft.data.tokenizer_training import STYLES

TEXTS = [
    "The cat sat on the mat. The cats ran; the dogs were running! Was the mat theirs?",
    "A house is not a mat, and a mat is not a house. Houses stand, and cats sit.",
    "Running cats run to running dogs. The house has a cat and the cat has a house.",
    "Über den Häusern: the café, “quoted” and 3.14.",
]
FAMILIES = [*STYLES]


def read():
    return iter(TEXTS)


def train(family="bert", size=320, texts=None, **options):
    return data.train_tokenizer(read if texts is None else lambda: texts, family=family, vocab_size=size, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function: family -> the folder of a tokenizer learnt once, and the tokenizer itself."""
    root = tmp_path_factory.mktemp("tokenizers")
    made = {}

    def get(family):
        if family not in made:
            made[family] = train(family, 320 if STYLES[family].kind == "bpe" else 100)
            data.save_tokenizer(root / family, made[family], family=family)
        return root / family, made[family]

    return get


# Of the family's own tokenizers on the hub: the tokens around two texts, and the types of those of the second.
AROUND = {
    "bert": ("[CLS]", ["[SEP]"], "[SEP]", 1),
    "distilbert": ("[CLS]", ["[SEP]"], "[SEP]", None),
    "electra": ("[CLS]", ["[SEP]"], "[SEP]", 1),
    "albert": ("[CLS]", ["[SEP]"], "[SEP]", 1),
    "roberta": ("<s>", ["</s>", "</s>"], "</s>", None),
    "modernbert": ("[CLS]", ["[SEP]"], "[SEP]", None),
    "gpt2": (None, [], None, None),
}


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a config.json"])
@pytest.mark.parametrize("family", FAMILIES)
def test_auto_tokenizer_takes_it_as_it_is(trained, family, beside):
    folder, tokenizer = trained(family)
    (folder / "config.json").unlink(missing_ok=True)
    if beside:
        (folder / "config.json").write_text(json.dumps({"model_type": family}))
    loaded = AutoTokenizer.from_pretrained(str(folder))
    before, between, after, second = AROUND[family]
    first, other = "The cat sat.", "A house."
    pair = loaded(first, other)
    plain = [tokenizer.encode(text, add_special_tokens=False).tokens for text in (first, other)]
    expected = [*([before] if before else []), *plain[0], *between, *plain[1], *([after] if after else [])]
    assert loaded.convert_ids_to_tokens(pair["input_ids"]) == expected
    assert pair["input_ids"] == tokenizer.encode(first, other).ids
    if second is None:
        assert "token_type_ids" not in pair
    else:
        start = len(plain[0]) + 1 + len(between)
        assert pair["token_type_ids"] == [0] * start + [second] * (len(expected) - start)
    assert loaded.model_max_length == {"gpt2": 1024, "modernbert": 8192}.get(family, 512)
    assert loaded.decode(tokenizer.encode(first, add_special_tokens=False).ids) == first
    names = {"gpt2": ["bos", "eos", "unk"]}.get(family, ["pad", "unk", "cls", "sep", "mask"])
    special = {getattr(loaded, f"{name}_token") for name in names}
    assert set(loaded.all_special_tokens) == special
    assert set(loaded.all_special_ids) == set(range(len(special)))  # they come first
    assert loaded.get_vocab() == tokenizer.get_vocab()
    ours = data.load_tokenizer(folder)
    assert data.token_table(ours, len(ours), mask=family != "gpt2").special.sum() == len(special)


def test_ids_that_the_families_have():
    # As in their config.json on the hub: RoBERTa bos 0, pad 1, eos 2; ALBERT pad 0, unk 1, cls 2, sep 3, mask 4.
    assert list(dict.fromkeys(STYLES["roberta"].special.values()))[:4] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert list(dict.fromkeys(STYLES["albert"].special.values())) == ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]


def test_where_spaces_are_tokens_the_mask_takes_the_one_before_it(trained):
    for family, mask in (("roberta", "<mask>"), ("modernbert", "[MASK]"), ("albert", "[MASK]")):
        tokenizer = trained(family)[1]
        ids = tokenizer.encode(f"The {mask} sat", add_special_tokens=False).ids
        before = tokenizer.id_to_token(ids[ids.index(tokenizer.token_to_id(mask)) - 1])
        assert before not in ("Ġ", "▁")
    assert trained("bert")[1].encode("[MASK]", add_special_tokens=False).tokens == ["[MASK]"]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_the_same_text_gives_the_same_bytes(kind):
    # Plainly by the library, the numbers of WordPiece and the scores of Unigram differ from run to run.
    sizes = (320,) if kind == "bpe" else (70, 90, 110)
    for size in sizes:
        assert len({train(kind=kind, size=size).to_str() for _ in range(8)}) == 1


def test_word_piece_by_hand():
    # "ab" is in every word but one; then "##c" follows it twice. Single characters come first, those inside words next.
    vocabulary = train(texts=["ab abc abc ab b"], size=13).get_vocab()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    expected = [*special, "a", "b", "c", "##b", "##c", "ab", "abc"]
    assert sorted(vocabulary, key=vocabulary.__getitem__) == expected


def test_bpe_is_the_library_s():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    reference = Tokenizer(models.BPE())
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": 300, "min_frequency": 2, "initial_alphabet": alphabet, "show_progress": False}
    reference.train_from_iterator(TEXTS, trainers.BpeTrainer(special_tokens=["<|endoftext|>"], **options))
    assert train("gpt2", 300).get_vocab() == reference.get_vocab()


def test_normalisation():
    for kind in ("wordpiece", "bpe", "unigram"):
        size = 320 if kind == "bpe" else 100
        tokens = [train(kind=kind, size=size, lowercase=True, strip_accents=strip) for strip in (False, True)]
        kept, stripped = (tokenizer.normalizer.normalize_str("Über CAFÉ") for tokenizer in tokens)
        assert (kept, stripped) == ("über café", "uber cafe")
    assert train(kind="unigram", size=100).normalizer.normalize_str("a\n  b ``c''") == 'a b "c"'


def test_chinese():
    # 1,200 characters once each, and one a second time; without the flag the thousand commonest are kept.
    characters = "".join(map(chr, range(0x4E00, 0x4E00 + 1200)))
    kept = train(texts=[characters + "一"], size=2000, chinese=True)
    assert kept.get_vocab_size() == 5 + 1200
    assert kept.encode("一丁", add_special_tokens=False).tokens == ["一", "丁"]
    assert train(texts=[characters + "一"], size=2000).get_vocab_size() == 5 + 1000


@pytest.mark.parametrize("family, texts, size, message", [
    ("bert", TEXTS, 5, "vocab_size is 5, and 6 are special tokens and single bytes; raise it"),
    ("gpt2", TEXTS, 256, "vocab_size is 256, and 257 are special tokens and single bytes"),
    ("bert", TEXTS, 20, r"vocab_size is 20, but the special tokens and the text's single characters are \d+ already"),
    ("albert", TEXTS, 20, r"no vocabulary can be learnt from the corpus \(.*\); raise vocab_size or give more text"),
    ("t5", TEXTS, 100, "family 't5' is not known; choose one of bert, "),
])  # fmt: skip
def test_refusals(family, texts, size, message):
    with pytest.raises(ValueError, match=message):
        train(family, size, texts)


def test_errors_of_the_corpus_come_through():
    def broken():
        yield "good text"
        raise ValueError("t.txt, line 3: bad")

    with pytest.raises(ValueError, match=r"^t\.txt, line 3: bad$"):
        data.train_tokenizer(broken, family="bert", vocab_size=100)
    with pytest.raises(ValueError, match="kind 'words' is not known; choose one of wordpiece, bpe, unigram"):
        train(kind="words")
