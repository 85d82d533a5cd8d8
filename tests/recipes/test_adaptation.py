import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """Rows of another domain: other words around the one that tells, and labels that must not be read."""
    rng = np.random.default_rng(5)
    lines = [f"one book and {rng.choice(['good', 'bad'])} one,unknown" for _ in range(20)]
    path = tmp_path_factory.mktemp("target") / "target.csv"
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def adapted(target, fine_tune, tmp_path_factory):
    values = {"target": target, "mmd": 0.5, "coral": 0.25, "dann": 0.125, "importance": True, "batch_size": 8}
    out = tmp_path_factory.mktemp("runs") / "adapted"
    return fine_tune(out, steps=4, log_every=1, evaluate_every=2, adaptation=values)


def test_the_loss_is_the_sum_of_the_task_and_what_draws_the_domains_together(adapted, lines_of):
    terms = ("task/classification", "mmd/mmd", "coral/coral", "dann/dann_source", "dann/dann_target")
    for line in lines_of(adapted.out, "train"):
        assert line["loss"] == pytest.approx(sum(line[f"{term}/loss"] for term in terms), rel=1e-4)
        assert line["dann/dann_target/loss"] > 0
    strengths = [line["dann/dann/strength"] for line in lines_of(adapted.out, "train")]
    by_hand = [2 / (1 + np.exp(-10 * step / 4)) - 1 for step in range(4)]  # Ganin et al. 2016, section 5.2.2
    np.testing.assert_allclose(strengths, by_hand, rtol=1e-5)


def test_the_target_is_said_and_only_the_classifier_is_left(adapted, target):
    assert f"target: 20 rows from {target}, without labels" in adapted.said
    assert "importance: the domains are told apart with AUC" in adapted.said
    names = set(load_file(adapted.out / "model/model.safetensors"))
    assert not any("domain" in name for name in names)
    assert json.loads((adapted.out / "model/config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]


def test_importance_alone_weighs_the_rows_of_the_task(target, built, first_loss, tmp_path):
    """By numpy: the mean of the rows' losses, each as often as it counts."""
    terms, predictions, batch = first_loss(built(tmp_path, adaptation={"target": target, "importance": True}))
    each = -np.asarray(jax.nn.log_softmax(predictions["logits"]))[np.arange(16), batch["label"]]
    assert batch["weight"].std() > 0.01
    expected = (batch["weight"] * each).sum() / batch["weight"].sum()
    assert terms["classification"] == pytest.approx(expected, rel=1e-5)


def test_words_of_the_target_change_as_those_of_the_task_do(target, built, tmp_path):
    def batch_of(**changes):
        run = built(tmp_path, adaptation={"target": target, "coral": 1.0}, **changes)
        return run.batches["train"].batch_at(0)["target"]["input_ids"]

    plain, changed = batch_of(), batch_of(augment={"swap": 0.5})
    assert (plain != changed).any()
    np.testing.assert_array_equal(np.sort(plain), np.sort(changed))  # the same words


@pytest.mark.parametrize(
    "changes, expected",
    [
        (["--adaptation.mmd", "1"], "adaptation needs a target and one of mmd, coral, dann and importance"),
        (["--adaptation.target", "t.csv"], "adaptation needs a target and one of mmd, coral, dann and importance"),
        (["--adaptation.target", "t.csv", "--adaptation.mmd", "1"], "t.csv: there is no such file or folder"),
        (["--adaptation.target", "TARGET", "--adaptation.importance", "--from-scratch"], "compares rows by what was"),
        (
            ["--adaptation.target", "TARGET", "--adaptation.mmd", "1", "--accumulate", "2"],
            "accumulate is 2, but the objective compares the rows of a whole batch with each other; leave it out",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_refused(changes, expected, refused, flags, target):
    assert expected in refused("finetune", *flags, *(target if part == "TARGET" else part for part in changes))
