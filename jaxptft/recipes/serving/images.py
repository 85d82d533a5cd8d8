"""Images of requests -> what `jaxptft predict` says of them, in few numbers of rows, all of one size."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxptft import data
from jaxptft.data.image_files import Decoding, decode
from jaxptft.data.validate import Refused
from jaxptft.recipes.serving.requests import BadRequest
from jaxptft.recipes.tasks import image_classification

if TYPE_CHECKING:
    from jaxptft.recipes.inference import Opened

Row = dict[str, Any]


class ImageAnswerer:
    """What a model says of rows that `prepare` gives, as `answers.Answerer` has it for rows of text."""

    lengths: tuple[int, ...] = ()
    longest: int | None = None

    def __init__(self, opened: "Opened", *, sizes: Sequence[int]):
        preprocessing = opened.preprocessing
        assert preprocessing is not None
        self._opened, self.task = opened, opened.task
        self._shape = (*preprocessing.stored_size, preprocessing.channels)
        how: dict[str, Any] = {"fit": preprocessing.fit, "resample": preprocessing.resample}
        self._how = Decoding(preprocessing.stored_size, preprocessing.channels, **how)
        self.sizes = tuple(dict.fromkeys(-(-size // opened.devices) * opened.devices for size in sizes))
        self._predictor = opened.predictor(image_classification.objective_of(opened))

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the batches so far: rows, height, width and channels."""
        return sorted(self._predictor.shapes)

    def prepare(self, rows: Sequence[Row], *, single: bool = False) -> list[Row]:
        """The rows with their images as pixels; BadRequest where one is none. Slow: for a thread of its own."""
        found = []
        for number, row in enumerate(rows):
            place = "image" if single else f"rows.{number}.image"
            try:
                content = base64.b64decode(row["image"], validate=True)
            except (binascii.Error, ValueError):
                raise BadRequest(422, f"{place} is not base64; encode the bytes of an image file") from None
            try:
                found.append({"image": decode(content, self._how)})
            except Refused as refused:
                raise BadRequest(422, f"{place} {refused.detail}") from None
        return found

    def __call__(self, rows: Sequence[Row]) -> list[Row]:
        """An answer for each row."""
        images = data.make_images(np.stack([row["image"] for row in rows]), source="the request")
        size = next((size for size in self.sizes if size >= len(rows)), self.sizes[-1])
        batches = data.ImageBatches(images, batch_size=size, shuffle=False, multiple_of=self._opened.devices)
        return list(image_classification.answers_of(self._opened, self._predictor(batches)["logits"]))

    def compile(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Answer black images, as many as each size says, so that nothing is left to compile."""
        for size in self.sizes:
            if stopped():
                return
            self([{"image": np.zeros(self._shape, np.uint8)}] * size)
