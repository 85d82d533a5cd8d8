"""The visual words that beit's masked patches are told in: a discrete autoencoder, learnt first, of the same images.

It follows from the config, the images and the seed. The run keeps it in its folder nonetheless (`measured`), since on
another machine it may differ in the last bits; a run that is stopped before it has a folder learns it once more.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax

from jaxptft import data, models, objectives, optim, train
from jaxptft.data.cache import fingerprint
from jaxptft.recipes import image_objectives
from jaxptft.recipes.measured import Measured
from jaxptft.recipes.preprocessing import Preprocessing
from jaxptft.recipes.pretrain_images import Config

if TYPE_CHECKING:
    from jaxptft.train import StopFlag

LEARNING_RATE = 3e-3  # at its highest
# Not the paper's 1/16, which settles for fewer words in the few steps there are.
TEMPERATURE = 0.2
_IN_FLIGHT = 8  # steps dispatched before one is waited for


def learn_words(
    config: Config,
    images: data.Images,
    *,
    architecture: Any,
    preprocessing: Preprocessing,
    measured: Measured,
    mesh: Any,
    say: Callable[[str], None],
    stop: "StopFlag",
) -> tuple[models.Model, models.Params]:
    """The autoencoder and its params, as `objectives.beit` takes them: those that a resumed run has kept, or new ones.

    `architecture` is the BEiT whose patches and vocabulary they are of. Raises ValueError where it cannot tell masked
    patches, FloatingPointError where learning did not stay finite, and `Stopped` when `stop` was set on the way.
    """
    models.build(architecture, "masked_image")  # refuses others before anything is learnt
    values = models.DvaeConfig(
        patch_size=architecture.patch_size, channels=architecture.channels, vocab_size=architecture.vocab_size
    )
    model, steps = models.dvae(values), config.masked.tokenizer_steps
    objective = objectives.dvae(
        model,
        temperature=objectives.annealed(steps, last=TEMPERATURE),
        view=image_objectives.views_of(config, preprocessing),
        plain=preprocessing.view,
    )
    batches = data.ImageBatches(images, batch_size=config.batch_size, seed=config.seed, multiple_of=mesh.size)
    first = batches.batch_at(0)
    rngs = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))  # none of the run's own

    def learn() -> models.Params:
        say(f"learning {values.vocab_size} visual words first, in {steps} steps")
        params = jax.jit(objective.init)(rngs[0], first)
        trainable = jax.tree.map(lambda _: True, params)
        rate = optim.schedule("cosine", peak=LEARNING_RATE, steps=steps, warmup=0.05)
        optimizer = optim.adamw(rate, weight_decay=0.0)
        state = train.create_state(objective, optimizer, params, first, trainable=trainable, rng=rngs[1])
        state = train.replicate(state, mesh)
        step = train.compile_step(partial(train.make_step, objective, optimizer, trainable=trainable), mesh)
        metrics: dict[str, Any] = {}
        for number in range(steps):
            stop.raise_if_set()
            state, metrics = step(state, None, train.shard(batches.batch_at(number), mesh))
            if number % _IN_FLIGHT == 0:
                jax.block_until_ready(metrics)
        found = {name: float(mean.value()) for name, mean in jax.device_get(metrics).items()}
        if found["skipped"]:
            raise FloatingPointError(
                f"the visual words came to a loss of {found['loss']} at step {steps}, which is no number: check the "
                "images, or learn them in fewer masked.tokenizer_steps"
            )
        say(
            f"visual words: a batch uses {found['dvae/used']:.0%} of them, like {found['dvae/perplexity']:.1f} equally "
            f"frequent ones; squared error of a pixel {found['dvae/reconstruction/loss']:.4f}"
        )
        return jax.device_get(state.params)

    made_of = fingerprint([batches.fingerprint, repr((values, steps, config.views, preprocessing))])
    return model, measured.take("visual_words", made_of, learn, like=jax.eval_shape(objective.init, rngs[0], first))
