"""The parts of one pre-training on images put together: images, backbone, objective, loop, and what remains of it."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxptft import convert, data, models, objectives, train
from jaxptft.recipes import image_objectives, image_pictures
from jaxptft.recipes import report as reports
from jaxptft.recipes.adoption import adopt, draw_missing, fresh_pieces, refuse_frozen_fresh
from jaxptft.recipes.computing import computed_as
from jaxptft.recipes.device_mesh import choose_mesh
from jaxptft.recipes.importance import features_of_rows
from jaxptft.recipes.measured import Measured
from jaxptft.recipes.model_source import model_fingerprint, open_model
from jaxptft.recipes.preprocessing import Preprocessing, read_preprocessing, write_preprocessing
from jaxptft.recipes.pretrain_images import CODES, Config
from jaxptft.recipes.probing import Features, nearest_neighbours
from jaxptft.recipes.training import (
    EVALUATION_ROWS,
    LAST,
    Training,
    frozen_depth,
    last,
)

if TYPE_CHECKING:
    from jaxptft.train import LoopState, StopFlag

BANK = 5000  # training images at most among which neighbours are sought


class PretrainImagesRun:
    """Everything between a `Config` and its results; built whole before the first step, so that mistakes come first."""

    def __init__(self, config: Config, *, name: str, say: Callable[[str], None], stop: "StopFlag"):
        self.config, self.say, self.stop = config, say, stop
        self.mesh = choose_mesh(config)
        self.measured = Measured(config.out, resume=config.resume)
        self._read_data()
        self._open_model()
        stop.raise_if_set()
        self._build_model(stop)
        monitor, higher, watch = self._monitor()
        self.training = Training(
            config,
            name=name,
            say=say,
            stop=stop,
            mesh=self.mesh,
            objective=lambda learns: self._objective(frozen_depth(learns, self.architecture)),
            params=self.params,
            trainable=self.trainable,
            rng=self.step_rng,
            batches=self.batches,
            judge=lambda evaluation: {"pretraining/loss": _total(evaluation.metrics)},
            watch=watch,
            prepare=self.measured.keep,
            monitor=monitor,
            higher_is_better=higher,
            identity={
                # What was imported: fresh parameters follow from the seed, but for last bits that differ by machine.
                "initial_model": model_fingerprint(self.kept, self.architecture, self.preprocessing),
            },
            imported=None if self.checkpoint is None else self.kept,
            clip_apart=("generator/**",) if config.objective == "gan" else (),
        )
        training = self.training
        say(f"model: {self.origin}; {training.trainable_count:,} of {training.parameter_count:,} parameters train")

    def _read_data(self) -> None:
        config = self.config
        self.checkpoint: convert.Checkpoint | None = None
        self.preprocessing: Preprocessing | None = None
        if config.model is not None:
            folder, self.checkpoint = open_model(
                config.model,
                allow_bin=config.allow_bin,
                allow_unused=config.allow_unused,
                allow_missing=config.allow_missing,
            )
            if not models.reads_images(self.checkpoint.config):
                raise ValueError(f"{config.model} is a model of text; pre-train it with jaxptft pretrain")
            needed = image_objectives.NEEDED.get(config.objective)
            if needed is not None and self.checkpoint.family != needed:
                raise ValueError(
                    f"objective {config.objective} continues from a model of the family {needed}, and {config.model} "
                    f"is of {self.checkpoint.family}; choose another"
                )
            self.preprocessing = read_preprocessing(folder, self.checkpoint.config)
            if config.image_size is not None:
                self.preprocessing = self.preprocessing._replace(size=(config.image_size,) * 2, margin=1.0)
            if config.channels not in (None, self.preprocessing.channels):
                reads = self.preprocessing.channels
                raise ValueError(f"channels is {config.channels}, and {config.model} reads {reads}; leave it out")
        size: Any = config.image_size
        if self.preprocessing is not None and size is None:
            size = self.preprocessing.stored_size
        known = self.preprocessing
        self.images = data.read_image_splits(
            config.data,
            config.eval_data,
            size=size,
            channels=config.channels or (known.channels if known else None),
            columns=data.ImageColumns(config.columns.image, config.columns.label),
            fraction=config.eval_share,
            seed=config.seed,
            on_bad_row=config.on_bad_row,
            fit=known.fit if known else "crop",
            resample=known.resample if known else "bicubic",
        )
        held = self.images.evaluation
        if config.eval_rows is not None and len(held) > config.eval_rows:
            rows = np.linspace(0, len(held) - 1, config.eval_rows).round().astype(np.int64)
            self.images = self.images._replace(evaluation=held.select(rows))
        found = {"train": self.images.train, "eval": self.images.evaluation}
        self.facts: dict[str, Any] = {}
        self.batches: dict[str, Any] = {}
        for split, images in found.items():
            training = split == "train"
            self.batches[split] = data.ImageBatches(
                images,
                batch_size=config.batch_size if training else EVALUATION_ROWS,
                seed=config.seed,
                shuffle=training,
                multiple_of=self.mesh.size * (config.accumulate if training else 1),
            )
            self.facts.setdefault("rows", {})[split] = len(images)
            self.facts.setdefault("skipped_rows", {})[split] = images.report.skipped
            height, width = images.size
            skipped = f", {images.report.skipped} bad ones skipped" if images.report.skipped else ""
            where = images.source if training else self.images.origin
            self.say(f"{split}: {len(images):,} images of {height} x {width} x {images.channels} from {where}{skipped}")

    def _open_model(self) -> None:
        config, images = self.config, self.images.train
        if self.checkpoint is None:
            made = image_objectives.from_nothing(config, images.size, images.channels)
            self.family, self.architecture = made
            self.preprocessing = image_objectives.preprocessing_for(config, images.size, images.channels)
            self.empty = convert.new_checkpoint(self.architecture, family=self.family)
        else:
            self.family, self.architecture = self.checkpoint.family, self.checkpoint.config
        self.saved_architecture = self.architecture  # dtype and dropout are of this run, not of the model
        self.architecture = computed_as(self.architecture, config, self.say)

    def _objective(self, frozen_layers: int | None) -> objectives.Objective:
        assert self.preprocessing is not None
        from jaxptft.recipes.training_settings import total_steps

        return image_objectives.objective_of(
            self.config,
            self.architecture,
            self.preprocessing,
            steps=total_steps(self.config, self.batches["train"].steps_per_epoch),
            frozen_layers=frozen_layers,
            words=self.words,
        )

    def _build_model(self, stop: "StopFlag") -> None:
        config = self.config
        init_rng, self.step_rng = jax.random.split(jax.random.key(config.seed))
        example = self.batches["train"].batch_at(0)
        self.words: Any = None
        if config.objective == "beit":
            from jaxptft.recipes.visual_words import learn_words

            assert self.preprocessing is not None
            self.words = learn_words(
                config,
                self.images.train,
                architecture=self.saved_architecture,
                preprocessing=self.preprocessing,
                measured=self.measured,
                mesh=self.mesh,
                say=self.say,
                stop=stop,
            )
        objective, kept = self._objective(None), dict[str, Any]()
        if self.checkpoint is None:
            self.origin = f"{self.family} from scratch"
        else:
            imported = self.checkpoint.params
            names = jax.eval_shape(objective.init, init_rng, example)
            kept = {name: imported[name] for name in imported if name in names}
            self.origin = f"{self.family} from {config.model}"
            if dropped := sorted(imported.keys() - kept.keys()):
                self.say(f"the checkpoint's heads of other tasks are dropped: {', '.join(dropped)}")
        self.kept = kept
        compiled = lambda init: train.made_spread(init, self.mesh)  # noqa: E731
        fresh = draw_missing(objective.init, kept, init_rng, example, compiled=compiled)
        new = [*fresh_pieces(fresh, kept), *(name for name in fresh if name not in kept)]
        if new and self.checkpoint is not None:
            self.say(f"{config.model} lacks {', '.join(new)}: fresh")
        self.params, self.trainable = adopt(kept, fresh, config.freeze)
        if self.checkpoint is not None:
            refuse_frozen_fresh(fresh, self.trainable, kept, model=str(config.model), freeze=config.freeze)

    def _monitor(self) -> tuple[str, bool, Callable[[train.State], dict[str, float]] | None]:
        config = self.config
        kind = config.monitor or ("last" if config.objective == "gan" else "loss")
        if kind == "loss":
            return "pretraining/loss", False, None
        if kind == "last":
            return LAST, True, last
        images = self.images
        if images.train.labels is None or images.evaluation.labels is None:
            raise ValueError(f"monitor is neighbours, but the images of {config.data} have no classes; choose loss")
        rows = np.linspace(0, len(images.train) - 1, min(BANK, len(images.train))).round().astype(np.int64)
        self._known, self._asked = images.train.select(rows), images.evaluation
        return "pretraining/neighbours", True, lambda state: {"pretraining/neighbours": self._neighbours(state)}

    def _neighbours(self, state: train.State) -> float:
        params = self.training.objective.finish(state.params, state.objective_state)
        parts = [
            Features(self.features({"backbone": params["backbone"]}, images), images.labels)
            for images in (self._known, self._asked)
            if images.labels is not None
        ]
        return nearest_neighbours(*parts)

    def features(self, params: Any, images: data.Images) -> np.ndarray:
        """The backbone's vector of each image, in their order."""
        assert self.preprocessing is not None
        if not hasattr(self, "_reader"):
            still = image_objectives.without_dropout(self.saved_architecture)
            network = models.pooled(still, models.usual_pooling(still))
            self._reader = image_objectives.seen_through(network, self.preprocessing.view)
        batches = data.ImageBatches(images, batch_size=EVALUATION_ROWS * 4, shuffle=False, multiple_of=self.mesh.size)
        stream = (batches.batch_at(step) for step in range(batches.steps_per_epoch))
        return features_of_rows(self._reader, params, stream, place=partial(train.shard, mesh=self.mesh))

    def finish(self, loop: "LoopState") -> dict[str, float]:
        """Take the chosen model, say how good it is, save it as a folder, and draw what it learnt."""
        training, out = self.training, self.config.out
        state = training.best_state(loop)
        evaluation = training.evaluate(state, "eval")
        found = evaluation.metrics | {"pretraining/loss": _total(evaluation.metrics)}
        metrics = {name: value for name, value in found.items() if np.isfinite(value)}
        params = train.to_host(state.params)
        self._save(params)
        facts = {**training.facts(loop), **self.facts}
        text = reports.save_metrics(out, metrics, facts, heading="held-out images")
        self.say(text)
        reports.plot_history(out / "history.png", training.journal.read(), training.charted)
        if self.config.pictures:
            image_pictures.draw(self, params, out / "pictures")
        return metrics

    def _save(self, params: Any) -> None:
        """The backbone, and those heads that the family has: a decoder, say, but no projector."""
        from jaxptft.convert.families import find_family

        assert self.preprocessing is not None
        known = find_family(self.family).heads
        heads = [name for name in params if name in known and _saved_with(self.config.objective, name)]
        held = {"backbone": params["backbone"], **{name: params[name] for name in heads}}
        source = self.empty if self.checkpoint is None else self.checkpoint
        convert.save(self.config.out / "model", source, params=held, overwrite=True)
        write_preprocessing(self.config.out / "model", self.preprocessing)


def _saved_with(objective: str, head: str) -> bool:
    """Whether a head stays with the backbone: that of rotations would be taken for a classifier."""
    return head in (
        "decoder",
        "mim",
        "latent",
        "latent_mean",
        "latent_log_variance",
        "generator",
        "discriminator",
    ) and (objective in (*CODES, "mae", "beit"))


def _total(metrics: dict[str, float]) -> float:
    """The sum of the terms of the loss: those metrics that are called NAME/loss."""
    return float(sum(value for name, value in metrics.items() if name.endswith("/loss") and not name.startswith("pre")))
