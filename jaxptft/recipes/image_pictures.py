"""Pictures of what was learnt from images: views, reconstructions, samples, filters, and maps of the features."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxptft import models, objectives
from jaxptft.recipes import image_objectives
from jaxptft.recipes.pretrain_images import CODES, TWO_VIEWS

if TYPE_CHECKING:
    from jaxptft.recipes.pretrain_images_run import PretrainImagesRun

SHOWN = 10  # images side by side
MAPPED = 1000  # images at most on a map of features

Picture = Float[np.ndarray, "height width channels"]  # 0 to 1


def draw(run: "PretrainImagesRun", params: Any, folder: Path) -> None:
    """All that the objective has to show, as PNG files in `folder`; a picture that cannot be drawn is said, no more."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Callable[[Path], None]] = {
        "features.png": lambda path: feature_map(path, *_mapped(run, params)),
        "filters.png": lambda path: filters(path, params["backbone"], _channels(run)),
    }
    if run.config.objective == "mae":
        drawn["reconstructions.png"] = lambda path: _masked(path, run, params)
    elif run.config.objective == "beit":
        drawn["words.png"] = lambda path: _words(path, run, params)
    elif run.config.objective in CODES:
        from jaxptft.recipes import image_codes

        drawn |= image_codes.pictures(run, params, shown=SHOWN)
    if run.config.objective in TWO_VIEWS or run.config.objective == "rotation":
        drawn["views.png"] = lambda path: _views(path, run)
    for name, make in drawn.items():
        try:
            make(folder / name)
        except (ValueError, KeyError) as error:  # no model is worth less for a picture
            run.say(f"note: {name} was not drawn: {error}")


def grid(path: Path, rows: Mapping[str, Sequence[Picture] | np.ndarray], *, scale: float = 0.9) -> None:
    """Rows of pictures below each other, each with its name; values are cut to 0 to 1."""
    from matplotlib.figure import Figure

    columns = max(len(pictures) for pictures in rows.values())
    figure = Figure(figsize=(scale * columns + 1.2, scale * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for place, cell in enumerate(line):
            cell.set(xticks=[], yticks=[])
            for side in cell.spines.values():
                side.set_visible(False)
            if place < len(pictures):
                picture = np.clip(np.asarray(pictures[place], np.float32), 0.0, 1.0)
                single = picture.shape[-1] == 1
                cell.imshow(picture[..., 0] if single else picture, cmap="gray" if single else None, vmin=0, vmax=1)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.savefig(path, dpi=150)


def feature_map(
    path: Path, features: Float[np.ndarray, "rows width"], labels: np.ndarray | None, names: Sequence[str]
) -> None:
    """The features in two dimensions, by principal components and by t-SNE, coloured by class where there are any.

    Raises ValueError on fewer than 5 rows.
    """
    from matplotlib.figure import Figure
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    if len(features) < 5:
        raise ValueError(f"{len(features)} rows make no map; expected 5 or more")
    scaled = StandardScaler().fit_transform(features)
    shared: dict[str, Any] = {"n_components": 2, "random_state": 0}
    flat = {
        "principal components": PCA(**shared).fit_transform(scaled),
        "t-SNE": TSNE(**shared, init="pca", perplexity=min(30.0, (len(features) - 1) / 3)).fit_transform(scaled),
    }
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, (title, points) in zip(figure.subplots(1, 2), flat.items(), strict=True):
        for label in [None] if labels is None else range(len(names)):
            chosen = slice(None) if label is None or labels is None else labels == label
            name = None if label is None else names[label]
            axes.scatter(*points[chosen].T, s=5, label=name, color=None if label is None else f"C{label % 10}")
        axes.set(xticks=[], yticks=[], title=title)
    if labels is not None and len(names) <= 20:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=7, markerscale=2)
    figure.savefig(path, dpi=150)


def filters(path: Path, backbone: Mapping[str, Any], channels: int, *, most: int = 64) -> None:
    """The kernels that read pixels, each stretched to 0 to 1: convolutions, patches, or those of a dense layer.

    Raises ValueError where the backbone's first kernel does not read pixels.
    """
    kernel = np.asarray(first_kernel(backbone))
    if kernel.ndim != 4 or kernel.shape[2] != channels:
        raise ValueError(f"the first kernel has shape {kernel.shape}, which is no picture")
    if channels not in (1, 3):
        raise ValueError(f"filters of {channels} channels are no pictures")
    chosen = np.moveaxis(kernel, -1, 0)[:most]
    lowest, highest = (chosen.min((1, 2, 3), keepdims=True), chosen.max((1, 2, 3), keepdims=True))
    stretched = (chosen - lowest) / np.where(highest > lowest, highest - lowest, 1.0)
    lines = [stretched[start : start + 16] for start in range(0, len(stretched), 16)]
    grid(path, {f"{16 * number}": line for number, line in enumerate(lines)}, scale=0.6)


def first_kernel(tree: Mapping[str, Any]) -> Any:
    """The kernel that lies first in the order of computation: of an embedding, a stem, or the layer of number 0."""
    names = sorted(tree, key=lambda name: (0 if name in ("embeddings", "patch", "stem", "kernel") else 1, name))
    for name in names:
        if name == "kernel":
            return tree[name]
        if isinstance(tree[name], Mapping):
            try:
                return first_kernel(tree[name])
            except KeyError:
                continue
    raise KeyError("the backbone has no kernel")


def _channels(run: "PretrainImagesRun") -> int:
    return run.images.train.channels


def _mapped(run: "PretrainImagesRun", params: Any) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    held = run.images.evaluation
    if len(held) > MAPPED:
        held = held.select(np.linspace(0, len(held) - 1, MAPPED).round().astype(np.int64))
    return run.features({"backbone": params["backbone"]}, held), held.labels, held.names


def shown(run: "PretrainImagesRun") -> tuple[dict[str, np.ndarray], Any]:
    """The first held-out images as a batch, and as the model reads them."""
    assert run.preprocessing is not None
    images = run.images.evaluation
    rows = np.arange(min(SHOWN, len(images)))
    batch = {"image": images.take(rows), "ids": rows.astype(np.int32), "valid": np.ones(len(rows), bool)}
    view = run.preprocessing.view
    return batch, jax.jit(lambda batch: objectives.view_images(view, jax.random.key(0), batch))(batch)


def _pictures(run: "PretrainImagesRun", seen: Any) -> np.ndarray:
    """What a model reads, back from 0 to 1."""
    assert run.preprocessing is not None
    return np.asarray(seen) * np.array(run.preprocessing.std) + np.array(run.preprocessing.mean)


def _views(path: Path, run: "PretrainImagesRun") -> None:
    assert run.preprocessing is not None
    batch, seen = shown(run)
    views = image_objectives.views_of(run.config, run.preprocessing)
    rng = jax.random.key(run.config.seed)
    first, second = jax.jit(lambda batch: objectives.two_views(views, rng, batch))(batch)
    rows = {"image": seen, "a view": first, "another": second}
    grid(path, {name: _pictures(run, values) for name, values in rows.items()})


def _masked(path: Path, run: "PretrainImagesRun", params: Any) -> None:
    batch, seen = shown(run)
    config, network = run.saved_architecture, models.build(run.saved_architecture, "pretraining")
    patch = config.patch
    count = (seen.shape[1] // patch[0]) * (seen.shape[2] // patch[1])

    def masked(params: Any, seen: Any, ids: Any) -> Any:
        visible = objectives.visible_patches(objectives.patch_noise(jax.random.key(0), ids, count), config.mask_ratio)
        return objectives.reconstruct(network, params, seen, visible, patch_size=patch, normalise=config.normalise)

    found = jax.jit(masked)(params, seen, batch["ids"])
    rows = {"image": seen, "what is seen": found.masked, "drawn": found.completed}
    grid(path, {name: _pictures(run, values) for name, values in rows.items()})


def _words(path: Path, run: "PretrainImagesRun", params: Any) -> None:
    """Images as their visual words draw them, and with the hidden patches' words as the model tells them."""
    batch, seen = shown(run)
    teller, known = run.words
    network = models.build(run.saved_architecture, "masked_image")

    def told(params: Any, known: Any, seen: Any, ids: Any) -> tuple[Any, Any, Any]:
        logits = teller.apply(known, {"image": seen}, train=False)
        grid_shape, count = logits.shape[1:3], logits.shape[-1]
        blocks = objectives.plan_blocks(grid_shape, image_objectives.hidden_share(run.config))
        masked = objectives.block_masks(jax.random.key(0), ids, grid_shape, blocks)
        words = logits.argmax(-1).reshape(masked.shape)
        guessed = network.apply(params, {"image": seen, "masked": masked}, train=False)[..., :count].argmax(-1)

        def drawn(words: Any) -> Any:
            weights = jax.nn.one_hot(words.reshape(-1, *grid_shape), count)
            return teller.apply(known, {"words": weights}, train=False)

        height, width = (pixels // places for pixels, places in zip(seen.shape[1:3], grid_shape, strict=True))
        mask = masked.reshape(-1, *grid_shape).repeat(height, 1).repeat(width, 2)[..., None]
        return drawn(words), seen * ~mask, drawn(jnp.where(masked, guessed, words))

    words, visible, guessed = jax.jit(told)(params, known, seen, batch["ids"])
    rows = {"image": seen, "in words": words, "what is seen": visible, "told": guessed}
    grid(path, {name: _pictures(run, values) for name, values in rows.items()})
