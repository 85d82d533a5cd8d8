"""The words that beit learns first: the same each time, kept by the run, and enough to pre-train on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxptft import data, models, train
from jaxptft.convert.checkpoint import new_checkpoint
from jaxptft.objectives import visual_words
from jaxptft.recipes import image_objectives, runtime
from jaxptft.recipes.measured import Measured
from jaxptft.recipes.pretrain_images import Config
from jaxptft.recipes.visual_words import learn_words

VALUES = {"data": "sklearn:digits", "objective": "beit", "batch_size": 16, "shape": {"patch_size": 4, "width": 8}}
VALUES["masked"] = {"tokens": 5, "tokenizer_steps": 4}


@pytest.fixture(scope="module")
def learn():
    """Learns the words of 40 digits under a run's folder; what was said comes with them."""
    images = data.read_images("sklearn:digits").select(np.arange(40))

    runtime.keep_compiled_programs()

    def learn(out, *, resume=False, stop=None, architecture=None, **changes):
        config, said = Config(out=out, resume=resume, **(VALUES | changes)), []
        made = image_objectives.from_nothing(config, images.size, images.channels).config
        measured = Measured(out, resume=resume)
        words = learn_words(
            config,
            images,
            architecture=architecture or made,
            preprocessing=image_objectives.preprocessing_for(config, images.size, images.channels),
            measured=measured,
            mesh=train.make_mesh(jax.devices()[:1]),
            say=said.append,
            stop=stop or train.StopFlag(),
        )
        return words, measured, said

    return learn


def test_they_are_learnt_once_and_kept(learn, quickly, tmp_path):
    with quickly():
        (model, params), measured, said = learn(tmp_path)
        assert said[0] == "learning 5 visual words first, in 4 steps"
        assert said[1].startswith("visual words: a batch uses ")
        (_, again), _, _ = learn(tmp_path)  # a run that was stopped before it had a folder
        assert train.fingerprint(again) == train.fingerprint(params)
        measured.keep()
        (_, kept), _, silent = learn(tmp_path, resume=True)
        assert (silent, train.fingerprint(kept)) == ([], train.fingerprint(params))
        with pytest.raises(ValueError, match="was trained with another visual words"):
            learn(tmp_path, resume=True, batch_size=8)
    digits = jnp.zeros((2, 8, 8, 1))
    words = visual_words(model, params, digits)
    assert words.shape == (2, 4)
    assert words.max() < 5


def test_what_cannot_be_learnt_stops_before(learn, tmp_path):
    stop = train.StopFlag()
    stop.request()
    with pytest.raises(train.Stopped):
        learn(tmp_path, stop=stop)
    vit = models.VitConfig(image_size=8, patch_size=4, channels=1, width=8, layers=1, heads=1, mlp_width=8)
    with pytest.raises(ValueError, match="ViT has no task 'masked_image'"):
        learn(tmp_path, architecture=vit)


def test_a_beit_from_nothing_can_be_saved(learn, tmp_path):
    """Its config has everything that a config.json of transformers says, by what reading undoes writing."""
    config = Config(out=tmp_path, **VALUES)
    family, architecture = image_objectives.from_nothing(config, (8, 8), 1)
    checkpoint = new_checkpoint(architecture, family=family)
    assert (family, checkpoint.config, architecture.vocab_size) == ("beit", architecture, 5)
    assert checkpoint.extras.fields["use_shared_relative_position_bias"]
