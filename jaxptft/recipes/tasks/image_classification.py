"""One class for each image."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxptft import augment, data, models, objectives
from jaxptft.recipes.features import read_asked_images
from jaxptft.recipes.metrics.classification import classification_metrics, classification_report
from jaxptft.recipes.preprocessing import Preprocessing, read_preprocessing
from jaxptft.recipes.report import Report
from jaxptft.recipes.tasks.contract import Predictions
from jaxptft.recipes.tasks.options import balanced_classes, chosen_weights, refuse_unused
from jaxptft.recipes.training import EVALUATION_ROWS

if TYPE_CHECKING:
    from jaxptft.recipes import evaluate as evaluation
    from jaxptft.recipes import finetune
    from jaxptft.recipes import predict as prediction
    from jaxptft.recipes.inference import Opened

Say = Callable[[str], None]


class ImageClassification:
    """Images with one class each; see `contract.Task`."""

    def __init__(self, config: "finetune.Config", *, folder: Path, architecture: Any, devices: int, say: Say):
        self.model_task, self.head = "classification", "classifier"
        self.fields: dict[str, Any] = {"problem_type": "single_label_classification"}
        self.monitors = {
            "accuracy": ("classification/accuracy", True),
            "macro_f1": ("classification/macro_f1", True),
            "loss": ("classification/loss", False),
        }
        refuse_unused(config, "image_classification")
        self.preprocessing: Preprocessing = read_preprocessing(folder, architecture)
        splits = data.read_image_splits(
            config.train,
            config.eval,
            config.test,
            size=self.preprocessing.stored_size,
            channels=self.preprocessing.channels,
            seed=config.seed,
            columns=data.ImageColumns(config.columns.image, config.columns.label),
            on_bad_row=config.on_bad_row,
            labelled=True,
            fit=self.preprocessing.fit,
            resample=self.preprocessing.resample,
        )
        images = {"train": splits.train, "eval": splits.evaluation}
        if splits.test is not None:
            images["test"] = splits.test
        self.names: tuple[str, ...] = splits.train.names
        self.classes = len(self.names)
        self.labels = {split: _labels_of(found) for split, found in images.items()}
        self.facts: dict[str, dict[str, Any]] = {"rows": {}, "skipped_rows": {}}
        self.batches: dict[str, Any] = {}
        for split, found in images.items():
            training = split == "train"
            balanced = training and config.sampling == "balanced"
            self.batches[split] = data.ImageBatches(
                found,
                self.labels[split],
                batch_size=config.batch_size if training else EVALUATION_ROWS,
                seed=config.seed,
                shuffle=training,
                multiple_of=devices * (config.accumulate if training else 1),
                classes=self.classes,
                weights=data.balanced_weights(self.labels[split]) if balanced else None,
            )
            self.facts["rows"][split], self.facts["skipped_rows"][split] = len(found), found.report.skipped
            where = splits.origin if split == "eval" else found.source
            skipped = f", {found.report.skipped} bad ones skipped" if found.report.skipped else ""
            say(f"{split}: {len(found)} images from {where}{skipped}")
        say(f"classes: {', '.join(self.names)}")
        self._smoothing, self._weights = config.label_smoothing, self._class_weights(config)
        self._view = self._training_view(config)

    def _class_weights(self, config: "finetune.Config") -> list[float] | None:
        given = chosen_weights(config, self.names, "classes")
        if given is not None or config.class_weights == "none":
            return given
        return balanced_classes(np.bincount(self.labels["train"], minlength=self.classes).tolist())

    def _training_view(self, config: "finetune.Config") -> augment.View:
        plain, size = self.preprocessing, self.preprocessing.size
        normal = augment.normalise(plain.mean, plain.std)
        match config.images.views:
            case "none":
                return plain.view
            case "flip":
                return augment.compose(augment.to_float(), augment.center_crop(size), augment.flip(), normal)
            case "crop_flip":
                padding = max(1, size[0] // 8)
                cut = augment.random_crop(size, padding=padding)
                return augment.compose(augment.to_float(), augment.center_crop(size), cut, augment.flip(), normal)
        return augment.compose(augment.crop_flip(size), normal)

    def objective(self, model: models.Model) -> objectives.Objective:
        task = objectives.classification(model, label_smoothing=self._smoothing, class_weights=self._weights)
        return objectives.seen_through(task, view=self._view, plain=self.preprocessing.view)

    def metrics(self, predictions: Predictions, split: str) -> dict[str, float]:
        return classification_metrics(predictions["logits"], self.labels[split])

    def settle(self, predictions: Predictions) -> dict[str, Any]:
        return {}

    def report(self, predictions: Predictions, split: str, settled: Mapping[str, Any]) -> Report:
        return classification_report(predictions["logits"], self.labels[split], self.names)


def read(
    config: "finetune.Config",
    *,
    folder: Path,
    architecture: Any,
    devices: int,
    checkpoint_names: list[str] | None,
    say: Say,
) -> ImageClassification:
    """Read and check the images of a fine-tuning."""
    return ImageClassification(config, folder=folder, architecture=architecture, devices=devices, say=say)


def objective_of(opened: "Opened") -> objectives.Objective:
    """What predicts the logits of batches of images, as they are stored."""
    model = opened.model("classification", classes=len(opened.names))
    assert opened.preprocessing is not None
    view = opened.preprocessing.view
    return objectives.seen_through(objectives.classification(model), view=view, plain=view)


def answers_of(opened: "Opened", logits: np.ndarray) -> Iterator[dict[str, Any]]:
    """`label`, and `probabilities` by class."""
    from scipy.special import softmax

    for values in softmax(logits.astype("float64"), axis=-1):
        by_name = {name: round(float(p), 6) for name, p in zip(opened.names, values, strict=True)}
        yield {"label": opened.names[int(values.argmax())], "probabilities": by_name}


def _logits(opened: "Opened", images: data.Images, batch_size: int) -> np.ndarray:
    task = objective_of(opened)
    batches = data.ImageBatches(images, batch_size=batch_size, shuffle=False, multiple_of=opened.devices)
    return opened.predictions(task, batches, name_row=lambda row: f"{images.source}, row {images.rows[row]}")["logits"]


def _read_asked(opened: "Opened", request: Any, *, labelled: bool) -> data.Images:
    assert opened.preprocessing is not None
    return read_asked_images(
        request.data,
        opened.preprocessing,
        split=request.split,
        labelled=labelled,
        names=opened.names if labelled else None,
        columns=request.columns,
        on_bad_row=request.on_bad_row,
        key=getattr(request, "id", None),
    )


def predict(opened: "Opened", request: "prediction.Config", *, say: Say) -> Iterator[dict[str, Any]]:
    """`row` (its number in the source), the file's name where there is one, `label`, and `probabilities` by class."""
    images = _read_asked(opened, request, labelled=False)
    found = answers_of(opened, _logits(opened, images, request.batch_size))
    if images.report.skipped:
        say(f"{images.report.skipped} bad images skipped")
    keys = images.keys or [None] * len(images)
    for row, key, answer in zip(images.rows.tolist(), keys, found, strict=True):
        yield {"row": row} | ({} if key is None else {"id": key}) | answer


def evaluate(opened: "Opened", request: "evaluation.Config", *, say: Say) -> Report:
    """Accuracy, F1 and the confusion matrix; each image counts exactly once."""
    images = _read_asked(opened, request, labelled=True)
    say(f"{len(images)} images from {images.source}, {images.report.skipped} skipped")
    return classification_report(_logits(opened, images, request.batch_size), _labels_of(images), opened.names)


def _labels_of(images: data.Images) -> np.ndarray:
    assert images.labels is not None
    return images.labels
