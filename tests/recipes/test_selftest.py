"""`jaxptft selftest`: it passes here, and each thing that may be wrong with a machine makes it fail."""

import re
import signal
from types import SimpleNamespace

import jax
import pytest

from jaxptft import train
from jaxptft.recipes import selftest


@pytest.fixture
def quiet(tmp_path):
    """A function: the names of checks -> all that is said, and the outcomes or the error."""

    def check(*names):
        said: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(selftest, "CHECKS", {name: selftest.CHECKS[name] for name in names})
            try:
                found = selftest.run(selftest.Config(folder=tmp_path), say=said.append)
            except RuntimeError as error:
                found = error
        assert not any(tmp_path.iterdir())  # nothing stays
        return "\n".join(said), found

    return check


@pytest.mark.slow
def test_eight_devices_pass(quiet):
    said, found = quiet("devices", "one step", "save and restore")
    assert [(one.name, one.passed) for one in found] == [
        ("devices", True),
        ("one step", True),
        ("save and restore", True),
    ], said
    assert found[0].detail.startswith("8 x cpu (cpu), jax ")
    assert "one device, all devices, pmap, state cut over all, two micro-steps: gradients within" in found[1].detail
    assert said.count("pass") == 3
    assert "FAIL" not in said


@pytest.mark.slow
def test_a_kill_is_survived(quiet, monkeypatch):
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS", raising=False)
    said, found = quiet("kill and resume")
    assert not isinstance(found, Exception), said
    assert "the same to the bit" in found[0].detail


def test_devices_that_multiply_wrongly_are_told(quiet, monkeypatch):
    matmul = jax.numpy.matmul
    monkeypatch.setattr(jax.numpy, "matmul", lambda *args, **options: matmul(*args, **options).at[3, 4].add(0.01))
    said, found = quiet("devices", "save and restore")
    assert str(found).startswith("1 of 2 checks failed: devices: ")
    assert "multiplies two matrices wrongly, by up to 0.01" in str(found)
    assert (said.count("FAIL"), said.count("pass")) == (1, 1)  # the others are tried all the same


@pytest.mark.slow
def test_steps_that_differ_are_told(quiet, monkeypatch):
    make_step = train.make_step

    def wrong(objective, optimizer, *, trainable, **options):
        step = make_step(objective, optimizer, trainable=trainable, **options)

        def other(state, constants, batch):
            after, metrics = step(state, constants, batch)
            return after._replace(params=jax.tree.map(lambda leaf: leaf * 1.001, after.params)), metrics

        return other if any(options.values()) else step

    monkeypatch.setattr(train, "make_step", wrong)
    _, found = quiet("one step")
    assert "relative to its largest entry: all devices by 0.0" in str(found)
    assert ", pmap by 0.0" in str(found)
    assert ", two micro-steps by 0.0" in str(found)


def test_damage_that_is_not_found_is_told(quiet, monkeypatch):
    monkeypatch.setattr(train.checkpoint, "verify", lambda path: 0)
    _, found = quiet("save and restore")
    assert re.fullmatch(r"1 of 1 checks failed: save and restore: a flipped bit in \w+ was not found", str(found)), (
        found
    )


def test_what_is_restored_wrongly_is_told(quiet, monkeypatch):
    restore = train.CheckpointStore.restore

    def rounded(store, like, **options):
        step, tree, meta = restore(store, like, **options)
        return step, tree | {"spread": tree["spread"] + 1e-6}, meta

    monkeypatch.setattr(train.CheckpointStore, "restore", rounded)
    _, found = quiet("save and restore")
    assert str(found) == "1 of 1 checks failed: save and restore: what was restored is not what was saved"


def ended(status, told=""):
    return SimpleNamespace(
        poll=lambda: status,
        send_signal=lambda number: None,
        communicate=lambda timeout: (None, told),
        returncode=status,
    )


def test_a_run_that_ends_otherwise_is_told(quiet, monkeypatch):
    monkeypatch.setattr(selftest, "_start", lambda *flags: ended(2, "first\njaxptft: error: no room\n"))
    _, found = quiet("kill and resume")
    why = "a run ended with status 2, not 0; it said: jaxptft: error: no room"
    assert str(found) == f"1 of 1 checks failed: kill and resume: {why}"


def test_a_resumed_run_that_differs_is_told(tmp_path, monkeypatch):
    statuses = iter([0, -signal.SIGKILL, 128 + signal.SIGTERM, 0])

    def start(*flags):
        out = flags[flags.index("--out") + 1]
        model = tmp_path / out / "model"
        model.mkdir(parents=True, exist_ok=True)
        (model / "model.safetensors").write_text(out)
        (tmp_path / out / "metrics.jsonl").write_text("the same")
        return ended(next(statuses))

    monkeypatch.setattr(selftest, "_start", start)
    with pytest.raises(selftest.Failed, match=r"model.safetensors of the run that was killed and resumed differs"):
        selftest.check_resume(tmp_path, 10.0)
    assert next(statuses, None) is None


def test_a_run_that_never_ends_is_told():
    started = selftest.subprocess.Popen(["sleep", "60"], stderr=selftest.subprocess.PIPE, text=True)
    with pytest.raises(selftest.Failed, match=r"a run did not end within 0.1 seconds"):
        selftest._await_end(started, 0, 0.1)
    assert started.poll() == -signal.SIGKILL


def test_a_folder_that_is_none(refused, tmp_path):
    assert refused("selftest", "--folder", tmp_path / "absent") == (
        f"{tmp_path / 'absent'} is no folder; make it, or leave folder out"
    )
