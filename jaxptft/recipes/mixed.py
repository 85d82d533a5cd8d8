"""Batches of several sources in one step: {"task": {...}, "mlm": {...}}, as `objectives.combine` reads them."""

from collections.abc import Mapping
from typing import Any

from jaxptft.data.cache import fingerprint
from jaxptft.recipes.training import Batches


class Mixed:
    """A batch from each of several sources at every step; the first source says how long an epoch is.

    The others go round at their own pace. Evaluation batches are of one source alone.
    """

    def __init__(self, sources: Mapping[str, Batches]):
        if not sources:
            raise ValueError("there is no source to make batches of")
        self._sources = dict(sources)
        first = next(iter(self._sources.values()))
        self._first, self.steps_per_epoch = first, first.steps_per_epoch

    @property
    def content(self) -> str:
        """The first source's."""
        return self._first.content

    @property
    def fingerprint(self) -> str:
        parts = [part for name, source in self._sources.items() for part in (name, _identity(source))]
        return fingerprint(["mixed 1", *parts])

    def batch_at(self, step: int) -> dict[str, Any]:
        return {name: source.batch_at(step) for name, source in self._sources.items()}


def _identity(source: Batches) -> str:
    return f"{source.fingerprint} {source.content}"
