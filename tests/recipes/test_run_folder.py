import shutil
from pathlib import Path

import pytest

from jaxptft.recipes import run_folder, settings
from jaxptft.recipes.finetune import Config


def config_of(out: Path, **values) -> Config:
    return settings.build(Config, {"model": "m", "train": "t.csv", "out": str(out), **values})


def claim(out: Path, *, resume: bool = False, overwrite: bool = False, **values) -> None:
    run_folder.claim(out, config_of(out, **values), resume=resume, overwrite=overwrite)


def test_a_new_folder_and_an_empty_one_are_taken(tmp_path):
    claim(tmp_path / "new" / "deep")
    (tmp_path / "empty").mkdir()
    claim(tmp_path / "empty")
    for out in (tmp_path / "new" / "deep", tmp_path / "empty"):
        recorded = settings.build(Config, settings.read_yaml(out / "config.yaml"))
        assert recorded == config_of(out)
        assert [path.name for path in out.iterdir()] == ["config.yaml"]
        assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    claim(tmp_path / "run")
    with pytest.raises(FileExistsError, match="already holds a run; continue it with --resume"):
        claim(tmp_path / "run")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_refused_even_to_overwrite(tmp_path, overwrite):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty and holds no run"):
        claim(tmp_path, overwrite=overwrite)
    # The config.yaml of another program makes no run.
    for content in ("version: 1\n", "- a\n", "[", "model: x\n", ""):
        (tmp_path / "config.yaml").write_text(content)
        with pytest.raises(FileExistsError, match="is not empty and holds no run"):
            claim(tmp_path, overwrite=overwrite)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(FileExistsError, match="run is a file; choose a folder"):
        claim(tmp_path / "run")


def test_overwrite_deletes_what_a_run_wrote_and_nothing_else(tmp_path):
    out = tmp_path / "run"
    claim(out)
    own = ("metrics.jsonl", "speed.jsonl", "report.json", "report.txt", "history.png", "confusion_eval.png")
    for name in (*own, "notes.txt", "mine/model.txt", "model/config.json", "checkpoints/best/step_00000001/meta.json"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("")
    claim(out, overwrite=True, seed=7)
    assert {path.name for path in out.iterdir()} == {"config.yaml", "notes.txt", "mine", ".lock"}
    assert (out / "mine/model.txt").is_file()
    assert settings.read_yaml(out / "config.yaml")["seed"] == 7


@pytest.mark.parametrize("name", ["model", "train", "eval", "test"])
def test_overwrite_is_refused_where_it_would_delete_what_the_run_reads(tmp_path, name):
    out = tmp_path / "run"
    claim(out)
    (out / "model").mkdir()
    (out / "model/config.json").write_text("")
    with pytest.raises(ValueError, match=f"{name} is .*, in the folder that --overwrite clears"):
        claim(out, overwrite=True, **{name: str(out / "model")})
    assert (out / "model/config.json").is_file()


def test_a_second_process_neither_enters_nor_overwrites_a_run_at_work(tmp_path):
    out = tmp_path / "run"
    claim(out)
    (out / "metrics.jsonl").write_text("at work")
    with run_folder.lock(out):  # flock keeps two openings apart, also in one process
        with (
            pytest.raises(BlockingIOError, match=r"another process is at work in .*run; wait for it"),
            run_folder.lock(out),
        ):
            pass
        with pytest.raises(BlockingIOError, match="another process is at work"):
            claim(out, overwrite=True)
    assert (out / "metrics.jsonl").read_text() == "at work"
    with run_folder.lock(out):
        pass


def test_only_a_run_can_be_resumed(tmp_path):
    for out in (tmp_path / "new", tmp_path):
        with pytest.raises(FileNotFoundError, match="holds no run to resume; leave out --resume"):
            claim(out, resume=True)


def test_resuming_needs_the_same_values(tmp_path):
    out = tmp_path / "run"
    claim(out)
    claim(out, resume=True)
    claim(out, resume=True, checkpoint_every=3, keep_checkpoints=4)
    with pytest.raises(ValueError, match=r"batch_size is 7, but the run in .*config\.yaml has 32"):
        claim(out, resume=True, batch_size=7)
    with pytest.raises(ValueError, match=r"columns\.text is 'words', but the run in .* has None"):
        claim(out, resume=True, columns={"text": "words"})
    (out / "config.yaml").write_text(config_of(out).to_yaml() + "old_key: 1\n")
    with pytest.raises(ValueError, match=r"config\.yaml: unknown key 'old_key'"):
        claim(out, resume=True)


def test_other_identity_is_refused_by_its_name(tmp_path):
    recorded = {"tokenizer": "a" * 64, "training_data": "b" * 64}
    run_folder.check_same(recorded, dict(recorded), tmp_path)
    with pytest.raises(ValueError, match=r"another training data \(b{12} then, c{12} now\); resume with the same"):
        run_folder.check_same(recorded, recorded | {"training_data": "c" * 64}, tmp_path)
    with pytest.raises(ValueError, match="another test data"):
        run_folder.check_same(recorded, recorded | {"test_data": "d" * 64}, tmp_path)


def test_the_environment_is_what_bits_depend_on():
    import jax

    found = run_folder.environment()
    assert found["versions"]["jax"] == jax.__version__
    assert found["devices"] == jax.device_count()


def test_mistakes_leave_the_run_that_overwrite_would_replace(finished, refused, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished.out, out)
    line = ("finetune", "--config", out / "config.yaml", "--out", out, "--overwrite")
    for mistake in (["--train", "nowhere.csv"], ["--freeze", "nothing/**"], ["--model", out]):
        refused(*line, *mistake)
        assert (out / "model/model.safetensors").read_bytes() == (finished.out / "model/model.safetensors").read_bytes()


def test_overwrite_runs_anew(finished, command, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished.out, out)
    line = ("finetune", "--config", out / "config.yaml", "--out", out, "--steps", "2", "--overwrite")
    assert command(*line).status == 0
    assert [path.name for path in out.glob("checkpoints/step_*")] == ["step_00000002"]
    assert '"step": 60' not in (out / "metrics.jsonl").read_text()


def test_a_folder_that_holds_a_run_is_refused_on_the_command_line(finished, refused, tmp_path):
    line = ("finetune", "--config", finished.out / "config.yaml")
    assert "already holds a run; continue it with --resume" in refused(*line)
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not empty and holds no run" in refused(*line, "--out", tmp_path, "--overwrite")


def test_a_run_older_than_a_dial_resumes_with_the_dials_default(tmp_path):
    out = tmp_path / "run"
    claim(out)
    recorded = [line for line in (out / "config.yaml").read_text().splitlines() if not line.startswith("log_every")]
    (out / "config.yaml").write_text("\n".join(recorded))
    claim(out, resume=True)
    with pytest.raises(ValueError, match=r"log_every is 3, but the run in .* has 10"):
        claim(out, resume=True, log_every=3)
