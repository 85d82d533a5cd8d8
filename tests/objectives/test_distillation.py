"""Distillation of small BERTs, against numpy and the losses of what the two models give when run apart."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from jax.sharding import NamedSharding, PartitionSpec

from jaxptft import losses, models, objectives, train
from jaxptft.objectives import (
    Context,
    Masking,
    TokenTable,
    classification,
    combine,
    distillation,
    last_layers,
    masked_lm,
    match_attention,
    match_hidden,
    match_relations,
    uniform_layers,
)
from jaxptft.objectives.layer_map import check_layers

SMALL = {"vocab_size": 40, "mlp_width": 16, "positions": 10, "dropout": 0.0, "attention_dropout": 0.0}
TEACHER = models.BertConfig(**SMALL, width=16, layers=3, heads=2)
STUDENT = models.BertConfig(**SMALL, width=12, layers=2, heads=2)
VALID = np.array([True] * 5 + [False] * 9 + [True, False])  # parts of the batch weigh very unequally
KEEP_GRADIENT = optax.stateless(lambda updates, params: updates)  # the "update" is the gradient itself
MATCHES = {
    "hidden": match_hidden(uniform_layers(2, 3), weight=0.3),
    "direction": match_hidden(((1, 2),), weight=0.2, cosine=True),
    "scores": match_attention(((1, 1), (2, 3)), weight=0.1),
    "attention": match_attention(last_layers(2, 3), weight=0.5, kl=True),
    "relation": match_relations(last_layers(2, 3), weight=2.0, heads=4),
}


def random_params(model: models.Model, batch, seed: int):
    return random_like(jax.eval_shape(model.init, jax.random.key(0), batch), seed)


def random_like(shapes, seed: int):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32), shapes)


def context_of(objective, rng=None, *, train=True) -> Context:
    key = jax.random.key(3) if rng is None else rng
    return Context({}, objective.constants, key, train=train, axis_name=None)


def build(config, task="classification", **options) -> models.Model:
    return models.build(config, task, **({"classes": 3} if task != "masked_lm" else {}), **options)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    mask = (np.arange(9) < rng.integers(2, 10, 16)[:, None]).astype(np.int32)
    return {
        "input_ids": rng.integers(5, 40, (16, 9)).astype(np.int32) * mask,
        "attention_mask": mask,
        "label": rng.integers(0, 3, 16).astype(np.int32),
        "ids": np.arange(16, dtype=np.int32),
        "valid": VALID,
    }


@pytest.fixture(scope="module")
def pair(batch):
    """Both models with all of their outputs, and parameters of each; the student's with a projection."""
    student, teacher = build(STUDENT, outputs=models.OUTPUTS), build(TEACHER, outputs=models.OUTPUTS)
    params, teacher_params = random_params(student, batch, 1), random_params(teacher, batch, 2)
    kernel = np.random.default_rng(4).normal(size=(12, 16)).astype(np.float32)
    params["distillation"] = {"projection": {"kernel": kernel}}
    return student, teacher, params, teacher_params


@pytest.fixture(scope="module")
def objective(pair):
    student, teacher, _, teacher_params = pair
    return distillation(student, teacher, teacher_params=teacher_params, soft=0.7, temperature=3.0, matches=MATCHES)


def test_terms_are_the_losses_of_both_models_run_apart(pair, batch, objective, quick):
    student, teacher, params, teacher_params = pair
    context = context_of(objective)
    terms, (metrics, _) = quick(lambda params: objective.loss(params, batch, context))(params)
    ours, theirs = student.apply(params, batch), teacher.apply(teacher_params, batch)
    mask, kernel = batch["attention_mask"], params["distillation"]["projection"]["kernel"]

    def layer(output, one, other):
        return ours[output][one], theirs[output][other], mask

    relations = [losses.relation_kl(ours["qkv"][1][k], theirs["qkv"][2][k], mask, relation_heads=4) for k in range(3)]
    logs = [scipy.special.log_softmax(np.asarray(x["logits"]) / 3.0, -1) for x in (theirs, ours)]
    soft = 9.0 * (np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1)
    per_text = {
        "soft": 0.7 * soft,
        "hidden": 0.3 * sum(losses.hidden_mse(*layer("hidden", *at), kernel) for at in ((0, 0), (1, 2), (2, 3))),
        "direction": 0.2 * losses.hidden_cosine(*layer("hidden", 1, 2), kernel),
        "scores": 0.1 * sum(losses.attention_mse(*layer("scores", *at)) for at in ((0, 0), (1, 2))),
        "attention": 0.5 * losses.attention_kl(*layer("attention", 1, 2)),
        "relation": 2.0 * sum(relations) / 3,
    }
    assert terms.keys() == per_text.keys()
    for name, each in per_text.items():
        assert int(terms[name].count) == 6
        np.testing.assert_allclose(terms[name].total, each[VALID].sum(), rtol=1e-5)
    same = np.argmax(ours["logits"], -1) == np.argmax(theirs["logits"], -1)
    assert tuple(metrics["distillation/agreement"]) == (same[VALID].sum(), 6)
    np.testing.assert_allclose(metrics["distillation/soft"].total, soft[VALID].sum(), rtol=1e-5)
    found = objective.predict(params, batch, context_of(objective, train=False))
    np.testing.assert_array_equal(found["logits"], ours["logits"])


def test_the_teacher_gets_no_gradient_and_all_of_the_student_does(pair, batch, objective, quick):
    """Biases of keys too, which no softmax over keys sees: the relations of keys do."""
    _, _, params, _ = pair

    @quick
    @partial(jax.grad, argnums=(0, 1))
    def gradients(params, constants):
        terms, _ = objective.loss(params, batch, context_of(objective)._replace(constants=constants))
        return objectives.total_loss(terms)

    ours, teachers = gradients(params, objective.constants)
    assert all(not leaf.any() for leaf in jax.tree.leaves(teachers))
    unread = {"position": 9, "token_type": 1}  # rows from here on stand in no text
    for name, rows in unread.items():
        ours["backbone"]["embeddings"][name]["embedding"] = ours["backbone"]["embeddings"][name]["embedding"][:rows]
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(ours))


def test_logits_that_come_with_the_batch_teach_as_the_teacher_does(pair, batch):
    student, teacher, params, teacher_params = pair
    live = distillation(student, teacher, teacher_params=teacher_params)
    kept = distillation(build(STUDENT))
    assert kept.constants is None
    stored = batch | {"teacher_logits": np.asarray(teacher.apply(teacher_params, batch)["logits"])}
    found, expected = (each.loss(params, rows, context_of(each)) for each, rows in ((kept, stored), (live, batch)))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    with pytest.raises(ValueError, match="no teacher, and the batch has no 'teacher_logits', only"):
        kept.loss(params, batch, context_of(kept))


@pytest.fixture(scope="module")
def combined(batch):
    """Labels and a teacher on one batch, with models of one and two layers; the objective, its parts, parameters."""
    configs = (replace(STUDENT, layers=1), replace(TEACHER, layers=2))
    student, teacher = (build(config, outputs=["hidden", "qkv"]) for config in configs)
    matches = {"hidden": match_hidden(((0, 0), (1, 2))), "relation": match_relations(((1, 2),), heads=4)}
    objective = distillation(student, teacher, teacher_params=random_params(teacher, batch, 2), matches=matches)
    task = classification(build(configs[0]))
    both = combine({"task": (0.5, task), "distill": (2.0, objective)}, reads={"distill": "task"})
    shapes = jax.eval_shape(both.init, jax.random.key(0), {"task": batch})
    return both, (task, objective), random_like(shapes, 1)


def test_combined_with_labels_it_is_the_weighted_sum(batch, combined):
    both, parts, params = combined
    terms, _ = both.loss(params, {"task": batch}, context_of(both)._replace(state={"task": {}, "distill": {}}))
    alone = [objectives.total_loss(each.loss(params, batch, context_of(each))[0]) for each in parts]
    np.testing.assert_allclose(objectives.total_loss(terms), 0.5 * alone[0] + 2.0 * alone[1], rtol=1e-6)
    assert "distill/soft" in terms


@pytest.mark.slow
def test_one_gradient_on_one_device_and_on_eight_in_micro_steps(batch, combined, quick):
    both, _, params = combined
    everything = jax.tree.map(lambda _: True, params)

    def gradient_of(batch, compiled, place, accumulate):
        state = train.create_state(both, KEEP_GRADIENT, params, batch, trainable=everything, rng=jax.random.key(0))
        step = compiled(train.make_step(both, KEEP_GRADIENT, trainable=everything, accumulate=accumulate))
        after, metrics = step(*place(state, both.constants, batch))
        return jax.tree.map(lambda new, old: np.asarray(new) - old, after.params, params), metrics["loss"].total

    mesh = train.make_mesh()
    assert mesh.size == 8
    everywhere, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    expected = gradient_of({"task": batch}, quick, lambda *given: given, 1)
    found = gradient_of(
        {"task": batch},
        partial(quick, in_shardings=(everywhere, everywhere, rows), out_shardings=everywhere),
        lambda state, constants, batch: (
            train.replicate(state, mesh),
            train.replicate(constants, mesh),
            train.shard(batch, mesh),
        ),
        2,
    )
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[0]))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=2e-6 * largest), found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


def test_logits_of_tokens_count_where_a_token_is_real(batch):
    student, teacher = build(STUDENT, "token_classification"), build(TEACHER, "token_classification")
    params, teacher_params = random_params(student, batch, 1), random_params(teacher, batch, 2)
    objective = distillation(student, teacher, teacher_params=teacher_params, temperature=None)
    terms, (metrics, _) = objective.loss(params, batch, context_of(objective))
    real = (batch["attention_mask"] > 0) & VALID[:, None]
    squares = np.square(student.apply(params, batch) - teacher.apply(teacher_params, batch)).mean(-1)
    assert int(terms["soft"].count) == real.sum() == metrics["distillation/agreement"].count
    np.testing.assert_allclose(terms["soft"].total, squares[real].sum(), rtol=1e-5)


def test_masked_tokens_are_those_of_masked_lm(batch):
    """Combined on one batch, both hide the same tokens, and the teacher reads them too."""
    table = TokenTable(4, np.arange(40) < 5, np.ones(40, bool))
    options = {"tokens": table, "masking": Masking(rate=0.4, random_share=0.0, mask_share=1.0), "capacity": 6}
    seen = {}

    def spy(name):
        """A model whose logits are its parameters; it keeps what it was given."""

        def apply(params, batch, **options):
            seen[name] = np.asarray(batch["input_ids"]), np.asarray(batch["positions"])
            return jnp.broadcast_to(params["bias"], (*batch["positions"].shape, 40))

        return models.Model(lambda rng, batch: {"bias": np.zeros(40, np.float32)}, apply)

    params, taught = ({"bias": np.linspace(0, most, 40).astype(np.float32)} for most in (1, 2))
    task = masked_lm(spy("task"), **options)
    distilled = distillation(spy("student"), spy("teacher"), teacher_params=taught, **options)
    both = combine({"mlm": (1.0, task), "distill": (1.0, distilled)}, reads={"distill": "mlm"})
    terms, _ = both.loss(params, {"mlm": batch}, context_of(both)._replace(state={"mlm": {}, "distill": {}}))
    for name in ("student", "teacher"):
        for one, other in zip(seen["task"], seen[name], strict=True):
            np.testing.assert_array_equal(one, other)
    assert (seen["task"][0] == 4).sum() > 10
    assert int(terms["distill/soft"].count) == int(terms["mlm/masked_lm"].count) > 0
    # The same divergence at each hidden token: scipy's.
    each = scipy.special.rel_entr(*(scipy.special.softmax(x["bias"] / 2.0) for x in (taught, params))).sum()
    np.testing.assert_allclose(terms["distill/soft"].value(), 4.0 * each, rtol=1e-4)


def test_of_several_choices_each_is_a_text(batch):
    """Of 8 examples of 2 choices 3 are valid, of which the first has one choice alone, and so nothing to say."""
    choices = {name: batch[name].reshape(8, 2, 9).copy() for name in ("input_ids", "attention_mask")}
    choices |= {"ids": np.arange(8, dtype=np.int32), "valid": np.arange(8) < 3}
    choices["valid_choices"] = np.arange(16).reshape(8, 2) != 1
    choices["attention_mask"][0, 1] = 0
    model = models.build(STUDENT, "multiple_choice", outputs=["hidden"])
    params = random_params(model, choices, 1)
    other = random_params(model, choices, 2)
    params["multiple_choice"]["kernel"] *= 10
    objective = distillation(model, model, teacher_params=other, matches={"hidden": match_hidden(((2, 2),))})
    terms, _ = objective.loss(params, choices, context_of(objective))
    ours, theirs = (model.apply(given, choices) for given in (params, other))
    each = losses.hidden_mse(ours["hidden"][2], theirs["hidden"][2], batch["attention_mask"])
    np.testing.assert_allclose(terms["hidden"].total, each[0] + each[2:6].sum(), rtol=1e-5)
    assert int(terms["hidden"].count) == 5
    logs = [scipy.special.log_softmax(np.asarray(x["logits"])[1:3] / 2.0, -1) for x in (theirs, ours)]
    np.testing.assert_allclose(terms["soft"].total, 4.0 * (np.exp(logs[0]) * (logs[0] - logs[1])).sum(), rtol=1e-4)
    assert int(terms["soft"].count) == 3


def test_a_projection_is_learnt_only_where_widths_differ(pair, batch, objective):
    made = jax.eval_shape(objective.init, jax.random.key(0), batch)
    assert made["distillation"]["projection"]["kernel"].shape == (12, 16)
    equal = distillation(pair[1], pair[1], teacher_params=pair[3], matches={"hidden": MATCHES["direction"]})
    assert jax.eval_shape(equal.init, jax.random.key(0), batch).keys() == {"backbone", "classifier"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"teacher": None, "teacher_params": None, "matches": MATCHES}, r"matched inside \(hidden, direction"),
        ({"teacher_params": None}, "teacher and teacher_params belong together"),
        ({"soft": 0.0}, "all weights are 0, so the teacher teaches nothing"),
        ({"matches": {"soft": MATCHES["hidden"]}}, "a match is called 'soft'"),
    ],
)
def test_errors_when_made(pair, options, message):
    student, teacher, _, teacher_params = pair
    with pytest.raises(ValueError, match=message):
        distillation(student, **({"teacher": teacher, "teacher_params": teacher_params} | options))


def test_errors_when_traced(pair, batch):
    student, teacher, params, teacher_params = pair

    def lose(batch, model=student, **options):
        objective = distillation(model, **options)
        context = context_of(objective)
        jax.eval_shape(lambda params, batch: objective.loss(params, batch, context), params, batch)

    live = {"teacher": teacher, "teacher_params": teacher_params}
    single, halved = (models.Model(student.init, lambda *_, at=at, **__: jnp.zeros(at)) for at in ((16, 1), (16, 4, 3)))
    with pytest.raises(ValueError, match="distillation got a packed batch"):
        lose(batch | {"segment_ids": batch["attention_mask"]}, **live)
    with pytest.raises(ValueError, match=r"logits of one shape, got \(16, 3\) and \(16, 2\)"):
        lose(batch | {"teacher_logits": jnp.zeros((16, 2))})
    with pytest.raises(ValueError, match="a single output, whose softmax is always 1; pass temperature=None"):
        lose(batch | {"teacher_logits": jnp.zeros((16, 1))}, single)
    with pytest.raises(ValueError, match=r"the batch has \(16, 9\) places to compare them at"):
        lose(batch | {"teacher_logits": jnp.zeros((16, 4, 3))}, halved)
    with pytest.raises(ValueError, match=r"pairs \(2, 4\); expected a student layer from 0 to 2 and a teacher layer"):
        lose(batch, matches={"hidden": match_hidden(((2, 4),))}, **live)
    with pytest.raises(ValueError, match=r"pairs \(0, 1\); expected a student layer from 1 to 2"):
        lose(batch, matches={"scores": match_attention(((0, 1),))}, **live)


def test_layer_maps():
    """TinyBERT's g(m) = 3 m for 4 layers of 12; by hand where it is no integer."""
    assert uniform_layers(4, 12) == ((0, 0), (1, 3), (2, 6), (3, 9), (4, 12))
    assert uniform_layers(4, 6) == ((0, 0), (1, 2), (2, 3), (3, 5), (4, 6))
    assert last_layers(3, 12, 2) == ((2, 11), (3, 12))
    assert check_layers([(1, 1)], 1, 1, embeddings=False) == ((1, 1),)
    with pytest.raises(ValueError, match="a layer map has no pairs"):
        check_layers([], 1, 1, embeddings=True)
    with pytest.raises(ValueError, match="parts is 'qx'; expected some of the letters q, k and v"):
        match_relations(((1, 1),), parts="qx")
