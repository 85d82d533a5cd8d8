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
    label: str | None = None
    """the class"""


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
