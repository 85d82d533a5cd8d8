"""The groups of values that tasks add to a fine-tuning's Config."""

from typing import Literal

from pydantic import Field

from jaxptft.recipes.settings import Settings


class Columns(Settings):
    """Which columns hold what; what is not given is told from the names found."""

    text: str | None = None
    """the text, or the first of a pair"""
    pair: str | None = None
    """the second text of a pair; "" for none"""
    image: str | None = None
    """the path of an image"""
    label: str | None = None
    """the class"""
    tokens: str | None = None
    """a list of words; in a CoNLL file the number of a column ("1" is the first, "-1" the last)"""
    tags: str | None = None
    """a list of tags, one a word; likewise"""
    question: str | None = None
    """a question about a context, or one that has choices"""
    context: str | None = None
    """the text that holds the answer, or that choices are about"""
    answers: str | None = None
    """{"text": [...], "answer_start": [...]}"""
    choices: str | None = None
    """a list of choices, or what the names of their columns begin with (ending0, ending1, ...)"""
    prompt: str | None = None
    """what is answered by a response"""
    response: str | None = None
    """what is to be written after the prompt"""


class MultiLabel(Settings):
    """How multi_label reads and decides."""

    columns: tuple[str, ...] = ()
    """columns of 0 and 1, one for each label; in place of one label column"""
    delimiter: str = Field(default=",", min_length=1)
    """what stands between the labels of a row, where they are text"""
    threshold: Literal["common", "each"] = "common"
    """the probability above which a label applies, chosen on the evaluation rows: common to all, or for each label"""


class Augment(Settings):
    """Words of training texts deleted and swapped, anew at every step."""

    deletion: float = Field(default=0.0, ge=0, lt=1)
    """probability that a word goes"""
    swap: float = Field(default=0.0, ge=0, le=1)
    """swaps in a text, as a share of its words"""
    rows: float = Field(default=1.0, gt=0, le=1)
    """share of the rows that are changed"""


class Answers(Settings):
    """How answers are sought in contexts, long ones too."""

    stride: int | None = Field(default=None, ge=0)
    """tokens that neighbouring windows of a long context share (default: a third of max_length)"""
    max_question: int | None = Field(default=None, ge=1)
    """tokens of a question at most (default: a third of max_length, 64 at most)"""
    max_answer: int = Field(default=30, ge=1)
    """tokens of an answer at most"""
    n_best: int = Field(default=20, ge=1)
    """answers that are considered"""
    null_threshold: float | None = None
    """how much "no answer" must score above the best answer to be given (default: chosen on the evaluation rows)"""


class Tags(Settings):
    """How token_classification reads the tags of words, and what it learns."""

    scheme: Literal["detect", "IOB1", "IOB2", "IOBES", "none"] = "detect"
    """how tags mark entities; none: each stands for itself, as parts of speech do"""
    learn: Literal["IOB1", "IOB2", "IOBES"] | None = None
    """the scheme that is learnt and scored (default: that of the rows, but IOB2 for IOB1)"""
    label_all_pieces: bool = False
    """label every token of a word, not the first alone; all but the first get I- for B- or S-"""


class Settled(Settings):
    """In place of what was settled on the evaluation rows of the model's fine-tuning."""

    threshold: float | None = None
    """multi_label: the probability above which a label applies, common to all labels; question_answering: how much "no
    answer" must score above the best answer to be given"""


class ImageViews(Settings):
    """How image_classification changes training images."""

    views: Literal["none", "flip", "crop_flip", "resized_crop"] = "none"
    """nothing; left and right; shifts by an eighth as well, as for CIFAR; or crops of a fifth and more, resized, and
    flips, as for ImageNet"""


class Response(Settings):
    """How a causal model is taught to answer."""

    separator: str = "\n"
    """what stands between a prompt and its response"""
