"""Rows of requests -> what `jaxptft predict` says of them, in few compiled shapes.

A batch has one of a few numbers of rows and one of a few lengths, padded to both; rows of other lengths are in other
batches. All of them are compiled before the first request.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxptft import data
from jaxptft.recipes.serving.requests import MOST_CHOICES, ROWS
from jaxptft.recipes.tasks import module_of

if TYPE_CHECKING:
    from jaxptft.recipes import predict as prediction
    from jaxptft.recipes.inference import Opened

Row = dict[str, Any]
_LENGTHS = (16, 32, *(base * 2**power for power in range(5, 16) for base in (1.5, 2)))  # tokens
_CHOICES = (2, 4, MOST_CHOICES)  # as many has a batch of choices


def default_lengths(longest: int) -> tuple[int, ...]:
    """16, 32, 48, 64, 96, 128 and so forth, and `longest`.

    >>> default_lengths(100)
    (16, 32, 48, 64, 96, 100)
    """
    return (*(int(length) for length in _LENGTHS if length < longest), longest)


class Answerer:
    """What a model says of rows of requests, all of one task; called by one thread at a time.

    Args:
      request: the values of `predict`, but for its files.
      sizes: the numbers of rows that a batch may have, ascending; made multiples of the number of devices.
      lengths: the numbers of tokens, ascending; (): `default_lengths` up to the model's longest.

    Raises ValueError where the model's task is not served, or a length is more than its longest.
    """

    def __init__(
        self, opened: "Opened", request: "prediction.Config", *, sizes: Sequence[int], lengths: Sequence[int] = ()
    ):
        if opened.task not in ROWS:
            raise ValueError(
                f"{opened.source} is for {opened.task}, which is not served; expected a model for one of "
                f"{', '.join(ROWS)} (jaxptft predict answers rows of all tasks)"
            )
        self._opened, self.task, self.names = opened, opened.task, opened.names
        self.longest = opened.longest(request.max_length)
        if lengths and lengths[-1] > self.longest:
            raise ValueError(f"lengths has {lengths[-1]}, and the model reads {self.longest} tokens at most")
        self.lengths = tuple(dict.fromkeys((*lengths, self.longest))) if lengths else default_lengths(self.longest)
        devices = opened.devices
        self.sizes = tuple(dict.fromkeys(-(-size // devices) * devices for size in sizes))
        self._answering = module_of(opened.task).answering(opened, request)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the batches so far: rows, tokens of each, and between them choices where there are any."""
        assert self._answering.predictor is not None
        return sorted(self._answering.predictor.shapes)

    def __call__(self, rows: Sequence[Row]) -> list[Row]:
        """An answer for each row, with `truncated`: whether the model read a part of it only."""
        alike: dict[Any, list[int]] = {}
        for place, row in enumerate(rows):
            alike.setdefault((tuple(row), self._choices(row)), []).append(place)
        found: list[Row] = [{}] * len(rows)
        for (_, choices), places in alike.items():
            read = self._answering.read(data.given_rows("the request", [rows[place] for place in places]))
            answered = self._answering.answer(read, self._batching(choices), lambda examples: None)
            for place, line, long in zip(places, answered.lines, answered.long, strict=True):
                found[place] = line | {"truncated": bool(long) and not self._answering.whole}
        return found

    def compile(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Answer a row of each length, as often as each size says, so that nothing is left to compile."""
        for length in self.lengths:
            for choices in _CHOICES if self.task == "multiple_choice" else (None,):
                row = self._row_of(length, choices or 2)
                for size in self.sizes:
                    if stopped():
                        return
                    self([row] * size)

    def _choices(self, row: Row) -> int | None:
        """How many choices a batch has that holds the row."""
        if "choices" not in row:
            return None
        return next(count for count in _CHOICES if count >= len(row["choices"]))

    def _batching(self, choices: int | None) -> Mapping[str, Any]:
        batching: dict[str, Any] = {"batch_size": self.sizes[-1], "sizes": self.sizes, "buckets": self.lengths}
        return batching | ({} if choices is None else {"choices": choices})

    def _row_of(self, length: int, choices: int) -> Row:
        """A row of so many tokens, or nearly so."""
        word, tokens = self._word()
        pair = self.task in ("question_answering", "multiple_choice")
        special = self._opened.tokenizer.num_special_tokens_to_add(pair=pair)
        text = " ".join([word] * max(1, (length - special) // tokens - pair))
        match self.task:
            case "question_answering":
                return {"question": word, "context": text}
            case "multiple_choice":
                return {"context": text, "choices": [word] * choices}
        return {"text": text}

    def _word(self) -> tuple[str, int]:
        """A word, and how many tokens more a text has with it."""

        def tokens(text: str) -> int:
            return len(self._opened.tokenizer(text)["input_ids"])

        for word in ("a", "1", "一", "the"):
            if more := tokens(f"{word} {word}") - tokens(word):
                return word, more
        return "a", 1
