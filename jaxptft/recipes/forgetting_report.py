"""What a comparison of a model with its former self came to: numbers, a table, a picture, and a suggestion.

The suggested freeze depth is a heuristic: layers whose representations of held text a fine-tuning hardly changed did
not need to change, so that they may as well be frozen the next time. It is told from one run after the fact, it does
not say what freezing would have done to the task, and a high learning rate or a long run makes it smaller.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxptft.recipes.drift import Drift
from jaxptft.recipes.text_table import table


class Layer(NamedTuple):
    """The embeddings, a layer, or what else the backbone has; None where there is nothing to tell.

    A pooler has parameters and no hidden states of its own here, and so has a final norm, which the last layer's are
    behind.
    """

    name: str
    cka: float | None  # linear, as its paper's section 3 has it
    cka_debiased: float | None
    cosine: float | None  # of the vectors of a text before and after, mean over the texts
    drift: Drift


def freeze_depth(similarities: Sequence[float], threshold: float, *, shared: bool = False) -> int | None:
    """How many layers from the input on keep their similarity, the embeddings below them included.

    `similarities` are those of the embeddings and after each layer. None: not even the embeddings; 0: they alone.
    `shared` layers have common parameters, and can only be frozen all together.

    >>> freeze_depth([0.99, 0.98, 0.97, 0.9, 0.96], 0.95)
    2
    """
    kept = next((index for index, value in enumerate(similarities) if not value >= threshold), len(similarities))
    depth = kept - 1 if kept else None
    return 0 if shared and depth not in (None, len(similarities) - 1) else depth


@dataclass(frozen=True)
class Comparison:
    """A model beside what it was, on held text.

    `layers` are in order, the embeddings first, and what has no hidden states last; `stored_layers` is how many the
    parameters hold. `objective` names the pre-training loss, before and after, in nats a token; None where the model
    came without the head for it.
    """

    name: str
    texts: int
    tokens: int
    layers: tuple[Layer, ...]
    stored_layers: int
    drift: Drift  # of the whole backbone
    threshold: float
    objective: str | None = None
    loss_before: float | None = None
    loss_after: float | None = None

    @property
    def _similarities(self) -> list[float]:
        return [layer.cka_debiased for layer in self.layers if layer.cka_debiased is not None]

    @property
    def lowest_cka(self) -> float:
        """The debiased one, of the layer that changed most; NaN where one is, which `min` may pass over."""
        return float(np.min(self._similarities))

    @property
    def freeze_depth(self) -> int | None:
        """The suggestion: see `freeze_depth`."""
        shared = self.stored_layers < len(self._similarities) - 1
        return freeze_depth(self._similarities, self.threshold, shared=shared)

    @property
    def freeze(self) -> str:
        """The suggestion as the setting `freeze` has it."""
        depth, layers = self.freeze_depth, len(self._similarities) - 1
        if depth is None:
            return "none"
        return f"all-but-top-{0 if depth == layers else self.stored_layers - depth}"

    @property
    def suggestion(self) -> str:
        """One line."""
        depth, layers = self.freeze_depth, len(self._similarities) - 1
        if depth is None:
            return f"suggested freeze: none; the embeddings' CKA is {self._similarities[0]:.3f}, below {self.threshold}"
        kept = f"the embeddings and {depth} of {layers} layers" if depth else "the embeddings alone"
        verb = "keep" if depth else "have"
        return f"suggested freeze: {self.freeze}; {kept} {verb} a CKA of {self.threshold} or more"

    @property
    def text(self) -> str:
        """A table, and a line for the loss and the suggestion."""
        columns = ("CKA", "CKA, debiased", "cosine", "drift", "cosine of parameters")
        lines = [
            (layer.name, [*map(_shown, (layer.cka, layer.cka_debiased, layer.cosine, *layer.drift))])
            for layer in self.layers
        ]
        lines.append(("all", ["", "", "", *map(_shown, self.drift)]))
        title = f"what was forgotten since {self.name}, on {self.texts} held texts of {self.tokens:,} tokens:"
        if self.objective is None:
            loss = f"{self.name} has no head of masked tokens, and so no pre-training loss"
        else:
            loss = f"pre-training loss ({self.objective}): {self.loss_before:.4f} before, {self.loss_after:.4f} after"
        return "\n".join([title, table("", columns, lines), loss, self.suggestion])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "beside": self.name,
            "texts": self.texts,
            "tokens": self.tokens,
            "pooling": "mean over the tokens of a text",
            "pretraining_loss": None
            if self.objective is None
            else {"objective": self.objective, "before": self.loss_before, "after": self.loss_after},
            "layers": [
                layer._asdict() | {"drift": layer.drift.relative_l2, "drift_cosine": layer.drift.cosine}
                for layer in self.layers
            ],
            "drift": self.drift.relative_l2,
            "drift_cosine": self.drift.cosine,
            "lowest_cka": self.lowest_cka,
            "threshold": self.threshold,
            "freeze_depth": self.freeze_depth,
            "freeze": self.freeze,
        }


def keep(folder: Path, found: Comparison, lines: Sequence[Mapping[str, Any]]) -> None:
    """Add the table to a run's report.txt, and draw forgetting.png; `lines` are those of its journal."""
    with (folder / "report.txt").open("a", encoding="utf-8") as file:
        file.write(f"\n{found.text}\n")
    plot(folder / "forgetting.png", found, lines)


def plot(path: Path, found: Comparison, lines: Sequence[Mapping[str, Any]] = ()) -> None:
    """CKA and drift by layer and, where a journal has it, the pre-training loss by step."""
    from matplotlib.figure import Figure

    name = "forgetting/pretraining_loss"
    losses = [(line["step"], line[name]) for line in lines if line["kind"] == "evaluation" and name in line]
    figure = Figure(figsize=(10.5 if losses else 7, 3.5), layout="constrained")
    axes = figure.subplots(1, 3 if losses else 2)
    read = [layer for layer in found.layers if layer.cka is not None]
    for label, values in (
        ("CKA", [layer.cka for layer in read]),
        ("CKA, debiased", [layer.cka_debiased for layer in read]),
        ("cosine", [layer.cosine for layer in read]),
    ):
        axes[0].plot(range(len(read)), values, marker="o", markersize=3, label=label)
    axes[0].axhline(found.threshold, color="gray", linestyle=":", linewidth=1)
    axes[0].legend(fontsize=8)
    axes[1].bar(range(len(found.layers)), [layer.drift.relative_l2 or 0.0 for layer in found.layers])
    titles = ["likeness to before", "drift of the parameters, relative L2"]
    for own, shown, title in zip(axes, (read, found.layers), titles, strict=False):
        own.set_xticks(range(len(shown)), [layer.name for layer in shown], rotation=60, ha="right", fontsize=7)
        own.set_title(title, fontsize=10)
    if losses:
        axes[2].plot(*zip((0, found.loss_before), *losses, strict=True), marker="o", markersize=3)
        axes[2].axhline(found.loss_before, color="gray", linestyle=":", linewidth=1)
        axes[2].set_xlabel("optimizer step")
        axes[2].set_title(f"pre-training loss ({found.objective})", fontsize=10)
    for own in axes:
        own.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
