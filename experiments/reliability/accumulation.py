"""A step in 1, 2 or 4 micro-steps has one gradient, however unequal the tokens of its parts are."""

import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from trials import Trials, main

from jaxptft import models, objectives, optim, train

ROWS, LENGTH, VOCAB = 16, 24, 40
CLOSE = 1e-6  # of the largest entry
# The state holds the last gradient, and no parameter moves.
KEEP_GRADIENT = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda updates, state, params=None: (jax.tree.map(jnp.zeros_like, updates), updates),
)


class Case(NamedTuple):
    """An objective, and the column of its answers with how they are drawn."""

    objective: objectives.Objective
    answers: Any = None


def cases() -> dict[str, Case]:
    shape: dict[str, Any] = {"vocab_size": VOCAB, "width": 16, "layers": 1, "heads": 2, "mlp_width": 24}
    bert = models.BertConfig(**shape, positions=LENGTH, dropout=0.0, attention_dropout=0.0)
    gpt2 = models.Gpt2Config(
        **shape, positions=LENGTH, dropout=0.0, attention_dropout=0.0, residual_dropout=0.0, head_dropout=0.0
    )
    special = np.zeros(VOCAB, bool)
    special[:5] = True
    tokens = objectives.TokenTable(mask_id=4, special=special, starts_word=np.arange(VOCAB) % 3 > 0)

    def of(task: str, **options: Any) -> models.Model:
        return models.build(bert, task, **options)

    classes = lambda rng, batch: rng.integers(0, 3, ROWS).astype(np.int32)  # noqa: E731
    tags = lambda rng, batch: np.where(  # noqa: E731
        (batch["attention_mask"] == 1) & (rng.random((ROWS, LENGTH)) < rng.random((ROWS, 1))),
        rng.integers(0, 4, (ROWS, LENGTH)),
        -100,
    ).astype(np.int32)
    weights = (0.1, 1.0, 10.0)
    return {
        "masked_lm": Case(
            objectives.masked_lm(
                of("masked_lm"), tokens=tokens, masking=objectives.Masking(unit="word", rate=0.3), capacity=LENGTH
            )
        ),
        "classification": Case(
            objectives.classification(of("classification", classes=3), class_weights=weights), ("label", classes)
        ),
        "next_token": Case(objectives.next_token(models.build(gpt2, "causal_lm"))),
        "regression": Case(
            objectives.regression(of("classification", classes=1)),
            ("label", lambda rng, batch: rng.standard_normal(ROWS).astype(np.float32)),
        ),
        "token_classification": Case(
            objectives.token_classification(of("token_classification", classes=4)), ("labels", tags)
        ),
    }


def drawn_batch(rng: np.random.Generator, case: Case) -> dict[str, np.ndarray]:
    """Rows of 2 to 24 tokens, some of which only fill the batch; the answers of few or many places count."""
    lengths = rng.integers(2, LENGTH + 1, ROWS)
    valid = rng.random(ROWS) < rng.uniform(0.3, 1.0)
    valid[rng.integers(ROWS)] = True
    mask = (np.arange(LENGTH) < lengths[:, None]) & valid[:, None]
    mask[:, 0] = True
    batch = {
        "input_ids": rng.integers(5, VOCAB, (ROWS, LENGTH)).astype(np.int32),
        "attention_mask": mask.astype(np.int32),
        "token_type_ids": np.zeros((ROWS, LENGTH), np.int32),
        "ids": rng.permutation(1000)[:ROWS].astype(np.int32),
        "valid": valid,
    }
    if case.answers is not None:
        name, draw = case.answers
        batch[name] = draw(rng, batch)
    return batch


def accumulation(trials: Trials, lane: str) -> None:
    worst: dict[str, float] = {}
    jax.config.update("jax_disable_most_optimizations", lane == "fast")  # compiling takes most of the time
    for name, case in cases().items():
        rng = np.random.default_rng(0)
        first = drawn_batch(rng, case)
        keys = iter(jax.random.split(jax.random.key(1), 500))
        spread = lambda leaf, keys=keys: leaf + 0.2 * jax.random.normal(next(keys), leaf.shape)  # noqa: E731
        params = jax.tree.map(spread, case.objective.init(jax.random.key(0), first))
        everything = optim.trainable_mask(params, "none")
        steps = {
            parts: jax.jit(train.make_step(case.objective, KEEP_GRADIENT, trainable=everything, accumulate=parts))
            for parts in (1, 2, 4)
        }
        worst[name] = 0.0
        for draw in range(50 if lane == "full" else 5):
            batch = drawn_batch(rng, case)
            state = train.create_state(
                case.objective, KEEP_GRADIENT, params, batch, trainable=everything, rng=jax.random.key(draw)
            )
            found = {parts: step(state, case.objective.constants, batch) for parts, step in steps.items()}
            gradients = {parts: jax.tree.leaves(jax.device_get(after.opt_state)) for parts, (after, _) in found.items()}
            largest = max(float(np.abs(leaf).max()) for leaf in gradients[1])
            for parts in (2, 4):
                pairs = zip(gradients[parts], gradients[1], strict=True)
                apart = max(float(np.abs(one - other).max()) for one, other in pairs) / largest
                worst[name] = max(worst[name], apart)
                # Sums of whole numbers are equal; those of weights, which add up to a count, differ in their last bits.
                one, other = ([float(mean.count) for _, mean in sorted(found[k][1].items())] for k in (parts, 1))
                trials.check(
                    apart <= CLOSE and bool(np.allclose(one, other, rtol=1e-6, atol=0)),
                    f"{name}, draw {draw}, {parts} micro-steps: {apart:.2e} of the largest, {one} and {other}",
                    of=name,
                )
    trials.facts["largest_difference"] = {name: float(f"{value:.2e}") for name, value in worst.items()}


if __name__ == "__main__":
    sys.exit(main({"accumulation": accumulation}, script=__file__))
