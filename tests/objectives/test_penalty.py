import jax
import numpy as np
import pytest

from jaxptft.objectives import Context, Mean, combine, elastic_weight_consolidation, lift


def test_elastic_weight_consolidation_is_a_term_with_its_constants():
    objective = combine(
        lift(lambda params, batch, context: {"none": Mean(0.0, 1)}, init=lambda rng, batch: {}),
        penalties=[elastic_weight_consolidation({"w": np.ones(2)}, {"w": np.array([1.0, 3.0])}, weight=0.5)],
    )
    context = Context({"task": {}}, objective.constants, jax.random.key(0), True, None)
    terms, _ = objective.loss({"w": np.array([2.0, 3.0])}, {}, context)
    assert float(terms["elastic_weight"].value()) == 0.5 * (1 * 1 + 3 * 4)  # by hand
    assert "elastic_weight" not in objective.loss({"w": np.zeros(2)}, {}, context._replace(train=False))[0]


def test_what_holds_nothing_is_refused():
    with pytest.raises(ValueError, match="must be at least 0, got -1"):
        elastic_weight_consolidation({}, {"w": np.ones(1)}, weight=-1.0)
    with pytest.raises(ValueError, match="an importance without leaves"):
        elastic_weight_consolidation({"w": np.ones(1)}, {"w": None})
