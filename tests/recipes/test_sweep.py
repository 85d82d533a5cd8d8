import json

import pytest

pytest.importorskip("optuna")

from jaxptft.recipes import settings, sweep
from jaxptft.recipes.search_space import Range, read_space, with_values


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1e-5:1e-3", Range(1e-5, 1e-3, False)),
        ("log:1e-5:1", Range(1e-5, 1, True)),
        ("1:4", Range(1, 4, False)),
        ("16,32,64", (16, 32, 64)),
        ("none,backbone,all-but-top-2", ("none", "backbone", "all-but-top-2")),
        ("true,false", (True, False)),
        ("0.1, 2", (0.1, 2)),
    ],
)
def test_a_space_is_read(text, expected):
    found = read_space("key", text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("text", ["1:4", "log:1:4"])
def test_whole_ends_make_whole_numbers(text):
    assert read_space("key", text).whole
    assert not read_space("key", "1:4.0").whole


@pytest.mark.parametrize(
    "text, expected",
    [
        ("4:1", "key: '4:1' is no range; expected LOW:HIGH with LOW below HIGH"),
        ("a:b", "key: 'a:b' is no range"),
        ("log:0:1", "key: 'log:0:1' cannot be searched on a logarithmic scale; LOW must be above 0"),
        ("1", "key: '1' is no space; expected LOW:HIGH, log:LOW:HIGH or different values A,B,C"),
        ("1,1", "key: '1,1' is no space"),
        ("1:2:3", "key: '1:2:3' is no space"),
        ("log:1,2", "key: 'log:1,2' is no space"),
        ("", "key: '' is no space"),
    ],
)
def test_what_is_no_space_is_refused(text, expected):
    with pytest.raises(ValueError, match=expected.replace("(", r"\(")):
        read_space("key", text)


def test_dotted_keys_reach_into_groups_without_changing_the_base():
    base = {"optimizer": {"b1": 0.9}, "seed": 0}
    assert with_values(base, {"optimizer.b2": 0.98}) == {"optimizer": {"b1": 0.9, "b2": 0.98}, "seed": 0}
    assert with_values(base, {"l2.new": 0.1})["l2"] == {"new": 0.1}
    assert base == {"optimizer": {"b1": 0.9}, "seed": 0}


@pytest.fixture(scope="module")
def written(base, files, tmp_path_factory):
    """The values that stay, as a file."""
    path = tmp_path_factory.mktemp("base") / "run.yaml"
    import yaml

    path.write_text(yaml.safe_dump(base | {"out": "unused", "test": str(files.test), "steps": 2}))
    return path


@pytest.fixture(scope="module")
def searched(written, quickly, tmp_path_factory):
    out, said = tmp_path_factory.mktemp("sweeps") / "sweep", []
    values = {"base": str(written), "out": str(out), "trials": 3, "reruns": 2, "sampler": "random"}
    search = {"learning_rate": "log:1e-6:0.05", "optimizer.b1": "0.5,0.9"}
    config = settings.build(sweep.Config, values | {"search": search})
    with quickly():
        return config, sweep.run(config, say=said.append), said


@pytest.mark.slow
def test_every_trial_is_a_run_and_the_best_is_the_best_of_them(searched):
    config, result, said = searched
    report = json.loads((config.out / "report.json").read_text())
    assert [trial["number"] for trial in report["trials"]] == [0, 1, 2]
    values = [trial["value"] for trial in report["trials"]]
    assert (result.value, result.trials) == (max(values), 3)
    best = report["trials"][values.index(max(values))]
    assert result.best == {key: best[key] for key in ("learning_rate", "optimizer.b1")}
    for trial in report["trials"]:
        run = config.out / "trials" / f"{trial['number']:04d}"
        recorded = settings.read_yaml(run / "config.yaml")
        assert recorded["learning_rate"] == trial["learning_rate"]
        assert recorded["optimizer"]["b1"] == trial["optimizer.b1"]
        assert recorded["test"] is None  # which a choice must not look at
        metrics = json.loads((run / "report.json").read_text())["eval"]["metrics"]
        assert metrics["classification/accuracy"] == trial["value"]
        assert not (run / "model").exists()
    assert (config.out / "sweep.png").stat().st_size > 1000
    assert any(line.startswith("best of 3 trials") for line in said)


def test_what_decides_where_nothing_is_said():
    assert sweep._usual_metric("finetune", {}) is None  # the first of the report
    assert sweep._usual_metric("finetune", {"task": "regression"}) == "regression/pearson"  # which may be undefined
    assert sweep._usual_metric("finetune", {"task": "response"}) == "response/loss"
    assert sweep._usual_metric("pretrain", {}) == "pretraining/loss"


@pytest.mark.slow
def test_the_best_values_are_run_again_with_other_seeds_and_the_test_rows(searched):
    config, result, _ = searched
    seeds, accuracies = set(), []
    for number in range(2):
        run = config.out / "best" / str(number)
        recorded = settings.read_yaml(run / "config.yaml")
        seeds.add(recorded["seed"])
        assert recorded["learning_rate"] == result.best["learning_rate"]
        accuracies.append(json.loads((run / "report.json").read_text())["test"]["metrics"]["classification/accuracy"])
        assert (run / "model/config.json").is_file()
    assert seeds == {1, 2}
    assert result.reruns["classification/accuracy"] == accuracies


@pytest.mark.slow
def test_a_sweep_goes_on_and_a_trial_that_was_cut_short_is_run_again(searched, quickly):
    import optuna

    config, _, _ = searched
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(config.out / "study.log")))
    study = optuna.load_study(study_name="sweep", storage=storage)
    cut = study.ask()  # as a process leaves it that is killed in the middle
    cut.suggest_float("learning_rate", 1e-6, 0.05, log=True)
    cut.suggest_categorical("optimizer.b1", (0.5, 0.9))
    more = config.model_copy(update={"trials": 4, "resume": True, "reruns": 1})
    with quickly():
        result = sweep.run(more, say=lambda line: None)
    assert result.trials == 4
    again = json.loads((config.out / "report.json").read_text())["trials"][-1]
    assert again["learning_rate"] == cut.params["learning_rate"]


@pytest.mark.slow
def test_the_command_line_goes_on_with_what_the_sweep_was_told(searched, command):
    config, _, _ = searched
    told = command("sweep", "--out", config.out, "--resume", "--trials", "4", "--reruns", "1")
    assert told.status == 0, told.err
    assert "best of 4 trials" in told.out  # those that are there already


def test_values_that_do_not_go_together_fail_alone(written, quickly, tmp_path):
    said = []
    values = {"base": str(written), "out": str(tmp_path / "sweep"), "trials": 2, "reruns": 1, "seed": 0}
    config = settings.build(sweep.Config, values | {"search": {"freeze": "backbone,all-but-top-9"}})
    with quickly():
        result = sweep.run(config, say=said.append)
    assert result.best == {"freeze": "backbone"}
    failed = [line for line in said if "failed" in line]
    assert failed
    assert all("cannot train the top 9 layers of a backbone with 1" in line for line in failed)


@pytest.mark.parametrize(
    "flags, expected",
    [
        (
            ["--search", "lerning_rate", "1:2"],
            "search: finetune has no key 'lerning_rate'; did you mean 'learning_rate'?",
        ),
        (
            ["--search", "learning_rate", "0:2"],
            "search, learning_rate: 'learning_rate' is 0: Input should be greater",
        ),
        (["--search", "seed", "1:2"], "search cannot choose seed, which the sweep sets itself"),
        (["--search", "batch_size", "1"], "batch_size: '1' is no space"),
        (["--search", "batch_size", "1,2", "--resume"], "holds no run to resume; leave out --resume to start one"),
    ],
)
def test_what_does_not_fit_is_refused(flags, expected, refused, written, tmp_path):
    assert expected in refused("sweep", "--base", written, "--out", tmp_path / "sweep", *flags)
    assert not (tmp_path / "sweep").exists()


def test_a_folder_with_something_in_it_is_left_alone(refused, written, tmp_path):
    (tmp_path / "thing.txt").write_text("mine")
    line = ("sweep", "--base", written, "--out", tmp_path, "--search", "batch_size", "1,2")
    assert "is not empty; continue a sweep with --resume, or choose another --out" in refused(*line)


@pytest.mark.slow
def test_another_search_does_not_continue_a_sweep(searched):
    config, _, _ = searched
    other = config.model_copy(update={"resume": True, "search": {"batch_size": "1,2"}})
    with pytest.raises(
        ValueError, match=r"search is \{'batch_size': '1,2'\}, but the sweep in .* has \{'learning_rate'"
    ):
        sweep.run(other)
