"""The parts of one fine-tuning put together: data, model, objective, optimizer, loop, and what remains of it."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxptft import convert, data, objectives, optim, train
from jaxptft.recipes import report as reports
from jaxptft.recipes import run_folder
from jaxptft.recipes.finetune import Config, total_steps
from jaxptft.recipes.model_source import CLASSIFIERS, open_model

if TYPE_CHECKING:
    from jaxptft.train import LoopState, State, StopFlag

EVALUATION_ROWS = 64  # in a batch


class ClassifierRun:
    """Everything between a `Config` and its results; built whole before the first step, so that mistakes come first."""

    def __init__(self, config: Config, *, name: str, say: Callable[[str], None], stop: "StopFlag"):
        self.config, self.name, self.say, self.stop = config, name, say, stop
        self.mesh = train.make_mesh(_devices(config.devices))
        self._read_data()
        stop.raise_if_set()
        self._build_model()
        self._build_training()
        self.state = self._first_state()

    def _read_data(self) -> None:
        config, say = self.config, self.say
        self.model_folder, self.checkpoint = open_model(
            config.model,
            family=config.family,
            allow_bin=config.allow_bin,
            allow_unused=config.allow_unused,
            allow_missing=config.allow_missing,
        )
        self.tokenizer = data.load_tokenizer(self.model_folder)
        vocab_size, positions = self.checkpoint.config.vocab_size, self.checkpoint.config.positions
        data.check_vocabulary(self.tokenizer, vocab_size)
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

    def _build_model(self) -> None:
        config, checkpoint = self.config, self.checkpoint
        architecture = replace(checkpoint.config, dtype=config.dtype)
        if config.dropout is not None:
            rates = {"dropout": config.dropout, "attention_dropout": config.dropout, "head_dropout": config.dropout}
            architecture = replace(architecture, **rates)
        build, classes = CLASSIFIERS[checkpoint.family], len(self.names)
        example = self.batches["train"].batch_at(0)
        init_rng, self.step_rng = jax.random.split(jax.random.key(config.seed))
        fresh = jax.jit(build(architecture, classes).init)(init_rng, example)

        kept = dict(checkpoint.params)
        head = "fresh"
        if "classifier" in kept:
            if checkpoint.labels == list(self.names):
                head = "imported"
            else:
                known = ", ".join(checkpoint.labels or [])
                self.say(f"the checkpoint's head is dropped: it tells {known} apart")
                del kept["classifier"]
        self.imported = {} if config.from_scratch else {"backbone": kept["backbone"]}
        self.params = fresh if config.from_scratch else convert.complete(kept, fresh)
        self.trainable = optim.trainable_mask(self.params, config.freeze)
        if not config.from_scratch:
            self._refuse_frozen_fresh_parameters(kept)
        frozen_layers = optim.frozen_prefix(self.trainable)
        self.model = build(architecture, classes, frozen_layers=frozen_layers)

        leaves = list(zip(jax.tree.leaves(self.params), jax.tree.leaves(self.trainable), strict=True))
        self.parameter_count = sum(leaf.size for leaf, _ in leaves)
        self.trainable_count = sum(leaf.size for leaf, learns in leaves if learns)
        origin = "fresh (from scratch)" if config.from_scratch else f"{config.model}, head {head}"
        self.say(
            f"model: {checkpoint.family} from {origin}; "
            f"{self.trainable_count:,} of {self.parameter_count:,} parameters train"
        )

    def _refuse_frozen_fresh_parameters(self, imported: dict[str, Any]) -> None:
        known = set(optim.paths(imported))
        for path, learns in zip(optim.paths(self.params), jax.tree.leaves(self.trainable), strict=True):
            if not learns and path not in known:
                raise ValueError(
                    f"{path} is not in {self.config.model}, so it starts afresh, and freeze={self.config.freeze!r} "
                    "would keep it there; let it train"
                )

    def _build_training(self) -> None:
        config = self.config
        weights = None
        if config.class_weights == "balanced":
            counts = np.bincount(self.labels["train"], minlength=len(self.names))
            weights = [float(counts.sum() / (len(counts) * max(count, 1))) for count in counts]
        task = objectives.classification(self.model, label_smoothing=config.label_smoothing, class_weights=weights)
        self.objective = objectives.combine(task, penalties=self._penalties())

        per_epoch = self.batches["train"].steps_per_epoch
        steps = total_steps(config, per_epoch)
        o = config.optimizer
        self.learning_rate = optim.schedule(
            o.schedule, peak=config.learning_rate, steps=steps, warmup=o.warmup, cycles=o.cycles
        )
        self.optimizer = optim.adamw(
            self.learning_rate,
            weight_decay=o.weight_decay,
            clip_norm=o.clip_norm,
            b1=o.b1,
            b2=o.b2,
            eps=o.eps,
            multipliers=o.multipliers or None,
        )
        evaluate_every = config.evaluate_every or min(per_epoch, steps)
        self.schedule = train.Schedule(
            steps=steps,
            log_every=config.log_every,
            evaluate_every=evaluate_every,
            checkpoint_every=config.checkpoint_every or evaluate_every,
            monitor=f"classification/{config.monitor}",
            higher_is_better=config.monitor != "loss",
            patience=config.patience,
        )
        self.evaluator = train.make_evaluator(self.objective)
        self.place = lambda batch: train.shard(batch, self.mesh)
        self.constants = train.replicate(self.objective.constants, self.mesh)
        folder = config.out / "checkpoints"
        self.checkpoints = train.CheckpointStore(folder, keep=config.keep_checkpoints)
        self.best = train.CheckpointStore(folder / "best", keep=None)
        self.journal = train.Journal(config.out / "metrics.jsonl")
        # In this order: the first that differs is named, and another tokenizer makes other data.
        spoken = {"train": "training_data", "eval": "evaluation_data", "test": "test_data"}
        self.identity = {
            "tokenizer": data.tokenizer_fingerprint(self.tokenizer),
            **{spoken[split]: batches.tokenized.fingerprint for split, batches in self.batches.items()},
            "batches": self.batches["train"].fingerprint,
            # What was imported: fresh parameters follow from the seed, but for last bits that differ by machine.
            "initial_model": train.fingerprint({} if config.from_scratch else self.checkpoint.params),
            "constants": train.fingerprint(self.objective.constants),
        }

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

    def _first_state(self) -> "State":
        state = train.create_state(
            self.objective,
            self.optimizer,
            self.params,
            self.batches["train"].batch_at(0),
            trainable=self.trainable,
            rng=self.step_rng,
        )
        return train.replicate(state, self.mesh)

    def _compiled_step(self) -> Callable[..., Any]:
        axis_name = "data" if self.config.parallel == "pmap" else None
        step = train.make_step(
            self.objective,
            self.optimizer,
            trainable=self.trainable,
            accumulate=self.config.accumulate,
            axis_name=axis_name,
        )
        if axis_name is None:
            return train.jit_step(step, self.mesh)
        return train.pmap_step(step, axis_name=axis_name, devices=list(self.mesh.devices.flat))

    def evaluate(self, state: "State", split: str) -> train.Evaluation:
        """Every row of a split, once."""
        batches = self.batches[split]
        return train.evaluate(
            self.evaluator,
            state.params,
            state.objective_state,
            self.constants,
            (batches.batch_at(step) for step in range(batches.steps_per_epoch)),
            place=self.place,
            stop=self.stop,
        )

    def train(self) -> "LoopState":
        """From the start, or from the newest good checkpoint when resuming, to the end."""
        loop = train.LoopState()
        self.checkpoints.clean()  # first, since it completes a save that was killed in the middle of a replacement
        if self.config.resume and self.checkpoints.steps():
            # Before the arrays: another model would differ in their shapes, and say less.
            with suppress(train.DamagedCheckpoint):  # which restoring passes over
                meta = self.checkpoints.read_meta(self.checkpoints.steps()[-1])
                run_folder.check_same(meta["identity"], self.identity, self.config.out)
            step, self.state, meta = self.checkpoints.restore(self.state)
            run_folder.check_same(meta["identity"], self.identity, self.config.out)
            self._warn_of_other_environment(meta["environment"])
            loop = train.LoopState(**meta["loop"])
            self.say(f"resuming {self.config.out} at step {step}")
        self.journal.rewind(int(self.state.step))

        def judged(state: "State") -> dict[str, float]:
            evaluation = self.evaluate(state, "eval")
            own = reports.classification_metrics(evaluation.predictions["logits"], self.labels["eval"])
            return evaluation.metrics | own

        with train.Progress(self.name, self.schedule.steps) as progress:
            self.state, loop = train.fit(
                self._compiled_step(),
                self.state,
                self.constants,
                self.batches["train"].batch_at,
                schedule=self.schedule,
                evaluate=judged,
                journal=self.journal,
                checkpoints=self.checkpoints,
                best=self.best,
                loop=loop,
                meta={
                    "config": self.config.model_dump(mode="json"),
                    "identity": self.identity,
                    "environment": run_folder.environment(),
                },
                learning_rate=self.learning_rate,
                place=(lambda batch: batch) if self.config.parallel == "pmap" else self.place,
                progress=progress,
                stop=self.stop,
            )
        return loop

    def finish(self, loop: "LoopState") -> dict[str, reports.Report]:
        """Take the best model, report on it, and save it as a Hugging Face folder."""
        if loop.best is None:
            raise FloatingPointError(f"no evaluation gave a finite {self.schedule.monitor}; there is no best model")
        like = train.Best(self.state.params, self.state.objective_state)
        _, best, _ = self.best.restore(like, step=loop.best_step)
        state = self.state._replace(params=best.params, objective_state=best.objective_state)
        found = {}
        for split in self.batches:
            if split != "train":
                logits = self.evaluate(state, split).predictions["logits"]
                found[split] = reports.classification_report(logits, self.labels[split], self.names)
        out = self.config.out
        fields = {**self.checkpoint.extras.fields, "problem_type": "single_label_classification"}
        convert.save(
            out / "model",
            replace(self.checkpoint, extras=replace(self.checkpoint.extras, fields=fields)),
            params=jax.tree.map(np.asarray, best.params),
            labels=list(self.names),
            tokenizer_from=self.model_folder,
            overwrite=True,
            dtype=None if self._source_is_float32() else "float32",  # what was evaluated; float16 would lose steps
        )
        facts = {
            "best_step": loop.best_step,
            "steps": int(self.state.step),
            "skipped_steps": loop.skipped,
            "parameters": self.parameter_count,
            "trainable_parameters": self.trainable_count,
            **self.facts,
        }
        reports.save_report(out, found, facts)
        reports.plot_history(out / "history.png", self.journal.read(), self.schedule.monitor)
        return found

    def _source_is_float32(self) -> bool:
        return set(self.checkpoint.extras.dtypes.values()) <= {"float32"}

    def _warn_of_other_environment(self, recorded: dict[str, Any]) -> None:
        for name, value in run_folder.environment().items():
            if recorded.get(name) != value:
                self.say(
                    f"note: {name} was {recorded.get(name)} when the checkpoint was written and is {value} now; "
                    "results may differ in the last bits"
                )


def _devices(count: int | None) -> list[Any]:
    devices = jax.devices()
    if count is not None and count > len(devices):
        raise ValueError(f"devices is {count}, but this machine shows {len(devices)}")
    return devices[:count]


def _restrict(tree: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """The part of a tree that `like` has too."""
    return {key: _restrict(tree[key], value) if isinstance(value, dict) else tree[key] for key, value in like.items()}
