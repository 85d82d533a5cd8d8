"""A tag for each word: entities (whole ones are scored), or parts of speech."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxptft import data, models, objectives
from jaxptft.recipes.metrics.spans import tagging_metrics, tagging_report
from jaxptft.recipes.report import Report
from jaxptft.recipes.tasks.answering import Answered, Answering, answers, counted, from_source
from jaxptft.recipes.tasks.contract import Predictions
from jaxptft.recipes.tasks.options import balanced_classes, chosen_weights, refuse_unused
from jaxptft.recipes.tasks.settings import Columns
from jaxptft.recipes.tasks.splits import batch_each

if TYPE_CHECKING:
    from jaxptft.recipes import evaluate as evaluation
    from jaxptft.recipes import finetune
    from jaxptft.recipes import predict as prediction
    from jaxptft.recipes.inference import Opened

Say = Callable[[str], None]


class TokenClassification:
    """Sentences with a tag for each word; see `contract.Task`. Words that have no token count as tagged O."""

    def __init__(
        self, config: "finetune.Config", *, tokenizer: Any, devices: int, checkpoint_names: list[str] | None, say: Say
    ):
        refuse_unused(config, "token_classification")
        self.model_task, self.head = "token_classification", "token_classifier"
        self.fields: dict[str, Any] = {}
        rows, origin = _read_splits(config)
        self.scheme: data.Scheme | None = rows["train"].scheme
        own = rows["train"].names
        # A head that is imported keeps the order of its outputs.
        imported = checkpoint_names if checkpoint_names and set(checkpoint_names) == set(own) else own
        self.names: tuple[str, ...] = tuple(imported)
        self.classes = len(self.names)
        f1 = {} if self.scheme is None else {"f1": ("token_classification/f1", True)}
        self.monitors = {
            **f1,
            "accuracy": ("token_classification/accuracy", True),
            "loss": ("token_classification/loss", False),
        }
        self.tagged = {
            split: data.tag_tokens(
                part, tokenizer, config.max_length, names=self.names, label_all_pieces=config.tags.label_all_pieces
            )
            for split, part in rows.items()
        }
        tokens = {split: tagged.tokenized for split, tagged in self.tagged.items()}

        def facts(split: str) -> dict[str, int]:
            part = rows[split]
            counts = {"rows": len(part), "words": sum(map(len, part.words)), "skipped_rows": part.report.skipped}
            return counts | {"truncated": tokens[split].truncated, "loose_tags": part.loose}

        def tell(split: str) -> str:
            source = origin if split == "eval" else rows[split].source
            return _described(split, rows[split], source, tokens[split])

        self.batches, self.facts = batch_each(
            config,
            tokens,
            lambda split, **options: data.TaggedBatches(self.tagged[split], **options),
            facts=facts,
            tell=tell,
            devices=devices,
            say=say,
        )
        say(f"tags ({self.scheme or 'no entities'}): {', '.join(self.names)}")
        self._truth = {split: part.tags or [] for split, part in rows.items()}
        self._width, self._smoothing = config.max_length, config.label_smoothing
        self._weights = self._class_weights(config)

    def _class_weights(self, config: "finetune.Config") -> list[float] | None:
        given = chosen_weights(config, self.names, "tags")
        if given is not None or config.class_weights == "none":
            return given
        labels = self.tagged["train"].labels
        return balanced_classes(np.bincount(labels[labels >= 0], minlength=self.classes).tolist())

    def objective(self, model: models.Model) -> objectives.Objective:
        return objectives.token_classification(
            model, label_smoothing=self._smoothing, class_weights=self._weights, width=self._width
        )

    def _predicted(self, predictions: Predictions, split: str) -> list[list[str]]:
        return _tags_of(predictions["tags"], self.tagged[split], self.names)

    def metrics(self, predictions: Predictions, split: str) -> dict[str, float]:
        return tagging_metrics(self._truth[split], self._predicted(predictions, split), self.scheme)

    def settle(self, predictions: Predictions) -> dict[str, Any]:
        return {"scheme": self.scheme or "none"}

    def report(self, predictions: Predictions, split: str, settled: Mapping[str, Any]) -> Report:
        return tagging_report(self._truth[split], self._predicted(predictions, split), self.scheme)


def read(
    config: "finetune.Config",
    *,
    tokenizer: Any,
    architecture: Any,
    devices: int,
    checkpoint_names: list[str] | None,
    say: Say,
) -> TokenClassification:
    """Read, check and tokenize the sentences of a fine-tuning."""
    return TokenClassification(config, tokenizer=tokenizer, devices=devices, checkpoint_names=checkpoint_names, say=say)


def _read_splits(config: "finetune.Config") -> tuple[dict[str, data.Taggings], str]:
    """The sentences of each split, and in words where those of eval are from."""
    options: dict[str, Any] = {
        "columns": columns_of(config.columns),
        "scheme": None if config.tags.scheme == "none" else config.tags.scheme,
        "on_bad_row": config.on_bad_row,
    }
    splits = _split_names(config.train)
    train = data.read_taggings(config.train, split=splits.get("train"), learn=config.tags.learn, **options)
    options |= {"learn": train.scheme, "prefer": train.scheme, "names": train.names}
    rows = {"train": train}
    if config.eval is not None:
        rows["eval"] = data.read_taggings(config.eval, split=data.pick_tagged_split(config.eval), **options)
    elif "eval" in splits:
        rows["eval"] = data.read_taggings(config.train, split=splits["eval"], **options)
    origin = rows["eval"].source if "eval" in rows else ""
    if "eval" not in rows:
        texts = [" ".join(words) for words in train.words]
        rest, held = data.hold_out(texts, 0.1, seed=config.seed, source=train.source)
        rows = {"train": train.select(rest), "eval": train.select(held)}
        origin = f"{len(held)} rows cut from {train.source}, seed {config.seed}"
    if config.test is not None:
        rows["test"] = data.read_taggings(config.test, split=data.pick_tagged_split(config.test, "test"), **options)
    return rows, origin


def _split_names(source: str) -> dict[str, str]:
    """The splits that train and evaluate, of a source that has several."""
    train = data.pick_tagged_split(source, "train")
    if train is None:
        return {}
    chosen = data.choose_evaluation_split(data.split_names(source))
    return {"train": train} | ({} if chosen is None else {"eval": chosen})


def columns_of(columns: Columns, id: str | None = None) -> data.TagColumns:
    return data.TagColumns(columns.tokens, columns.tags, columns.text, id)


def _described(split: str, part: data.Taggings, source: str, tokens: data.Tokenized) -> str:
    many = f", {tokens.truncated} longer than {tokens.max_length} tokens in windows" if tokens.truncated else ""
    bad = f", {part.report.skipped} bad rows skipped" if part.report.skipped else ""
    loose = f", {part.loose} words with a tag of no whole entity" if part.loose else ""
    return f"{split}: {len(part)} sentences from {source}{many}{bad}{loose}"


def _tags_of(found: np.ndarray, tagged: data.TaggedTokens, names: tuple[str, ...]) -> list[list[str]]:
    known = np.array([*names, "O"], object)  # -1, where a word has no token, is the last
    return [known[numbers].tolist() for numbers in tagged.by_word(found, -1)]


def _scheme_of(opened: "Opened") -> data.Scheme | None:
    scheme = opened.settled.get("scheme")
    if scheme is None:  # another program's model
        return data.scheme_of_names(opened.names)
    return None if scheme == "none" else scheme


class _Asked:
    """For each word of each sentence, its tag, and how probable the model finds it."""

    def __init__(self, opened: "Opened", max_length: int | None):
        self.longest, self.opened = opened.longest(max_length), opened
        self.tokenizer = data.FixedTokenizer(opened.tokenizer)
        network = opened.model("token_classification", classes=len(opened.names))
        self.predictor = opened.predictor(objectives.token_classification(network, width=self.longest))
        self.long = f"{{long}} of {{rows}} sentences are longer than {self.longest} tokens: in windows"

    def __call__(
        self, rows: data.Taggings, batching: Mapping[str, Any], done: Callable[[int], None]
    ) -> tuple[list[list[str]], list[np.ndarray], np.ndarray]:
        """Tags, scores, and which sentences are in several windows."""
        tagged = data.tag_tokens(rows, self.tokenizer, self.longest, names=self.opened.names)
        batches = data.TaggedBatches(tagged, shuffle=False, multiple_of=self.opened.devices, **batching)
        owner = np.zeros(len(tagged.tokenized), np.int64)
        owner[tagged.windows] = np.repeat(np.arange(len(rows)), np.diff(tagged.sentences))

        def name_row(row: int) -> str:
            return f"{rows.source}, row {rows.rows[owner[row]]}"

        found = self.predictor(batches, name_row=name_row, done=done)
        long = tagged.windows[tagged.sentences[:-1]] != tagged.windows[tagged.sentences[1:] - 1]
        return _tags_of(found["tags"], tagged, self.opened.names), tagged.by_word(found["scores"], 0.0), long


def answering(opened: "Opened", request: "prediction.Config") -> Answering:
    """`words` and their `tags`, and `entities`.

    An entity has a `type`, its `text`, the mean probability of its words' tags as `score`, and `start` and `end` (after
    its last): words where the row was a list of words, and characters where it was `text`, of which its text is then
    exactly that slice.
    """
    scheme, asked = _scheme_of(opened), _Asked(opened, request.max_length)
    columns = columns_of(request.columns, request.id)

    def read(source: data.Source) -> data.Taggings:
        return data.read_sentences(source, columns=columns, on_bad_row=request.on_bad_row)

    def answer(rows: data.Taggings, batching: Mapping[str, Any], done: Callable[[int], None]) -> Answered:
        tags, scores, long = asked(rows, batching, done)

        def lines() -> Iterator[dict[str, Any]]:
            for index, words in enumerate(rows.words):
                line: dict[str, Any] = {} if rows.texts is None else {"text": rows.texts[index]}
                line |= {"words": words, "tags": tags[index]}
                if scheme is not None:
                    found = data.spans(tags[index], scheme)
                    line["entities"] = [_entity(span, rows, index, scores[index]) for span in found]
                yield line

        return Answered(lines(), long)

    return Answering(read, answer, asked.long, asked.predictor, whole=True)


def predict(opened: "Opened", request: "prediction.Config", *, say: Say) -> Iterator[dict[str, Any]]:
    """`row` (its line or number in the source), the value of the id column where one is named, and what `answering`
    says of it."""
    found = answering(opened, request)
    source = data.open_sentences(
        request.data, request.columns.text, data.pick_tagged_split(request.data, request.split)
    )
    return answers(from_source(source, found), found, request, say=say)


def _entity(span: data.Span, rows: data.Taggings, index: int, scores: np.ndarray) -> dict[str, Any]:
    start, end = span.start, span.end
    score = round(float(scores[start:end].mean()), 6)
    text = " ".join(rows.words[index][start:end])
    if rows.texts is not None and rows.places is not None:
        start, end = rows.places[index][start][0], rows.places[index][end - 1][1]
        text = rows.texts[index][start:end]
    return {"type": span.type, "start": start, "end": end, "text": text, "score": score}


def _tags(opened: "Opened", rows: data.Taggings, request: "evaluation.Config", say: Say) -> list[list[str]]:
    """The tags of each sentence, with progress; says how many are in windows."""
    asked = _Asked(opened, request.max_length)
    with counted(len(rows)) as done:
        tags, _, long = asked(rows, {"batch_size": request.batch_size}, done)
    if long.any():
        say(asked.long.format(long=int(long.sum()), rows=len(rows)))
    return tags


def evaluate(opened: "Opened", request: "evaluation.Config", *, say: Say) -> Report:
    """Strict precision, recall and F1 of entities, by type too; each word counts exactly once."""
    scheme = _scheme_of(opened)
    wanted = request.tags.scheme
    rows = data.read_taggings(
        request.data,
        columns=columns_of(request.columns),
        scheme=None if scheme is None or wanted == "none" else wanted,
        prefer=scheme,
        learn=scheme,
        names=opened.names,
        split=data.pick_tagged_split(request.data, request.split),
        on_bad_row=request.on_bad_row,
    )
    tags = _tags(opened, rows, request, say)
    skipped = f", {rows.report.skipped} skipped" if rows.report.skipped else ""
    say(f"{len(rows)} sentences from {rows.source}{skipped}")
    return tagging_report(rows.tags or [], tags, scheme)
