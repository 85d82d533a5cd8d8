"""A tiny BERT classifier and a batch of it, rows of very unequal weight."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxptft import models, objectives, optim


@pytest.fixture(scope="session")
def tiny():
    """A 4-layer BERT without dropout (equality under a split needs none), an optimizer, and sixteen rows."""
    config = models.BertConfig(
        vocab_size=50, width=16, layers=4, heads=2, mlp_width=24, positions=12, dropout=0.0, attention_dropout=0.0
    )
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 13, 16)
    batch = {
        "input_ids": rng.integers(1, 50, (16, 12)).astype(np.int32),
        "attention_mask": (np.arange(12) < lengths[:, None]).astype(np.int32),
        "token_type_ids": np.zeros((16, 12), np.int32),
        "label": rng.integers(0, 3, 16).astype(np.int32),
        "ids": np.arange(16, dtype=np.int32),
        "valid": np.array([True] * 5 + [False] * 9 + [True] + [False]),  # some splits hold five rows, some none
    }
    objective = objectives.classification(models.bert.classifier(config, 3), class_weights=(0.1, 1.0, 10.0))
    # Far from the small initial values, so that rows have unequal losses.
    keys = iter(jax.random.split(jax.random.key(1), 200))
    spread = lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape)  # noqa: E731
    params = jax.tree.map(spread, objective.init(jax.random.key(0), batch))
    optimizer = optim.adamw(optim.schedule("constant", peak=1e-2, steps=100), weight_decay=0.1, clip_norm=1.0)
    everything = optim.trainable_mask(params, "none")
    return SimpleNamespace(
        config=config, batch=batch, objective=objective, params=params, optimizer=optimizer, everything=everything
    )
