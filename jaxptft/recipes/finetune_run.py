"""The parts of one fine-tuning put together: data, model, objective, optimizer, loop, and what remains of it."""

from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from jaxptft import convert, data, models, objectives, train
from jaxptft.recipes import adaptation, additions, adoption, dials, forgetting_report, keeping, kept_features, packing
from jaxptft.recipes import report as reports
from jaxptft.recipes.computing import computed_as
from jaxptft.recipes.device_mesh import choose_mesh
from jaxptft.recipes.finetune import Config
from jaxptft.recipes.forgetting_probe import probe_of
from jaxptft.recipes.inference import with_settings
from jaxptft.recipes.measured import Measured
from jaxptft.recipes.mixed import Mixed
from jaxptft.recipes.model_source import can_have, locate, model_fingerprint, open_model
from jaxptft.recipes.pruning import pruner_of
from jaxptft.recipes.tasks import IMAGE_TASKS, head_of, module_of
from jaxptft.recipes.tasks.contract import Task
from jaxptft.recipes.tasks.kinds import reads_images
from jaxptft.recipes.tasks.labelled_rows import augmented
from jaxptft.recipes.training import Training, frozen_depth

if TYPE_CHECKING:
    from jaxptft.train import LoopState, StopFlag


class FinetuneRun:
    """Everything between a `Config` and its results; built whole before the first step, so that mistakes come first."""

    start: int | None = None  # the layers that are run once, before the first step
    also_same: tuple[tuple[str, str], ...] = ()  # what else a resumed run must have in common with its beginning

    def __init__(
        self,
        config: Config,
        *,
        name: str,
        say: Callable[[str], None],
        stop: "StopFlag",
        program: dials.Program | None = None,
    ):
        self.config, self.name, self.say, self.stop, self.program = config, name, say, stop, program
        self.measured = Measured(config.out, resume=config.resume)
        self.mesh = choose_mesh(config)
        self._open_model()
        self.config = packing.settled(self.config, self.checkpoint.config)
        self._read_data()
        stop.raise_if_set()
        self._build_model()
        self._keep_features()
        self._build_training()

    def sibling(self, config: Config, *, name: str, say: Callable[[str], None], stop: "StopFlag") -> "FinetuneRun":
        """Of the same program, with dials, seed, folder and test rows of its own; ValueError, naming a key, if not."""
        config = packing.settled(config, self.checkpoint.config)
        dials.check_one_program(self.config, config)
        other = copy(self)
        other.config, other.name, other.say, other.stop = config, name, say, stop
        other.measured = Measured(config.out, resume=config.resume)
        if (config.seed, config.test) != (self.config.seed, self.config.test):
            other._read_data()
        other._build_model()
        if other.batches is not self.batches:
            other._keep_features()
        other._build_training()
        return other

    def _open_model(self) -> None:
        config = self.config
        heads = [
            head_of(config.task),
            "mlm" if config.auxiliary.weight or config.forgetting.corpus or config.ewc.corpus else None,
        ]
        self.model_folder, self.checkpoint = self._load(tuple(head for head in heads if head is not None))
        if self.config.from_scratch and config.freeze != "none":  # which a student of a size is too
            raise ValueError(
                f"every parameter starts afresh, and freeze={config.freeze!r} would keep some as they are drawn; leave "
                "freeze out, or import a model"
            )
        self.tokenizer: Any = None
        if reads_images(config, self.checkpoint.config):
            if isinstance(self.checkpoint.config, models.MaeConfig):
                self.checkpoint = convert.as_vit(self.checkpoint)
            return
        self.tokenizer = data.load_tokenizer(self.model_folder)
        data.check_vocabulary(self.tokenizer, self.checkpoint.config.vocab_size)
        positions = self.checkpoint.config.max_length
        if config.max_length > positions:
            raise ValueError(f"max_length is {config.max_length}, but {config.model} has {positions} positions")
        self.checkpoint = adoption.with_padding(self.checkpoint, self.tokenizer)

    def _load(self, heads: tuple[str, ...]) -> tuple[Path, convert.Checkpoint]:
        """The folder with the tokenizer, and what is learnt on from."""
        return self._open(self.config.model, heads)

    def _open(self, model: str, heads: tuple[str, ...]) -> tuple[Path, convert.Checkpoint]:
        config, folder = self.config, locate(model)
        if config.task in IMAGE_TASKS:  # of pre-trained models not all have its head
            heads = tuple(head for head in heads if can_have(folder, head, family=config.family))
        if not can_have(folder, "mlm", family=config.family):
            heads = tuple(head for head in heads if head != "mlm")  # a causal model predicts words without one
        return open_model(
            folder,
            heads=heads,
            family=config.family,
            allow_bin=config.allow_bin,
            allow_unused=config.allow_unused,
            allow_missing=config.allow_missing,
        )

    def _read_data(self) -> None:
        self.task: Task = self._read_task()
        if self.tokenizer is not None:
            read: dict[str, Any] = self.task.batches
            for batches in read.values():
                data.check_tokens(batches.tokenized, self.checkpoint.config.vocab_size)
            self.task.batches["train"] = self._augmented(self.task.batches["train"])
        monitor = self.config.monitor
        if monitor is not None and monitor not in self.task.monitors:
            raise ValueError(
                f"monitor is {monitor!r}; {self.config.task} has {', '.join(self.task.monitors)}: choose one"
            )
        self.monitor, self.higher_is_better = self.task.monitors[monitor or next(iter(self.task.monitors))]
        self.additions = self._additions()
        self.batches = dict(self.task.batches)
        if self.additions:
            own = {
                addition.source or addition.name: addition.batches
                for addition in self.additions
                if addition.batches is not None
            }
            self.batches = {
                split: Mixed({"task": batches} | (own if split == "train" else {}))
                for split, batches in self.task.batches.items()
            }

    def _augmented(self, batches: Any) -> Any:
        return augmented(batches, self.config, tokenizer=self.tokenizer, vocab_size=self.checkpoint.config.vocab_size)

    def _read_task(self) -> Task:
        # What turns rows into numbers: a tokenizer, or the folder that says it of images.
        source = {"folder": self.model_folder} if self.tokenizer is None else {"tokenizer": self.tokenizer}
        return module_of(self.config.task).read(
            self.config,
            **source,
            architecture=self.checkpoint.config,
            devices=self.mesh.size,
            checkpoint_names=self.checkpoint.labels,
            say=self.say,
        )

    def _additions(self) -> list[additions.Addition]:
        options: dict[str, Any] = {
            "tokenizer": self.tokenizer,
            "architecture": self.checkpoint.config,
            "devices": self.mesh.size,
            "say": self.say,
        }
        found = additions.auxiliary(self.config, **options)
        if self.config.adaptation.target is not None:
            # Changed as the training rows are: else that they are not would tell the domains apart.
            target = self._augmented(adaptation.read_target(self.config, **options))
            per_epoch = self.task.batches["train"].steps_per_epoch
            found += adaptation.additions_of(self.config, target, steps_per_epoch=per_epoch)
            self._weigh(target)
        return found

    def _weigh(self, target: Any) -> None:
        """Let the training rows count as much as they look like the target's, if that is asked for."""
        config = self.config
        if not config.adaptation.importance:
            return
        if config.task != "classification":
            raise ValueError(f"adaptation.importance is for classification, and task is {config.task}; leave it out")
        if config.from_scratch:
            raise ValueError("adaptation.importance compares rows by what was imported; leave out from_scratch")
        rows: Any = self.task.batches["train"]
        self.task.batches["train"] = adaptation.weigh(
            config.adaptation,
            rows,
            target,
            features=additions.Build(self.checkpoint.config, None).pooled(config.adaptation.pooling),
            params=self.checkpoint.params,
            mesh=self.mesh,
            seed=config.seed,
            say=self.say,
            measured=self.measured,
        )

    def _build_model(self) -> None:
        config, checkpoint, task = self.config, self.checkpoint, self.task
        self.architecture = computed_as(checkpoint.config, config, self.say)
        init_rng, self.step_rng = jax.random.split(jax.random.key(config.seed))
        kept, head = {"backbone": checkpoint.params["backbone"]}, "fresh"
        if task.head is not None and task.head in checkpoint.params:
            if task.names is None or checkpoint.labels == list(task.names):
                head, kept[task.head] = "imported", checkpoint.params[task.head]
            else:
                known = ", ".join(checkpoint.labels or [])
                self.say(f"the checkpoint's head is dropped: it tells {known} apart")
        for addition in self.additions:
            if addition.head is not None and addition.head in checkpoint.params:
                kept[addition.head] = checkpoint.params[addition.head]
            elif addition.head is not None:
                self.say(f"{config.model} lacks the head {addition.head}: fresh")
        others = set(checkpoint.params) - {*kept, task.head}  # of a converted folder, and of any other:
        others |= {entry.hf_name for entry in checkpoint.manifest.unused} if checkpoint.manifest else set()
        if others:
            self.say(f"the checkpoint's heads of other tasks are dropped: {', '.join(sorted(others))}")
        self.kept = kept
        fresh = adoption.draw_missing(
            self._learnt(None).init,
            {} if config.from_scratch else kept,
            init_rng,
            self.batches["train"].batch_at(0),
            compiled=self._compiled_init,
        )
        self.imported = {} if config.from_scratch else {"backbone": kept["backbone"]}
        self.params, self.trainable = adoption.adopt({} if config.from_scratch else kept, fresh, config.freeze)
        origin = "fresh (from scratch)"
        if not config.from_scratch:
            adoption.refuse_frozen_fresh(fresh, self.trainable, kept, model=config.model, freeze=config.freeze)
            origin = config.model if task.head is None else f"{config.model}, head {head}"
            if new := adoption.fresh_pieces(fresh, kept):
                self.say(f"{config.model} lacks {', '.join(new)}: fresh")
        self.params, self.trainable = keeping.with_adapters(config, self.params, self.trainable, self.imported)
        adoption.check_baseline(config, self.params, [one.head for one in self.additions if one.name == "dann"])
        self.moves = keeping.moving(self.trainable)  # of the model's own parameters
        self.origin = f"{checkpoint.family} from {origin}"

    def _keep_features(self) -> None:
        self.start, self.batches = kept_features.kept(
            self.config,
            self.task,
            self.batches,
            architecture=self.architecture,
            depth=None if self.additions else frozen_depth(self.moves, self.architecture),
            params=self.params,
            **{"mesh": self.mesh, "say": self.say, "stop": self.stop},
        )

    def _compiled_init(self, init: Callable[..., Any]) -> Callable[..., Any]:
        make = lambda: train.made_spread(init, self.mesh)  # noqa: E731
        return make() if self.program is None else self.program.part("init", make)

    def _objective(
        self, frozen_layers: int | None, penalties: Sequence[objectives.Penalty] = ()
    ) -> objectives.Objective:
        """What is minimised, over the parameters that are held: with adapters and mixing, where they are asked for."""
        config = self.config
        if config.mixout:
            reference = keeping.mixed_with(config, self.trainable, self.imported)
            mixed = objectives.mixout(self._learnt(frozen_layers), reference, probability=config.mixout)
            whole = objectives.combine(mixed, penalties=penalties)
        else:
            whole = self._learnt(frozen_layers, penalties)
        return objectives.lora(whole, scale=keeping.lora_scale(config)) if config.lora.rank else whole

    def _learnt(self, frozen_layers: int | None, penalties: Sequence[objectives.Penalty] = ()) -> objectives.Objective:
        """The task alone, or with everything that goes beside it."""
        build = additions.Build(self.architecture, frozen_layers, None if frozen_layers is None else self.start)
        model = build(self.task.model_task, classes=self.task.classes)
        task = keeping.r_drop(self.config, self.task.objective(model), model, self.architecture)
        if not self.additions:
            return objectives.combine(task, penalties=penalties)
        others = {addition.name: (addition.weight, addition.objective(build)) for addition in self.additions}
        reads = {addition.name: addition.reads for addition in self.additions if addition.reads is not None}
        return objectives.combine({"task": (1.0, task), **others}, penalties=penalties, reads=reads)

    def _build_training(self) -> None:
        config, task = self.config, self.task
        self._elastic = keeping.elastic_weight(
            config,
            checkpoint=self.checkpoint,
            architecture=self.checkpoint.config,
            tokenizer=self.tokenizer,
            kept={} if config.from_scratch else self.kept,
            moves=self.moves,
            mesh=self.mesh,
            say=self.say,
            stop=self.stop,
            measured=self.measured,
        )
        penalties = self._penalties()
        imported = {} if config.from_scratch else self.checkpoint.params
        self.probe = probe = probe_of(
            config,
            self.checkpoint,
            **{"tokenizer": self.tokenizer, "mesh": self.mesh, "say": self.say, "stop": self.stop},
        )
        self.pruner = pruner_of(config.pruning, self.params, self.trainable)
        watches = [] if self.pruner is None else [self.pruner.watch]
        if probe is not None and config.forgetting.every == "evaluation":
            watches.append(lambda state: probe.watch(self.merged(state.params)))
        self.training = Training(
            config,
            name=self.name,
            say=self.say,
            stop=self.stop,
            mesh=self.mesh,
            objective=lambda learns: self._objective_of(learns, penalties),
            program=self.program,
            objective_with=self._objective_with,
            params=self.params,
            trainable=self.trainable,
            rng=self.step_rng,
            batches=self.batches,
            judge=lambda evaluation: task.metrics(evaluation.predictions, "eval"),
            watch=lambda state: {name: value for watch in watches for name, value in watch(state).items()},
            pruner=self.pruner,
            monitor=self.monitor,
            higher_is_better=self.higher_is_better,
            prepare=self.measured.keep,
            imported={} if config.from_scratch else self.kept,
            identity={
                **({} if self.tokenizer is None else {"tokenizer": data.tokenizer_fingerprint(self.tokenizer)}),
                **({} if probe is None else {"held_text": probe.fingerprint}),
                # What was imported: fresh parameters follow from the seed, but for last bits that differ by machine.
                "initial_model": model_fingerprint(imported, self.architecture, getattr(task, "preprocessing", None)),
                **dict(self.also_same),
            },
        )
        training = self.training
        self.say(f"model: {self.origin}; {training.trainable_count:,} of {training.parameter_count:,} parameters train")

    def _penalties(self) -> list[objectives.Penalty]:
        return keeping.l2_to_pretrained(self.config, self.params, self.moves, self.imported) + self._elastic

    def _objective_of(self, learns: Any, penalties: Sequence[objectives.Penalty]) -> objectives.Objective:
        """Of a stage, whose trainable mask `learns` is."""
        return self._objective(frozen_depth(keeping.moving(learns), self.architecture), penalties)

    def _objective_with(self, learns: Any, chosen: dials.Dials) -> objectives.Objective:
        """The same with other dials, as a program takes them."""
        own = copy(self)
        own.config = dials.turned(self.config, chosen)
        own.architecture = computed_as(self.checkpoint.config, own.config, lambda told: None)
        return own._objective_of(learns, own._penalties())

    def finish(self, loop: "LoopState") -> dict[str, reports.Report]:
        """Take the best model, report on it, and save it as a Hugging Face folder."""
        config, training, task = self.config, self.training, self.task
        state = training.best_state(loop)
        model = self.merged(state.params)
        held_out = [split for split in task.batches if split != "train"]
        predictions = {split: training.evaluate(state, split).predictions for split in held_out}
        settled = task.settle(predictions["eval"])
        found = {split: task.report(predictions[split], split, settled) for split in held_out}
        forgotten = None if self.probe is None else self.probe.compare(model)
        saved = [key for key in model if key in ("backbone", task.head)]
        settings = {"task": config.task} | ({"settled": settled} if settled else {})
        settings |= {} if self.tokenizer is None else {"max_length": config.max_length}
        convert.save(
            config.out / "model",
            self.checkpoint,
            fields=with_settings(task.fields, settings, source=self.checkpoint.extras.fields),
            params=train.to_host({key: model[key] for key in saved}),
            labels=None if task.names is None else list(task.names),
            tokenizer_from=self.model_folder,
            overwrite=True,
            dtype=None if self._source_is_float32() else "float32",  # what was evaluated; float16 would lose steps
        )
        if config.lora.rank:
            own = {key: state.params[key] for key in (*saved, objectives.LORA)}
            keeping.save_adapter(config.out / "adapter", config, own, self.trainable, checkpoint=self.checkpoint)
        facts = {
            **training.facts(loop),
            **({"settled": settled} if settled else {}),
            **task.facts,
            **({} if forgotten is None else {"forgetting": forgotten.to_dict()}),
            **({} if self.pruner is None else {"pruning": self.pruner.facts(model)}),
            **self._facts(),
        }
        reports.save_report(config.out, found, facts)
        reports.plot_history(config.out / "history.png", training.journal.read(), training.charted)
        if self.pruner is not None:
            self.say(self.pruner.told(model))
        if forgotten is not None:
            forgetting_report.keep(config.out, forgotten, training.journal.read())
            self.say(forgotten.suggestion)
        return found

    def merged(self, params: objectives.Params) -> objectives.Params:
        """The parameters of the model itself: where there are adapters, with these in its kernels."""
        return objectives.merge_lora(params, scale=keeping.lora_scale(self.config)) if self.config.lora.rank else params

    def _facts(self) -> dict[str, Any]:
        """What else goes into report.json."""
        return {}

    def _source_is_float32(self) -> bool:
        return set(self.checkpoint.extras.dtypes.values()) <= {"float32"}
