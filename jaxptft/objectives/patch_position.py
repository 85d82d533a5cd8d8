"""Where does a patch lie from another? Context prediction (Doersch et al. 2015, arXiv:1505.05192).

Two patches of an image come from the centre and one of the other eight cells of a 3 x 3 grid, which has gaps and whose
cells are jittered, so that no line that runs on from one into the other gives the answer away (section 3.1). The grid
lies anywhere in the image, always as a whole: where the centre is tells nothing of the direction. One encoder sees both
patches, and a head their two vectors.

Lenses shift the colours of an image towards its edges, by which a network can tell a patch's place. Against that, each
patch loses two of its channels to noise ("drop"), or all pixels lose their part along the axis from green to magenta
("project").
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxptft import losses
from jaxptft.objectives.contract import Batch, Context, Mean, Model, Objective, Params, lift, slice_rng
from jaxptft.objectives.forward import forward, statistics_state
from jaxptft.objectives.views import View, example_keys, unchanged, view_images

Color = Literal["keep", "drop", "project"]
DIRECTIONS = np.array([(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)])
_AXIS = np.array([-1.0, 2.0, -1.0])  # from magenta to green
PROJECTION = np.eye(3) - np.outer(_AXIS, _AXIS) / (_AXIS @ _AXIS)


class Grid(NamedTuple):
    """The size of the cells and what lies between them, in pixels."""

    patch: int
    gap: int
    jitter: int

    def side(self) -> int:
        """The pixels that the whole grid needs."""
        return 3 * self.patch + 2 * self.gap + 2 * self.jitter


class Places(NamedTuple):
    """The direction, by its row in `DIRECTIONS`, and the (top, left) of the two patches."""

    direction: Int[Array, ""]
    centre: Int[Array, " 2"]
    neighbour: Int[Array, " 2"]


class Pairs(NamedTuple):
    """The patches of a batch, the centre before its neighbour, and the directions from the one to the other."""

    patches: Float[Array, "batch 2 patch patch channels"]
    direction: Int[Array, " batch"]


def draw_places(key: PRNGKeyArray, height: int, width: int, grid: Grid) -> Places:
    """A direction, the place of the grid and the jitter of each patch, all uniform."""
    towards, place, shake = jax.random.split(key, 3)
    direction = jax.random.randint(towards, (), 0, len(DIRECTIONS))
    room = jnp.array([height, width]) - grid.side() + 1
    middle = jax.random.randint(place, (2,), 0, room) + grid.jitter + grid.patch + grid.gap
    shift = jax.random.randint(shake, (2, 2), -grid.jitter, grid.jitter + 1)
    cell = jnp.asarray(DIRECTIONS)[direction] * (grid.patch + grid.gap)
    return Places(direction, middle + shift[0], middle + cell + shift[1])


def drop_channels(
    key: PRNGKeyArray, patch: Float[Array, "height width channels"]
) -> Float[Array, "height width channels"]:
    """One channel kept, the others Gaussian noise about 0 of a hundredth of its standard deviation."""
    which, noise = jax.random.split(key)
    kept = jax.nn.one_hot(jax.random.randint(which, (), 0, patch.shape[-1]), patch.shape[-1])
    spread = (patch * kept).sum(-1).std() / 100.0
    return jnp.where(kept > 0, patch, spread * jax.random.normal(noise, patch.shape))


def cut_pairs(rng: PRNGKeyArray, batch: Batch, view: View, grid: Grid, color: Color) -> Pairs:
    """Two patches of the view of every image, drawn by its id.

    Raises ValueError on views that are smaller than the grid, or have no colours to drop or project.
    """
    viewing, placing = jax.random.split(rng)
    images = view_images(view, viewing, batch)
    _, height, width, channels = images.shape
    if min(height, width) < grid.side():
        raise ValueError(
            f"the images are {height} x {width}, but the grid of {grid.patch}-pixel patches needs {grid.side()}: "
            "lower patch, gap or jitter, or give a view that resizes"
        )
    if color != "keep" and channels != 3:
        raise ValueError(f"color is {color!r} but the images have {channels} channels; use color='keep'")
    if color == "project":
        images = jnp.matmul(images, jnp.asarray(PROJECTION, images.dtype), precision=jax.lax.Precision.HIGHEST)

    def cut(key, image):
        places, *dropping = jax.random.split(key, 3)
        drawn = draw_places(places, height, width, grid)
        size = (grid.patch, grid.patch, channels)
        pair = [jax.lax.dynamic_slice(image, (*at, 0), size) for at in (drawn.centre, drawn.neighbour)]
        if color == "drop":
            pair = [drop_channels(own, patch) for own, patch in zip(dropping, pair, strict=True)]
        return Pairs(jnp.stack(pair), drawn.direction)

    return jax.vmap(cut)(example_keys(placing, batch["ids"]), images)


def patch_position(
    encoder: Model,
    head: Model,
    *,
    patch: int,
    gap: int | None = None,
    jitter: int | None = None,
    color: Color = "keep",
    view: View | None = None,
    plain: View | None = None,
) -> Objective:
    """Softmax cross-entropy over the eight directions from one patch of each image to another.

    `encoder.apply` reads `image` [rows, patch, patch, channels] and returns vectors [rows, width] (`models.pooled`);
    `head` reads {"features": [rows, 2 * width]} and returns logits [rows, 8] (`models.mlp` with 8 outputs). `patch`,
    `gap` and `jitter` are pixels; gap and jitter are by default half and 7/96 of the patch, as in the paper. Images are
    seen through `view` in training and `plain` else; "drop" fills channels with noise about 0, which ought to be
    their mean: normalise there. Evaluation draws patches as well: with one key, always alike.

    Metrics: `patch_position/accuracy`. Predictions: `logits` [batch, 8] and the `direction` [batch] that was drawn.
    Raises ValueError on a patch below 1, a negative gap or jitter, another color, views without room for the grid or
    without colours, and models that give other shapes.
    """
    grid = Grid(patch, patch // 2 if gap is None else gap, round(patch * 7 / 96) if jitter is None else jitter)
    if grid.patch < 1 or grid.gap < 0 or grid.jitter < 0:
        raise ValueError(f"patch, gap and jitter are {tuple(grid)}; expected at least 1, 0 and 0 pixels")
    if color not in get_args(Color):
        raise ValueError(f"color is {color!r}; expected 'keep', 'drop' or 'project'")
    parts = (encoder, head)

    def pairs_of(rng, batch: Batch, train: bool) -> Pairs:
        return cut_pairs(rng, batch, (view if train else plain) or unchanged, grid, color)

    def rows_of(pairs: Pairs, batch: Batch) -> Batch:
        """One patch a row; the two of an image stay neighbours, where its batch is divided over devices."""
        rows = {name: jnp.repeat(jnp.asarray(batch[name]), 2) for name in ("ids", "valid")}
        return {"image": pairs.patches.reshape(-1, *pairs.patches.shape[2:]), **rows}

    def beside(features: Float[Array, "rows width"], batch: Batch) -> Batch:
        if features.ndim != 2:
            raise ValueError(f"the features have shape {features.shape}; expected [rows, width], one vector a patch")
        joined = features.reshape(-1, 2 * features.shape[1])
        return {"features": joined, "ids": batch["ids"], "valid": batch["valid"]}

    def init(rng, batch):
        body, last, drawing = jax.random.split(rng, 3)
        rows = rows_of(pairs_of(drawing, batch, True), batch)
        params = encoder.init(body, rows)
        shape = jax.eval_shape(lambda p: encoder.apply(p, rows, rng=None, train=False), params)
        return {**params, **head.init(last, beside(jnp.zeros(shape.shape, shape.dtype), batch))}

    def start(params, batch):
        held = [statistics_state(part, params).get("statistics", {}) for part in parts]
        return {"statistics": held[0] | held[1]} if any(held) else {}

    def run(part: Model, params: Params, rows: Batch, context: Context, rng):
        """The part's output, and its share of the statistics; each model is given its own alone."""
        own = statistics_state(part, params).get("statistics", {})
        running = context.state.get("statistics") if isinstance(context.state, dict) else None
        state = {"statistics": {name: running[name] for name in own}} if own and running else {}
        output, state = forward(part, params, rows, context._replace(state=state), rng)
        return output, state.get("statistics", {})

    def logits_of(params: Params, batch: Batch, context: Context):
        drawing, dropout, last = jax.random.split(context.rng, 3)
        pairs = pairs_of(drawing, batch, context.train)
        rng = [slice_rng(key, batch) if context.train else None for key in (dropout, last)]
        features, renewed = run(encoder, params, rows_of(pairs, batch), context, rng[0])
        logits, more = run(head, params, beside(features, batch), context, rng[1])
        if logits.shape != (len(batch["ids"]), len(DIRECTIONS)):
            raise ValueError(
                f"the head gave logits of shape {logits.shape}; expected {(len(batch['ids']), len(DIRECTIONS))}, "
                "eight directions: give it outputs=8"
            )
        statistics = renewed | more
        return logits, pairs.direction, {**context.state, "statistics": statistics} if statistics else context.state

    def loss(params, batch, context):
        logits, direction, state = logits_of(params, batch, context)
        valid = batch["valid"]
        per_row = losses.cross_entropy(logits, direction, valid=valid)
        right = (jax.lax.stop_gradient(logits).argmax(-1) == direction) & valid
        return (
            {"patch_position": Mean(per_row.sum(), valid.sum())},
            ({"patch_position/accuracy": Mean(right.sum(), valid.sum())}, state),
        )

    def predict(params, batch, context):
        logits, direction, _ = logits_of(params, batch, context)
        return {"logits": logits, "direction": direction}

    coupled = any(getattr(part, "statistics", None) is not None for part in parts)
    return lift(loss, init=init, start=start, predict=predict, coupled=coupled)
