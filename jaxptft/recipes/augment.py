"""More rows from those at hand: a share of their words replaced by what a masked language model guesses.

Everything else of a row - the rest of its text, the label, all other columns - stays as it is. After Kobayashi 2018
(arXiv:1805.06201) and Wu et al. 2018 (arXiv:1812.06705), but the model is not told the label: a replaced word may be
the one that decided it, so keep the rate low.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import tyro
from pydantic import Field

from jaxptft.recipes.settings import Settings
from jaxptft.recipes.tasks.settings import Columns

_FORMATS = (".csv", ".tsv", ".jsonl")


class Config(Settings):
    """More training rows: jaxptft augment MODEL --data train.csv --out more.csv --copies 2"""

    model: tyro.conf.Positional[str]
    """with a head that predicts masked words: a run folder, a Hugging Face folder, or a name on the hub"""
    data: str
    """rows as `finetune --train` takes them; all their columns are kept"""
    out: Path
    """a file to write: .csv, .tsv or .jsonl"""
    copies: int = Field(default=1, ge=1)
    """changed rows for each row"""
    rate: float = Field(default=0.15, gt=0, le=1)
    """share of the words that are replaced; one at least in every text that has a word"""
    top_k: int = Field(default=50, ge=1)
    """draw from so many of the likeliest tokens"""
    temperature: float = Field(default=1.0, gt=0)
    """below 1: likelier words; above: more surprising ones"""
    originals: bool = True
    """write the rows themselves too, each before its copies"""
    columns: Columns = Columns()
    on_bad_row: Literal["error", "skip"] = "error"
    split: str | None = None
    """which split, of data that have several (default: train)"""
    max_length: int | None = Field(default=None, ge=3)
    """tokens that the model sees; words beyond stay as they are (default: what the model takes)"""
    batch_size: int = Field(default=32, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**31)
    overwrite: bool = False
    """replace --out if it exists"""
    allow_bin: bool = False
    family: str | None = None


def run(config: Config, *, say: Callable[[str], None] = print) -> Path:
    """Write the rows and their changed copies. The file appears whole or not at all.

    Raises FileExistsError when it exists and `overwrite` is not set, and ValueError for a model that predicts no masked
    words, rows that are bad, or values that the format cannot hold.
    """
    from jaxptft import data
    from jaxptft.recipes.runtime import keep_compiled_programs
    from jaxptft.recipes.word_guesses import WordGuesser

    if config.out.suffix.lower() not in _FORMATS:
        raise ValueError(f"--out is {config.out}; expected a file ending in {', '.join(_FORMATS)}")
    if config.out.exists() and not config.overwrite:
        raise FileExistsError(f"{config.out} exists; choose another --out, or pass --overwrite")
    if config.out.exists() and config.out.resolve() == Path(config.data).resolve():
        raise ValueError(f"--out and --data are both {config.out}; choose another --out")
    data.refuse_absent_split(config.data, config.split)
    keep_compiled_programs()
    options = ("rate", "top_k", "temperature", "max_length", "batch_size", "seed", "family", "allow_bin")
    guesser = WordGuesser(config.model, **{name: getattr(config, name) for name in options})
    rows = _Rows(config)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = config.out.with_name(f".{config.out.name}.unfinished")
    written = replaced = 0
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            write = _writer(file, config.out.suffix.lower(), rows.source.columns)
            for numbers, values in rows.chunks(config.batch_size):
                texts = [tuple(row[name] for name in rows.texts) for row in values]
                copies = [guesser(numbers, texts, copy) for copy in range(config.copies)]
                for place, row in enumerate(values):
                    made = [copy[place] for copy in copies]
                    changed = [row | dict(zip(rows.texts, new, strict=True)) for new, count in made if count]
                    for entry in [row, *changed] if config.originals else changed:
                        write(entry)
                        written += 1
                    replaced += sum(count for _, count in made)
        if not replaced:
            raise ValueError(f"{config.data}: its texts hold no word that could be replaced; there is nothing to write")
        unfinished.replace(config.out)
    finally:
        unfinished.unlink(missing_ok=True)
    report = rows.tally.report()
    bad = f", {report.skipped} bad rows skipped" if report.skipped else ""
    say(f"{config.out}: {written} rows with {replaced} words replaced, from {report.rows} rows{bad}")
    return config.out


class _Rows:
    """The rows of the source with all their columns; those with a bad text are refused or left out."""

    def __init__(self, config: Config):
        from jaxptft import data
        from jaxptft.data.columns import infer_columns
        from jaxptft.data.sources import open_source
        from jaxptft.data.validate import Tally

        self.source = open_source(config.data, data.pick_split(config.data, config.split or "train"))
        chosen = data.Columns(config.columns.text, config.columns.pair, config.columns.label)
        settled = infer_columns(self.source.columns, self.source.name, chosen=chosen, labelled=False)
        self.texts = tuple(name for name in (settled.text, settled.pair) if name)
        self.tally = Tally(self.source.name, config.on_bad_row)

    def chunks(self, size: int) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
        """The sound rows with their numbers, so many at a time."""
        numbers: list[int] = []
        rows: list[dict[str, Any]] = []
        for number, row in self._sound():
            numbers.append(number)
            rows.append(row)
            if len(rows) == size:
                yield numbers, rows
                numbers, rows = [], []
        if rows:
            yield numbers, rows

    def _sound(self) -> Iterator[tuple[int, dict[str, Any]]]:
        from jaxptft.data.validate import Problem, Refused, check_text

        for number, values in self.source.rows(self.source.columns):
            self.tally.rows += 1
            if isinstance(values, Problem):
                self.tally.refuse(number, values)
                continue
            row = {
                name: _plain(value, self.source.class_names.get(name))
                for name, value in zip(self.source.columns, values, strict=True)
            }
            place = ""
            try:
                for place in self.texts:
                    row[place] = check_text(row[place])
            except Refused as refused:
                self.tally.refuse(number, Problem(refused.reason, refused.detail, place))
                continue
            yield number, row


def _plain(value: Any, declared: Sequence[str] | None) -> Any:
    """A value as a file without declarations holds it: classes by their names."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if declared and isinstance(value, list):
        return [_plain(item, declared) for item in value]
    if declared and isinstance(value, int) and 0 <= value < len(declared):
        return declared[value]
    return value


def _writer(file: TextIO, suffix: str, columns: Sequence[str]) -> Callable[[Mapping[str, Any]], None]:
    """A function that writes one row."""
    if suffix == ".jsonl":
        return lambda row: print(json.dumps(row, ensure_ascii=False, default=str), file=file)
    if suffix == ".csv":
        into = csv.writer(file, lineterminator="\n")
        into.writerow(columns)
        return lambda row: into.writerow([_cell(name, row[name], suffix) for name in columns])
    print(*columns, sep="\t", file=file)
    return lambda row: print(*(_cell(name, row[name], suffix) for name in columns), sep="\t", file=file)


def _cell(column: str, value: Any, suffix: str) -> str:
    """A value in a delimited file; ValueError where it cannot stand there."""
    if value is None:
        return ""
    if isinstance(value, list | dict):
        raise ValueError(f"column {column!r} holds a {type(value).__name__}, which {suffix} cannot; write .jsonl")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if suffix == ".tsv" and any(mark in text for mark in "\t\n\r"):
        raise ValueError(f"column {column!r} holds a tab or a line end, which .tsv cannot; write .csv or .jsonl")
    return text
