"""Weights that a fine-tuning has pruned are exactly zero wherever its model goes, and a resumed run prunes the same."""

import json
import os
import signal

import numpy as np
import pytest
import torch
import transformers

from jaxptft import convert, optim, train
from jaxptft.recipes import pruning
from jaxptft.recipes.exported import open_any
from jaxptft.recipes.finetune import Pruning

KERNELS = "backbone/layer_*/**/kernel"
PRUNED = {
    "steps": 12,
    "evaluate_every": 2,
    "checkpoint_every": 2,
    "optimizer": {"weight_decay": 0.5},
    "l2_to_pretrained": 0.5,  # which pulls every weight away from zero
    "dropout": 0.1,
    "pruning": {"method": "magnitude", "sparsity": 0.6, "begin": 0.2, "end": 0.75, "updates": 4},
}
MOVEMENT = PRUNED | {"pruning": PRUNED["pruning"] | {"method": "movement"}}


def sparsity(params) -> float:
    found = optim.zeros_by_path(params, KERNELS).values()
    return sum(zero for zero, _ in found) / sum(size for _, size in found)


def whole(out):
    """The last checkpoint's arrays, which hold masks and scores too."""
    import jax
    import orbax.checkpoint as ocp

    last = max(out.glob("checkpoints/step_*"))
    tree = ocp.PyTreeCheckpointer().restore(last / "arrays")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module")
def runs(fine_tune, tmp_path_factory):
    """The same fine-tuning pruned in two ways, to the end."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        method: fine_tune(folder / method, **values)
        for method, values in (("magnitude", PRUNED), ("movement", MOVEMENT))
    }


@pytest.mark.parametrize("method", ["magnitude", "movement"])
def test_what_is_saved_and_exported_has_its_zeros(runs, method, lines_of, command, tmp_path):
    run = runs[method]
    lines = lines_of(run.out, "evaluation")
    shares = [line["pruning/sparsity"] for line in lines]
    assert shares[0] == 0.0
    assert shares == sorted(shares)
    total = sum(size for _, size in optim.zeros_by_path(convert.load(run.out / "model").params, KERNELS).values())
    assert shares[-1] == pytest.approx(0.6, abs=0.5 / total)
    assert run.best_step >= 9  # of 12, from 0.75 on
    facts = json.loads((run.out / "report.json").read_text())["pruning"]
    assert facts["sparsity"] == shares[-1]
    assert facts["weights"] == total
    assert f"{100 * shares[-1]:.1f} % of {total:,} weights" in run.said
    model = transformers.AutoModelForSequenceClassification.from_pretrained(run.out / "model")
    layers = model.bert.encoder.layer
    zeros = sum(int((w == 0).sum()) for n, w in layers.named_parameters() if w.ndim == 2)
    assert zeros == round(facts["sparsity"] * total)
    # Through our own format and back.
    assert command("convert", "import", run.out / "model", tmp_path / "own").status == 0
    assert command("convert", "export", tmp_path / "own", tmp_path / "back").status == 0
    back = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "back")
    for (name, one), (_, other) in zip(model.named_parameters(), back.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert command("export", run.out, "--format", "flax", "--out", tmp_path / "flax").status == 0
    assert sparsity(open_any(tmp_path / "flax").params) == facts["sparsity"]


@pytest.mark.parametrize("method", ["magnitude", "movement"])
def test_stopped_between_two_masks_and_resumed_it_ends_with_the_same_bits(
    runs, method, fine_tune, tmp_path, monkeypatch
):
    watch = pruning.Pruner.watch

    def interrupt(self, state):
        if int(state.step) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return watch(self, state)

    values = PRUNED if method == "magnitude" else MOVEMENT
    with monkeypatch.context() as patch:
        patch.setattr(pruning.Pruner, "watch", interrupt)
        with pytest.raises(train.Stopped):
            fine_tune(tmp_path / "run", **values)
    part = whole(tmp_path / "run")
    fine_tune(tmp_path / "run", **values, resume=True)
    for name in ("metrics.jsonl", "model/model.safetensors", "report.json"):
        assert (tmp_path / "run" / name).read_bytes() == (runs[method].out / name).read_bytes(), name
    expected, found = whole(runs[method].out), whole(tmp_path / "run")
    assert found.keys() == expected.keys()
    assert any("masks" in path for path in found)
    for path, array in expected.items():
        assert found[path].tobytes() == array.tobytes(), path
    assert any(part[path].tobytes() != array.tobytes() for path, array in expected.items() if "masks" in path)


ONE_WAY = PRUNED | {
    "dropout": 0.0,
    "optimizer": {"eps": 1e-3},
    "l2_to_pretrained": 0.0,
    "steps": 8,
    "evaluate_every": 8,
}


@pytest.fixture(scope="module")
def one_way(fine_tune, tmp_path_factory):
    """A run on one device, in one piece."""
    return fine_tune(tmp_path_factory.mktemp("runs") / "one", **ONE_WAY).out


RARER = ({"accumulate": 2}, {"devices": 4, "fsdp": 2})


@pytest.mark.parametrize(
    "variant", [{"devices": 8}, *(pytest.param(way, marks=pytest.mark.slow) for way in RARER)], ids=str
)
def test_devices_and_micro_steps_prune_the_same_weights(variant, one_way, fine_tune, tmp_path, tensors_of, lines_of):
    one, other = one_way, fine_tune(tmp_path / "run", **ONE_WAY, **variant).out
    for name, array in tensors_of(one / "model").items():
        found = tensors_of(other / "model")[name]
        np.testing.assert_array_equal(found == 0, array == 0, err_msg=name)
        np.testing.assert_allclose(found, array, atol=1e-5, err_msg=name)
    assert lines_of(one, "evaluation")[-1]["pruning/sparsity"] > 0.5


def test_keep_fine_tunes_around_the_zeros_of_the_model(runs, fine_tune, tmp_path, tensors_of):
    source = runs["magnitude"].out
    run = fine_tune(tmp_path / "run", model=str(source), steps=3, pruning={"method": "keep"})
    before, after = tensors_of(source / "model"), tensors_of(run.out / "model")
    changed = 0
    for name, array in before.items():
        if "encoder" in name and array.ndim == 2:
            np.testing.assert_array_equal(after[name] == 0, array == 0, err_msg=name)
            changed += int((after[name] != array).sum())
    assert changed
    loose = fine_tune(tmp_path / "loose", model=str(source), steps=3)
    assert sparsity(convert.load(loose.out / "model").params) < 0.01


def test_matrices_can_be_named_and_frozen_ones_are_left_alone(fine_tune, tmp_path, make_model):
    source = str(make_model(tmp_path / "source", num_hidden_layers=2))
    values = {"model": source, "steps": 4, "evaluate_every": 4}
    own = {"method": "magnitude", "sparsity": 0.5, "scope": "layer", "begin": 0.0, "end": 0.5}
    run = fine_tune(tmp_path / "a", **values, pruning=own, freeze="backbone/layer_0/**,backbone/embeddings/**")
    by_matrix = json.loads((run.out / "report.json").read_text())["pruning"]["by_matrix"]
    assert {path.split("/")[1] for path in by_matrix} == {"layer_1"}
    assert set(by_matrix.values()) == {0.5}
    run = fine_tune(tmp_path / "b", **values, pruning=own | {"patterns": ("**/mlp/up/kernel",)})
    assert set(json.loads((run.out / "report.json").read_text())["pruning"]["by_matrix"]) == {
        "backbone/layer_0/mlp/up/kernel",
        "backbone/layer_1/mlp/up/kernel",
    }
    with pytest.raises(
        ValueError, match=r"^backbone/layer_0/mlp/up/kernel is to be pruned and does not train; unfreeze it"
    ):
        fine_tune(
            tmp_path / "c",
            **values,
            pruning=own | {"patterns": ("**/mlp/up/kernel",)},
            freeze="backbone/layer_0/**,backbone/embeddings/**",
        )


@pytest.mark.parametrize(
    "given, expected",
    [
        (["--pruning.sparsity", "0.3"], "pruning.sparsity is given and pruning.method is not"),
        (["--pruning.method", "magnitude", "--pruning.sparsity", "1"], "pruning.sparsity"),
        (["--pruning.method", "keep", "--pruning.scope", "layer"], "has no scope; leave it out"),
        (["--pruning.method", "keep"], "no weight of the model is zero"),
        (["--pruning.method", "keep", "--from-scratch"], "from scratch there are none"),
        (["--pruning.method", "movement", "--pruning.begin", "0.9"], "give an end that comes later"),
        (["--pruning.method", "movement", "--lora.rank", "2"], "lora leaves the imported kernels"),
        (["--pruning.method", "movement", "--unfreeze.every", "2"], "leave out unfreeze, or pruning"),
        (["--pruning.method", "movement", "--pruning.patterns", "backbone/layer_9/**"], "matches nothing"),
        (["--pruning.method", "movement", "--freeze", "backbone"], "is to be pruned and does not train; unfreeze it"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_in_a_line(given, expected, flags, refused):
    assert expected in refused("finetune", *flags, *given)


def test_a_run_with_fewer_zeros_than_asked_for_says_so():
    found = pruning.Pruner(Pruning(method="magnitude", sparsity=0.5), ("kernel",))
    row = np.ones((1, 100), np.float32)
    row[0, :50] = 0
    assert found.told({"kernel": row}) == "pruning: 50.0 % of 100 weights in 1 matrices are zero"
    row[0, :2] = 1
    assert "48.0 % of 100 weights in 1 matrices are zero, fewer than the 50 % asked for: " in found.told(
        {"kernel": row}
    )


def test_evaluations_before_the_end_decide_nothing(runs, lines_of):
    """Even where an earlier one was better, and patience only begins to run out then."""
    for run in runs.values():
        after = {line["step"]: line["classification/accuracy"] for line in lines_of(run.out, "evaluation")}
        best = max(value for step, value in after.items() if step >= 9)
        assert after[run.best_step] == best
