"""The one entry: the config's type decides, and an unknown one is refused."""

import jax
import numpy as np
import pytest

from jaxptft import models

SMALL = {"vocab_size": 40, "width": 16, "layers": 2, "heads": 2, "mlp_width": 24, "positions": 12}
CONFIGS = [
    models.BertConfig(**SMALL),
    models.ModernBertConfig(**SMALL, pad_id=0),
    models.Gpt2Config(**SMALL),
]
BATCH = {"input_ids": np.ones((2, 5), np.int32), "attention_mask": np.ones((2, 5), np.int32)}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_the_config_s_type_decides(config):
    model = models.build(config, "token_classification", classes=3, dtype="bfloat16")
    params = jax.eval_shape(model.init, jax.random.key(0), BATCH)
    assert params["backbone"]["embeddings"]["word"]["embedding"].shape == (40, 16)
    assert jax.eval_shape(model.apply, params, BATCH).shape == (2, 5, 3)
    hidden = jax.eval_shape(models.features(config, stop=1), params, BATCH)
    assert hidden.shape == (2, 5, 16)
    above = models.build(config, "token_classification", classes=3, frozen_layers=1, start=1)
    entered = {"hidden": hidden, "attention_mask": BATCH["attention_mask"]}
    assert jax.eval_shape(above.apply, params, entered).shape == (2, 5, 3)


def test_an_unknown_config_is_refused():
    message = "config must be one of BertConfig, .*, got str"
    with pytest.raises(ValueError, match=message):
        models.build("bert", "masked_lm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        models.features("bert", stop=1)  # type: ignore[arg-type]
