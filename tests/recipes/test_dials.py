"""Runs of one program: which may be, and that each comes to what it comes to alone."""

import json

import numpy as np
import pytest

from jaxptft.recipes import dials, finetune, settings

pytest.importorskip("optuna")

from jaxptft.recipes import sweep

SEARCH = {
    "learning_rate": "log:1e-4:0.05",
    "dropout": "0.0,0.3",
    "l2_to_pretrained": "log:1e-4:1.0",
    "optimizer.weight_decay": "0.0:0.5",
}


@pytest.fixture
def written(base, files, tmp_path):
    import yaml

    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(base | {"out": "unused", "test": str(files.test), "steps_per_dispatch": 3}))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 3])
def test_each_trial_of_a_vectorized_sweep_is_its_own_single_run(written, quickly, tmp_path, lines_of, at_once):
    said, out = [], tmp_path / "sweep"
    values = {"base": str(written), "out": str(out), "trials": 3, "reruns": 2, "sampler": "random", "search": SEARCH}
    config = settings.build(sweep.Config, values | {"vectorized": True, "at_once": at_once, "halving": 0})
    with quickly():
        result = sweep.run(config, say=said.append)
        assert result.trials == 3
        folders = [*(out / "trials").iterdir(), *(out / "best").iterdir()]
        assert len(folders) == 5
        for number, folder in enumerate(folders):
            recorded = settings.read_yaml(folder / "config.yaml")
            single = settings.build(finetune.Config, recorded | {"out": str(tmp_path / f"single{number}")})
            finetune.run(single, say=lambda line: None)
            for kind, places in (
                ("train", ("loss", "learning_rate", "grad_norm")),
                ("evaluation", ("classification/loss",)),
            ):
                ours, alone = ([lines for lines in lines_of(path, kind)] for path in (folder, single.out))
                for place in places:
                    both = [[line[place] for line in lines] for lines in (ours, alone)]
                    assert len(both[0]) > 1
                    np.testing.assert_allclose(*both, rtol=2e-4, err_msg=f"{folder}, {place}")
    losses = {tuple(line["loss"] for line in lines_of(folder, "train")) for folder in folders}
    assert len(losses) == 5
    assert (out / "best/1/model/config.json").is_file()


def test_trials_that_are_outrun_are_stopped(written, quickly, tmp_path, csv_file):
    """By a squared error, which no two of them share."""
    import yaml

    rows = [("good fine" if number % 2 else "bad", str(number % 2)) for number in range(16)]
    numbers = str(csv_file(tmp_path / "numbers.csv", rows))
    changes = {"task": "regression", "train": numbers, "eval": numbers, "test": None, "monitor": "mse"}
    written.write_text(yaml.safe_dump(yaml.safe_load(written.read_text()) | changes))
    said, out = [], tmp_path / "sweep"
    values = {"base": str(written), "out": str(out), "trials": 6, "reruns": 1, "sampler": "random", "seed": 1}
    search = {"learning_rate": "log:1e-7:0.05"}
    values |= {"vectorized": True, "halving": 2, "metric": "regression/mse"}
    config = settings.build(sweep.Config, values | {"search": search})
    with quickly():
        result = sweep.run(config, say=said.append)
    stopped = [line for line in said if "stopped" in line]
    assert 1 <= len(stopped) <= 5
    assert result.trials == 6 - len(stopped)
    assert len(json.loads((out / "report.json").read_text())["trials"]) == result.trials
    for folder in (out / "trials").iterdir():
        log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        told = [line for line in stopped if line.startswith(f"trial {int(folder.name)} ")]
        assert (max(line["step"] for line in log) < 6) == bool(told)
        assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize(
    ("changes", "flags", "expected"),
    [
        ({}, ("--search", "batch_size", "8,16"), "vectorized runs are one program, in which batch_size cannot differ"),
        ({}, ("--search", "l2_to_pretrained", "0.0:1.0"), "l2_to_pretrained of 0 is a program without it"),
        ({}, ("--search", "learning_rate", "1e-3,1e-2", "--halving", "1"), "halving is 1"),
        ({"parallel": "pmap"}, ("--search", "learning_rate", "1e-3,1e-2"), "do not go with parallel=pmap"),
        ({}, ("--recipe", "pretrain", "--search", "learning_rate", "1e-3,1e-2"), "trials are fine-tunings"),
    ],
)
def test_what_is_no_run_of_one_program_is_refused(changes, flags, expected, refused, written, tmp_path):
    import yaml

    written.write_text(yaml.safe_dump(yaml.safe_load(written.read_text()) | changes))
    assert expected in refused("sweep", "--base", written, "--out", tmp_path / "sweep", "--vectorized", *flags)
    assert not (tmp_path / "sweep").exists()


def test_what_differs_between_two_programs_is_named(base):
    def made(**changes):
        return settings.build(finetune.Config, base | {"out": "a"} | changes)

    other = {"seed": 3, "learning_rate": 1.0, "dropout": 0.5, "optimizer": {"weight_decay": 1}}
    dials.check_one_program(made(), made(out="b", **other))
    for changes, expected in (
        ({"batch_size": 3}, "batch_size differs"),
        ({"optimizer": {"b1": 0.5}}, "optimizer.b1 differs"),
        ({"dropout": None}, "dropout is given in some runs"),
        ({"l2_to_pretrained": 0.1}, "l2_to_pretrained is 0 in some runs"),
    ):
        with pytest.raises(ValueError, match=expected):
            dials.check_one_program(made(), made(**changes))
