import numpy as np
import pytest

from jaxptft import data

WORDS = ["<eos>", "what", "is", "it", "a", "cat", "dog", "yes", "no", "?"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("tokenizer")
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="no"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}'
    )
    return data.load_tokenizer(folder)


def ids(text):
    return [WORDS.index(word) for word in text.split()]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "dialogue.csv"
    path.write_text("prompt,response\nwhat is it ?,a cat\nis it a dog ?,no\n")
    return data.read_dialogue(path)


def test_a_row_is_prompt_then_response_then_end(table, tokenizer):
    tokens = data.dialogue_tokens(table, tokenizer, 16)
    assert tokens.row(0).tolist() == [*ids("what is it ? a cat"), 0]  # by hand: the newline makes no token here
    assert tokens.row(1).tolist() == [*ids("is it a dog ? no"), 0]
    assert tokens.boundaries.tolist() == [4, 5]
    assert tokens.truncated == 0


def test_a_long_prompt_loses_its_beginning_and_a_long_response_its_end(table, tokenizer):
    tokens = data.dialogue_tokens(table, tokenizer, 5)
    assert tokens.row(0).tolist() == [*ids("it ? a cat"), 0]
    assert tokens.row(1).tolist() == [*ids("a dog ? no"), 0]
    assert (tokens.boundaries.tolist(), tokens.truncated) == ([2, 3], 2)
    long = data.make_table(["is it ?"], pairs=["yes yes yes yes"])
    cut = data.dialogue_tokens(long, tokenizer, 4)
    assert cut.row(0).tolist() == ids("? yes yes")  # no end: it was cut


def test_batches_mark_the_response_by_its_type(table, tokenizer):
    tokens = data.dialogue_tokens(table, tokenizer, 16)
    batch = data.Batches(tokens, batch_size=2, shuffle=False, buckets=(8,)).batch_at(0)
    marked = {int(row): types.tolist() for row, types in zip(batch["ids"], batch["token_type_ids"], strict=True)}
    assert marked == {0: [0, 0, 0, 0, 1, 1, 1, 0], 1: [0, 0, 0, 0, 0, 1, 1, 0]}


def test_what_the_tokens_depend_on_is_in_their_fingerprint(table, tokenizer):
    def identity(**options):
        return data.dialogue_tokens(table, tokenizer, options.pop("max_length", 16), **options).fingerprint

    assert identity() == identity()
    assert len({identity(), identity(max_length=5), identity(separator=" ? ")}) == 3


def test_columns_are_told_by_their_names_or_given(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("instruction,output,other\nwhat,yes,x\n")
    assert data.read_dialogue(path).pairs == ["yes"]
    assert data.read_dialogue(path, prompt="other").texts == ["x"]
    assert data.read_dialogue(path, answered=False).pairs is None
    with pytest.raises(ValueError, match=r"pairs\.csv: there is no column 'reply' for the response; columns found: "):
        data.read_dialogue(path, response="reply")
    path.write_text("instruction,input,output\nwhat,is,yes\n")
    with pytest.raises(ValueError, match="several columns could be the prompt; choose one; columns found: 'instruc"):
        data.read_dialogue(path)
    path.write_text("words,output\nwhat,yes\n")
    with pytest.raises(ValueError, match="no column could be the prompt; choose one; columns found: 'words', 'output'"):
        data.read_dialogue(path)


def test_what_cannot_be_taught_is_refused(table, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="max_length is 2; expected at least 3"):
        data.dialogue_tokens(table, tokenizer, 2)
    tokenizer_without = data.load_tokenizer(tokenizer.name_or_path)
    tokenizer_without.eos_token = None
    with pytest.raises(ValueError, match="the tokenizer has no eos token, by which a response would end"):
        data.dialogue_tokens(table, tokenizer_without, 16)


def test_a_prompt_of_no_tokens_is_the_token_that_begins_a_text(tokenizer):
    assert data.encode_prompts(["", "is it"], tokenizer, separator="") == [[0], ids("is it")]
    assert np.size(data.encode_prompts(["a"], tokenizer)) == 1
