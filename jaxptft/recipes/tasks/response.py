"""Responses to prompts, by a causal language model (supervised fine-tuning)."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxptft import data, models, objectives
from jaxptft.recipes.report import Report
from jaxptft.recipes.tasks.answering import Answered, Answering, answers, from_source
from jaxptft.recipes.tasks.contract import Predictions
from jaxptft.recipes.tasks.labelled_rows import row_namer, say_rows
from jaxptft.recipes.tasks.options import refuse_unused
from jaxptft.recipes.tasks.splits import batch_tokens, read_splits

if TYPE_CHECKING:
    from jaxptft.recipes import evaluate as evaluation
    from jaxptft.recipes import finetune
    from jaxptft.recipes import predict as prediction
    from jaxptft.recipes.inference import Opened

Say = Callable[[str], None]


class ResponseTask:
    """Prompts and responses; see `contract.Task`."""

    def __init__(self, config: "finetune.Config", *, tokenizer: Any, architecture: Any, devices: int, say: Say):
        refuse_unused(config, "response")
        if not isinstance(architecture, models.Gpt2Config):
            raise ValueError(f"{config.model} is no causal language model, which response needs; choose a GPT-2")
        self.model_task, self.head, self.classes, self.names = "causal_lm", None, None, None
        self.separator = config.response.separator
        self.fields: dict[str, Any] = {}
        self.monitors = {"loss": ("response/loss", False), "accuracy": ("response/accuracy", True)}
        columns: dict[str, Any] = {"prompt": config.columns.prompt, "response": config.columns.response}

        def read(source: Any, split: str | None) -> data.Table:
            return data.read_dialogue(source, split=split, on_bad_row=config.on_bad_row, **columns)

        tables, origins = read_splits(config, read, texts=lambda table: table.texts)
        tokens = {
            split: data.dialogue_tokens(table, tokenizer, config.max_length, separator=self.separator)
            for split, table in tables.items()
        }
        self.batches, self.facts = batch_tokens(config, tables, tokens, origins=origins, devices=devices, say=say)

    def objective(self, model: models.Model) -> objectives.Objective:
        return objectives.response(model)

    def metrics(self, predictions: Predictions, split: str) -> dict[str, float]:
        return response_metrics(predictions)

    def settle(self, predictions: Predictions) -> dict[str, Any]:
        return {"separator": self.separator}  # which whoever asks the model must know

    def report(self, predictions: Predictions, split: str, settled: Mapping[str, Any]) -> Report:
        return response_report(predictions)


def response_metrics(predictions: Predictions) -> dict[str, float]:
    """`response/perplexity`: exp of the mean loss of a token of the responses."""
    mean = predictions["loss"].sum(dtype=np.float64) / predictions["tokens"].sum(dtype=np.float64)
    return {"response/perplexity": float(np.exp(mean))}


def response_report(predictions: Predictions) -> Report:
    """Perplexity, and how many tokens it is of."""
    tokens = int(predictions["tokens"].sum())
    loss = float(predictions["loss"].sum(dtype=np.float64) / tokens)
    metrics = {"response/loss": loss, **response_metrics(predictions)}
    text = f"{len(predictions['tokens'])} responses of {tokens} tokens: loss {loss:.4f} nats a token, perplexity "
    return Report(metrics, f"{text}{metrics['response/perplexity']:.2f}", {"tokens": tokens})


def read(
    config: "finetune.Config",
    *,
    tokenizer: Any,
    architecture: Any,
    devices: int,
    checkpoint_names: list[str] | None,
    say: Say,
) -> ResponseTask:
    """Read, check and tokenize the rows of a fine-tuning."""
    return ResponseTask(config, tokenizer=tokenizer, architecture=architecture, devices=devices, say=say)


def evaluate(opened: "Opened", request: "evaluation.Config", *, say: Say) -> Report:
    """Loss and perplexity of the responses; each token counts once."""
    table = data.read_dialogue(
        request.data,
        prompt=request.columns.prompt,
        response=request.columns.response,
        split=data.pick_split(request.data, request.split),
        on_bad_row=request.on_bad_row,
    )
    separator = _separator(opened)
    tokens = data.dialogue_tokens(table, opened.tokenizer, opened.longest(request.max_length), separator=separator)
    if tokens.truncated:
        say(f"{tokens.truncated} of {len(table)} rows are longer than {tokens.max_length} tokens and were cut")
    say_rows(table, say)
    batches = data.Batches(tokens, batch_size=request.batch_size, shuffle=False, multiple_of=opened.devices)
    objective = objectives.response(opened.model("causal_lm"))
    return response_report(opened.predictions(objective, batches, name_row=row_namer(table)))


def predict(opened: "Opened", request: "prediction.Config", *, say: Say) -> Iterator[dict[str, Any]]:
    """`row` (its line or number in the source), the value of the id column where one is named, `prompt` and
    `response`, the likeliest word by word."""
    source = data.open_source(request.data, data.pick_split(request.data, request.split))
    found = _answering(opened, request, room=0, new=0)
    pieces = from_source(source, found)
    separator = _separator(opened)

    def lengths() -> Iterator[int]:
        for rows, _ in pieces():
            if rows is not None:
                yield from map(len, data.encode_prompts(rows.texts, opened.tokenizer, separator=separator))

    # Half of the positions at least are the response's: a longer prompt loses its beginning, as in training.
    positions = opened.config.max_length if request.max_length is None else opened.longest(request.max_length)
    new = min(request.max_new_tokens, max(positions - max(lengths()), positions // 2))
    return answers(pieces, _answering(opened, request, room=positions - new, new=new), request, say=say)


def _separator(opened: "Opened") -> str:
    return opened.settled.get("separator", "\n")


def _answering(opened: "Opened", request: "prediction.Config", *, room: int, new: int) -> Answering:
    """`prompt` and `response`, of so many new tokens at most, after the last `room` ones of the prompt."""
    opened.model("causal_lm")  # that all of its parameters are there
    end, pad = opened.tokenizer.eos_token_id, 16
    sampling = models.Sampling(temperature=0.0)
    options: dict[str, Any] = {"new": new, "sampling": sampling, "stop": () if end is None else (end,)}
    write = jax.jit(partial(models.generate, models.decoder(opened.config), **options))

    def read(source: data.Source) -> data.Table:
        options: dict[str, Any] = {"id": request.id, "on_bad_row": request.on_bad_row}
        return data.read_dialogue(source, prompt=request.columns.prompt, answered=False, **options)

    def answer(table: data.Table, batching: Mapping[str, Any], done: Callable[[int], None]) -> Answered:
        prompts = data.encode_prompts(table.texts, opened.tokenizer, separator=_separator(opened))
        return Answered(
            written(table, prompts, batching["batch_size"], done), np.array([len(p) > room for p in prompts])
        )

    def written(
        table: data.Table, prompts: list[list[int]], size: int, done: Callable[[int], None]
    ) -> Iterator[dict[str, Any]]:
        for start in range(0, len(table), size):
            part = [ids[-room:] for ids in prompts[start : start + size]]
            count = len(part)
            part += [part[-1]] * (size - count)  # one program, whatever the number of rows
            width = min(room, -(-max(map(len, part)) // pad) * pad)
            ids, mask = np.zeros((size, width), np.int32), np.zeros((size, width), bool)
            for place, tokens in enumerate(part):
                ids[place, width - len(tokens) :], mask[place, width - len(tokens) :] = tokens, True
            found = jax.device_get(write(opened.params, ids, mask, rng=jax.random.key(0)))
            for index in range(count):
                tokens = found.tokens[index][: found.lengths[index]].tolist()
                text = opened.tokenizer.decode(tokens, skip_special_tokens=True)
                yield {"prompt": table.texts[start + index], "response": text}
            done(count)

    return Answering(read, answer, f"{{long}} of {{rows}} prompts are longer than {room} tokens and were cut", None)
