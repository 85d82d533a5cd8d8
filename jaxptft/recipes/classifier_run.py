"""The parts of one fine-tuning put together: data, model, objective, optimizer, loop, and what remains of it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxptft import convert, data, models, objectives, optim, train
from jaxptft.recipes import report as reports
from jaxptft.recipes.finetune import Config
from jaxptft.recipes.model_source import open_model
from jaxptft.recipes.training import (
    EVALUATION_ROWS,
    Training,
    adopt,
    choose_devices,
    computed_with,
    fresh_pieces,
    frozen_depth,
    refuse_frozen_fresh,
)

if TYPE_CHECKING:
    from jaxptft.train import LoopState, StopFlag


class ClassifierRun:
    """Everything between a `Config` and its results; built whole before the first step, so that mistakes come first."""

    def __init__(self, config: Config, *, name: str, say: Callable[[str], None], stop: "StopFlag"):
        self.config, self.name, self.say, self.stop = config, name, say, stop
        self.mesh = train.make_mesh(choose_devices(config.devices))
        self._read_data()
        stop.raise_if_set()
        self._build_model()
        self._build_training()

    def _read_data(self) -> None:
        config, say = self.config, self.say
        self.model_folder, self.checkpoint = open_model(
            config.model,
            heads=("classifier",),
            family=config.family,
            allow_bin=config.allow_bin,
            allow_unused=config.allow_unused,
            allow_missing=config.allow_missing,
        )
        self.tokenizer = data.load_tokenizer(self.model_folder)
        vocab_size, positions = self.checkpoint.config.vocab_size, self.checkpoint.config.max_length
        data.check_vocabulary(self.tokenizer, vocab_size)
        self._name_padding()
        if config.max_length > positions:
            raise ValueError(f"max_length is {config.max_length}, but {config.model} has {positions} positions")
        columns = data.Columns(config.columns.text, config.columns.pair, config.columns.label)
        sources = data.read_training_data(
            config.train, config.eval, columns=columns, seed=config.seed, on_bad_row=config.on_bad_row
        )
        self.names = sources.train.names
        tables = {"train": sources.train, "eval": sources.evaluation}
        if config.test is not None:
            tables["test"] = data.read_table(
                config.test,
                columns=columns,
                names=self.names,
                on_bad_row=config.on_bad_row,
                split=data.pick_split(config.test, "test"),
            )
        tokens = {split: data.tokenize(table, self.tokenizer, config.max_length) for split, table in tables.items()}
        # Apart, so that what is trained does not depend on what is tested.
        others = [tokenized.lengths for split, tokenized in tokens.items() if split != "train"]
        buckets = {
            training: data.fitted_buckets(lengths, config.length_buckets, most=config.max_length)
            for training, lengths in ((True, tokens["train"].lengths), (False, np.concatenate(others)))
        }
        multiple_of = self.mesh.size * config.accumulate
        self.batches: dict[str, data.Batches] = {}
        self.labels: dict[str, np.ndarray] = {}
        self.facts: dict[str, Any] = {"rows": {}, "skipped_rows": {}, "truncated": {}}
        for split, table in tables.items():
            tokenized = tokens[split]
            data.check_tokens(tokenized, vocab_size)
            assert table.labels is not None
            training = split == "train"
            self.labels[split] = table.labels
            self.batches[split] = data.Batches(
                tokenized,
                table.labels,
                batch_size=config.batch_size if training else EVALUATION_ROWS,
                seed=config.seed,
                shuffle=training,
                buckets=buckets[training],
                multiple_of=multiple_of if training else self.mesh.size,
                classes=len(self.names),
            )
            for fact, count in (("rows", len(table)), ("truncated", tokenized.truncated)):
                self.facts[fact][split] = count
            self.facts["skipped_rows"][split] = table.report.skipped
            cut = f", {tokenized.truncated} cut to {config.max_length} tokens" if tokenized.truncated else ""
            bad = f", {table.report.skipped} bad rows skipped" if table.report.skipped else ""
            origin = sources.origin if split == "eval" else table.source
            say(f"{split}: {len(table)} rows from {origin}{cut}{bad}")
        say(f"classes: {', '.join(self.names)}")

    def _name_padding(self) -> None:
        """A GPT-2 that names no padding token makes a classifier that transformers takes one row at a time."""
        architecture, pad = self.checkpoint.config, self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        if isinstance(architecture, models.Gpt2Config) and architecture.pad_id is None and pad is not None:
            self.checkpoint = replace(self.checkpoint, config=replace(architecture, pad_id=pad))

    def _build_model(self) -> None:
        config, checkpoint = self.config, self.checkpoint
        architecture = computed_with(checkpoint.config, dtype=config.dtype, dropout=config.dropout)
        build = partial(models.build, architecture, "classification", classes=len(self.names))
        example = self.batches["train"].batch_at(0)
        init_rng, self.step_rng = jax.random.split(jax.random.key(config.seed))
        fresh = jax.jit(build().init)(init_rng, example)

        kept = {"backbone": checkpoint.params["backbone"]}
        head = "fresh"
        if "classifier" in checkpoint.params:
            if checkpoint.labels == list(self.names):
                head, kept["classifier"] = "imported", checkpoint.params["classifier"]
            else:
                known = ", ".join(checkpoint.labels or [])
                self.say(f"the checkpoint's head is dropped: it tells {known} apart")
        others = set(checkpoint.params) - {"backbone", "classifier"}  # of a converted folder, and of any other:
        others |= {entry.hf_name for entry in checkpoint.manifest.unused} if checkpoint.manifest else set()
        if others:
            self.say(f"the checkpoint's heads of other tasks are dropped: {', '.join(sorted(others))}")
        self.imported = {} if config.from_scratch else {"backbone": kept["backbone"]}
        self.params, self.trainable = adopt({} if config.from_scratch else kept, fresh, config.freeze)
        origin = "fresh (from scratch)"
        if not config.from_scratch:
            refuse_frozen_fresh(fresh, self.trainable, kept, model=config.model, freeze=config.freeze)
            origin = f"{config.model}, head {head}"
            if new := fresh_pieces(fresh, kept):
                self.say(f"{config.model} lacks {', '.join(new)}: fresh")
        self.model = build(frozen_layers=frozen_depth(self.trainable, architecture))
        self.origin = f"{checkpoint.family} from {origin}"

    def _build_training(self) -> None:
        config = self.config
        weights = None
        if config.class_weights == "balanced":
            counts = np.bincount(self.labels["train"], minlength=len(self.names))
            weights = [float(counts.sum() / (len(counts) * max(count, 1))) for count in counts]
        task = objectives.classification(self.model, label_smoothing=config.label_smoothing, class_weights=weights)
        self.training = Training(
            config,
            name=self.name,
            say=self.say,
            stop=self.stop,
            mesh=self.mesh,
            objective=objectives.combine(task, penalties=self._penalties()),
            params=self.params,
            trainable=self.trainable,
            rng=self.step_rng,
            batches=self.batches,
            judge=lambda evaluation: reports.classification_metrics(
                evaluation.predictions["logits"], self.labels["eval"]
            ),
            monitor=f"classification/{config.monitor}",
            higher_is_better=config.monitor != "loss",
            identity={
                "tokenizer": data.tokenizer_fingerprint(self.tokenizer),
                # What was imported: fresh parameters follow from the seed, but for last bits that differ by machine.
                "initial_model": train.fingerprint({} if config.from_scratch else self.checkpoint.params),
            },
        )
        training = self.training
        self.say(f"model: {self.origin}; {training.trainable_count:,} of {training.parameter_count:,} parameters train")

    def _penalties(self) -> list[objectives.Penalty]:
        weight, l2 = self.config.l2_to_pretrained, self.config.l2
        if not weight:
            if l2.factors or l2.new:
                raise ValueError("l2.factors and l2.new shape l2_to_pretrained, which is 0; give it a weight")
            return []
        reference, _ = optim.partition(self.imported, _restrict(self.trainable, self.imported))
        if not jax.tree.leaves(reference):
            raise ValueError("l2_to_pretrained needs trainable parameters that were imported; there are none")
        learnt, _ = optim.partition(self.params, self.trainable)
        weights = jax.tree.map(lambda factor: weight * factor, optim.by_pattern(learnt, l2.factors, default=1.0))
        whole = objectives.l2_to_pretrained(jax.tree.map(np.asarray, reference), weights=weights, new_weight=l2.new)

        def of_what_learns(params, constants, rng):  # the rest does not move
            return whole.loss(optim.partition(params, self.trainable)[0], constants, rng)

        return [whole._replace(loss=of_what_learns)]

    def finish(self, loop: "LoopState") -> dict[str, reports.Report]:
        """Take the best model, report on it, and save it as a Hugging Face folder."""
        training = self.training
        state = training.best_state(loop)
        found = {}
        for split in self.batches:
            if split != "train":
                logits = training.evaluate(state, split).predictions["logits"]
                found[split] = reports.classification_report(logits, self.labels[split], self.names)
        out = self.config.out
        fields = {**self.checkpoint.extras.fields, "problem_type": "single_label_classification"}
        convert.save(
            out / "model",
            replace(self.checkpoint, extras=replace(self.checkpoint.extras, fields=fields)),
            params=jax.tree.map(np.asarray, state.params),
            labels=list(self.names),
            tokenizer_from=self.model_folder,
            overwrite=True,
            dtype=None if self._source_is_float32() else "float32",  # what was evaluated; float16 would lose steps
        )
        facts = {
            "best_step": loop.best_step,
            "steps": int(training.state.step),
            "skipped_steps": loop.skipped,
            "parameters": training.parameter_count,
            "trainable_parameters": training.trainable_count,
            **self.facts,
        }
        reports.save_report(out, found, facts)
        reports.plot_history(out / "history.png", training.journal.read(), training.schedule.monitor)
        return found

    def _source_is_float32(self) -> bool:
        return set(self.checkpoint.extras.dtypes.values()) <= {"float32"}


def _restrict(tree: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """The part of a tree that `like` has too."""
    return {key: _restrict(tree[key], value) if isinstance(value, dict) else tree[key] for key, value in like.items()}
