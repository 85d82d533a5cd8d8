"""A run that is killed or stopped, and resumed, ends with the bits of one that was not."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest

from jaxptft import train
from jaxptft.recipes import finetune, settings

LONG = {
    "--steps": 24,
    "--evaluate-every": 8,
    "--checkpoint-every": 3,
    "--log-every": 1,
    "--dropout": 0.1,
    "--freeze": "backbone/embeddings/**",
    "--l2-to-pretrained": 0.01,
}


@pytest.fixture(scope="module")
def line(base):
    """The command line of a run that takes its time, into a folder."""

    def flags(out) -> list:
        values = {f"--{key.replace('_', '-')}": value for key, value in base.items()} | LONG | {"--out": out}
        return ["finetune", *(part for pair in values.items() for part in pair)]

    return flags


@pytest.fixture(scope="module")
def uninterrupted(line, process, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    started = process(*line(out))
    assert (started.wait(300), started.stdout.close()) == (0, None), started.stderr.read()
    return out


def arrays_of(out):
    """Every array of the last checkpoint, as Orbax gives it."""
    import jax
    import orbax.checkpoint as ocp

    (last,) = out.glob("checkpoints/step_*")
    tree = ocp.PyTreeCheckpointer().restore(last / "arrays")
    leaves = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return last.name, json.loads((last / "meta.json").read_text())["loop"], leaves


def assert_same_run(one, other):
    for name in ("metrics.jsonl", "model/model.safetensors", "model/config.json", "report.json"):
        assert (other / name).read_bytes() == (one / name).read_bytes(), name
    (name, loop, expected), (other_name, other_loop, found) = arrays_of(one), arrays_of(other)
    assert (other_name, other_loop) == (name, loop)
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        assert (found[path].dtype, found[path].tobytes()) == (array.dtype, array.tobytes()), path


def await_moment(started, moment):
    """Wait until the process is ready to train, and then until `moment()` holds; an error when it ends before."""
    while not (line := started.stdout.readline()).startswith("model:"):
        assert line, started.stderr.read()
    until = time.monotonic() + 300
    while not moment():
        assert started.poll() is None, f"ended before the moment came: {started.stderr.read()}"
        assert time.monotonic() < until, "the moment never came"
        time.sleep(0.002)


def steps_logged(out) -> int:
    log = out / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
MOMENTS = [  # what has come to pass in the folder, and the signal that is sent then
    (lambda out: (out / "config.yaml").exists(), KILL),  # nothing is saved yet
    (lambda out: any(out.glob("checkpoints/unfinished-*")), KILL),  # within a save
    (lambda out: steps_logged(out) >= 6, TERM),
    (lambda out: steps_logged(out) >= 12, KILL),  # between saves
    (lambda out: steps_logged(out) >= 16, INT),
    (lambda out: any(out.glob("checkpoints/step_00000024")), KILL),  # after the last step
]


@pytest.mark.slow
def test_killed_and_stopped_at_many_moments_it_ends_with_the_same_bits(line, process, uninterrupted, tmp_path):
    out = tmp_path / "run"
    arguments = line(out)
    for moment, number in MOMENTS:
        started = process(*arguments)
        await_moment(started, lambda moment=moment: moment(out))
        started.send_signal(number)
        _, complaint = started.communicate(timeout=120)
        if number == KILL:
            assert started.returncode == -KILL
        else:
            assert started.returncode == {TERM: 143, INT: 130}[number]
            assert complaint.splitlines()[-1] == f"jaxptft: stopped by {number.name}; continue with --resume"
            assert any(out.glob("checkpoints/step_*"))
        arguments = ["finetune", "--resume", "--out", out]  # which suffices
    started = process(*arguments)
    told = started.communicate(timeout=300)
    assert started.returncode == 0, told
    assert f"resuming {out} at step 24" in told[0]
    assert_same_run(uninterrupted, out)
    leftovers = [path.name for path in out.rglob("*") if path.name.startswith((".", "unfinished-", "doomed-"))]
    assert leftovers == [".lock"]


PRETRAINING = {
    "--documents": "line",
    "--rows": "documents",
    "--pack": None,
    "--steps": 24,
    "--evaluate-every": 8,
    "--checkpoint-every": 3,
    "--log-every": 1,
    "--batch-size": 8,
    "--max-length": 16,
    "--learning-rate": 0.01,
    "--freeze": "backbone/embeddings/position/**",
    "--keep-checkpoints": 1,
    "--devices": 1,
}


@pytest.mark.slow
def test_a_pre_training_killed_at_many_moments_ends_with_the_same_bits(process, encoder, files, tmp_path):
    """Masked language modelling on packed rows, dropout and a frozen table included."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(row.rpartition(",")[0] for row in files.train.read_text().splitlines()[1:]) + "\n")
    values = {**PRETRAINING, "--corpus": corpus, "--model": encoder}
    flags = [part for pair in values.items() for part in pair if part is not None]
    whole = process("pretrain", *flags, "--out", tmp_path / "whole")
    told = whole.communicate(timeout=300)
    assert whole.returncode == 0, told

    out, arguments = tmp_path / "run", ["pretrain", *flags, "--out", tmp_path / "run"]
    for moment in (MOMENTS[1][0], lambda out: steps_logged(out) >= 7, lambda out: steps_logged(out) >= 17):
        started = process(*arguments)
        await_moment(started, lambda moment=moment: moment(out))
        started.kill()
        started.communicate(timeout=120)
        assert started.returncode == -KILL
        arguments = ["pretrain", "--resume", "--out", out]  # which suffices
    started = process(*arguments)
    told = started.communicate(timeout=300)
    assert started.returncode == 0, told
    assert f"resuming {out} at step" in told[0]
    assert_same_run(tmp_path / "whole", out)


IMAGES = {
    "--objective": "byol",
    "--backbone": "conv",
    "--shape.widths": 8,
    "--projection.hidden": 8,
    "--projection.outputs": 4,
    "--steps": 24,
    "--evaluate-every": 8,
    "--checkpoint-every": 3,
    "--log-every": 1,
    "--batch-size": 16,
    "--learning-rate": 0.003,
    "--keep-checkpoints": 1,
    "--no-pictures": None,
    "--devices": 1,
}


@pytest.mark.slow
def test_a_pre_training_on_images_killed_at_many_moments_ends_with_the_same_bits(process, digits, tmp_path):
    """Drawn views, a moving average and the statistics of batches included."""
    flags = [part for pair in (IMAGES | {"--data": digits}).items() for part in pair if part is not None]
    whole = process("pretrain", "images", *flags, "--out", tmp_path / "whole")
    told = whole.communicate(timeout=300)
    assert whole.returncode == 0, told

    out, arguments = tmp_path / "run", ["pretrain", "images", *flags, "--out", tmp_path / "run"]
    for moment in (MOMENTS[1][0], lambda out: steps_logged(out) >= 7, lambda out: steps_logged(out) >= 17):
        started = process(*arguments)
        await_moment(started, lambda moment=moment: moment(out))
        started.kill()
        started.communicate(timeout=120)
        assert started.returncode == -KILL
        arguments = ["pretrain", "images", "--resume", "--out", out]  # which suffices
    started = process(*arguments)
    told = started.communicate(timeout=300)
    assert started.returncode == 0, told
    assert f"resuming {out} at step" in told[0]
    assert_same_run(tmp_path / "whole", out)


@pytest.fixture
def stopped(base, tmp_path, files, encoder):
    """A function: ask a run of copies of the data and the model to stop when it says `word`; returns its config."""

    def run(word: str = "model:", times: int = 1, **changes):
        for name in ("train", "dev", "test"):
            shutil.copy(getattr(files, name), tmp_path / f"{name}.csv")
        shutil.copytree(encoder, tmp_path / "model", dirs_exist_ok=True)
        own = {"train": "train.csv", "eval": "dev.csv", "test": "test.csv", "model": "model", "out": "run"}
        values = base | {key: str(tmp_path / name) for key, name in own.items()} | changes
        config = settings.build(finetune.Config, values)

        def say(text):
            if text.startswith(word):
                for _ in range(times):
                    os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(train.Stopped, match="stopped by SIGTERM"):
            finetune.run(config, say=say)
        return config

    return run


def test_a_run_that_was_stopped_before_its_first_step_can_be_resumed(stopped, command, tmp_path):
    for word in ("classes:", "model:"):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        stopped(word, steps=2, evaluate_every=2)
        told = command("finetune", "--resume", "--out", tmp_path / "run")
        assert told.status == 0, told.err
        assert (tmp_path / "run/model/model.safetensors").is_file()


def test_the_second_signal_leaves_at_once(stopped, monkeypatch):
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    stopped(times=2)  # it is not let go here, and so it saves after all
    assert set(left) == {143}


def test_a_finished_run_resumes_to_what_it_is(finished, command, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(finished.out, out)
    told = command("finetune", "--resume", "--out", out)
    assert told.status == 0, told.err
    for name in ("metrics.jsonl", "model/model.safetensors", "report.json"):
        assert (out / name).read_bytes() == (finished.out / name).read_bytes(), name


@pytest.mark.parametrize(
    "changes, expected",
    [
        (["--seed", "1"], "seed is 1, but the run in"),
        (["--learning-rate", "0.5"], "learning_rate is 0.5, but the run in"),
        (["--optimizer.weight-decay", "0.5"], "optimizer.weight_decay is 0.5, but the run in"),
        (["--steps", "9"], "has done 60 steps already, and 9 are asked for; ask more"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_another_value_on_resume_is_refused_by_its_name(changes, expected, finished, refused):
    before = (finished.out / "config.yaml").read_text()
    assert expected in refused("finetune", "--resume", "--out", finished.out, *changes)
    assert (finished.out / "config.yaml").read_text() == before


def test_how_often_to_save_may_change_on_resume(stopped, command, tmp_path):
    stopped(steps=2, evaluate_every=2)
    line = ("finetune", "--resume", "--out", tmp_path / "run", "--checkpoint-every", "1", "--keep-checkpoints", "9")
    assert command(*line).status == 0
    assert len([*tmp_path.glob("run/checkpoints/step_*")]) == 3  # steps 0 (saved when stopped), 1 and 2


def test_other_data_model_or_tokenizer_on_resume_is_refused_by_its_name(stopped, refused, tmp_path, make_model):
    stopped()
    resume = ("finetune", "--resume", "--out", tmp_path / "run")
    for name, expected in (("train", "training data"), ("dev", "evaluation data"), ("test", "test data")):
        file = tmp_path / f"{name}.csv"
        before = file.read_text()
        file.write_text(before + "so it was good,pos\n")
        assert f"was trained with another {expected} (" in refused(*resume)
        file.write_text(before)

    tokenizer = tmp_path / "model/tokenizer_config.json"
    before = tokenizer.read_text()
    tokenizer.write_text(json.dumps(json.loads(before) | {"do_lower_case": False}))
    assert "was trained with another tokenizer (" in refused(*resume)
    tokenizer.write_text(before)

    from safetensors.numpy import load_file, save_file

    tensors = load_file(tmp_path / "model/model.safetensors")
    save_file({name: array * 1.5 for name, array in tensors.items()}, tmp_path / "model/model.safetensors")
    assert "was trained with another initial model (" in refused(*resume)


def test_another_architecture_of_the_same_parameters_on_resume_is_refused(stopped, refused, tmp_path):
    stopped()
    config = tmp_path / "model/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_act": "relu"}))
    told = refused("finetune", "--resume", "--out", tmp_path / "run")
    assert "was trained with another initial model (" in told


def test_another_environment_is_said(stopped, command, tmp_path, monkeypatch):
    stopped(steps=2, evaluate_every=2)
    monkeypatch.setenv("NPROC", "77")
    told = command("finetune", "--resume", "--out", tmp_path / "run")
    assert "note: nproc was" in told.out
    assert "and is 77 now; results may differ in the last bits" in told.out


def test_a_config_recorded_with_overwrite_resumes_and_runs_again(command, flags, tmp_path, finished):
    assert command("finetune", *flags, "--overwrite", "--steps", "1").status == 0
    assert "overwrite: false" in (tmp_path / "run/config.yaml").read_text()
    assert command("finetune", "--resume", "--out", tmp_path / "run").status == 0


def test_a_run_counted_in_epochs_goes_on_for_a_number_of_steps(fine_tune, command, tmp_path):
    fine_tune(tmp_path / "run", steps=None, epochs=1)  # 64 rows in batches of 16
    told = command("finetune", "--resume", "--out", tmp_path / "run", "--steps", 6)
    assert told.status == 0, told.err
    assert "was planned for 4 steps and goes on to 6" in told.out
    assert json.loads((tmp_path / "run/report.json").read_text())["steps"] == 6


def damage(store, step):
    path = max((path for path in (store / f"step_{step:08d}" / "arrays").rglob("*") if path.is_file()), key=str)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_damaged_best_model_is_found_again_from_the_step_before(fine_tune, tmp_path):
    values = {"keep_checkpoints": 2, "checkpoint_every": 2, "evaluate_every": 3, "steps": 7, "monitor": "loss"}
    whole = fine_tune(tmp_path / "whole", **values)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    best = tmp_path / "run" / "checkpoints" / "best"
    damage(best, whole.best_step)
    again = fine_tune(tmp_path / "run", resume=True, **values)
    assert again.best_step == whole.best_step
    for name in ("metrics.jsonl", "model/model.safetensors", "report.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    train.verify(best / f"step_{whole.best_step:08d}")


@pytest.mark.slow
def test_a_run_goes_on_with_its_state_cut_over_other_devices(fine_tune, built, make_model, tmp_path, lines_of):
    wide = make_model(tmp_path / "wide", hidden_size=128, intermediate_size=256)
    values = {"model": str(wide), "evaluate_every": 4, "checkpoint_every": 4, "log_every": 1, "learning_rate": 1e-3}
    state = built(tmp_path / "cut", **values, devices=8, fsdp=4).training.state
    kernel = state.params["backbone"]["layer_0"]["mlp"]["up"]["kernel"]
    assert {part.data.shape for part in kernel.addressable_shards} == {(128, 64)}
    whole = fine_tune(tmp_path / "whole", **values, steps=8)
    cut = fine_tune(tmp_path / "cut", **values, steps=8, devices=8, fsdp=4)
    losses = [[line["loss"] for line in lines_of(tmp_path / name, "train")] for name in ("whole", "cut")]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert cut.best_step == whole.best_step
    again = fine_tune(tmp_path / "cut", **values, steps=8, devices=2, fsdp=2, resume=True)
    assert "note: mesh was {'data': 2, 'fsdp': 4} when the checkpoint was written" in again.said
    assert arrays_of(tmp_path / "cut")[0] == "step_00000008"


@pytest.mark.slow
def test_several_steps_a_dispatch_learn_the_same_and_may_change_on_resume(fine_tune, tmp_path, lines_of):
    values = {"evaluate_every": 5, "log_every": 1, "dropout": 0.0, "learning_rate": 1e-3, "keep_checkpoints": 2}
    fine_tune(tmp_path / "one", **values, steps=12, steps_per_dispatch=1)
    whole = fine_tune(tmp_path / "together", **values, steps=12, steps_per_dispatch=4)
    losses = [[line["loss"] for line in lines_of(tmp_path / name, "train")] for name in ("one", "together")]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    for path in (tmp_path / "together/checkpoints").glob("step_00000012"):
        shutil.rmtree(path)  # as a run that was killed behind step 10
    again = fine_tune(tmp_path / "together", **values, steps=12, steps_per_dispatch=3, read_ahead=0, resume=True)
    assert "note: steps_per_dispatch was 4 when the checkpoint was written and is 3 now" in again.said
    assert again.best_step == whole.best_step
    assert [line["loss"] for line in lines_of(tmp_path / "together", "train")] == losses[1]  # however they are grouped
