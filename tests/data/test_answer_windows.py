"""Windows and answers against what transformers' run_qa.py makes with `return_overflowing_tokens`."""

import numpy as np
import pytest

from jaxptft import data

CONTEXTS = [
    "Ada  Lovelace wrote notes on Babbage's engine in 1843.\n\nThey were published in London, by Richard Taylor; "
    "the notes' seventh holds what many call the first program.",
    "Café Müller opened in Wuppertal in 1978. \u00a0Its maker, Pina Bausch, danced there herself 😀 and 映画 were "
    "made of it.",
    "short",
]
QUESTIONS = [
    ("Who wrote notes?", 0, "Ada  Lovelace"),
    ("When?", 0, "1843"),
    ("What was first?", 0, "the notes' seventh"),
    ("Where?", 0, "London"),
    ("Who danced?", 1, "Pina Bausch"),
    ("What opened?", 1, "Café Müller"),
    ("What were made?", 1, "made of it."),
    ("How long?", 2, "short"),
    ("Who owns it?", 1, None),
]
TEXTS = [*CONTEXTS, *(question for question, _, _ in QUESTIONS)] * 2
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]


def wordpiece():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL))
    tokenizer.post_processor = processors.BertProcessing(("</s>", 3), ("<s>", 2))
    return tokenizer


def byte_level(processor):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processor
    return tokenizer


def roberta():
    from tokenizers import processors

    return byte_level(processors.RobertaProcessing(("</s>", 3), ("<s>", 2), trim_offsets=True, add_prefix_space=False))


def modernbert():
    from tokenizers import processors

    pair = "<s> $A </s> $B </s>"
    names = [("<s>", 2), ("</s>", 3)]
    return byte_level(processors.TemplateProcessing(single="<s> $A </s>", pair=pair, special_tokens=names))


def gpt2():
    from tokenizers import processors

    return byte_level(processors.ByteLevel(trim_offsets=False))


def albert():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=110, special_tokens=SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXTS, trainer)
    names = [("<s>", 2), ("</s>", 3)]
    pair = "<s> $A </s> $B:1 </s>:1"
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", pair=pair, special_tokens=names)
    return tokenizer


FAMILIES = {"bert": wordpiece, "roberta": roberta, "modernbert": modernbert, "gpt2": gpt2, "albert": albert}


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=FAMILIES[request.param](), pad_token="<pad>", model_max_length=64, name_or_path=request.param
    )


@pytest.fixture(scope="module")
def questions():
    given = [[] if answer is None else [(answer, CONTEXTS[context].index(answer))] for _, context, answer in QUESTIONS]
    texts = [question for question, _, _ in QUESTIONS]
    return data.make_questions(texts, [CONTEXTS[context] for _, context, _ in QUESTIONS], given)


def run_qa(tokenizer, questions, max_length, stride):
    """`prepare_train_features` of transformers' examples/pytorch/question-answering/run_qa.py, without padding."""
    encoded = tokenizer(
        questions.questions,
        questions.contexts,
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    found = []
    for index, example in enumerate(encoded["overflow_to_sample_mapping"]):
        ids, owners, offsets = (
            encoded["input_ids"][index],
            encoded.sequence_ids(index),
            encoded["offset_mapping"][index],
        )
        # Byte-level tokens count the space before a word to it; run_qa cuts it off the answer by normalising. It also
        # runs out of the context at its last and first word where no special token is in the way: here it may not.
        text = questions.contexts[example]
        offsets = [
            (end - len(text[start:end].lstrip()), end) if owner == 1 else (np.inf, -1)
            for (start, end), owner in zip(offsets, owners, strict=True)
        ]
        start = end = 0
        if questions.answers[example]:
            answer, start_char = questions.answers[example][0]
            end_char = start_char + len(answer)
            first = owners.index(1)
            last = len(owners) - 1 - owners[::-1].index(1)
            if offsets[first][0] <= start_char and offsets[last][1] >= end_char:
                while first < len(offsets) and offsets[first][0] <= start_char:
                    first += 1
                while offsets[last][1] >= end_char:
                    last -= 1
                start, end = first - 1, last + 1
        # A template that gives the pair type 0 gives it to the first window alone, and leaves 1 in the others.
        types = [0] * len(ids) if tokenizer.name_or_path == "modernbert" else encoded.encodings[index].type_ids
        found.append((example, ids, types, [owner == 1 for owner in owners], start, end))
    return found


@pytest.mark.parametrize("max_length,stride", [(32, 8), (28, 0), (34, 14)])
def test_windows_and_answers_are_run_qas(tokenizer, questions, max_length, stride):
    expected = run_qa(tokenizer, questions, max_length, stride)
    windows = data.answer_windows(questions, tokenizer, max_length, stride=stride, max_question=12)
    assert len(windows) == len(expected) > len(questions)
    batches = data.WindowBatches(windows, batch_size=len(windows), shuffle=False, multiple_of=len(windows) + 2)
    batch = batches.batch_at(0)
    places = {int(number): row for row, number in enumerate(batch["ids"]) if number >= 0}
    answered = 0
    for number, (example, ids, types, context, start, end) in enumerate(expected):
        row = places[number]
        assert windows.example[number] == example
        assert batch["input_ids"][row, : len(ids)].tolist() == ids
        assert batch["attention_mask"][row].sum() == len(ids)
        assert batch["token_type_ids"][row, : len(ids)].tolist() == types
        assert batch["context"][row].nonzero()[0].tolist() == np.flatnonzero(context).tolist()
        assert (batch["start"][row], batch["end"][row]) == (start, end)
        answered += start > 0
    assert answered >= 6
    padding = batch["ids"] < 0
    assert padding.sum() == 2
    assert not batch["context"][padding].any()
    assert not batch["start"][padding].any()


def test_every_answer_comes_back_to_its_exact_characters(tokenizer, questions):
    windows = data.answer_windows(questions, tokenizer, 32, stride=12)
    whole = windows.end > 0
    starts, ends = windows.characters(np.flatnonzero(whole), windows.start[whole], windows.end[whole])
    found = {}
    for example, start, end in zip(windows.example[whole], starts, ends, strict=True):
        found.setdefault(int(example), set()).add(questions.contexts[example][start:end])
    expected = {number: {answer} for number, (_, _, answer) in enumerate(QUESTIONS) if answer is not None}
    if tokenizer.name_or_path != "bert":  # 映 and 画 are words of their own, and `.` and `'` are too
        assert found == expected
    assert {number: found[number] for number in found} == {number: expected[number] for number in found}
    assert set(found) >= {1, 3, 4, 7}


def test_answers_of_odd_characters_are_found(tokenizer):
    """A face is several tokens of one character in a byte-level vocabulary; white space at an answer's ends is none."""
    context = "she wrote 😀 to 映画 and  left"
    answers = ["😀", "映画", " and ", "wrote 😀"]
    questions = data.make_questions(["what?"] * 4, [context] * 4, [[(text, context.index(text))] for text in answers])
    windows = data.answer_windows(questions, tokenizer, 64, stride=0)
    starts, ends = windows.characters(np.arange(4), windows.start, windows.end)
    found = [context[start:end] for start, end in zip(starts, ends, strict=True)]
    assert found == ["😀", "映画", "and", "wrote 😀"]


def test_long_questions_are_cut_and_counted(tokenizer):
    questions = data.make_questions(["who " * 40, "who?"], ["it was a good long film that one saw " * 3] * 2)
    windows = data.answer_windows(questions, tokenizer, 40, stride=4, max_question=5)
    assert windows.tokenized.truncated == 1
    before = {"bert": 2, "roberta": 3, "modernbert": 2, "gpt2": 0, "albert": 2}  # special tokens
    assert set(windows.context_start[windows.example == 0]) == {5 + before[tokenizer.name_or_path]}
    assert (windows.start, windows.end) == (None, None)
    assert windows.tokenized.lengths.max() == 40


def test_no_room_is_refused(tokenizer, questions):
    with pytest.raises(ValueError, match=r"max_length 24 has no room for .* 10 of a question .* than the 15"):
        data.answer_windows(questions, tokenizer, 24, max_question=10, stride=15)
    with pytest.raises(ValueError, match=r"65.*takes 64 tokens at most"):
        data.answer_windows(questions, tokenizer, 65)
    with pytest.raises(ValueError, match="no room for"):
        data.answer_windows(questions, tokenizer, 24, stride=-1)


def test_other_answers_make_other_data(tokenizer, questions):
    other = data.make_questions(questions.questions, questions.contexts, [[]] * len(questions))
    options = {"batch_size": 4, "shuffle": False}
    batches = [data.WindowBatches(data.answer_windows(q, tokenizer, 32), **options) for q in (questions, other)]
    assert batches[0].fingerprint != batches[1].fingerprint
    assert not batches[1].windows.end.any()
