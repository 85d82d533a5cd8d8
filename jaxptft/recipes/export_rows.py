"""Real rows, as the model of a task reads them, on which an export is compared with its source."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxptft import data
from jaxptft.recipes.features import read_asked_images
from jaxptft.recipes.inference import Opened
from jaxptft.recipes.settings import build, read_yaml
from jaxptft.recipes.tasks import multiple_choice, question_answering, token_classification
from jaxptft.recipes.tasks.labelled_rows import columns_of
from jaxptft.recipes.tasks.settings import Answers, Columns

BATCH = 32
_TEXTS = (
    "Good.",
    "A gripping, beautifully shot film.",
    "The plot makes no sense, and the actors seem to know it.",
    "Maria Schmidt moved from Berlin to New York in 2019 to work for Siemens.",
    "I cannot say that I enjoyed it; nor that I did not.",
    "Wer früher stirbt, ist länger tot. 東京は晴れです。 Ça va?",
    "It cost $12.50 (plus 8 % tax), see https://example.org/a?b=c for more!",
    "There is a moment, late in the second act, when the music stops, the camera rests on her face, and nothing "
    "happens for what feels like an hour; it is the best scene that I have seen this year, and the only one in this "
    "long and uneven picture that I shall remember, for better or for worse, once the lights are on again.",
)
_IMAGES = 8

Say = Callable[[str], None]
Batch = dict[str, np.ndarray]


def rows_of(
    opened: Opened,
    source: str | None,
    *,
    run: Path | None,
    columns: Columns,
    split: str | None,
    count: int,
    say: Say,
) -> tuple[list[Batch], str]:
    """Batches of `count` rows at most, and in words where they are from.

    They are those of `source`; else of the evaluation data (or, where it has none, the training data) of the run in
    `run`, if they are still where they were; else a few fixed texts or images.
    """
    if source is not None:
        return _first(_read(opened, source, columns, split, count, say), count), source
    if run is not None:
        values = read_yaml(run / "config.yaml")
        recorded = values.get("eval") or values.get("train")
        if isinstance(recorded, str) and Path(recorded).exists():
            try:
                columns = build(Columns, values.get("columns") or {})
                return _first(_read(opened, recorded, columns, None, count, say), count), recorded
            except (ValueError, OSError) as error:
                say(f"the run's own rows cannot be read: {error}")
    with tempfile.TemporaryDirectory() as folder:
        fixed = _write_fixed(opened, Path(folder))
        return _first(_read(opened, fixed, Columns(), None, count, say), count), "fixed examples"


def counted(task: str, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which outputs count [batch], or of tokens and choices [batch, length] and [batch, choices]: not padding."""
    valid, mask = batch["valid"], batch.get("attention_mask")
    if mask is None or (mask.ndim == 2 and task not in ("token_classification", "question_answering", "response")):
        return valid
    return valid[:, None] & (mask.any(-1) if mask.ndim == 3 else mask > 0)


def _first(batches: Any, count: int) -> list[Batch]:
    found, rows = [], 0
    for step in range(batches.steps_per_epoch):
        found.append(batches.batch_at(step))
        rows += int(found[-1]["valid"].sum())
        if rows >= count:
            break
    return found


def _read(opened: Opened, source: str, columns: Columns, split: str | None, count: int, say: Say) -> Any:
    """The batches of the first rows of a source."""
    task, longest = opened.task, opened.longest(None) if opened.preprocessing is None else 0
    options: dict[str, Any] = {"batch_size": BATCH, "shuffle": False}
    if opened.preprocessing is not None:
        shared: dict[str, Any] = {"split": split, "labelled": False, "names": None, "on_bad_row": "skip"}
        images = read_asked_images(source, opened.preprocessing, columns=columns, **shared)
        return data.ImageBatches(images.select(_some(images, count)), **options)
    if task == "token_classification":
        asked = token_classification.columns_of(columns)
        chosen = data.pick_tagged_split(source, split)
        sentences = data.read_sentences(source, columns=asked, split=chosen, on_bad_row="skip")
        sentences = sentences.select(_some(sentences, count))
        return data.TaggedBatches(data.tag_tokens(sentences, opened.tokenizer, longest, names=opened.names), **options)
    reading: dict[str, Any] = {"split": data.pick_split(source, split), "on_bad_row": "skip"}
    if task == "question_answering":
        asked = question_answering.columns_of(columns)
        questions = data.read_questions(source, columns=asked, labelled=False, **reading)
        settled = Answers.model_validate(opened.settled.get("answers", {}))
        cut = {"stride": settled.stride, "max_question": settled.max_question}
        questions = questions.select(_some(questions, count))
        return data.WindowBatches(data.answer_windows(questions, opened.tokenizer, longest, **cut), **options)
    if task == "multiple_choice":
        asked = multiple_choice.columns_of(columns)
        choices = data.read_choices(source, columns=asked, labelled=False, **reading)
        choices = choices.select(_some(choices, count))
        return data.ChoiceBatches(data.tokenize_choices(choices, opened.tokenizer, longest), **options)
    if task == "response":
        table = data.read_dialogue(source, prompt=columns.prompt, answered=False, **reading)
    else:
        table = data.read_table(source, columns=columns_of(columns), labelled=False, **reading)
    return opened.batches(table.select(_some(table, count)), batch_size=BATCH, max_length=None, say=say)


def _some(rows: Any, count: int) -> np.ndarray:
    return np.arange(min(count, len(rows)))


def _write_fixed(opened: Opened, folder: Path) -> str:
    """Examples of the task as files that its own readers take."""
    if opened.preprocessing is not None:
        from PIL import Image

        random, (height, width) = np.random.default_rng(0), opened.preprocessing.stored_size
        for number in range(_IMAGES):
            drawn = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
            Image.fromarray(drawn).save(folder / f"{number}.png")
        return str(folder)
    rows: Sequence[Mapping[str, Any]] = [{"text": text} for text in _TEXTS]
    if opened.task == "question_answering":
        rows = [{"question": "Who moved where?", "context": text} for text in _TEXTS]
    elif opened.task == "multiple_choice":
        rows = [{"context": text, "choices": [_TEXTS[0], _TEXTS[3], text]} for text in _TEXTS[1:]]
    elif opened.task == "response":
        rows = [{"prompt": text} for text in _TEXTS]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)
