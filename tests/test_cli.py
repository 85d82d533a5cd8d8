"""The command line itself: help, flags, and what it says of mistakes. What the commands do is in tests/recipes."""

import importlib
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from jaxptft import __version__, cli
from jaxptft.recipes import COMMANDS
from jaxptft.recipes.settings import keys


def config_of(name: str):
    command = COMMANDS[name]
    return getattr(importlib.import_module(command.module), command.config)


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def refused(capsys):
    """A function: a command line -> its complaint, the only line on standard error, with status 2."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        status, told = cli.main(arguments), capsys.readouterr().err
        assert (status, told.count("\n")) == (2, 1), told
        return told.removeprefix("jaxptft: error: ").rstrip("\n")

    return run


def test_the_overview_names_every_command(capsys):
    for arguments in ([], ["--help"], ["-h"]):
        assert cli.main(arguments) == 0
        told = capsys.readouterr().out
        assert all(f"  {name} " in told and command.help in told for name, command in COMMANDS.items())


def test_a_group_of_commands_shows_its_own(capsys):
    for arguments in (["convert"], ["convert", "--help"]):
        assert cli.main(arguments) == 0
        told = capsys.readouterr().out
        assert "convert import" in told
        assert "finetune" not in told


def test_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxptft {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_mentions_each_of_its_fields(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main([*name.split(), "--help"]) == 0
    told = capsys.readouterr().out
    kind = config_of(name)
    positional = cli._positional(kind)
    for key in keys(kind):
        suppressed = key in kind.model_fields and "Suppress" in repr(kind.model_fields[key].metadata)
        if key not in positional and key not in ("columns", "optimizer") and not suppressed:
            assert f"--{key.replace('_', '-')}" in told, key
    # A positional argument is told by what is said of it.
    for key in positional:
        assert kind.model_fields[key].description[:30] in told


@pytest.mark.parametrize(
    "arguments", [["--help"], ["finetune", "--help"], ["predict", "--help"], ["serve", "--help"], ["finetune", "-x"]]
)
def test_help_and_slips_need_no_framework(arguments):
    script = (
        "import sys; from jaxptft.cli import main; main(sys.argv[1:]); "
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    loaded = python("-c", script, *arguments).stdout.splitlines()[-1].split()
    assert "jaxptft" in loaded
    assert not {"jax", "transformers", "torch", "datasets", "sklearn", "orbax", "flax"} & set(loaded)


def test_it_runs_as_a_module_and_leaves_with_a_status():
    helped = python("-m", "jaxptft.cli", "finetune", "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "--learning-rate" in helped.stdout
    slipped = python("-m", "jaxptft.cli", "finetun")
    assert (slipped.returncode, slipped.stdout) == (2, "")
    assert slipped.stderr == (
        "jaxptft: error: there is no command 'finetun'; did you mean 'finetune'?; see jaxptft --help\n"
    )


def test_a_mistake_is_one_line_in_a_process_of_its_own(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    line = ("finetune", "--model", str(tmp_path), "--train", str(tmp_path / "empty.csv"), "--out", str(tmp_path / "x"))
    told = python("-m", "jaxptft.cli", *line)
    assert told.returncode == 2
    assert told.stderr == (
        f"jaxptft: error: {tmp_path} holds no model: expected config.json, a run's model/, or a converted folder\n"
    )


FINETUNE = ("finetune", "--model", "m", "--train", "t.csv", "--out", "o")


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (("convert", "imprt"), "there is no command 'convert imprt'; did you mean 'convert import'?"),
        (("",), "there is no command ''"),
        (("finetune",), "--out, --model, --train must be given; see jaxptft finetune --help"),
        (("predict", "m", "--data", "d"), "--out must be given"),
        (("predict", "--data", "d", "--out", "o"), "MODEL must be given"),
        (("convert", "export", "a"), "SOURCE, DESTINATION must be given"),
        ((*FINETUNE, "--lr", "1"), "unknown flag --lr"),
        ((*FINETUNE, "--3ut", "1"), "unknown flag --3ut; did you mean 'out'?; see"),
        ((*FINETUNE, "--eed", "1"), "unknown flag --eed; did you mean 'seed'?"),
        ((*FINETUNE, "--" + "x" * 9999, "1"), f"unknown flag '--{'x' * 74}...; see"),
        ((*FINETUNE, "--overwrite", "False"), "Unrecognized options: False, after --overwrite; see"),
        ((*FINETUNE, "--batchsize=3"), "unknown flag --batchsize; did you mean 'batch-size'?"),
        ((*FINETUNE, "--optimizer.waruup", "0"), "did you mean 'optimizer.warmup'?"),
        ((*FINETUNE, "-x"), "unknown flag -x"),
        ((*FINETUNE, "stray"), "Unrecognized options: stray"),
        ((*FINETUNE, "--overwrite", "x" * 9999), "..., after --overwrite; see"),
        ((*FINETUNE, "--steps"), "Missing value for argument '--steps'"),
        ((*FINETUNE, "--steps", "many"), "--steps"),
        ((*FINETUNE, "--steps", "-3"), "--steps is -3: Input should be greater than or equal to 1"),
        ((*FINETUNE, "--optimizer.eps", "-1"), "--optimizer.eps is -1.0: Input should be greater than or equal to 0"),
        ((*FINETUNE, "--epochs", "inf"), "--epochs is inf: Input should be a finite number"),
        ((*FINETUNE, "--dtype", "int8"), "invalid choice 'int8' for argument '--dtype'"),
        ((*FINETUNE, "--steps", "1", "--epochs", "1"), "both steps and epochs are given; give one"),
        ((*FINETUNE, "--resume", "--overwrite", "--config", "/dev/null"), "both resume and overwrite are given"),
        ((*FINETUNE, "--config"), "--config needs a value"),
        ((*FINETUNE, "--config", "/no/such.yaml"), "No such file or directory: '/no/such.yaml'"),
        (("finetune", "--resume", "--out", "/no/such"), "/no/such holds no run to resume; leave out --resume"),
        (("finetune", "--resume"), "--out, --model, --train must be given"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, tuple) else "",
)
def test_a_slip_is_told_in_one_line(arguments, expected, refused):
    assert expected in refused(*arguments)


def test_an_error_shows_where_it_came_from_when_asked(monkeypatch):
    monkeypatch.setenv("JAXPTFT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="must be given"):
        cli.main(["finetune"])


def test_ctrl_c_outside_a_run_leaves_with_130(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert cli.main(["finetune"]) == 130


def test_a_defect_is_not_told_as_a_mistake(monkeypatch):
    def defective(*_):
        raise TypeError("a defect")

    monkeypatch.setattr(cli, "_run", defective)
    with pytest.raises(TypeError, match="a defect"):
        cli.main(["finetune"])


def parsed(*arguments: str):
    return cli._parse(config_of("finetune"), "finetune", list(arguments))


def test_flags_make_a_config():
    flags = ("--optimizer.weight-decay", "0.5", "--freeze", "backbone/embeddings/**,**/bias", "--from-scratch")
    config = parsed(*FINETUNE[1:], *flags, "--batch_size=8", "--allow-unused", "a.*", "b")
    assert (config.optimizer.weight_decay, config.from_scratch, config.batch_size) == (0.5, True, 8)
    assert config.freeze == "backbone/embeddings/**,**/bias"
    assert config.allow_unused == ("a.*", "b")


def test_a_file_gives_values_and_flags_override_them(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: m\nsteps: 9\noptimizer: {warmup: 0.5}\nfreeze: [a/**, b/**]\nfrom_scratch: true\n")
    given = ("--train", "t.csv", "--out", "o", "--steps", "4", "--no-from-scratch")
    for config_flag in (["--config", str(file)], [f"--config={file}"]):
        config = parsed(*config_flag, *given)
        assert (config.model, config.steps, config.optimizer.warmup, config.freeze) == ("m", 4, 0.5, "a/**,b/**")
        assert config.from_scratch is False
        assert config.optimizer.b1 == 0.9


def test_a_mistake_in_the_file_names_the_file(refused, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("stesp: 9\n")
    complaint = refused(*FINETUNE, "--config", str(file))
    assert complaint == f"{file}: unknown key 'stesp'; did you mean 'steps'?"


flag_names = st.sampled_from([f"--{key.replace('_', '-')}" for key in keys(config_of("finetune"))])
words = st.one_of(
    st.sampled_from(["1", "0", "-1", "1e-3", "inf", "nan", "none", "None", "True", "x", "", "a/**", "--", "-"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6),
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.lists(st.tuples(st.one_of(flag_names, st.just("--stpes")), words), max_size=3))
def test_any_flags_make_a_config_or_a_mistake_that_is_told(pairs):
    arguments = [*FINETUNE[1:], *(part for pair in pairs for part in pair)]
    assume("--resume" not in arguments)  # it reads the folder
    try:
        assert parsed(*arguments).train
    except ValueError as error:
        told = str(error)
    else:
        return
    assert told.strip()
    assert not set(told) & set("╭│╯")
