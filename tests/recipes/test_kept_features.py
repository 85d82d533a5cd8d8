"""Frozen layers that are run once: the same training, and where it is not done."""

import errno
import json
import os
import shutil

import numpy as np
import pytest

FROZEN = {"cache_features": "on", "steps": 12, "evaluate_every": 6, "log_every": 1, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def deep(make_model, tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("deep") / "model", num_hidden_layers=3))


def agree(lines_of, tensors_of, one, other):
    for kind, key in (("train", "loss"), ("evaluation", "classification/loss")):
        both = [[line[key] for line in lines_of(path, kind)] for path in (one, other)]
        np.testing.assert_allclose(*both, rtol=1e-5)
    ours, theirs = (tensors_of(path / "model") for path in (one, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if not name.endswith("key.bias"):  # softmax is blind to it, and Adam makes steps of its gradient's last bits
            np.testing.assert_allclose(tensor, theirs[name], atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("freeze", "told", "changes"),
    [
        ("backbone", "the whole backbone is", {}),
        pytest.param(
            "all-but-top-1",
            "the lower 2 layers are",
            {"dropout": 0.2, "l2_to_pretrained": 0.1},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "all-but-top-2",
            "the lower 1 layers are",
            {"accumulate": 2, "steps_per_dispatch": 3, "cache_features_gb": 0},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_training_is_the_same(fine_tune, tmp_path, lines_of, tensors_of, deep, freeze, told, changes):
    values = FROZEN | {"model": deep, "freeze": freeze} | changes
    kept = fine_tune(tmp_path / "kept", **values)
    assert f"frozen: {told} computed once for 88 texts" in kept.said
    assert ("in a file" in kept.said) == ("cache_features_gb" in changes)
    plain = fine_tune(tmp_path / "plain", **values | {"cache_features": "off"})
    assert "computed once" not in plain.said
    agree(lines_of, tensors_of, tmp_path / "kept", tmp_path / "plain")
    assert kept.best_step == plain.best_step


def tags(folder):
    """Which tokens are read above the layers, and not the pooler."""
    lines = ["\n".join(f"{word} {'B-X' if word == 'good' else 'O'}" for word in ("good", "fine", "bad"))] * 12
    path = folder / "tags.conll"
    path.write_text("\n\n".join(lines) + "\n")
    return {"task": "token_classification", "train": str(path), "eval": str(path)}


def spans(folder):
    contexts = ["a film was good and so", "it was so very bad"] * 12
    rows = [
        {"id": str(number), "question": "was it", "context": text, "answers": {"text": ["was"], "answer_start": [at]}}
        for number, text in enumerate(contexts)
        for at in [text.index("was")]
    ]
    path = folder / "spans.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"task": "question_answering", "train": str(path), "eval": str(path)}


def choices(folder):
    """Of which some rows have two and some three."""
    rows = [
        {"context": "the film was", "choices": ["very good", "so bad", "it"][: 2 + number % 2], "label": number % 2}
        for number in range(24)
    ]
    path = folder / "choices.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"task": "multiple_choice", "train": str(path), "eval": str(path)}


@pytest.mark.parametrize(
    ("rows", "freeze", "told"),
    [
        (tags, "backbone", "lower 3 layers are computed once for 24 texts"),
        pytest.param(spans, "all-but-top-1", "lower 2 layers are computed once for 48 texts", marks=pytest.mark.slow),
        (choices, "backbone", "whole backbone is computed once for 120 texts"),
        pytest.param(
            choices, "all-but-top-1", "lower 2 layers are computed once for 120 texts", marks=pytest.mark.slow
        ),
    ],
)
def test_other_tasks_learn_above_frozen_layers(fine_tune, tmp_path, lines_of, deep, rows, freeze, told):
    values = FROZEN | rows(tmp_path) | {"model": deep, "freeze": freeze}
    kept = fine_tune(tmp_path / "kept", **values)
    assert told in kept.said
    fine_tune(tmp_path / "plain", **values | {"cache_features": "off"})
    both = [[line["loss"] for line in lines_of(tmp_path / name, "train")] for name in ("kept", "plain")]
    assert len(both[0]) == 12
    np.testing.assert_allclose(*both, rtol=1e-5)


def test_by_itself_it_keeps_what_a_run_of_two_epochs_reads_again(built, tmp_path, deep):
    """Four steps are an epoch; nothing is said where it is not."""
    values = {"model": deep, "freeze": "backbone"}
    for steps, start in ((7, None), (8, 4)):
        run = built(tmp_path / str(steps), **values, steps=steps)
        assert run.config.cache_features == "auto"
        assert run.start == start
        assert not any("cache_features" in line for line in run.said)


def test_a_disk_without_room_is_named_or_done_without(built, tmp_path, deep, monkeypatch):
    def full(descriptor, start, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    values = {"model": deep, "freeze": "backbone", "steps": 8, "cache_features_gb": 0}
    with pytest.raises(OSError, match=r"No space left on device; cache_features=off needs no file: '.*features'"):
        built(tmp_path / "on", **values, cache_features="on")
    run = built(tmp_path / "auto", **values)
    assert run.start is None
    assert any("cache_features keeps nothing" in line and "No space left" in line for line in run.said)


def test_a_run_that_is_resumed_is_the_run_that_was_not_killed(fine_tune, tmp_path, deep, tensors_of):
    values = FROZEN | {"model": deep, "freeze": "all-but-top-1", "dropout": 0.2, "keep_checkpoints": 2}
    fine_tune(tmp_path / "run", **values)
    whole, log = tensors_of(tmp_path / "run/model"), (tmp_path / "run/metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "run/checkpoints/step_00000012")  # as a run that was killed behind step 6
    again = fine_tune(tmp_path / "run", **values, resume=True)
    assert "computed once" in again.said
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == log
    for name, tensor in tensors_of(tmp_path / "run/model").items():
        np.testing.assert_array_equal(tensor, whole[name])


@pytest.mark.parametrize(
    "changes",
    [
        {"freeze": "none"},
        {"freeze": "backbone", "augment": {"deletion": 0.1}},
        {"freeze": "backbone", "packing": "on"},
        {"freeze": "backbone/embeddings/**"},  # which are as soon looked up as read
    ],
)
def test_where_it_cannot_be_nothing_is_kept(built, tmp_path, deep, changes):
    run = built(tmp_path / "run", **{"model": deep, "steps": 12, "cache_features": "on"} | changes)
    assert run.start is None
    assert not [line for line in run.said if "computed once" in line]
    assert any(line.startswith("note: cache_features keeps nothing: ") for line in run.said)
    assert "hidden" not in run.batches["train"].batch_at(0)
